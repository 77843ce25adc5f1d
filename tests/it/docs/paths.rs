//! Paths in backticks and filters of tests lead somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::{documents, is_file, without_blocks};
use crate::support::documents::{quoted, read, root};

/// Names of files that are not in the tree: a node, a bucket or a program makes them.
const ELSEWHERE: [(&str, &str); 10] = [
    ("summary.json", "a file of the cache"),
    ("manifest.json", "a file of the cache"),
    ("config-in-force.json", "a file of the cache"),
    ("model.safetensors.index.json", "an object"),
    ("models/phi3-mini/config.json", "an object"),
    ("tiny/config.json", "an object"),
    ("config.json", "an object"),
    ("model_index.json", "an object"),
    ("params.json", "an object"),
    ("bucket.json", "a file of the local store"),
];

/// Endings of the files that documents name.
const ENDINGS: [&str; 13] = [
    "rs", "md", "sh", "py", "toml", "yaml", "yml", "json", "proto", "tsv", "txt", "tpl", "service",
];

#[test]
fn every_path_in_backticks_exists() {
    let tree = Tree::read();
    let texts = documents()
        .into_iter()
        .map(|(place, text)| (place, without_blocks(&text)))
        .chain(tree.sources().map(|place| (place.clone(), comments(&read(place)))));
    let (mut seen, mut lost) = (0, Vec::new());
    let mut used = BTreeSet::new();
    for (place, text) in texts {
        for path in quoted(&text).into_iter().filter(|word| tree.is_path(word)) {
            if let Some((name, _)) = ELSEWHERE.iter().find(|(name, _)| *name == path) {
                used.insert(*name);
            } else if !tree.has(&path, &place) {
                lost.push(format!("{place}: {path}"));
            }
            seen += 1;
        }
    }
    assert!(lost.is_empty(), "these lead nowhere:\n{}", lost.join("\n"));
    assert!(seen > 200, "{seen} paths");
    let unused: Vec<_> = ELSEWHERE.iter().filter(|(name, _)| !used.contains(name)).collect();
    assert!(unused.is_empty(), "exceptions that nothing needs: {unused:?}");
}

#[test]
fn every_filter_of_tests_in_scripts_and_documents_selects_a_test() {
    let tree = Tree::read();
    let tests: String = tree.sources().map(|place| read(place)).collect();
    let scripts =
        ["Makefile", "tests/integration.sh", ".ci/run"].map(|file| (file.into(), read(file)));
    let mut seen = 0;
    for (place, text) in documents().into_iter().chain(scripts) {
        let text = text.replace(['`', '(', ')', '\n'], " ");
        for filter in text.split_whitespace().filter(|word| is_filter(word)) {
            let (module, name) = filter.split_once("::").unwrap();
            let of_it = Path::new("tests/it").join(module).with_extension("rs");
            let found = match name {
                "" => {
                    tree.has(module, "src/lib.rs")
                        || tree.has(&format!("{module}.rs"), "tests/it/main.rs")
                }
                name if root().join(&of_it).exists() => {
                    fs::read_to_string(root().join(of_it)).unwrap().contains(&format!("fn {name}"))
                }
                name => tests.contains(&format!("fn {name}")),
            };
            assert!(found, "{place}: {filter} selects no test");
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} filters");
}

/// `area::` or `area::the_beginning_of_a_name`, as `cargo test` takes it.
fn is_filter(word: &str) -> bool {
    let plain = |text: &str| {
        text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
    };
    word.split_once("::").is_some_and(|(module, name)| {
        plain(module)
            && plain(name)
            && !module.is_empty()
            && (name.is_empty() || name.contains('_'))
    })
}

/// Files and directories that git tracks or would.
struct Tree {
    paths: BTreeSet<String>,
}

impl Tree {
    fn read() -> Self {
        let listed = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(listed.status.success(), "git lists the files");
        let mut paths = BTreeSet::new();
        for file in String::from_utf8(listed.stdout).unwrap().lines() {
            if root().join(file).exists() {
                paths.extend(Path::new(file).ancestors().map(|path| path.display().to_string()));
            }
        }
        paths.remove("");
        Self { paths }
    }

    /// Our own Rust files; the generated one quotes the specification.
    fn sources(&self) -> impl Iterator<Item = &String> {
        self.paths.iter().filter(|path| is_file(path) && *path != "proto/csi.v1.rs")
    }

    /// Whether a quoted word is a path of this project: it begins like one, or ends like a file.
    fn is_path(&self, word: &str) -> bool {
        let word = word.split('#').next().unwrap();
        let first = word.split('/').next().unwrap();
        let ending = Path::new(word).extension().and_then(|ending| ending.to_str());
        let name = word.rsplit('/').next().unwrap();
        let ends = ending.is_some_and(|ending| ENDINGS.contains(&ending)) && !name.starts_with('.');
        let strange = |c: char| c.is_whitespace() || "{}$<>,…\"=".contains(c);
        !word.starts_with(['/', '~', '-', '*'])
            && !word.contains(strange)
            && !word.contains("::")
            && !word.contains("://")
            && (ends || word.contains('/') && self.paths.contains(first))
    }

    /// Resolves a path from the root, a source directory or the place that names it. A `*`
    /// matches any part of a name.
    fn has(&self, path: &str, place: &str) -> bool {
        let path = path.split('#').next().unwrap().trim_end_matches('/');
        let place = Path::new(place);
        let own = place.with_extension("");
        let near = place.ancestors().skip(1).chain([own.as_path()]);
        let mut bases: Vec<String> = near.map(|base| base.display().to_string()).collect();
        bases.push("src".to_owned());
        bases.extend(self.crates());
        bases.iter().any(|base| {
            let full = if base.is_empty() { path.to_owned() } else { format!("{base}/{path}") };
            match full.split_once('*') {
                Some((begin, end)) => {
                    self.paths.iter().any(|path| path.starts_with(begin) && path.ends_with(end))
                }
                None => self.paths.contains(&full),
            }
        })
    }

    fn crates(&self) -> impl Iterator<Item = String> {
        let of_crate = |path: &&String| {
            path.starts_with("crates/") && path.ends_with("/src") && path.matches('/').count() == 2
        };
        self.paths.iter().filter(of_crate).cloned()
    }
}

/// The comments of a source, without their blocks of code.
fn comments(source: &str) -> String {
    let lines = source.lines().filter_map(|line| line.trim_start().strip_prefix("//"));
    without_blocks(&lines.collect::<Vec<_>>().join("\n"))
}
