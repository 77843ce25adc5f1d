//! Commands that ask Object Storage themselves, as processes.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use localstore::LocalStore;
use tokio::process::Command;

use super::driver::BINARY;

/// How a command reaches a store: its endpoint, and an API key that it knows.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) endpoint: String,
    pub(crate) oci_config: PathBuf,
    pub(crate) environment: Vec<(&'static str, String)>,
    /// A program, with its arguments, that starts the command.
    pub(crate) through: Vec<&'static str>,
}

impl Access {
    /// Writes the oci CLI's file to a directory of its own in `scratch`.
    pub(crate) fn new(scratch: &Path, store: &LocalStore) -> Self {
        let oci = scratch.join("oci");
        std::fs::create_dir_all(&oci).expect("a directory for the oci CLI's file");
        Self {
            endpoint: store.endpoint(),
            oci_config: store.write_cli_config(&oci).expect("the oci CLI's file"),
            environment: Vec::new(),
            through: Vec::new(),
        }
    }

    /// A command with no other environment than [`Self::environment`], whose output is read. It is killed when the returned
    /// value is dropped.
    pub(crate) fn command(&self, subcommand: &str) -> Command {
        let mut words = self.through.iter().copied().chain([BINARY]);
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .arg(subcommand)
            .arg("--config-file")
            .arg(&self.oci_config)
            .args(["--oci-endpoint", &self.endpoint])
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}
