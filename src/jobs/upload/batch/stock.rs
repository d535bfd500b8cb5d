//! Taking stock of a batch that a dead process left: which of its loads are in the warehouse, under whatever names.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::reading::{Leg, Note, NotedTable};
use super::super::run::UploadError;
use super::super::table::Table;
use super::{Batch, Failures, Verdict, fresh};

/// What became of the loads that were begun under a dataset's name.
struct Loads {
    /// The readings whose rows are in the warehouse, each with the number that the dataset has in it.
    covered: Vec<(u32, u8)>,
    /// Whether something may be left to load.
    open: bool,
    /// Number of the next load.
    next: u32,
}

impl Batch {
    /// Asks the warehouse what became of the loads that were begun for this batch, under whatever names.
    pub(super) async fn take_stock(&mut self) -> Result<(), UploadError> {
        let readings = self.noted().await?;
        self.readings = readings.len() as u32;
        let noted = || readings.iter().flat_map(|(_, note)| &note.tables);
        let mut covered = Vec::new();
        let mut strangers: BTreeSet<&str> = noted().map(|noted| noted.dataset.as_str()).collect();
        for table in self.run.tables.clone() {
            let name = name_in_batch(&table, &self.run.tables, &readings);
            strangers.remove(name.as_str());
            let begun: Vec<&NotedTable> = noted().filter(|noted| noted.dataset == name).collect();
            let loads = self.loads(&name, &begun).await?;
            covered.extend(loads.covered);
            if loads.open {
                let leg = Leg { name, attempt: loads.next, ..fresh(&table) };
                self.legs.push((leg, Failures::default()));
            }
        }
        // Of datasets that are not configured any more: what is in the warehouse must not be sent again by whom their keys fall to.
        for name in strangers {
            let begun: Vec<&NotedTable> = noted().filter(|noted| noted.dataset == name).collect();
            covered.extend(self.loads(name, &begun).await?.covered);
        }
        for (leg, _) in &mut self.legs {
            leg.covered.clone_from(&covered);
        }
        Ok(())
    }

    /// What became of the loads that were begun under a dataset's name.
    async fn loads(&self, name: &str, begun: &[&NotedTable]) -> Result<Loads, UploadError> {
        let mut loads = Loads { covered: Vec::new(), open: true, next: 1 };
        let last = begun.iter().map(|noted| noted.attempt).max().unwrap_or(0);
        while loads.next <= last {
            let into = begun.iter().find(|noted| noted.attempt == loads.next).or(begun.first());
            let Some(into) = into.and_then(|noted| noted.table()) else { break };
            match self.ask(name, loads.next, &into, None).await? {
                Verdict::Loaded { reading, number, whole } => {
                    loads.covered.push((reading, number));
                    loads.open = !whole;
                }
                Verdict::Failed(_) => {}
                Verdict::Absent => break,
            }
            loads.next += 1;
        }
        Ok(loads)
    }
}

/// What the loads of a batch into a table are called after: the dataset, or, should it have been renamed since the batch was
/// first read, its name at that time. Under another name a load that is still on its way could succeed twice.
pub(in crate::jobs::upload) fn name_in_batch(table: &Table, tables: &[Arc<Table>], readings: &[(u32, Note)]) -> String {
    let mut noted = readings.iter().flat_map(|(_, note)| &note.tables);
    let configured = |name: &str| tables.iter().any(|table| table.name == name);
    let own = noted.clone().any(|noted| noted.dataset == table.name);
    let place = table.dataset.table.to_string();
    match noted.find(|noted| !own && noted.table == place && !configured(&noted.dataset)) {
        Some(before) => before.dataset.clone(),
        None => table.name.clone(),
    }
}
