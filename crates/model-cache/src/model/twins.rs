//! Names of one directory that differ only in case or in Unicode form: two files
//! here, but one file for tools and file systems that fold names (macOS,
//! Windows, archives made there).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};

use unicode_normalization::UnicodeNormalization;

use super::{Warning, WarningKind};
use crate::text::shown;

/// The most pairs that the warning names.
const NAMED: usize = 2;

/// A warning that names such pairs, if there are any among these paths. Memory
/// grows with the entries of the directories between the root and one path.
pub(super) fn twins<'a>(paths: impl IntoIterator<Item = &'a str>) -> Option<Warning> {
    let mut paths: Vec<&str> = paths.into_iter().collect();
    // Everything below a directory is listed together.
    paths.sort_unstable();
    let hasher = RandomState::new();
    let mut found = TwinNames::default();
    let mut open = vec![Siblings::default()];
    for path in paths {
        while open.last().is_some_and(|directory| !path.starts_with(directory.path)) {
            open.pop();
        }
        while let Some(directory) = open.last_mut() {
            let at = directory.path.len();
            let (name, below) = match path[at..].split_once('/') {
                Some((name, _)) => (name, Some(&path[..=at + name.len()])),
                None => (&path[at..], None),
            };
            match directory.names.entry(hasher.hash_one(folded(name))) {
                Entry::Vacant(free) => drop(free.insert(name)),
                Entry::Occupied(taken) => found.compare(directory.path, taken.get(), name),
            }
            let Some(below) = below else { break };
            open.push(Siblings { path: below, names: HashMap::new() });
        }
    }
    found.warning()
}

/// Finds two paths that are one name in two Unicode forms.
pub fn two_forms_of_one_name<'a>(
    paths: impl IntoIterator<Item = &'a str>,
) -> Option<(&'a str, &'a str)> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    let others = paths.into_iter().filter(|path| !path.is_ascii());
    others.into_iter().find_map(|path| match seen.entry(path.nfc().collect()) {
        Entry::Occupied(taken) if *taken.get() != path => Some((*taken.get(), path)),
        Entry::Occupied(_) => None,
        Entry::Vacant(free) => {
            free.insert(path);
            None
        }
    })
}

/// Replaces all characters beyond ASCII by their code points, which distinguishes the forms.
pub fn with_code_points(text: &str) -> String {
    let mut visible = String::new();
    for c in text.chars() {
        match c.is_ascii() {
            true => visible.push(c),
            false => visible.extend(c.escape_unicode()),
        }
    }
    visible
}

/// A directory whose entries are being compared.
#[derive(Default)]
struct Siblings<'a> {
    /// With its slash; empty for the root.
    path: &'a str,
    /// Names by the hash of their folded form.
    names: HashMap<u64, &'a str>,
}

#[derive(Default)]
struct TwinNames {
    named: Vec<String>,
    more: usize,
}

impl TwinNames {
    fn compare(&mut self, directory: &str, one: &str, other: &str) {
        if one == other || folded(one) != folded(other) {
            return;
        }
        if self.named.len() == NAMED {
            self.more += 1;
            return;
        }
        let only_form = one.nfc().eq(other.nfc());
        let path = |name: &str| {
            let path = format!("{directory}{name}");
            match only_form {
                true => shown(&with_code_points(&path), 120),
                false => shown(&path, 120),
            }
        };
        let (one, other) = (path(one), path(other));
        self.named.push(match only_form {
            true => format!("\"{one}\" and \"{other}\" are one name in two Unicode forms"),
            false => format!("\"{one}\" and \"{other}\" differ only in case"),
        });
    }

    fn warning(self) -> Option<Warning> {
        if self.named.is_empty() {
            return None;
        }
        let more = match self.more {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let text = format!(
            "{}{more}: some tools and file systems take them for one file; rename one of them",
            self.named.join("; ")
        );
        Some(Warning::new(WarningKind::Names, text))
    }
}

/// Folds case and Unicode form: names of one directory with the same result are one file for
/// tools and file systems that fold names.
pub fn folded(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    name.nfd().flat_map(char::to_lowercase).nfd().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(paths: &[&str]) -> Option<String> {
        twins(paths.iter().copied()).map(|warning| warning.text)
    }

    #[test]
    fn names_of_one_directory_that_differ_only_in_case_are_both_named() {
        let text = warning(&["Config.json", "a/x", "config.json", "d/w"]).unwrap();
        assert!(text.starts_with("\"Config.json\" and \"config.json\" differ only in case"));
        let text = warning(&["m/É.bin", "m/é.bin"]).unwrap();
        assert!(text.contains("\"m/É.bin\" and \"m/é.bin\" differ only in case"), "{text}");
        let directories = warning(&["D/one", "d-x", "d/two"]).unwrap();
        assert!(directories.contains("\"D\" and \"d\" differ only in case"), "{directories}");
    }

    #[test]
    fn names_of_two_unicode_forms_are_shown_as_their_numbers() {
        let text = warning(&["caf\u{e9}.bin", "cafe\u{301}.bin"]).unwrap();
        assert!(text.contains("\"caf\\u{e9}.bin\""), "{text}");
        assert!(text.contains("\"cafe\\u{301}.bin\""), "{text}");
        assert!(text.contains("two Unicode forms"), "{text}");
        assert!(warning(&["\u{ac00}", "\u{1100}\u{1161}"]).is_some(), "Hangul");
    }

    #[test]
    fn only_two_forms_of_one_name_are_one_name() {
        let forms = two_forms_of_one_name(["a", "caf\u{e9}", "Caf\u{e9}", "cafe\u{301}"]);
        assert_eq!(forms, Some(("caf\u{e9}", "cafe\u{301}")));
        assert_eq!(two_forms_of_one_name(["a/\u{e9}", "b/e\u{301}", "A", "a"]), None);
    }

    #[test]
    fn names_in_two_directories_or_of_different_letters_are_no_pair() {
        assert_eq!(warning(&[]), None);
        assert_eq!(warning(&["a/Config.json", "b/config.json", "a", "a/b"]), None);
        assert_eq!(warning(&["a/x", "a-x", "a.x", "a/y/z", "a/y/x", "b"]), None);
        assert_eq!(warning(&["straße", "strasse", "e", "é"]), None);
    }

    #[test]
    fn many_pairs_are_counted_and_the_text_stays_short() {
        let paths: Vec<String> = (0..50)
            .flat_map(|n| ["x", "X"].map(|x| format!("{}/{n}{x}", "d".repeat(200))))
            .collect();
        let text = warning(&paths.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        assert!(text.contains("; and 48 more: ") && text.chars().count() < 700, "{text}");
    }
}
