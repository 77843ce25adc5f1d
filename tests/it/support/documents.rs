//! Reading the project's files and the tables of its documents.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::path::{Path, PathBuf};

/// The project's directory.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file, by its path from the root.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A path from the root, for messages.
pub(crate) fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// All files below a directory that have this extension, sorted.
pub(crate) fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root().join(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The directories of Rust sources: that of the driver, and one for each crate below it.
pub(crate) fn source_directories() -> Vec<String> {
    let crates = fs::read_dir(root().join("crates")).unwrap();
    let mut found: Vec<String> =
        crates.map(|entry| format!("{}/src", shown(&entry.unwrap().path()))).collect();
    found.push("src".to_owned());
    found.sort();
    found
}

/// The Rust sources of the driver and of the crates below it.
pub(crate) fn sources() -> Vec<PathBuf> {
    source_directories().iter().flat_map(|directory| files(directory, "rs")).collect()
}

/// The Rust sources without tests and what only tests use: path from the root, and text.
pub(crate) fn production() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in sources() {
        let place = shown(&path);
        if place.contains("test") || place.starts_with("crates/fake-source/") {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        found.push((place, code.to_owned()));
    }
    found
}

/// The rows of the table that begins with this header, as cells.
pub(crate) fn table(document: &str, header: &str) -> Vec<Vec<String>> {
    let rows: Vec<Vec<String>> = read(document)
        .lines()
        .skip_while(|line| !line.starts_with(header))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "{document} has no table {header}");
    rows
}

/// The texts between backticks.
pub(crate) fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}
