//! Documented flags and commands of `oci-model-csi` are those that the program accepts.

use std::collections::{BTreeMap, BTreeSet};

use super::{blocks, documents};
use crate::support::documents::{quoted, read, table};
use crate::support::help::{flags, help, leaf_commands};

#[test]
fn the_documented_flags_of_every_command_are_those_of_its_help() {
    let documented = documented_flags();
    let common = &documented["All"];
    let (mut seen, mut used) = (0, BTreeSet::new());
    for command in leaf_commands() {
        let own = documented.get(&command.join(" ")).cloned().unwrap_or_default();
        let offered: BTreeSet<String> = flags(&command).into_iter().collect();
        let missing: Vec<_> = offered.difference(&own).filter(|f| !common.contains(*f)).collect();
        assert!(missing.is_empty(), "{command:?}: no document has {missing:?}");
        let extra: Vec<_> = own.difference(&offered).collect();
        assert!(extra.is_empty(), "{command:?}: its help has no {extra:?}");
        seen += own.len();
        used.extend(offered);
    }
    let extra: Vec<_> = common.difference(&used).collect();
    assert!(extra.is_empty(), "no command has {extra:?}");
    let rows: usize = documented.values().map(BTreeSet::len).sum();
    assert_eq!(rows - common.len(), seen, "tables of commands that do not exist: {documented:?}");
    assert!(seen > 80, "{seen} flags");
}

/// The flags of each command: those of the tables of docs/configuration.md, which follow a line
/// with the command, and those of the cache in docs/commands.md, which have the command in a cell.
fn documented_flags() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut commands = Vec::new();
    for line in read("docs/configuration.md").lines() {
        if line.starts_with("`oci-model-csi ") {
            let first = |words: String| words.split(' ').next().unwrap().to_owned();
            let names = quoted(line).into_iter();
            commands = names.map(|name| first(name.replace("oci-model-csi ", ""))).collect();
        } else if line.starts_with("All commands") {
            commands = vec!["All".to_owned()];
        } else if line.starts_with("| `--") {
            for command in &commands {
                found.entry(command.clone()).or_default().insert(quoted(line).remove(0));
            }
        }
    }
    let of_the_cache = leaf_commands().into_iter().filter(|command| command[0] == "cache");
    for command in of_the_cache {
        for cells in table("docs/commands.md", "| Flag | Of |") {
            if cells[1] == "all" || quoted(&cells[1]).contains(&command[1]) {
                found.entry(command.join(" ")).or_default().extend(quoted(&cells[0]));
            }
        }
    }
    found
}

#[test]
fn every_documented_command_and_flag_of_the_program_exists() {
    let known = leaf_commands();
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for (place, _) in documents() {
        for text in ["sh", "console"].iter().flat_map(|language| blocks(&place, language)) {
            for line in text.replace("\\\n", " ").lines() {
                let Some(words) = own_command(line) else { continue };
                let called = known.iter().find(|command| words.starts_with(command));
                let Some(command) = called else {
                    wrong.push(format!("{place}: no such command: {line}"));
                    continue;
                };
                let help = help(command);
                let flags = words.iter().filter(|word| word.starts_with("--"));
                for flag in flags.map(|flag| flag.split('=').next().unwrap_or(flag)) {
                    if !has_flag(&help, flag) {
                        wrong.push(format!("{place}: {} has no {flag}", command.join(" ")));
                    }
                }
                seen.insert(command.join(" "));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for command in ["ls", "push", "fetch", "cache ls", "cache import", "cache prefetch"] {
        assert!(seen.contains(command), "no document has {command}: {seen:?}");
    }
}

/// The words after the program's name, where a line calls it: as the first word, or in a
/// container.
fn own_command(line: &str) -> Option<Vec<String>> {
    let line = line.trim_start().trim_start_matches("$ ");
    let called = line.split_once(" -- ").map_or(line, |(_, inside)| inside);
    let mut words = called.split_whitespace().map(str::to_owned);
    let program = words.next()?;
    let is_own = program == "oci-model-csi" || program.ends_with("/oci-model-csi");
    is_own.then(|| words.take_while(|word| !"|&;>".contains(word.as_str())).collect())
}

fn has_flag(help: &str, flag: &str) -> bool {
    help.split_whitespace().any(|word| word.trim_end_matches([',', ']']) == flag)
}

#[test]
fn the_programs_own_commands_are_found_in_lines() {
    for (line, words) in [
        ("$ oci-model-csi ls oci://b/p --objects", Some("ls oci://b/p --objects")),
        ("target/release/oci-model-csi push a b | cat", Some("push a b")),
        ("kubectl exec POD -c driver -- oci-model-csi cache ls", Some("cache ls")),
        ("helm install oci-model-csi deploy/helm/oci-model-csi", None),
        ("kubectl -n oci-model-csi get pods", None),
    ] {
        assert_eq!(own_command(line).map(|words| words.join(" ")).as_deref(), words, "{line}");
    }
    assert!(has_flag("      --output <FORMAT>  [default: text]", "--output"));
    assert!(!has_flag("      --output <FORMAT>", "--out"));
}
