//! `oci-model-csi fetch` as a process.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use localstore::LocalStore;
use serde_json::Value;
use tokio::process::{Child, Command};

use super::driver::BINARY;
use super::models::{BUCKET, PREFIX};

/// Starts a fetch of the model under [`PREFIX`].
#[derive(Debug, Clone)]
pub(crate) struct Fetch {
    pub(crate) uri: String,
    pub(crate) directory: PathBuf,
    pub(crate) endpoint: String,
    pub(crate) oci_config: PathBuf,
    pub(crate) arguments: Vec<String>,
}

/// The exit code and output of a fetch.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Fetch {
    /// A fetch into `scratch/model`, with an API key that the store knows.
    pub(crate) fn new(scratch: &Path, store: &LocalStore) -> Self {
        let oci = scratch.join("oci");
        std::fs::create_dir_all(&oci).expect("a directory for the oci CLI's file");
        Self {
            uri: format!("oci://{BUCKET}/{PREFIX}"),
            directory: scratch.join("model"),
            endpoint: store.endpoint(),
            oci_config: store.write_cli_config(&oci).expect("the oci CLI's file"),
            arguments: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Starts the process. It is killed when the returned value is dropped.
    pub(crate) fn spawn(&self) -> Child {
        Command::new(BINARY)
            .arg("fetch")
            .arg("--config-file")
            .arg(&self.oci_config)
            .args(["--oci-endpoint", &self.endpoint])
            .args(&self.arguments)
            .arg(&self.uri)
            .arg(&self.directory)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program")
    }

    /// Runs the process to its end.
    pub(crate) async fn run(&self) -> Fetched {
        let output = self.spawn().wait_with_output().await.expect("its output");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Fetched {
            code: output.status.code().expect("an exit code"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Fetched {
    /// The object on stdout of `--output json`.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", self.stdout, self.stderr))
    }
}
