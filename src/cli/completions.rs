//! `oci-model-csi completions SHELL`

use std::io::Write as _;

use clap::{Args, Command};
use clap_complete::Shell;

use super::NAME;
use crate::error::{Error, Result};

const AFTER_HELP: &str = "\
Examples:
  source <(oci-model-csi completions bash)
  oci-model-csi completions bash >~/.local/share/bash-completion/completions/oci-model-csi
  oci-model-csi completions zsh >\"${fpath[1]}/_oci-model-csi\"
  oci-model-csi completions fish >~/.config/fish/completions/oci-model-csi.fish

The first line is for this shell only. The others are for every new one.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CompletionsArgs {
    /// The shell that reads the script
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs, command: Command) -> Result<()> {
    let script = match args.shell {
        Shell::Bash => bash(command),
        shell => generated(shell, command, NAME),
    };
    std::io::stdout().write_all(&script).map_err(|e| Error::io("writing the result", &e))
}

/// The script for bash. With a hyphen in the name of the program, the generator's script would
/// complete nothing after a command (clap-rs/clap#6421), so the program is only registered by it.
fn bash(command: Command) -> Vec<u8> {
    let name = NAME.replace('-', "_");
    let script = generated(Shell::Bash, command, &name);
    let script = String::from_utf8_lossy(&script);
    script.replace(&format!("default {name}\n"), &format!("default {NAME}\n")).into_bytes()
}

fn generated(shell: Shell, mut command: Command, name: &str) -> Vec<u8> {
    // Into memory first: where it cannot write, the generator panics.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}
