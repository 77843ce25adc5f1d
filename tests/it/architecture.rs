//! The direction of the arrows between the modules, and the crate of each.
//!
//! ARCHITECTURE.md is the rule: its table of modules says what each of them may
//! name, from the bottom to the top, its table of parts says the same of the parts of the
//! cache, and its table of crates says which modules may use a crate. These tests compare all
//! of them with the sources.

mod circles;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::documents::{quoted, root, shown, sources, table};
use crate::support::literals::literals;

/// The file with every name on disk.
const NAMES_ON_DISK: &str = "cache/store/layout/names.rs";

/// Modules that use the cache directory.
const USERS_OF_CACHE: [&str; 5] = ["cache", "cli", "download", "manage", "volume"];

/// Literals that only look like names on disk.
const OTHER_NAMES: [(&str, &[&str], &str); 9] = [
    ("cache/fill/import/source.rs", &["blobs"], "a directory of a Hub cache"),
    ("cache/space/usage.rs", &["staging", "trash", "quarantine"], "labels of a metric"),
    ("cli/cache.rs", &["models"], "the example of a URI"),
    ("cli/doctor.rs", &["models"], "the example of a URI"),
    ("cli/fetch.rs", &["models"], "the example of a URI"),
    ("cli/ls.rs", &["models"], "the example of a URI"),
    ("cli/ls/show.rs", &["models"], "a key of JSON"),
    ("cli/push.rs", &["models"], "the example of a URI"),
    ("download/engine.rs", &["content"], "a label of a metric"),
];

/// Modules from the bottom to the top, each with those it may name.
type Rule = Vec<(String, BTreeSet<String>)>;

/// One mention of a top-level module in a source file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Arrow {
    from: String,
    to: String,
    /// `src/…:line`
    place: String,
    in_test_code: bool,
}

#[test]
fn arrows_between_modules_are_those_of_the_document() {
    let violations = violations(&rule(), &arrows_of_sources(collect));
    assert!(violations.is_empty(), "see ARCHITECTURE.md:\n{}", violations.join("\n"));
}

#[test]
fn arrows_between_the_parts_of_the_cache_are_those_of_the_document() {
    let (rule, arrows) = (rule_of_parts(), arrows_of_sources(collect_in_cache));
    let violations = violations(&rule, &arrows);
    assert!(violations.is_empty(), "see ARCHITECTURE.md:\n{}", violations.join("\n"));
    let documented: BTreeSet<String> = rule.into_iter().map(|(part, _)| part).collect();
    let there: BTreeSet<String> = sources().iter().filter_map(|path| part_of(path)).collect();
    assert_eq!(documented, there);
}

#[test]
fn every_module_is_in_the_document_with_its_crate_and_the_document_names_no_other() {
    let rows = table("ARCHITECTURE.md", "| Module |").into_iter();
    let documented: BTreeSet<(String, String)> =
        rows.map(|cells| (quoted(&cells[0]).remove(0), cells[1].clone())).collect();
    let place = |path: PathBuf| Some((module_of(&path)?, crate_of(&path)?));
    let there: BTreeSet<(String, String)> = sources().into_iter().filter_map(place).collect();
    assert_eq!(documented, there);
}

#[test]
fn the_documents_arrows_point_down() {
    let mut below = BTreeSet::new();
    for (module, may_name) in rule().into_iter().chain(rule_of_parts()) {
        let upward: Vec<_> = may_name.difference(&below).collect();
        assert!(upward.is_empty(), "{module} is below {upward:?}, which it may name");
        assert!(below.insert(module.clone()), "{module} is in the tables twice");
    }
}

#[test]
fn every_arrow_of_the_document_is_used() {
    let arrows = [arrows_of_sources(collect), arrows_of_sources(collect_in_cache)];
    let used: BTreeSet<(String, String)> = arrows
        .into_iter()
        .flatten()
        .filter(|arrow| !arrow.in_test_code)
        .map(|arrow| (arrow.from, arrow.to))
        .collect();
    for (module, may_name) in rule().into_iter().chain(rule_of_parts()) {
        for other in may_name {
            let arrow = (module.clone(), other);
            assert!(used.contains(&arrow), "{arrow:?} is not needed any more: take it out");
        }
    }
}

#[test]
fn no_type_name_is_defined_twice() {
    let mut defined: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in sources() {
        let text = without_comments(&fs::read_to_string(&path).unwrap());
        for line in text.lines() {
            let item = without_visibility(line.trim_start());
            let keyword =
                ["struct ", "enum ", "trait "].iter().find(|kind| item.starts_with(**kind));
            let Some(rest) = keyword.map(|kind| &item[kind.len()..]) else { continue };
            let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
            defined.entry(name.to_owned()).or_default().push(shown(&path));
        }
    }
    assert!(defined.len() > 300, "the types were found");
    let twice: Vec<_> = defined.iter().filter(|(_, places)| places.len() > 1).collect();
    assert!(twice.is_empty(), "one word, one concept (docs/STYLE.md): {twice:#?}");
}

#[test]
fn crates_are_named_only_in_their_modules() {
    let homes = homes();
    assert!(homes.contains_key("tonic"), "{homes:?}");
    let mut strays = Vec::new();
    for path in sources() {
        let Some(module) = module_of(&path) else { continue };
        let code = without_comments(&fs::read_to_string(&path).unwrap());
        for (number, line) in code.lines().enumerate() {
            for (name, home) in &homes {
                if *home != module && mentions_crate(line, name) {
                    let place = shown(&path);
                    strays.push(format!("{place}:{}: {name} is at home in {home}", number + 1));
                }
            }
        }
    }
    assert!(strays.is_empty(), "see ARCHITECTURE.md:\n{}", strays.join("\n"));
}

#[test]
fn names_on_disk_are_spelled_in_one_file() {
    let code = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        let end = start_of_tests(&text);
        text[..end].to_owned()
    };
    let sources = sources();
    let home = sources.iter().find(|path| path.ends_with(NAMES_ON_DISK)).unwrap();
    let names: BTreeSet<String> = literals(&code(home))
        .into_iter()
        .flat_map(|literal| fixed_parts(&literal.text))
        .filter(|part| part.chars().any(char::is_alphabetic))
        .collect();
    assert!(names.len() > 25 && names.contains("quarantine"), "{names:?}");
    let texts = sources.iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap()));
    let test_files = test_files(&texts.collect::<Vec<_>>());
    let mut strays = Vec::new();
    for path in sources.iter().filter(|path| *path != home && !test_files.contains(*path)) {
        if !module_of(path).is_some_and(|module| USERS_OF_CACHE.contains(&&*module)) {
            continue;
        }
        let place = shown(path);
        let excepted = OTHER_NAMES.iter().filter(|(file, ..)| place.ends_with(file));
        let excepted: Vec<_> = excepted.flat_map(|(_, names, _)| *names).copied().collect();
        for literal in literals(&code(path)) {
            let parts = fixed_parts(&literal.text).into_iter();
            let found = parts.filter(|part| names.contains(part) && !excepted.contains(&&**part));
            strays.extend(found.map(|name| format!("{place}:{}: {name:?}", literal.line)));
        }
    }
    assert!(strays.is_empty(), "spelled outside {NAMES_ON_DISK}:\n{}", strays.join("\n"));
}

/// What a path or a format string has between slashes and placeholders.
fn fixed_parts(literal: &str) -> Vec<String> {
    let after_placeholder =
        |part: &str| part.split_once('}').map_or(part, |(_, rest)| rest).to_owned();
    let fixed: Vec<String> = literal.split('{').map(after_placeholder).collect();
    fixed.iter().flat_map(|part| part.split('/')).map(str::to_owned).collect()
}

#[test]
fn an_arrow_that_points_up_would_be_found() {
    let rule: Rule =
        [("low", &[][..]), ("middle", &["low"]), ("side", &[]), ("high", &["middle", "side"])]
            .map(|(module, may)| (module.into(), may.iter().map(ToString::to_string).collect()))
            .into();
    let found = |file: &str, text: &str| {
        let mut found = Vec::new();
        collect(Path::new(file), text, false, &mut found);
        violations(&rule, &found)
    };
    let none: [&str; 0] = [];
    assert_eq!(found("src/middle/a.rs", "use crate::low::X;\nuse super::b::Y;\n"), none);
    assert_eq!(found("src/middle/a.rs", "// crate::high\n/// [`crate::high::X`]\n"), none);
    for (file, text, line) in [
        ("src/low.rs", "\nuse crate::middle::X;\n", 2),
        ("src/low/a.rs", "fn f() -> crate::high::X {}\n", 1),
        ("src/middle/a.rs", "use crate::{\n    low::X,\n    high::{Y, Z},\n};\n", 1),
        ("src/middle/a.rs", "use crate::{low::{X, Y}, high};\n", 1),
        ("src/middle/a.rs", "use super::super::high::X;\n", 1),
        ("src/middle/mod.rs", "\n\nuse super::high::X;\n", 3),
        // Allowed only in test code.
        ("src/high/a.rs", "use crate::low::X;\n", 1),
    ] {
        let violations = found(file, text);
        assert_eq!(violations.len(), 1, "{text}: {violations:?}");
        assert!(violations[0].starts_with(&format!("{file}:{line}: ")), "{violations:?}");
    }
    let tested = "use crate::middle::X;\n#[cfg(test)]\nmod tests {\n    use crate::low::X;\n}\n";
    assert_eq!(found("src/high/a.rs", tested), none);
    let upward = "#[cfg(test)]\nmod tests {\n    use crate::high::X;\n}\n";
    assert_eq!(found("src/low/a.rs", upward).len(), 1, "test code looks down too");
}

#[test]
fn an_arrow_between_parts_that_points_up_would_be_found() {
    let rule: Rule = [("low", &[][..]), ("high", &["low"])]
        .map(|(part, may)| (part.into(), may.iter().map(ToString::to_string).collect()))
        .into();
    let found = |file: &str, text: &str| {
        let mut found = Vec::new();
        collect_in_cache(Path::new(file), text, false, &mut found);
        violations(&rule, &found).len()
    };
    for (file, text, upward) in [
        ("src/cache/high/a.rs", "use crate::cache::low::{b::X, Y};\nuse super::b::Z;\n", 0),
        ("src/cache/high/mod.rs", "use super::low::X;\nmod b;\nuse self::b::Y;\n", 0),
        ("src/cache/high/a.rs", "pub(in crate::cache) fn f() {}\nuse crate::model::M;\n", 0),
        ("src/cache/mod.rs", "use high::X;\nuse crate::cache::low::Y;\n", 0),
        ("src/cache/low/a.rs", "use crate::cache::high::X;\n", 1),
        ("src/cache/low/a.rs", "use super::super::high::X;\n", 1),
        ("src/cache/low/a/b.rs", "use super::super::super::{high::X, low::Y};\n", 1),
        ("src/cache/low/mod.rs", "use super::high::X;\n", 1),
        ("src/cache/high/a.rs", "use crate::cache::{Cache, CacheOptions};\n", 2),
        ("src/cache/high/mod.rs", "use super::Cache;\n", 1),
    ] {
        assert_eq!(found(file, text), upward, "{file}: {text}");
    }
}

/// Production code names what the table allows; test code also what else is below.
fn violations(rule: &Rule, arrows: &[Arrow]) -> Vec<String> {
    let place_in_table = |module: &str| rule.iter().position(|(known, _)| known == module);
    let mut found = Vec::new();
    for arrow in arrows {
        let Arrow { from, to, place, in_test_code } = arrow;
        let (Some(own), Some(other)) = (place_in_table(from), place_in_table(to)) else {
            found.push(format!("{place}: {from} names {to}, which is in no table"));
            continue;
        };
        let allowed = rule[own].1.contains(to) || (*in_test_code && other < own);
        if !allowed {
            found.push(format!("{place}: {from} may not name {to}"));
        }
    }
    found
}

/// Reads all sources, and collects their arrows with one of the two functions below.
fn arrows_of_sources(collect: fn(&Path, &str, bool, &mut Vec<Arrow>)) -> Vec<Arrow> {
    let paths = sources();
    let texts: Vec<(PathBuf, String)> = paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect();
    let test_files = test_files(&texts);
    let mut arrows = Vec::new();
    for (path, text) in &texts {
        let relative = path.strip_prefix(root()).unwrap();
        collect(relative, text, test_files.contains(path), &mut arrows);
    }
    assert!(arrows.len() > 30, "{} arrows: are the sources read?", arrows.len());
    arrows
}

/// Adds the arrows of one file to other modules.
fn collect(path: &Path, text: &str, is_test_file: bool, arrows: &mut Vec<Arrow>) {
    let Some(from) = module_of(&root().join(path)) else { return };
    for mut arrow in names_in(&from, "crate::", path, text, is_test_file) {
        // The error's names are given at the crate's root too.
        if arrow.to.starts_with(char::is_uppercase) {
            "error".clone_into(&mut arrow.to);
        }
        arrows.extend((arrow.to != from).then_some(arrow));
    }
}

/// Adds the arrows of one file of a part of the cache to whatever else is in the cache.
fn collect_in_cache(path: &Path, text: &str, is_test_file: bool, arrows: &mut Vec<Arrow>) {
    let Some(from) = part_of(&root().join(path)) else { return };
    let named = names_in(&from, "crate::cache::", path, text, is_test_file);
    arrows.extend(named.into_iter().filter(|arrow| arrow.to != from));
}

/// The names that a file mentions in the module that `prefix` names. Its tests are its end,
/// from `#[cfg(test)] mod … {` on.
fn names_in(from: &str, prefix: &str, path: &Path, text: &str, is_test_file: bool) -> Vec<Arrow> {
    let code = without_comments(text);
    let tests_at = if is_test_file { 0 } else { start_of_tests(&code) };
    let mut arrows = Vec::new();
    let mut add = |at: usize, to: &str| {
        let line = code[..at].matches('\n').count() + 1;
        let (from, to) = (from.to_owned(), to.to_owned());
        let place = format!("{}:{line}", path.display());
        arrows.push(Arrow { from, to, place, in_test_code: at >= tests_at });
    };
    for (at, _) in code.match_indices(prefix) {
        let is_word = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if !is_word {
            for name in first_names(&code[at + prefix.len()..]) {
                add(at, name);
            }
        }
    }
    let depth = levels(path) + 1 - prefix.matches("::").count();
    let mut rest = 0;
    while let Some(found) = code[rest..].find("super::") {
        let at = rest + found;
        let supers = code[at..].split("super::").take_while(|between| between.is_empty()).count();
        let end = at + supers * "super::".len();
        rest = end;
        // A module of tests is one level deeper, wherever its file is.
        if supers == depth + usize::from(at >= tests_at) {
            for name in first_names(&code[end..]) {
                add(at, name);
            }
        }
    }
    arrows
}

/// The first names of a path, or of each path of a group in braces.
fn first_names(text: &str) -> Vec<&str> {
    let word = |text: &'_ str| text.find(|c: char| !c.is_alphanumeric() && c != '_');
    let Some(group) = text.strip_prefix('{') else {
        return vec![&text[..word(text).unwrap_or(text.len())]];
    };
    let (mut names, mut depth, mut expected) = (Vec::new(), 0_u32, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expected = true,
            c if expected && !c.is_whitespace() => {
                let rest = &group[at..];
                names.push(&rest[..word(rest).unwrap_or(rest.len())]);
                expected = false;
            }
            _ => {}
        }
    }
    names
}

/// How many modules deep a file's code is: 1 for `crates/model-cache/src/cache/mod.rs`.
fn levels(path: &Path) -> usize {
    let is_directory = path.file_name().is_some_and(|name| name == "mod.rs");
    below_src(path).components().count() - usize::from(is_directory)
}

fn start_of_tests(code: &str) -> usize {
    let starts = code.match_indices("#[cfg(test)]").filter(|(at, marker)| {
        let after = without_visibility(code[at + marker.len()..].trim_start());
        after.starts_with("mod ") && after.find('{') < after.find(';')
    });
    starts.map(|(at, _)| at).next().unwrap_or(code.len())
}

/// Files that are modules of tests only: `#[cfg(test)] mod name;`, with or without a path.
fn test_files(texts: &[(PathBuf, String)]) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for (path, text) in texts {
        for (at, marker) in text.match_indices("#[cfg(test)]") {
            let mut after = text[at + marker.len()..].trim_start();
            let directory = path.parent().unwrap();
            if let Some(attribute) = after.strip_prefix("#[path = \"") {
                let (file, rest) = attribute.split_once("\"]").unwrap();
                files.insert(directory.join(file));
                after = rest.trim_start();
            }
            let Some(declared) = without_visibility(after).strip_prefix("mod ") else { continue };
            let Some((name, _)) = declared.split_once([';', ' ']) else { continue };
            let own = path.file_stem().unwrap().to_str().unwrap();
            let below = if own == "mod" { directory.to_owned() } else { directory.join(own) };
            files.insert(below.join(format!("{name}.rs")));
        }
    }
    files.retain(|file| file.exists());
    files
}

fn without_visibility(item: &str) -> &str {
    match item.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')').map_or(rest, |(_, r)| r),
        Some(rest) => rest,
        None => item,
    }
    .trim_start()
}

/// The code with its comments as blanks; strings may hold `//` after a colon only.
fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    for line in text.lines() {
        let comment = line
            .match_indices("//")
            .map(|(at, _)| at)
            .find(|at| line[..*at].is_empty() || line[..*at].ends_with(char::is_whitespace));
        code.push_str(&line[..comment.unwrap_or(line.len())]);
        code.push('\n');
    }
    code
}

fn mentions_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let starts = before.is_none_or(|c| !c.is_alphanumeric() && !"_:.".contains(c));
        let used = line[at + name.len()..].starts_with("::");
        starts && used
    })
}

/// The table of modules.
fn rule() -> Rule {
    let rows = table("ARCHITECTURE.md", "| Module |");
    rows.into_iter().map(|cells| (quoted(&cells[0]).remove(0), set(&cells[3]))).collect()
}

/// The table of parts of the cache.
fn rule_of_parts() -> Rule {
    let rows = table("ARCHITECTURE.md", "| Part of `cache` |");
    rows.into_iter().map(|cells| (quoted(&cells[0]).remove(0), set(&cells[2]))).collect()
}

/// The table of crates that few modules use.
fn homes() -> BTreeMap<String, String> {
    let rows = table("ARCHITECTURE.md", "| Crate |");
    let homes = rows.into_iter().flat_map(|cells| {
        let home = quoted(&cells[1]).remove(0);
        quoted(&cells[0]).into_iter().map(move |name| (name, home.clone()))
    });
    homes.collect()
}

fn set(cell: &str) -> BTreeSet<String> {
    quoted(cell).into_iter().collect()
}

/// The part of the cache that a file belongs to; none for those that compose them.
fn part_of(path: &Path) -> Option<String> {
    let below = below_src(path.strip_prefix(root()).ok()?);
    let part = below.strip_prefix("cache").ok()?.parent()?.components().next()?;
    part.as_os_str().to_str().map(str::to_owned)
}

/// The top-level module that a file belongs to; none for `lib.rs` and `main.rs`.
fn module_of(path: &Path) -> Option<String> {
    let below = below_src(path.strip_prefix(root()).ok()?);
    let first = below.components().next()?.as_os_str().to_str()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(module, "lib" | "main")).then(|| module.to_owned())
}

/// The crate that a file belongs to, by its directory; `driver` for the one at the root.
fn crate_of(path: &Path) -> Option<String> {
    let mut parts = path.strip_prefix(root()).ok()?.components();
    match parts.next()?.as_os_str().to_str()? {
        "crates" => Some(parts.next()?.as_os_str().to_str()?.to_owned()),
        _ => Some("driver".to_owned()),
    }
}

/// A path from the root without the directory of its crate's sources.
fn below_src(path: &Path) -> PathBuf {
    path.components().skip_while(|part| part.as_os_str() != "src").skip(1).collect()
}
