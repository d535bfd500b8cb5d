//! Columns in the JSON that BigQuery's `TableFieldSchema` has. SQLite keeps its schemas in the same form.

use serde_json::{Map, Value, json};

use super::{Column, ColumnType, Mode};

/// The columns as a list of fields.
pub(super) fn to_json(columns: &[Column]) -> Value {
    columns.iter().map(field).collect()
}

/// One column as a field.
pub(super) fn field(column: &Column) -> Value {
    let mut field = Map::new();
    field.insert("name".into(), json!(column.name));
    field.insert("type".into(), json!(type_name(&column.column_type)));
    field.insert("mode".into(), json!(mode_name(column.mode)));
    if let ColumnType::Record(inner) = &column.column_type {
        field.insert("fields".into(), to_json(inner));
    }
    Value::Object(field)
}

/// The columns in a list of fields; those that are not fields are left out.
pub(super) fn from_json(fields: &Value) -> Vec<Column> {
    fields.as_array().into_iter().flatten().filter_map(column).collect()
}

fn column(field: &Value) -> Option<Column> {
    let column_type = match field["type"].as_str()?.to_ascii_uppercase().as_str() {
        "STRING" => ColumnType::String,
        "INTEGER" | "INT64" => ColumnType::Integer,
        "FLOAT" | "FLOAT64" => ColumnType::Float,
        "NUMERIC" => ColumnType::Numeric,
        "BIGNUMERIC" => ColumnType::BigNumeric,
        "BOOLEAN" | "BOOL" => ColumnType::Boolean,
        "TIMESTAMP" => ColumnType::Timestamp,
        "DATE" => ColumnType::Date,
        "TIME" => ColumnType::Time,
        "DATETIME" => ColumnType::DateTime,
        "JSON" => ColumnType::Json,
        "BYTES" => ColumnType::Bytes,
        "RECORD" | "STRUCT" => ColumnType::Record(from_json(&field["fields"])),
        other => ColumnType::Other(other.to_owned()),
    };
    let mode = match field["mode"].as_str() {
        Some("REQUIRED") => Mode::Required,
        Some("REPEATED") => Mode::Repeated,
        _ => Mode::Nullable,
    };
    Some(Column { name: field["name"].as_str()?.to_owned(), column_type, mode })
}

/// The type's name in BigQuery.
pub(super) fn type_name(column_type: &ColumnType) -> &str {
    match column_type {
        ColumnType::String => "STRING",
        ColumnType::Integer => "INTEGER",
        ColumnType::Float => "FLOAT",
        ColumnType::Numeric => "NUMERIC",
        ColumnType::BigNumeric => "BIGNUMERIC",
        ColumnType::Boolean => "BOOLEAN",
        ColumnType::Timestamp => "TIMESTAMP",
        ColumnType::Date => "DATE",
        ColumnType::Time => "TIME",
        ColumnType::DateTime => "DATETIME",
        ColumnType::Json => "JSON",
        ColumnType::Bytes => "BYTES",
        ColumnType::Record(_) => "RECORD",
        ColumnType::Other(name) => name,
    }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Nullable => "NULLABLE",
        Mode::Required => "REQUIRED",
        Mode::Repeated => "REPEATED",
    }
}

/// What has to be added to a table so that it can take a load.
///
/// # Errors
/// The first column that the table has with another type, in words.
pub(super) fn additions(table: &[Column], load: &[Column]) -> Result<Vec<Column>, String> {
    let mut new: Vec<Column> = Vec::new();
    for column in load {
        let same_name = |known: &&Column| known.name.eq_ignore_ascii_case(&column.name);
        match table.iter().chain(&new).find(same_name) {
            Some(known) if type_name(&known.column_type) != type_name(&column.column_type) => {
                return Err(format!(
                    "column {} is {} in the table and {} in the load",
                    column.name,
                    type_name(&known.column_type),
                    type_name(&column.column_type)
                ));
            }
            Some(known) if (known.mode == Mode::Repeated) != (column.mode == Mode::Repeated) => {
                return Err(format!("column {} is a list in one of the table and the load, not in both", column.name));
            }
            Some(_) => {}
            None => {
                // Rows that are in the table already have no value for it, so it cannot be required.
                let mode = if column.mode == Mode::Required { Mode::Nullable } else { column.mode };
                new.push(Column { mode, ..column.clone() });
            }
        }
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_and_mode_comes_back_from_json() {
        let inner = vec![Column::required("name", ColumnType::String)];
        let types = [
            ColumnType::String,
            ColumnType::Integer,
            ColumnType::Float,
            ColumnType::Numeric,
            ColumnType::BigNumeric,
            ColumnType::Boolean,
            ColumnType::Timestamp,
            ColumnType::Date,
            ColumnType::Time,
            ColumnType::DateTime,
            ColumnType::Json,
            ColumnType::Bytes,
            ColumnType::Record(inner),
            ColumnType::Other("RANGE".into()),
        ];
        for column_type in types {
            for mode in [Mode::Nullable, Mode::Required, Mode::Repeated] {
                let columns = vec![Column { name: "c".into(), column_type: column_type.clone(), mode }];
                assert_eq!(from_json(&to_json(&columns)), columns);
            }
        }
    }

    #[test]
    fn a_load_adds_what_the_table_lacks_as_nullable_columns() {
        let table = [Column::required("id", ColumnType::String)];
        let load = [Column::nullable("ID", ColumnType::String), Column::required("amount", ColumnType::Float)];
        assert_eq!(additions(&table, &load), Ok(vec![Column::nullable("amount", ColumnType::Float)]));
    }

    #[test]
    fn a_load_never_changes_a_type() {
        let table = [Column::required("id", ColumnType::String)];
        let complaint = additions(&table, &[Column::nullable("Id", ColumnType::Integer)]).unwrap_err();
        assert!(complaint.contains("Id is STRING in the table and INTEGER in the load"), "{complaint}");
    }
}
