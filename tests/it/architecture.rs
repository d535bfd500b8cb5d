//! The import line of ARCHITECTURE.md, read from the source.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms from the top down; those of one row do not import each other, except inside the bottom row.
const ROWS: [&[&str]; 7] = [
    &["main"],
    &["cli"],
    &["app"],
    &["settings", "scheduler", "web"],
    &["runner"],
    &["jobs", "alerts"],
    &["history", "warehouse", "cache"],
];
const BOTTOM: &[&str] = &["clock", "schedule", "units", "document"];

fn row(room: &str) -> usize {
    let known = ROWS.iter().position(|row| row.contains(&room));
    known.or_else(|| BOTTOM.contains(&room).then_some(ROWS.len())).unwrap_or_else(|| {
        panic!("room {room:?} is in no row: add it to ARCHITECTURE.md and here");
    })
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn imports_point_down() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&source, &mut all);
    let mut wrong = Vec::new();
    for path in &all {
        let inside = path.strip_prefix(&source).unwrap();
        let room = inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if room == "lib" {
            continue;
        }
        let text = fs::read_to_string(path).unwrap();
        // Only what the program itself uses: the tests of a room may look anywhere.
        let text = text.split("#[cfg(test)]").next().unwrap();
        for (line, part) in
            text.lines().enumerate().flat_map(|(n, l)| l.match_indices("crate::").map(move |(at, _)| (n, &l[at + 7..])))
        {
            let word = |text: &str| {
                let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
                text[..end].to_owned()
            };
            let names: Vec<String> = match part.strip_prefix('{') {
                // Only the outer list names rooms; what stands in inner braces are their items.
                Some(list) => {
                    let mut depth = 0;
                    let outer: String = list
                        .chars()
                        .take_while(|c| {
                            depth += i32::from(*c == '{') - i32::from(*c == '}');
                            depth >= 0
                        })
                        .collect();
                    outer.split(',').map(|item| word(item.trim())).collect()
                }
                None => vec![word(part)],
            };
            for other in names.iter().filter(|name| !name.is_empty() && **name != room) {
                let same_row = row(other) == row(&room) && !BOTTOM.contains(&other.as_str());
                if row(other) < row(&room) || same_row {
                    wrong.push(format!("{}:{}: {room} uses {other}", inside.display(), line + 1));
                }
            }
        }
    }
    assert!(all.len() > 30, "only {} files were read", all.len());
    assert!(wrong.is_empty(), "imports that do not point down:\n{}", wrong.join("\n"));
}
