//! `oci-model-csi doctor` as a process, and what docs/doctor.md says that it says.

use std::path::{Path, PathBuf};
use std::process::Command;

use localstore::LocalStore;
use serde_json::Value;

use super::documents::table;
use super::driver::BINARY;
use super::models::{BUCKET, PREFIX};

/// The header of the table of broken set-ups.
pub(crate) const SETUPS: &str = "| Set-up | Check |";

/// Starts a doctor that looks at the model under [`PREFIX`], on no node.
#[derive(Debug, Clone)]
pub(crate) struct Doctor {
    pub(crate) uri: Option<String>,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

/// What a doctor printed, and its exit code.
#[derive(Debug)]
pub(crate) struct Diagnosis {
    pub(crate) code: i32,
    pub(crate) stdout: String,
}

impl Doctor {
    /// A doctor with an API key that the store knows.
    pub(crate) fn new(scratch: &Path, store: &LocalStore) -> Self {
        let oci = scratch.join("oci");
        std::fs::create_dir_all(&oci).expect("a directory for the oci CLI's file");
        let file = store.write_cli_config(&oci).expect("the oci CLI's file");
        Self::without_identity(scratch).with(&[
            "--config-file",
            path(&file),
            "--oci-endpoint",
            &store.endpoint(),
        ])
    }

    /// A doctor with the identity of the instance that the store simulates.
    pub(crate) fn on_instance(scratch: &Path, store: &LocalStore) -> Self {
        Self::without_identity(scratch)
            .with(&["--auth", "instance_principal", "--oci-endpoint", &store.endpoint()])
            .and_variable("OCI_METADATA_BASE_URL", &store.imds_base())
            .and_variable("OCI_CLI_FEDERATION_ENDPOINT", &store.federation_endpoint())
    }

    /// A doctor that finds no file of the oci CLI and no metadata service.
    pub(crate) fn without_identity(scratch: &Path) -> Self {
        let absent: PathBuf = scratch.join("absent");
        let doctor = Self {
            uri: Some(format!("oci://{BUCKET}/{PREFIX}")),
            arguments: Vec::new(),
            environment: Vec::new(),
        };
        doctor
            .with(&["--kubelet-dir", path(&absent), "--cache-dir", path(&absent)])
            .and_variable("HOME", path(&absent))
            .and_variable("OCI_METADATA_BASE_URL", "http://127.0.0.1:9/opc/v2")
    }

    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// With a variable, in place of an earlier one of that name.
    pub(crate) fn and_variable(mut self, name: &'static str, value: &str) -> Self {
        self.environment.retain(|(other, _)| *other != name);
        self.environment.push((name, value.to_owned()));
        self
    }

    /// At another endpoint.
    pub(crate) fn at(mut self, endpoint: &str) -> Self {
        let flag = self.arguments.iter().position(|argument| argument == "--oci-endpoint");
        let flag = flag.expect("an endpoint");
        endpoint.clone_into(&mut self.arguments[flag + 1]);
        self
    }

    pub(crate) fn of(mut self, uri: &str) -> Self {
        self.uri = Some(uri.to_owned());
        self
    }

    /// The command, for tests that run it elsewhere.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command
            .arg("doctor")
            .args(&self.arguments)
            .args(&self.uri)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(crate) fn run(&self) -> Diagnosis {
        let output = self.command().output().expect("the program");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr, "", "findings are the result");
        Diagnosis {
            code: output.status.code().expect("an exit code"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        }
    }
}

impl Diagnosis {
    /// Checks that it says what the table of docs/doctor.md says of this set-up, as its worst
    /// finding; `…` in the table marks what depends on the place.
    #[track_caller]
    pub(crate) fn is_of(&self, setup: &str) {
        let rows = table("docs/doctor.md", SETUPS);
        let row = rows.iter().find(|row| row[0] == setup);
        let row = row.unwrap_or_else(|| panic!("docs/doctor.md has no set-up {setup:?}"));
        let (check, severity, says) = (row[1].trim_matches('`'), row[2].as_str(), &row[3]);
        let line = self.stdout.lines().find(|line| {
            let mut words = line.split_whitespace();
            (words.next(), words.next()) == (Some(severity), Some(check))
        });
        let line = line.unwrap_or_else(|| panic!("no {severity} of {check} in\n{}", self.stdout));
        let mut rest = line;
        for part in says.trim_matches('`').split('…') {
            let found = rest.find(part.trim());
            let at =
                found.unwrap_or_else(|| panic!("{:?} is not in {rest:?} of\n{line}", part.trim()));
            rest = &rest[at + part.trim().len()..];
        }
        let first = self.stdout.lines().next().unwrap_or_default();
        assert!(first.starts_with(severity), "the worst is not first:\n{}", self.stdout);
        assert_eq!(self.code, row[4].parse::<i32>().expect("an exit code"), "{}", self.stdout);
    }

    /// The object of `--output json`.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
