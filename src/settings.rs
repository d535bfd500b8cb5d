//! Reads `jobs.toml` and the environment, joins the rooms' own settings, and reports every mistake at once.
//!
//! Later wins: built-in defaults, the file, `LAMPLIGHTER__SECTION__KEY`. The environment is handed in, never asked for.

mod backends;
mod file;
mod google;
mod layers;
mod masking;
mod problems;
mod report;
mod variables;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

pub use self::backends::{Backends, CacheChoice, HistoryChoice, WarehouseChoice};
pub use self::google::GoogleCredentials;
use self::problems::Source;
pub use self::problems::{Problem, Problems};
pub use self::variables::Env;
use self::variables::Variables;
use crate::alerts::ReceiverSettings;
use crate::document::{self, Entry, Fault, Reading, Scope, Table, What, add_further};
use crate::jobs::{Dataset, Datasets, Defaults, JobSpec, Place, Registry};

/// The sections of jobs.toml.
const SECTIONS: [&str; 4] = ["defaults", "receivers", "datasets", "jobs"];

/// Who is told where nobody else is: it is always there.
const CONSOLE: &str = "console";

/// Faults that are turned into problems. More than that is not somebody's typing.
const MOST_FAULTS: usize = 200;

/// Everything that people can set, checked.
#[derive(Clone)]
pub struct Settings {
    /// The file it came from.
    pub file: PathBuf,
    /// The jobs, by name.
    pub jobs: Vec<JobSpec>,
    /// The datasets.
    pub datasets: Arc<Datasets>,
    /// Who can be told: those that are on, and always `console`.
    pub receivers: BTreeMap<String, ReceiverSettings>,
    /// The servers.
    pub backends: Backends,
    /// What is worth knowing at start: receivers that are off, variables without effect.
    pub notes: Vec<String>,
    /// The datasets that each job names.
    datasets_of: BTreeMap<String, Vec<String>>,
}

/// By convention, `datasets = [...]` in any job names `[datasets]` tables.
#[derive(Deserialize)]
struct DatasetNames {
    datasets: Option<Vec<Name>>,
}

impl Settings {
    /// Reads the file named by `config` (from `--config`), else by `LAMPLIGHTER_CONFIG`, else `jobs.toml` in this folder.
    ///
    /// # Errors
    /// Everything that is wrong with the file and the environment.
    pub fn load(config: Option<&Path>, env: &Env, kinds: &Registry) -> Result<Self, Problems> {
        let (path, text) = file::read(config, Variables(env))?;
        Self::parse(&path, &text, env, kinds)
    }

    /// Reads a file's text; `path` is what it is called in messages.
    ///
    /// # Errors
    /// Everything that is wrong with it and with the environment.
    pub fn parse(path: &Path, text: &str, env: &Env, kinds: &Registry) -> Result<Self, Problems> {
        let name = path.display().to_string();
        let mut source = Source::new(&name, text);
        let variables = Variables(env);
        let (backends, mut problems) = match Backends::from_env(env) {
            Ok(backends) => (Some(backends), Vec::new()),
            Err(problems) => (None, problems.iter().cloned().collect()),
        };
        let mut root = match document::parse(text) {
            Ok(root) => root,
            Err(error) => {
                problems.push(Problem::syntax(&source, &error));
                return Err(Problems::new(problems));
            }
        };
        problems.extend(layers::overlay(&mut root, variables));
        let filled = layers::fill_in(&mut root, variables);
        masking::mark(&mut root);
        source.hide(masking::secret_places(&root));
        problems.extend(filled.problems);

        let mut reader = Reader { root: &root, faults: filled.faults, unfilled: filled.unfilled, kinds };
        reader.sections();
        let off = filled.off;
        let receivers = reader.receivers(&off);
        let default_database = match backends.as_ref().map(|backends| &backends.cache) {
            Some(CacheChoice::Redis { database, .. }) => *database,
            _ => 0,
        };
        let datasets = reader.datasets(default_database);
        let (mut jobs, datasets_of) = reader.jobs(&datasets);
        let mut faults = reader.faults;
        faults.truncate(MOST_FAULTS);
        problems.extend(faults.iter().map(|fault| Problem::fault(&source, &root, fault)));
        let (Some(backends), true) = (backends, problems.is_empty()) else { return Err(Problems::new(problems)) };

        let mut notes = backends.notes.clone();
        for (receiver, variable) in &off {
            notes.push(format!("receiver {receiver} is off, because {variable} is not set; jobs that notify nobody else tell the console"));
        }
        for job in &mut jobs {
            let wanted = job.notify.len();
            job.notify.retain(|receiver| receivers.contains_key(receiver));
            if job.notify.is_empty() && wanted > 0 {
                job.notify.push(CONSOLE.to_owned());
            }
        }
        if jobs.is_empty() {
            notes.push(format!("{name} has no jobs: nothing will ever run"));
        }
        Ok(Self { file: path.to_owned(), jobs, datasets: Arc::new(datasets), receivers, backends, notes, datasets_of })
    }

    /// The job of this name.
    pub fn job(&self, name: &str) -> Option<&JobSpec> {
        self.jobs.iter().find(|job| job.name == name)
    }
}

/// Reads the sections of a document and gathers what is wrong with them.
struct Reader<'t> {
    root: &'t Table,
    faults: Vec<Fault>,
    unfilled: BTreeSet<document::Path>,
    kinds: &'t Registry,
}

impl<'t> Reader<'t> {
    /// Takes faults down, but none about a value whose `${VARIABLE}` is unset or in which a closer fault is known.
    fn blame(&mut self, faults: impl IntoIterator<Item = Fault>) {
        for fault in faults {
            let path = fault.path.clone().unwrap_or_default();
            let said = |known: &Fault| known.path.as_ref().is_some_and(|known| *known != path && path.holds(known));
            let about_value = matches!(fault.what, What::Said(_));
            if self.faults.len() >= MOST_FAULTS {
                return;
            }
            if !self.unfilled.contains(&path) && (!about_value || !self.faults.iter().any(said)) {
                self.faults.push(fault);
            }
        }
    }

    /// Checks that there are only the known sections, and that each is a table.
    fn sections(&mut self) {
        for (name, entry) in self.root {
            let path = document::Path::of(&[name]);
            if !SECTIONS.contains(&name.as_str()) {
                let what = What::UnknownKey { key: name.clone(), choices: SECTIONS.to_vec() };
                self.blame([Fault::at(document::Path::default(), what)]);
            } else if entry.node.table().is_none() {
                self.blame([not_a_table(path, entry, "a table")]);
            }
        }
    }

    /// The tables of a section, by name.
    fn tables(&mut self, section: &str) -> Vec<(&'t str, Reading<'t>)> {
        let Some(named) = self.root.get(section).and_then(|entry| entry.node.table()) else { return Vec::new() };
        let mut tables = Vec::new();
        for (name, entry) in named {
            let path = document::Path::of(&[section, name]);
            let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || name.len() > 100 || !name.chars().all(fine) {
                let sentence = "a name has 1 to 100 letters, digits, - and _";
                self.blame([Fault::said(path.clone(), sentence)]);
            }
            match entry.node.table() {
                Some(table) => tables.push((name.as_str(), Reading { table, path })),
                None => {
                    let expected = format!("a table, [{section}.NAME]");
                    self.blame([not_a_table(path, entry, &expected)]);
                }
            }
        }
        tables
    }

    fn receivers(&mut self, off: &BTreeMap<String, String>) -> BTreeMap<String, ReceiverSettings> {
        let mut receivers = BTreeMap::from([(CONSOLE.to_owned(), ReceiverSettings::console(CONSOLE))]);
        for (name, table) in self.tables("receivers") {
            match ReceiverSettings::read(name, &table) {
                Ok(receiver) if !off.contains_key(name) => {
                    receivers.insert(name.to_owned(), receiver);
                }
                Ok(_) => {}
                Err(faults) => self.blame(faults),
            }
        }
        receivers
    }

    fn datasets(&mut self, default_database: u16) -> Datasets {
        let mut datasets = Datasets::new();
        let mut places: Vec<(&str, Place)> = Vec::new();
        for (name, table) in self.tables("datasets") {
            if let Ok(place) = table.read::<Place>(Scope::Known) {
                if let Some((other, _)) = places.iter().find(|(_, earlier)| earlier.is_same(&place)) {
                    let sentence = format!(
                        "dataset `{other}` has the same keys on the same queue; nothing tells their records apart"
                    );
                    self.blame([Fault::said(table.path.key("keys"), sentence)]);
                }
                places.push((name, place));
            }
            let (dataset, mut faults) = table.read_around::<Dataset>(Scope::All);
            let Some(mut dataset) = dataset else {
                self.blame(faults);
                continue;
            };
            // The keys that other checks compare: made-up ones would be found to clash.
            let compared = ["database", "queue", "table", "layout"].map(|key| table.path.key(key));
            let sound = !faults.iter().any(|fault| compared.contains(&fault.place()));
            if !table.table.contains_key("database") {
                dataset.database = default_database;
            }
            let clashes = datasets.iter().filter_map(|(other, earlier)| dataset.clash(other, earlier));
            let mistakes = dataset.validate().into_iter().chain(clashes);
            add_further(&mut faults, mistakes.map(|(key, sentence)| Fault::said(table.path.key(key), sentence)));
            self.blame(faults);
            if sound {
                datasets.insert(name.to_owned(), dataset);
            }
        }
        datasets
    }

    fn jobs(&mut self, datasets: &Datasets) -> (Vec<JobSpec>, BTreeMap<String, Vec<String>>) {
        let mut defaults = Defaults::default();
        if let Some(table) = self.root.get("defaults").and_then(|entry| entry.node.table()) {
            let table = Reading { table, path: document::Path::of(&["defaults"]) };
            self.notified(&table);
            match table.read::<Defaults>(Scope::All) {
                Ok(read) => defaults = read,
                Err(faults) => self.blame(faults),
            }
        }
        let console = [CONSOLE.to_owned()];
        let (mut jobs, mut datasets_of) = (Vec::new(), BTreeMap::new());
        for (name, table) in self.tables("jobs") {
            self.notified(&table);
            datasets_of.insert(name.to_owned(), self.named_datasets(&table));
            match JobSpec::read(name, &table, &defaults, self.kinds, datasets, &console) {
                Ok(job) => jobs.push(job),
                Err(faults) => self.blame(faults),
            }
        }
        (jobs, datasets_of)
    }

    /// Checks that the receivers in `notify` exist.
    fn notified(&mut self, table: &Reading<'_>) {
        #[derive(Deserialize)]
        struct Notify {
            notify: Option<Vec<Name>>,
        }
        let Ok(Notify { notify: Some(names) }) = table.read::<Notify>(Scope::Known) else { return };
        let mut known = self.names_in("receivers");
        if !known.contains(&CONSOLE) {
            known.push(CONSOLE);
        }
        self.check_names(&table.path.key("notify"), "receiver", &names, &known);
    }

    /// Checks that the datasets in `datasets` exist, and returns them.
    fn named_datasets(&mut self, table: &Reading<'_>) -> Vec<String> {
        let Ok(DatasetNames { datasets: Some(names) }) = table.read::<DatasetNames>(Scope::Known) else {
            return Vec::new();
        };
        let path = table.path.key("datasets");
        if names.is_empty() {
            self.blame([Fault::said(path.clone(), "a job needs at least one dataset")]);
        }
        let known = self.names_in("datasets");
        self.check_names(&path, "dataset", &names, &known);
        let texts = names.into_iter().filter_map(|name| if let Name::Text(name) = name { Some(name) } else { None });
        texts.collect()
    }

    fn names_in(&self, section: &str) -> Vec<&'t str> {
        let table = self.root.get(section).and_then(|entry| entry.node.table());
        table.map(|table| table.keys().map(String::as_str).collect()).unwrap_or_default()
    }

    fn check_names(&mut self, list: &document::Path, noun: &'static str, names: &[Name], known: &[&str]) {
        let mut seen = BTreeSet::new();
        for (index, name) in names.iter().enumerate() {
            let Name::Text(name) = name else { continue };
            if self.faults.len() >= MOST_FAULTS {
                return;
            }
            let path = list.index(index);
            if !seen.insert(name) {
                self.blame([Fault::said(path, format!("the same {noun} is named twice"))]);
            } else if !known.contains(&name.as_str()) {
                let choices: Vec<String> = known.iter().map(|name| (*name).to_owned()).collect();
                // A filled-in name is shown as it was written.
                let (found, whole) = path.find(self.root);
                let hidden =
                    found.and_then(|(_, node)| node.text()).filter(|_| whole).map(|text| text.shown().to_owned());
                let found = hidden.unwrap_or_else(|| name.clone());
                self.blame([Fault::at(path, What::NoSuch { noun, found, choices })]);
            }
        }
    }
}

/// An item of a list of names. What is no text is no name, and is told about where the list is read as a whole.
#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Other(IgnoredAny),
}

fn not_a_table(path: document::Path, entry: &Entry, expected: &str) -> Fault {
    Fault::at(path, What::WrongType { found: entry.node.sort().to_owned(), expected: expected.to_owned() })
}
