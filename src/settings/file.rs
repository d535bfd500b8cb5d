//! Finds the settings file and reads it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::problems::Problem;
use super::variables::Variables;

/// Bytes of a settings file. The largest that people write by hand is a hundredth of it.
const LARGEST_FILE: u64 = 1 << 20;

/// The file's path and text.
pub(super) fn read(config: Option<&Path>, variables: Variables<'_>) -> Result<(PathBuf, String), Box<Problem>> {
    let by_variable = variables.plain("LAMPLIGHTER_CONFIG");
    let path = config.map(Path::to_owned).or(by_variable.map(PathBuf::from)).unwrap_or_else(|| "jobs.toml".into());
    let text = read_text(&path).map_err(|(message, cure)| {
        let mut problem = Problem::file(&path.display().to_string(), message, &cure);
        if config.is_none() && by_variable.is_some() {
            problem.variables.push("LAMPLIGHTER_CONFIG".to_owned());
        }
        Box::new(problem)
    })?;
    Ok((path, text))
}

/// The text of a file, or what is wrong with it and what would cure that.
fn read_text(path: &Path) -> Result<String, (String, String)> {
    let name = path.display();
    let wrong = |message: String, cure: &str| Err((message, cure.to_owned()));
    if path.is_dir() {
        let inside = path.join("jobs.toml");
        let cure = if inside.is_file() {
            format!("name the file: {}", inside.display())
        } else {
            "name the settings file itself, with --config or LAMPLIGHTER_CONFIG".to_owned()
        };
        return Err((format!("{name} is a directory"), cure));
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let cure = "write one, or name yours with --config or LAMPLIGHTER_CONFIG";
            return wrong(format!("there is no settings file {name}"), cure);
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let cure = "make it readable for the user that runs lamplighter";
            return wrong(format!("the settings file {name} may not be read"), cure);
        }
        Err(error) => {
            return wrong(
                format!("the settings file {name} cannot be read: {error}"),
                "name a readable file with --config",
            );
        }
    }
    if bytes.len() as u64 > LARGEST_FILE {
        let cure = "check that it is the right file; settings are a few kilobytes of TOML";
        return wrong(format!("{name} is larger than 1 MiB"), cure);
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return wrong(format!("{name} is UTF-16 text"), "save it as UTF-8");
    }
    String::from_utf8(bytes).or_else(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
        wrong(format!("{name} is not UTF-8 text: the first wrong byte is in line {line}"), "save it as UTF-8")
    })
}
