//! The words that `docs/STYLE.md` says to avoid are in no tracked file.

use std::collections::BTreeSet;
use std::process::Command;

use crate::support::documents::{read, root, table};

/// Files that quote others, or the list itself.
const EXCEPT: &[&str] = &["docs/STYLE.md", "tests/it/docs/language.rs", "LICENSE", "Cargo.lock"];

/// Directories of texts that are not ours.
const FOREIGN: &[&str] = &["proto/", "tests/vectors/"];

/// Lines in which a word is right: a file, a part of the line, and why.
const RIGHT: &[(&str, &str, &str)] = &[];

/// The words and phrases of the list, in lower case.
fn words() -> Vec<String> {
    table("docs/STYLE.md", "| Word |")
        .into_iter()
        .flat_map(|cells| cells[0].split(", ").map(str::to_lowercase).collect::<Vec<_>>())
        .collect()
}

/// A text as words that are separated by single spaces. Names are split at
/// underscores, hyphens and capital letters.
fn plain(line: &str) -> String {
    let mut plain = String::from(" ");
    let mut lower = false;
    for character in line.chars() {
        if !character.is_alphanumeric() && character != '\'' {
            if !plain.ends_with(' ') {
                plain.push(' ');
            }
            lower = false;
            continue;
        }
        if character.is_uppercase() && lower {
            plain.push(' ');
        }
        lower = character.is_lowercase();
        plain.extend(character.to_lowercase());
    }
    if !plain.ends_with(' ') {
        plain.push(' ');
    }
    plain
}

#[test]
fn no_tracked_file_has_a_word_that_the_style_guide_avoids() {
    let words: Vec<String> = words().iter().map(|word| format!(" {word} ")).collect();
    assert!(words.len() > 20, "the list was read");
    let listed = Command::new("git").args(["ls-files"]).current_dir(root()).output().unwrap();
    assert!(listed.status.success(), "git lists the files");
    let mut found = Vec::new();
    let mut used = vec![false; RIGHT.len()];
    for file in String::from_utf8(listed.stdout).unwrap().lines() {
        if EXCEPT.contains(&file) || FOREIGN.iter().any(|start| file.starts_with(start)) {
            continue;
        }
        // Not text, or removed and not committed yet.
        let Ok(text) = std::fs::read_to_string(root().join(file)) else { continue };
        for (number, line) in text.lines().enumerate() {
            let plain = plain(line);
            let Some(word) = words.iter().find(|word| plain.contains(*word)) else { continue };
            let right =
                RIGHT.iter().position(|(path, part, _)| *path == file && line.contains(part));
            match right {
                Some(at) => used[at] = true,
                None => found.push(format!("{file}:{}: {}", number + 1, word.trim())),
            }
        }
    }
    let shown = found.iter().take(40).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(found.is_empty(), "{} lines, see docs/STYLE.md:\n{shown}", found.len());
    for ((file, part, _), used) in RIGHT.iter().zip(used) {
        assert!(used, "the exception for {part:?} in {file} is not needed any more");
    }
}

#[test]
fn names_are_split_into_words() {
    for (line, expected) in [
        ("fn what_was_told() {}", " fn what was told "),
        ("struct ToldOnce;", " struct told once "),
        ("a well-known \"Word\".", " a well known word "),
        ("HTTPError", " httperror "),
    ] {
        assert_eq!(plain(line), expected);
    }
}

#[test]
fn the_glossary_has_each_term_once() {
    let terms: Vec<String> =
        table("docs/STYLE.md", "| Term |").into_iter().map(|cells| cells[0].clone()).collect();
    let once: BTreeSet<&String> = terms.iter().collect();
    assert!(terms.len() > 15 && once.len() == terms.len(), "{terms:?}");
    assert!(read("docs/README.md").contains("STYLE.md"), "the page is linked");
}
