use serde_json::{Value, json};

use super::*;

use crate::warehouse::{Column, ColumnType, TableSchema};

const AT: &str = "2026-01-02T03:04:05.000000Z";

fn dataset(layout: &str, more: &str) -> Dataset {
    let text = format!("queue = \"q\"\nkeys = \"pred:{{id}}\"\ntable = \"d.t\"\nlayout = \"{layout}\"\n{more}");
    toml::from_str(&text).unwrap()
}

fn encode_with(dataset: &Dataset, shape: &Shape, value: &[u8]) -> (Result<Value, Rejection>, Fields) {
    let (mut fields, mut out) = (Fields::default(), b"before".to_vec());
    let result = Encoder { dataset, shape, ingested_at: AT }.encode(value, &mut fields, &mut out);
    let row = out.strip_prefix(b"before").expect("what was there stays").to_vec();
    let row = match result {
        Ok(()) if row.is_empty() => Ok(Value::Null),
        Ok(()) => {
            assert_eq!(row.iter().filter(|c| **c == b'\n').count(), 1, "a row is one line: {row:?}");
            Ok(serde_json::from_slice(&row).expect("a row is JSON"))
        }
        Err(rejection) => {
            assert!(row.is_empty(), "a rejected record leaves nothing behind");
            Err(rejection)
        }
    };
    (row, fields)
}

fn json_row(value: &[u8]) -> Result<Value, Rejection> {
    let dataset = dataset("json", "");
    let shape = Shape::for_dataset(&dataset, None).unwrap();
    encode_with(&dataset, &shape, value).0
}

fn predictions() -> Shape {
    let columns = vec![
        Column::nullable("prediction_id", ColumnType::String),
        Column::nullable("score", ColumnType::Float),
        Column::nullable("count", ColumnType::Integer),
        Column::nullable("at", ColumnType::Timestamp),
        Column::nullable("models", ColumnType::Json),
        Column::nullable("ok", ColumnType::Boolean),
        Column { name: "tags".into(), column_type: ColumnType::String, mode: Mode::Repeated },
        Column::nullable("inner", ColumnType::Record(vec![Column::nullable("a", ColumnType::Integer)])),
    ];
    let table = TableSchema { columns, ..TableSchema::default() };
    Shape::for_dataset(&dataset("columns", ""), Some(&table)).unwrap()
}

fn columns_row(value: &str) -> (Result<Value, Rejection>, Fields) {
    encode_with(&dataset("columns", ""), &predictions(), value.as_bytes())
}

#[test]
fn only_the_white_space_of_json_may_stand_around_a_record() {
    assert!(json_row(b" \t\r\n{\"_timestamp\": 1}\n").is_ok());
    for around in ["\u{b}", "\u{c}", "\u{a0}", "\u{2003}", "\u{feff}"] {
        for text in [format!("{around}{{\"_timestamp\": 1}}"), format!("{{\"_timestamp\": 1}}{around}")] {
            assert_eq!(json_row(text.as_bytes()).unwrap_err().reason, "not_json", "{text:?}");
        }
    }
}

#[test]
fn a_time_that_is_not_a_number_is_no_time() {
    let rejection = json_row(br#"{"_timestamp": NaN, "a": 1}"#).unwrap_err();
    assert_eq!((rejection.reason, rejection.detail.contains("is null")), ("schema", true), "{}", rejection.detail);
}

#[test]
fn layout_json_wraps_the_whole_record() {
    let record = json!({"transaction_id": "tx_1", "amount": 299.99, "_timestamp": "2025-09-27T14:30:00.123456"});
    let row = json_row(record.to_string().as_bytes()).unwrap();
    let expected =
        json!({"_timestamp": "2025-09-27T14:30:00.123456Z", "json_body": record, "_ingestion_timestamp": AT});
    assert_eq!(row, expected);
}

#[test]
fn a_pretty_printed_record_becomes_one_line() {
    let row = json_row(b"{\r\n  \"_timestamp\": \"2025-09-27T14:30:00Z\",\n  \"note\": \"a\\nb\"\n}\n").unwrap();
    assert_eq!(row["json_body"]["note"], "a\nb");
}

#[test]
fn what_python_writes_for_missing_numbers_becomes_null() {
    let value =
        br#"{"_timestamp":"2025-09-27T14:30:00","a":NaN,"b":[-Infinity,{"c":Infinity}],"d":"NaN \" NaN","e":-1}"#;
    let row = json_row(value).unwrap();
    let body = json!({"_timestamp":"2025-09-27T14:30:00","a":null,"b":[null,{"c":null}],"d":"NaN \" NaN","e":-1});
    assert_eq!(row["json_body"], body);

    let strict = dataset("json", "non_finite = \"reject\"");
    let shape = Shape::for_dataset(&strict, None).unwrap();
    let rejection = encode_with(&strict, &shape, value).0.unwrap_err();
    assert_eq!(rejection.reason, "not_json");
    assert!(rejection.detail.contains("non_finite"), "{}", rejection.detail);
}

#[test]
fn what_is_no_record_says_why() {
    for (value, reason, part) in [
        (&b""[..], "not_json", "it is empty"),
        (b"{\"a\":", "not_json", "EOF"),
        (b"\x80\x04\x95", "not_json", "not UTF-8"),
        (b"{\"_timestamp\":\"2025-09-27T14:30:00Z\"} trailing", "not_json", "trailing"),
        (b"[1,2]", "not_an_object", "a list"),
        (b"\"text\"", "not_an_object", "text"),
        (b"17", "not_an_object", "a number"),
        (b"null", "not_an_object", "null"),
        (b"{\"amount\":1}", "schema", "`_timestamp` is missing"),
        (b"{\"_timestamp\":null}", "schema", "`_timestamp` is null"),
        (b"{\"_timestamp\":\"yesterday\"}", "schema", "should be a time"),
        (b"{\"a\":nan,\"_timestamp\":\"2025-09-27T14:30:00Z\"}", "not_json", ""),
    ] {
        let rejection = json_row(value).unwrap_err();
        assert_eq!(rejection.reason, reason, "{:?}: {}", String::from_utf8_lossy(value), rejection.detail);
        assert!(rejection.detail.contains(part), "{}", rejection.detail);
    }
}

#[test]
fn a_text_body_column_gets_the_record_as_text() {
    let dataset = dataset("json", "");
    let columns =
        vec![Column::required("_timestamp", ColumnType::Timestamp), Column::required("json_body", ColumnType::String)];
    let shape = Shape::for_dataset(&dataset, Some(&TableSchema { columns, ..TableSchema::default() })).unwrap();
    let (row, _) = encode_with(&dataset, &shape, br#"{"_timestamp":"2025-09-27T14:30:00Z","a":"b"}"#);
    assert_eq!(row.unwrap()["json_body"], r#"{"_timestamp":"2025-09-27T14:30:00Z","a":"b"}"#);
}

#[test]
fn layout_json_on_another_kind_of_table_is_refused() {
    let columns = vec![Column::nullable("amount", ColumnType::Float)];
    let table = TableSchema { columns, ..TableSchema::default() };
    let message = Shape::for_dataset(&dataset("json", ""), Some(&table)).unwrap_err();
    assert!(message.contains("_timestamp") && message.contains("amount"), "{message}");
}

#[test]
fn layout_columns_passes_what_fits() {
    let record = r#"{"prediction_id":"p","score":0.5,"count":3,"at":"2025-09-27T14:30:00.5","models":{"ridge":0.1,"x":"y"},
        "ok":true,"tags":["a","b"],"inner":{"a":1}}"#;
    let (row, fields) = columns_row(record);
    let mut expected: Value = serde_json::from_str(record).unwrap();
    expected["_ingestion_timestamp"] = AT.into();
    assert_eq!(row.unwrap(), expected);
    assert!(fields.is_empty());
}

#[test]
fn layout_columns_mends_what_can_be_mended() {
    for (record, expected) in [
        (r#"{"count":5.0}"#, json!({"count": 5})),
        (r#"{"count":"12"}"#, json!({"count": "12"})),
        (r#"{"at":"2025-09-27T14:30:00.123456789Z"}"#, json!({"at": "2025-09-27T14:30:00.123456Z"})),
        (r#"{"at":"2025-09-27 14:30:00+02:00"}"#, json!({"at": "2025-09-27T12:30:00.000000Z"})),
        (r#"{"at":1759000000}"#, json!({"at": "2025-09-27T19:06:40.000000Z"})),
        (
            r#"{"score":NaN,"count":NaN,"models":{"a":NaN}}"#,
            json!({"score": "NaN", "count": null, "models": {"a": null}}),
        ),
        (r#"{"score":-Infinity}"#, json!({"score": "-Infinity"})),
        (r#"{"score":1,"score":2}"#, json!({"score": 2})),
        (r#"{"SCORE":1}"#, json!({"SCORE": 1})),
        (r#"{"unknown":null,"score":1}"#, json!({"score": 1})),
        (r#"{"score":1,"_ingestion_timestamp":"1999-01-01T00:00:00Z"}"#, json!({"score": 1})),
        ("{}", json!({})),
    ] {
        let (row, fields) = columns_row(record);
        let mut expected = expected;
        expected["_ingestion_timestamp"] = AT.into();
        assert_eq!(row.unwrap(), expected, "{record}");
        assert!(fields.is_empty(), "{record}");
    }
}

#[test]
fn layout_columns_refuses_what_breaks_the_schema() {
    for (record, part) in [
        (r#"{"score":"high"}"#, "`score` should be a number, and is \"high\""),
        (r#"{"score":{"a":1}}"#, "`score`"),
        (r#"{"count":0.5}"#, "whole number"),
        (r#"{"count":99999999999999999999}"#, "whole number"),
        (r#"{"at":"soon"}"#, "should be a time"),
        (r#"{"prediction_id":{"a":1}}"#, "should be text"),
        (r#"{"ok":"maybe"}"#, "true or false"),
        (r#"{"tags":"a"}"#, "a list"),
        (r#"{"tags":["a",null]}"#, "null"),
        (r#"{"inner":[1]}"#, "an object"),
        (r#"{"inner":{"a":"x"}}"#, "`inner.a`"),
        (r#"{"score":1,"Score":2}"#, "the same column"),
        (r#"{"fresh":1,"Fresh":2}"#, "the same column"),
        (r#"{"no spaces":1}"#, "no column of that name"),
        (r#"{"_TABLE_x":1}"#, "no column of that name"),
    ] {
        let rejection = columns_row(record).0.expect_err(record);
        assert_eq!(rejection.reason, "schema", "{record}");
        assert!(rejection.detail.contains(part), "{record}: {}", rejection.detail);
    }
}

#[test]
fn new_fields_are_noted_with_their_type_and_become_columns() {
    let (row, fields) = columns_row(
        r#"{"a":1,"b":1.5,"c":"x","d":"2025-09-27T14:30:00","e":true,"f":{"g":1},"h":null,"i":NaN,"inner":{"z":2}}"#,
    );
    assert_eq!(row.unwrap(), Value::Null, "the row waits for its columns");
    let mut shape = predictions();
    let before = shape.columns.clone();
    shape.grow(&fields);
    let added: Vec<(String, ColumnType)> =
        shape.columns[before.len()..].iter().map(|c| (c.name.clone(), c.column_type.clone())).collect();
    let expected = [
        ("a", ColumnType::Integer),
        ("b", ColumnType::Float),
        ("c", ColumnType::String),
        ("d", ColumnType::Timestamp),
        ("e", ColumnType::Boolean),
        ("f", ColumnType::Json),
        ("i", ColumnType::Float),
    ];
    assert_eq!(added, expected.map(|(name, column_type)| (name.to_owned(), column_type)));
    let inner = shape.position("inner", 0).map(|at| &shape.columns[at].column_type);
    let members = vec![Column::nullable("a", ColumnType::Integer), Column::nullable("z", ColumnType::Integer)];
    assert_eq!(inner, Some(&ColumnType::Record(members)));
}

#[test]
fn mixed_types_widen_and_never_narrow() {
    for (a, b, widened) in [
        ("1", "2.5", ColumnType::Float),
        ("1", "\"x\"", ColumnType::String),
        ("true", "1", ColumnType::String),
        ("\"2025-09-27T14:30:00Z\"", "\"x\"", ColumnType::String),
        ("{}", "1", ColumnType::Json),
        ("null", "1", ColumnType::Integer),
    ] {
        let mut all = Fields::default();
        for value in [a, b] {
            all.merge(&columns_row(&format!("{{\"new\":{value}}}")).1);
        }
        let mut shape = Shape::default();
        shape.grow(&all);
        assert_eq!(shape.columns, [Column::nullable("new", widened)], "{a} and {b}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_become_a_row_or_a_reason(value in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let _ = json_row(&value);
        let _ = encode_with(&dataset("columns", ""), &predictions(), &value);
    }

    #[test]
    fn nearly_json_becomes_a_row_or_a_reason(value in "[\\{\\}\\[\\]\",:NaInfity0-9. \\-\\n\\\\]{0,60}") {
        let record = format!("{{\"_timestamp\":\"2025-09-27T14:30:00Z\",\"score\":{value}}}");
        if let Ok(row) = json_row(record.as_bytes()) {
            proptest::prop_assert!(row["json_body"].is_object());
        }
        let _ = columns_row(&record);
    }
}
