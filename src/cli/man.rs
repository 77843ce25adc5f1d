//! `oci-model-csi man [DIR]`: the manual pages, made of the texts of `--help`.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Arg, Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::NAME;
use crate::error::{Error, Result};

const AFTER_HELP: &str = "\
Examples:
  oci-model-csi man | man -l -
  oci-model-csi man ~/.local/share/man/man1
  man oci-model-csi-push";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ManArgs {
    /// Directory for a page of every command, created if it does not exist [default: the page of
    /// oci-model-csi itself, on stdout]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// A manual page in roff.
#[derive(Debug)]
struct Page {
    /// Its name in a directory of section 1, such as `oci-model-csi-cache-ls.1`.
    file: String,
    text: Vec<u8>,
}

/// Prints the page of the program, or writes the pages of all commands and prints their paths.
pub(super) fn run(args: &ManArgs, command: Command) -> Result<()> {
    let pages = pages(command)?;
    let mut stdout = std::io::stdout().lock();
    let write_failed = |e: std::io::Error| Error::io("writing the result", &e);
    let Some(dir) = &args.dir else {
        return pages
            .first()
            .map_or(Ok(()), |page| stdout.write_all(&page.text))
            .map_err(write_failed);
    };
    fs::create_dir_all(dir).map_err(|e| Error::io(format!("creating {}", dir.display()), &e))?;
    for page in pages {
        let path = dir.join(page.file);
        fs::write(&path, page.text)
            .map_err(|e| Error::io(format!("writing {}", path.display()), &e))?;
        writeln!(stdout, "{}", path.display()).map_err(write_failed)?;
    }
    Ok(())
}

/// The pages of a command and of all commands below it, its own one first.
fn pages(command: Command) -> Result<Vec<Page>> {
    let mut command = prepared(command.disable_help_subcommand(true));
    command.build();
    let (mut pages, mut open) = (Vec::new(), vec![command]);
    while let Some(command) = open.pop() {
        open.extend(command.get_subcommands().cloned());
        pages.push(page(command).map_err(|e| Error::io("writing a page", &e))?);
    }
    Ok(pages)
}

/// The command in the words of `--help`, where those of a page would differ.
fn prepared(command: Command) -> Command {
    command
        .subcommand_help_heading("COMMANDS")
        .subcommand_value_name("COMMAND")
        .mut_args(in_words_of_help)
        .mut_subcommands(prepared)
}

/// The argument with its variable, default and values where `--help` has them.
fn in_words_of_help(argument: Arg) -> Arg {
    let Some(help) = argument.get_help() else { return argument };
    let mut parts = vec![help.to_string()];
    if let Some(name) = argument.get_env() {
        parts.push(format!("[env: {}]", name.to_string_lossy()));
    }
    if !argument.get_action().takes_values() {
        return argument.help(parts.join(" ")).hide_env(true);
    }
    let defaults = argument.get_default_values().iter().map(|value| value.to_string_lossy());
    let defaults: Vec<_> = defaults.collect();
    if !defaults.is_empty() {
        parts.push(format!("[default: {}]", defaults.join(" ")));
    }
    let values = argument.get_possible_values();
    let values: Vec<_> = values.iter().map(clap::builder::PossibleValue::get_name).collect();
    if !values.is_empty() {
        parts.push(format!("[possible values: {}]", values.join(", ")));
    }
    let argument = argument.help(parts.join(" ")).hide_env(true);
    argument.hide_default_value(true).hide_possible_values(true)
}

fn page(command: Command) -> std::io::Result<Page> {
    let after_help = command.get_after_help().map(ToString::to_string);
    let has_commands = command.has_subcommands();
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_uppercase();
    let mut text = Vec::new();
    // `render_title` would write no date without quotes, so that the version is taken for the date.
    // Flags and URIs are neither hyphenated nor spread over the line.
    let version = env!("CARGO_PKG_VERSION");
    write!(text, ".TH \"{name}\" 1 \"\" \"{NAME} {version}\" \"User Commands\"\n.nh\n.ad l\n")?;
    let man = Man::new(command);
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if has_commands {
        man.render_subcommands_section(&mut text)?;
    }
    if let Some(after_help) = after_help {
        notes(&after_help).to_writer(&mut text)?;
    }
    Ok(Page { file: man.get_filename(), text })
}

/// Sections of the text that follows the flags in `--help`: examples, and paragraphs in which
/// indented lines are commands.
fn notes(text: &str) -> Roff {
    let mut roff = Roff::new();
    let mut section = "";
    for block in text.split("\n\n") {
        let (heading, lines) = match block.strip_prefix("Examples:\n") {
            Some(lines) => ("EXAMPLES", lines),
            None => ("NOTES", block),
        };
        if heading == section {
            roff.control("PP", []);
        } else {
            roff.control("SH", [heading]);
        }
        section = heading;
        for line in lines.lines() {
            match line.strip_prefix("  ") {
                Some(code) => {
                    roff.control("RS", ["2"]).control("nf", []);
                    roff.text([roman(code)]).control("fi", []).control("RE", []);
                }
                None => {
                    roff.text([roman(line)]);
                }
            }
        }
    }
    roff
}
