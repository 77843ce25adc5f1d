//! The commands of the program, as its help lists them.

use std::process::Command;

use super::driver::BINARY;

/// The help of a command, given as words. Its lines have 100 columns.
pub(crate) fn help(command: &[String]) -> String {
    let output = Command::new(BINARY).args(command).arg("--help").env("COLUMNS", "100").output();
    String::from_utf8(output.expect("the program").stdout).expect("UTF-8")
}

/// All commands, as words: the program itself, and each command below another.
pub(crate) fn all_commands() -> Vec<Vec<String>> {
    let (mut found, mut open) = (Vec::new(), vec![Vec::new()]);
    while let Some(command) = open.pop() {
        open.extend(names_below(&command).map(|name| [&command[..], &[name]].concat()));
        found.push(command);
    }
    assert!(found.len() > 15, "{found:?}");
    found
}

/// All commands that have no commands of their own.
pub(crate) fn leaf_commands() -> Vec<Vec<String>> {
    all_commands().into_iter().filter(|command| names_below(command).next().is_none()).collect()
}

fn names_below(command: &[String]) -> impl Iterator<Item = String> + use<> {
    let help = help(command);
    let list = help.split_once("\nCommands:\n").map(|(_, rest)| rest.to_owned());
    let list = list.and_then(|rest| rest.split("\n\n").next().map(str::to_owned));
    // A name has two spaces before it; further lines of its text have more.
    let name = |line: &str| {
        let name = line.strip_prefix("  ")?.split(' ').next()?;
        (!name.is_empty() && name != "help").then(|| name.to_owned())
    };
    list.unwrap_or_default().lines().filter_map(name).collect::<Vec<_>>().into_iter()
}

/// The long flags that the help of a command lists.
pub(crate) fn flags(command: &[String]) -> Vec<String> {
    let help = help(command);
    // Texts are indented more.
    let flag = |line: &str| line.strip_prefix("      --")?.split(' ').next().map(str::to_owned);
    help.lines().filter_map(flag).map(|flag| format!("--{flag}")).collect()
}
