//! What the program draws in a terminal: help and progress in few and in many columns, and colors.

use std::fs;

use crate::support::fetch::Fetch;
use crate::support::help::all_commands;
use crate::support::models::{MIB, put_large};
use crate::support::terminal::{in_terminal, plain};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};

/// Size of a model that takes three seconds.
const SIZE: u64 = 12 * MIB;

#[tokio::test]
async fn help_is_wrapped_to_the_terminal_and_to_100_columns_at_most() {
    for command in all_commands() {
        let words: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        for (columns, widest) in [(20, 20), (80, 80), (200, 100)] {
            let text = plain(&in_terminal(columns, &[], &words, None).await);
            for line in text.lines().map(str::trim_end) {
                // One word that is wider than the terminal has a line of its own. The usage,
                // headings, and the names of flags with their values are never broken.
                let unbroken = line.starts_with("Usage:")
                    || line.ends_with(':')
                    || line.trim_start().starts_with('-')
                    || !line.trim_start().contains(' ');
                let fits = line.chars().count() <= widest;
                assert!(fits || unbroken, "{columns}: {words:?}: {line}");
            }
            // A text is not squeezed into a few columns beside the longest flag.
            let indented = text.lines().filter(|line| line.starts_with(&" ".repeat(columns - 5)));
            assert_eq!(indented.count(), 0, "{columns}: {text}");
            assert!(text.lines().count() > 5, "{text}");
        }
    }
}

/// A store whose model takes three seconds to download, and a fetch of it.
fn slow() -> (tempfile::TempDir, LocalStore, Fetch) {
    let scratch = tempfile::tempdir().unwrap();
    let store = LocalStore::builder().start().unwrap();
    put_large(&store, "model.safetensors", SIZE, 1, PutOptions::default());
    let bandwidth = Action::Bandwidth { bytes_per_sec: SIZE / 3 };
    store.faults().add(Rule::new(bandwidth).operation(Operation::Get));
    let fetch = Fetch::new(scratch.path(), &store);
    (scratch, store, fetch)
}

/// What a terminal receives of a fetch whose result goes to a file.
async fn drawn(columns: usize, environment: &[(&str, &str)]) -> String {
    let (scratch, _store, fetch) = slow();
    let (result, config) =
        (scratch.path().join("result"), fetch.access.oci_config.display().to_string());
    let directory = fetch.directory.display().to_string();
    let arguments = [
        "fetch",
        "--config-file",
        &config,
        "--oci-endpoint",
        &fetch.access.endpoint,
        &fetch.uri,
        &directory,
    ];
    let text = in_terminal(columns, environment, &arguments, result.to_str()).await;
    assert!(fs::read_to_string(result).unwrap().contains("revision sha256:"), "{text}");
    text
}

#[tokio::test]
async fn a_progress_bar_has_one_line_that_fits_and_is_gone_at_the_end() {
    for (columns, words) in [(20, &["%"][..]), (80, &["%", " of 12 MiB", "/s", "left", "█"])] {
        let text = drawn(columns, &[]).await;
        assert!(!text.contains('\n'), "it does not scroll: {text:?}");
        let text = plain(&text);
        let lines: Vec<&str> = text.split('\r').collect();
        for line in &lines {
            assert!(line.chars().count() <= columns, "{columns}: {line:?}");
        }
        for word in words {
            assert!(
                lines.iter().any(|line| line.contains(word)),
                "{columns}: no {word}: {lines:?}"
            );
        }
        assert_eq!(lines.last().unwrap().trim(), "", "{columns}: {lines:?}");
    }
}

#[tokio::test]
async fn a_terminal_that_cannot_overwrite_a_line_gets_no_progress_bar() {
    assert_eq!(drawn(80, &[("TERM", "dumb")]).await, "");
}

#[tokio::test]
async fn no_color_is_respected() {
    let colored = |text: &str| text.contains("\u{1b}[");
    for arguments in [&["--help"][..], &["fetch", "no-uri", "dir", "--log-level", "a=b=c"]] {
        let draw = async |environment: &'static [(&str, &str)]| {
            // The second one fails, as it has to.
            let words = [&["--log-format", "text"], arguments].concat();
            in_terminal(80, environment, &words, None).await
        };
        assert!(colored(&draw(&[]).await), "the premise: {arguments:?}");
        let text = draw(&[("NO_COLOR", "1")]).await;
        assert!(!colored(&text), "{text:?}");
    }
}
