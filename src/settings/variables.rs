//! The environment: variables, and files that variables name (`REDIS_PASSWORD_FILE`), as container secrets come.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use super::problems::Problem;

/// The environment's variables.
pub type Env = BTreeMap<String, String>;

/// Bytes of a secret's file.
const LARGEST_SECRET: u64 = 64 * 1024;

/// Reads variables; an empty one counts as unset, as hosts cannot always remove one.
#[derive(Clone, Copy)]
pub(super) struct Variables<'e>(pub(super) &'e Env);

impl<'e> Variables<'e> {
    /// The value of a variable, without looking for a file.
    pub(super) fn plain(self, name: &str) -> Option<&'e str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// The value of `NAME`, or the content of the file that `NAME_FILE` names.
    pub(super) fn get(self, name: &str) -> Result<Option<String>, Box<Problem>> {
        let file_name = format!("{name}_FILE");
        let Some(file) = self.plain(&file_name) else { return Ok(self.plain(name).map(str::to_owned)) };
        let trouble = |reason: String| {
            let message = format!("the file that {file_name} names ({file:?}) cannot be read: {reason}");
            let cure = "name a readable file with the secret in it, or unset the variable";
            Box::new(Problem::variables(&[&file_name], message, cure))
        };
        let mut content = String::new();
        let opened = File::open(file).map_err(|error| trouble(error.to_string()))?;
        let read = opened.take(LARGEST_SECRET + 1).read_to_string(&mut content);
        read.map_err(|error| trouble(error.to_string()))?;
        if content.len() as u64 > LARGEST_SECRET {
            return Err(trouble("it is larger than 64 KiB".to_owned()));
        }
        let content = content.trim().to_owned();
        match self.plain(name) {
            Some(value) if value != content => Err(Box::new(disagree(&[name, &file_name]))),
            _ => Ok((!content.is_empty()).then_some(content)),
        }
    }

    /// The one value of several variables that mean the same, with the name of the first that is set.
    pub(super) fn agreed<'n>(self, names: &[&'n str]) -> Result<Option<(&'n str, String)>, Box<Problem>> {
        let mut first: Option<(&str, String)> = None;
        for name in names {
            let Some(value) = self.get(name)? else { continue };
            match &first {
                None => first = Some((name, value)),
                Some((_, other)) if *other == value => {}
                Some((other, _)) => return Err(Box::new(disagree(&[other, name]))),
            }
        }
        Ok(first)
    }
}

/// Takes the value or notes the problem.
pub(super) fn take<T>(result: Result<Option<T>, Box<Problem>>, problems: &mut Vec<Problem>) -> Option<T> {
    result.unwrap_or_else(|problem| {
        problems.push(*problem);
        None
    })
}

/// Two variables that contradict each other. Their values are not shown: they may be secrets.
pub(super) fn disagree(names: &[&str]) -> Problem {
    Problem::variables(names, format!("{} disagree", names.join(" and ")), "set one of them, or both to the same")
}
