//! The program in a terminal of a given size: a pseudo-terminal of util-linux' `script`.

use std::process::Stdio;

use tokio::process::Command;

use super::driver::BINARY;

/// Runs the program with its stderr, and its stdin, at a terminal of so many columns. Returns what
/// the terminal received. Stdout goes to the terminal too, unless `redirected` names a file.
pub(crate) async fn in_terminal(
    columns: usize,
    environment: &[(&str, &str)],
    arguments: &[&str],
    redirected: Option<&str>,
) -> String {
    let words: Vec<String> =
        [&[BINARY], arguments].concat().iter().map(|word| quoted(word)).collect();
    let to = redirected.map_or_else(String::new, |file| format!(" >{}", quoted(file)));
    let command = format!("stty rows 24 cols {columns} && exec {}{to}", words.join(" "));
    let output = Command::new("script")
        .args(["--quiet", "--command", &command, "/dev/null"])
        .env_clear()
        .envs([("PATH", "/usr/bin:/bin"), ("SHELL", "/bin/sh"), ("TERM", "xterm")])
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("script of util-linux");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The text without control sequences, which begin with ESC [ and end with a letter.
pub(crate) fn plain(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).map_or(part.len(), |end| end + 1);
        all + &part[end..]
    })
}
