//! Circles between the parts of a module: files and directories that name each other, so that
//! none can be read or moved without the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{below_src, first_names, levels, start_of_tests, test_files, without_comments};
use crate::support::documents::{root, sources};

/// Modules whose parts still name each other in a circle.
const WITH_CIRCLES: [&str; 4] = ["cache/store", "download", "model", "volume"];

#[test]
fn the_parts_of_a_module_name_each_other_in_no_circle() {
    let sources = texts();
    let test_files = test_files(&sources);
    let mut modules: BTreeSet<Vec<String>> = BTreeSet::new();
    let mut mentions = Vec::new();
    for (path, text) in sources.iter().filter(|(path, _)| !test_files.contains(path)) {
        let relative = path.strip_prefix(root()).unwrap();
        modules.extend((1..levels(relative)).map(|depth| module_path(relative)[..depth].to_vec()));
        mentions.extend(mentions_in(relative, text));
    }
    let circles: BTreeMap<String, Vec<String>> = modules
        .iter()
        .map(|module| (module.join("/"), circle(&arrows_between_parts(module, &mentions))))
        .filter(|(_, circle)| !circle.is_empty())
        .collect();
    let found: Vec<&str> = circles.keys().map(String::as_str).collect();
    assert_eq!(found, WITH_CIRCLES, "cut an arrow, or shorten the list: {circles:#?}");
}

#[test]
fn a_circle_between_the_parts_of_a_module_would_be_found() {
    let parts = |files: &[(&str, &str)]| {
        let mentions: Vec<_> =
            files.iter().flat_map(|(file, text)| mentions_in(Path::new(file), text)).collect();
        circle(&arrows_between_parts(&["low".to_owned()], &mentions))
    };
    let none: [&str; 0] = [];
    let one = ("src/low/one.rs", "use super::two::{X, Y};\n");
    let via_parent = ("src/low/mod.rs", "mod one;\npub use one::A;\n");
    assert_eq!(parts(&[one, ("src/low/two.rs", "use crate::middle::one::X;\n")]), none);
    assert_eq!(
        parts(&[
            one,
            ("src/low/two.rs", "#[cfg(test)]\nmod tests {\n    use super::super::one::A;\n}\n")
        ]),
        none
    );
    for (file, text) in [
        ("src/low/two.rs", "use crate::low::one::Z;\n"),
        ("src/low/two/deep.rs", "use super::super::{one, three};\n"),
        ("src/low/two.rs", "use crate::low::{three::B, A};\n"),
    ] {
        assert_eq!(parts(&[one, via_parent, (file, text)]), ["one", "two"], "{text}");
    }
}

/// One path in production code, from the crate's root.
struct Mention {
    /// The module that has it.
    from: Vec<String>,
    to: Vec<String>,
    /// The name by which `pub use` gives it to others.
    reexported: bool,
}

/// The paths of a file's production code to other modules.
fn mentions_in(path: &Path, text: &str) -> Vec<Mention> {
    let from = module_path(path);
    let code = without_comments(text);
    let code = &code[..start_of_tests(&code)];
    let mut mentions = Vec::new();
    let mut rest = 0;
    while let Some((at, word)) = ["crate::", "super::", "pub use "]
        .iter()
        .filter_map(|word| Some((code[rest..].find(word)?, *word)))
        .min()
    {
        let at = rest + at;
        let supers = code[at..].split("super::").take_while(|between| between.is_empty()).count();
        let base = match word {
            "crate::" => &[][..],
            "super::" => &from[..from.len().saturating_sub(supers)],
            _ => &from[..],
        };
        rest = at + if word == "super::" { supers * word.len() } else { word.len() };
        for names in paths(&code[rest..]) {
            let to = base.iter().cloned().chain(names.into_iter().map(str::to_owned)).collect();
            mentions.push(Mention { from: from.clone(), to, reexported: word == "pub use " });
        }
    }
    mentions
}

/// The paths at the beginning of a text; several where a group in braces follows.
fn paths(text: &str) -> Vec<Vec<&str>> {
    let mut found = Vec::new();
    for first in first_names(text) {
        let at = first.as_ptr() as usize - text.as_ptr() as usize + first.len();
        match text[at..].strip_prefix("::") {
            Some(more) => found.extend(paths(more).into_iter().map(|mut path| {
                path.insert(0, first);
                path
            })),
            None => found.push(vec![first]),
        }
    }
    found
}

/// The arrows between the direct parts of a module. A name that the module itself re-exports
/// is of the part that it comes from.
fn arrows_between_parts(
    module: &[String],
    mentions: &[Mention],
) -> BTreeMap<String, BTreeSet<String>> {
    let depth = module.len();
    let within = |path: &[String]| path.len() > depth && path.starts_with(module);
    let reexports: BTreeMap<&String, &String> = mentions
        .iter()
        .filter(|one| one.reexported && one.from == module && one.to.len() > depth + 1)
        .map(|one| (&one.to[one.to.len() - 1], &one.to[depth]))
        .collect();
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for one in mentions.iter().filter(|one| within(&one.from) && within(&one.to)) {
        let from = &one.from[depth];
        let to = &one.to[depth];
        let to = reexports.get(to).copied().unwrap_or(to);
        if from != to {
            arrows.entry(from.clone()).or_default().insert(to.clone());
        }
    }
    arrows
}

/// The parts that are in a circle, or between two; none if there is no circle.
fn circle(arrows: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut left = arrows.clone();
    loop {
        let before = left.len();
        let from: BTreeSet<String> = left.keys().cloned().collect();
        let to: BTreeSet<String> = left.values().flatten().cloned().collect();
        for names in left.values_mut() {
            names.retain(|name| from.contains(name));
        }
        left.retain(|name, names| !names.is_empty() && to.contains(name));
        if left.len() == before {
            return left.into_keys().collect();
        }
    }
}

/// `["oci", "identity"]` for `crates/object-storage/src/oci/identity/mod.rs`.
fn module_path(path: &Path) -> Vec<String> {
    let parts = below_src(&path.with_extension(""));
    let parts = parts.components().take(levels(path));
    parts.map(|part| part.as_os_str().to_str().unwrap().to_owned()).collect()
}

fn texts() -> Vec<(PathBuf, String)> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    sources().into_iter().map(read).collect()
}
