//! `jobs.toml` and the environment: what is read, what is refused, and what is never shown.

use std::path::Path;

use lamplighter::jobs;
use lamplighter::settings::{Backends, CacheChoice, Env, GoogleCredentials, HistoryChoice, Problems, Settings, WarehouseChoice};

fn env(variables: &[(&str, &str)]) -> Env {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Settings, Problems> {
    Settings::parse(Path::new("jobs.toml"), text, &env(variables), &jobs::kinds())
}

fn problems(text: &str, variables: &[(&str, &str)]) -> Problems {
    parse(text, variables).err().expect("these settings should be refused")
}

#[test]
fn x() {
    println!("{}", problems(include_str!("../data/settings/mistakes.toml"), &[]));
}
#[test]
fn shipped() {
    let s = parse(include_str!("../../jobs.toml"), &[]);
    match s { Err(p) => panic!("{p}"), Ok(s) => println!("{:#?} {:#?}", s.summary_lines(), s.notes) }
}
