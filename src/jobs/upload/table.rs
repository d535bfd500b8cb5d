//! One dataset of an upload with its table: what shape rows must have now, and how that shape is found, created and grown.

use std::sync::Arc;

use tokio::sync::RwLock;

use super::super::datasets::{Dataset, Layout};
use super::patience;
use super::shape::{Fields, Shape};
use crate::warehouse::{SharedWarehouse, WarehouseError};

/// A dataset and what is known of its table.
pub(super) struct Table {
    /// The dataset's name.
    pub(super) name: String,
    /// Its settings.
    pub(super) dataset: Dataset,
    known: RwLock<Option<Known>>,
}

#[derive(Clone)]
struct Known {
    shape: Arc<Shape>,
    exists: bool,
}

impl Table {
    pub(super) fn new(name: &str, dataset: &Dataset) -> Self {
        Self { name: name.to_owned(), dataset: dataset.clone(), known: RwLock::new(None) }
    }

    /// The shape that rows must have, asked of the warehouse the first time.
    pub(super) async fn shape(&self, warehouse: &SharedWarehouse) -> Result<Arc<Shape>, WarehouseError> {
        if let Some(known) = &*self.known.read().await {
            return Ok(Arc::clone(&known.shape));
        }
        let mut known = self.known.write().await;
        if let Some(known) = &*known {
            return Ok(Arc::clone(&known.shape));
        }
        let found = patience::warehouse(|| warehouse.schema(&self.dataset.table)).await?;
        let shape = Shape::for_dataset(&self.dataset, found.as_ref()).map_err(|reason| WarehouseError::Refused {
            service: warehouse.describe(),
            doing: format!("dataset {} into table {}", self.name, self.dataset.table),
            reason,
            cure: "Name another table or layout in jobs.toml".to_owned(),
        })?;
        let shape = Arc::new(shape);
        *known = Some(Known { shape: Arc::clone(&shape), exists: found.is_some() });
        Ok(shape)
    }

    /// Whether the table is there already, as far as known.
    pub(super) async fn exists(&self) -> bool {
        self.known.read().await.as_ref().is_some_and(|known| known.exists)
    }

    /// Takes up fields that the data shows and the table lacks. They become columns with the next load.
    pub(super) async fn grow(&self, fields: &Fields) {
        if let Some(known) = &mut *self.known.write().await {
            tracing::info!(dataset = %self.name, table = %self.dataset.table, columns = ?fields.names(), "new columns");
            let mut shape = (*known.shape).clone();
            shape.grow(fields);
            known.shape = Arc::new(shape);
        }
    }

    /// Creates the table if it is not there. Layout `json` needs no data for that; layout `columns` has seen some by now.
    pub(super) async fn ensure(&self, warehouse: &SharedWarehouse) -> Result<(), WarehouseError> {
        self.shape(warehouse).await?;
        let mut known = self.known.write().await;
        let known = known.as_mut().expect("shape() has filled it");
        if !known.exists {
            let schema = known.shape.new_table(&self.dataset);
            tracing::info!(dataset = %self.name, table = %self.dataset.table, "creating the table");
            let created = patience::warehouse(|| warehouse.create(&self.dataset.table, &schema)).await;
            // Somebody else may have created it, perhaps with other columns: what counts is what is there now.
            let found = patience::warehouse(|| warehouse.schema(&self.dataset.table)).await?;
            let mut shape = match (found, created) {
                (Some(found), _) => Shape::of(found.columns),
                (None, Ok(())) => Shape::of(schema.columns),
                (None, Err(error)) => return Err(error),
            };
            shape.body_is_text = known.shape.body_is_text;
            for column in &known.shape.columns {
                shape.ensure(&column.name, column.column_type.clone());
            }
            *known = Known { shape: Arc::new(shape), exists: true };
        }
        Ok(())
    }

    /// Whether rows can be written only once some data has shown the columns.
    pub(super) fn learns_from_data(&self) -> bool {
        self.dataset.layout == Layout::Columns
    }
}
