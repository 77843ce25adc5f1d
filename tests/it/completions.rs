//! `oci-model-csi completions`: each script is read by its shell, and completes in it.

use std::process::{Command, Output};

use crate::support::driver::BINARY;
use crate::support::help::all_commands;

fn script(shell: &str) -> String {
    let output = Command::new(BINARY).args(["completions", shell]).output().unwrap();
    assert!(output.status.success(), "{shell}");
    String::from_utf8(output.stdout).unwrap()
}

/// Reads the script from its first argument, then completes the last of the other arguments with
/// the function that the script registered.
const COMPLETE: &str = r#"
set -u
source "$1"
shift
registered="$(complete -p oci-model-csi)"
[[ "$registered" =~ -F\ ([^ ]+) ]]
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
set +u
"${BASH_REMATCH[1]}" oci-model-csi "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// What bash offers for the last word of a command line.
fn completed(words: &[&str]) -> Vec<String> {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("oci-model-csi.bash");
    std::fs::write(&file, script("bash")).unwrap();
    let shell = ["--noprofile", "--norc", "-c", COMPLETE, "bash"];
    let output = Command::new("bash").args(shell).arg(&file).args(words).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.is_empty(), "{words:?}: {said}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    for (words, expected) in [
        (&["oci-model-csi", "fe"][..], &["fetch"][..]),
        (&["oci-model-csi", "cache", "pre"], &["prefetch"]),
        (&["oci-model-csi", "push", "--part"], &["--part-size"]),
        (&["oci-model-csi", "cache", "gc", "--fr"], &["--free"]),
        (&["oci-model-csi", "ls", "--output", "js"], &["json"]),
        (&["oci-model-csi", "no"], &["node", "nodes"]),
    ] {
        assert_eq!(completed(words), expected, "{words:?}");
    }
}

#[test]
fn bash_offers_every_command() {
    for command in all_commands().iter().filter(|command| !command.is_empty()) {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let offered = completed(&[&["oci-model-csi"], &words[..]].concat());
        assert!(offered.contains(command.last().unwrap()), "{command:?}: {offered:?}");
    }
}

/// Whether a shell reads the script without running it.
fn syntax(shell: &str, text: &str) -> Output {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("script");
    std::fs::write(&file, text).unwrap();
    let output = Command::new(shell).arg("-n").arg(&file).output();
    output.unwrap_or_else(|error| panic!("{shell} (Debian: {shell}): {error}"))
}

#[test]
fn zsh_and_fish_read_their_scripts() {
    for shell in ["zsh", "fish"] {
        let output = syntax(shell, &script(shell));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{shell}: {said}");
        assert!(!syntax(shell, "if true; (\n").status.success(), "the premise: it reads it");
    }
}

#[test]
fn an_unknown_shell_is_refused_with_those_that_are_known() {
    let output = Command::new(BINARY).args(["completions", "csh"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(said.contains(shell), "{said}");
        script(shell);
    }
}
