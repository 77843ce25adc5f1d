//! `oci-model-csi man`: a page for every command, in the words of `--help`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::driver::BINARY;
use crate::support::help::{all_commands, help};

/// Headings of a page. What they are for, `--help` shows by its form.
const HEADINGS: [&str; 6] = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "NOTES"];

/// Words of `--help` that a page has in another form, or for which it has no use: the headings of
/// lists, and the command `help`, which shows what a page shows.
const FORM: [&str; 5] = ["Usage:", "Arguments:", "Commands:", "Options:", "Examples:"];

fn man(arguments: &[&str]) -> Output {
    Command::new(BINARY).arg("man").args(arguments).output().expect("the program")
}

/// Writes all pages, and returns them with the words of their commands.
fn pages(directory: &Path) -> Vec<(Vec<String>, String)> {
    let output = man(&[directory.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let of_command = |command: Vec<String>| {
        let name = [&["oci-model-csi".to_owned()], &command[..]].concat().join("-");
        (command, fs::read_to_string(directory.join(format!("{name}.1"))).expect(&name))
    };
    all_commands().into_iter().map(of_command).collect()
}

#[test]
fn every_command_has_its_page_and_no_page_is_without_a_command() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("share/man/man1");
    let pages = pages(&directory);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), pages.len());
    assert!(pages.iter().any(|(command, _)| command[..] == ["cache", "ls"]), "nested ones too");

    // Without a directory, the page of the program itself.
    let printed = String::from_utf8(man(&[]).stdout).unwrap();
    let (_, own) = pages.iter().find(|(command, _)| command.is_empty()).unwrap();
    assert_eq!(&printed, own);
}

#[test]
fn the_same_program_writes_the_same_pages_whatever_its_environment_has() {
    let print = |name: &str, value: &str| {
        let output = Command::new(BINARY).arg("man").env(name, value).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let first = print("COLUMNS", "20");
    assert_eq!(print("OCI_MODEL_CSI_LOG_LEVEL", "a-value"), first);
}

#[test]
fn pages_and_help_have_the_same_words() {
    let scratch = tempfile::tempdir().unwrap();
    for (command, page) in pages(scratch.path()) {
        let (page, help) = (text_of(&page), without_help_command(&help(&command)));
        let (in_page, in_help) = (words(&page), words(&help));
        let only_here: Vec<_> = in_page
            .difference(&in_help)
            .filter(|word| !HEADINGS.contains(&word.as_str()) && !is_in_other_case(word, &in_help))
            .collect();
        assert!(only_here.is_empty(), "{command:?}: only in the page: {only_here:?}");
        let only_there: Vec<_> = in_help
            .difference(&in_page)
            .filter(|word| !FORM.contains(&word.as_str()) && !is_in_other_case(word, &in_page))
            .collect();
        assert!(only_there.is_empty(), "{command:?}: only in --help: {only_there:?}");
        // And in the same order: each text is there as a whole.
        let page = flowed(&page);
        for text in texts(&help) {
            assert!(page.contains(&text), "{command:?}: not in the page: {text}");
        }
    }
}

/// Whether a word is a heading, which a page has in capitals and without a colon.
fn is_in_other_case(word: &str, others: &BTreeSet<String>) -> bool {
    let word = word.trim_end_matches(':');
    others.iter().any(|other| other.trim_end_matches(':').eq_ignore_ascii_case(word))
}

/// The text of a page without its macros and escapes, with the names of commands as `--help` has them.
fn text_of(page: &str) -> String {
    let escapes = [
        ("\\fB", ""),
        ("\\fI", ""),
        ("\\fR", ""),
        ("\\-", "-"),
        ("\\*(Aq", "'"),
        ("\\&", ""),
        ("\\\\", "\\"),
    ];
    let mut text = String::new();
    for line in page.lines() {
        let line = match line.strip_prefix('.') {
            Some(macro_) => macro_.strip_prefix("SH ").unwrap_or_default().replace('"', ""),
            None => line.to_owned(),
        };
        let line = escapes.into_iter().fold(line, |line, (escape, by)| line.replace(escape, by));
        // `oci-model-csi-cache(1)` in the list of commands, `oci-model-csi-cache - Inspect …` above.
        let name = line.strip_prefix("oci-model-csi-").and_then(|rest| rest.strip_suffix("(1)"));
        let line = match (name, line.split_once(" - ")) {
            (Some(name), _) => name.rsplit('-').next().unwrap(),
            (None, Some((name, about))) if name.starts_with("oci-model-csi") => about,
            _ => &line,
        };
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// The help without the command `help` in the list of commands.
fn without_help_command(help: &str) -> String {
    let lines = help.lines().filter(|line| !line.starts_with("  help "));
    // The value that a variable has now is not part of a page.
    lines.map(|line| line.replace("=]", "]")).collect::<Vec<_>>().join("\n")
}

/// The words of a text, without the signs that show what is optional, or what a value is.
fn words(text: &str) -> BTreeSet<String> {
    let separate = |c: char| c.is_whitespace() || "<>[]=|".contains(c);
    let signs = |word: &str| word.trim_matches(|c: char| ",;()".contains(c)).to_owned();
    text.split(separate).map(signs).filter(|word| !word.is_empty() && word != "...").collect()
}

fn flowed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The texts of the help, each as one line: of commands, arguments and flags, and the paragraphs
/// before and after them.
fn texts(help: &str) -> Vec<String> {
    let mut found: Vec<String> = vec![String::new()];
    for line in help.lines() {
        let is_entry =
            line.starts_with("  ") && line[..7.min(line.len())].contains(|c: char| c != ' ');
        if is_entry {
            // Its name and its text are two spaces apart, unless the text follows below.
            let text = line.trim_start().split_once("  ").map_or("", |(_, text)| text);
            found.push(text.to_owned());
        } else if line.is_empty() || line.ends_with(':') && !line.starts_with(' ') {
            found.push(String::new());
        } else if !line.starts_with("Usage:") {
            let last = found.last_mut().unwrap();
            last.push(' ');
            last.push_str(line);
        }
    }
    let found: Vec<String> =
        found.iter().map(|text| flowed(text)).filter(|text| !text.is_empty()).collect();
    assert!(found.len() > 4, "{help}");
    found
}

#[test]
fn groff_formats_every_page_without_a_warning() {
    let scratch = tempfile::tempdir().unwrap();
    for (command, page) in pages(scratch.path()) {
        assert_eq!(warnings(&page), "", "{command:?}");
    }
    assert!(warnings(".TH a 1\n.NOSUCH\n").contains("NOSUCH"), "the premise: it warns");
}

/// What groff says about a page at 80 columns, with all of its warnings.
fn warnings(page: &str) -> String {
    let mut groff = Command::new("groff")
        .args(["-man", "-ww", "-z", "-Kutf8", "-Tutf8", "-rLL=78n"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("groff (Debian: groff-base)");
    groff.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    String::from_utf8(groff.wait_with_output().unwrap().stderr).unwrap()
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "mine").unwrap();
    let output = man(&[file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("creating {}", file.display())), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}
