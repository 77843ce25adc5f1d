//! `oci-model-csi fetch` as a process.

use std::path::{Path, PathBuf};

use localstore::LocalStore;
use serde_json::Value;
use tokio::process::Child;

use super::access::Access;
use super::models::{BUCKET, PREFIX};

/// Starts a fetch of the model under [`PREFIX`].
#[derive(Debug, Clone)]
pub(crate) struct Fetch {
    pub(crate) uri: String,
    pub(crate) directory: PathBuf,
    pub(crate) access: Access,
    pub(crate) arguments: Vec<String>,
}

/// The exit code and output of a command; the code is -1 when a signal ended it.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Fetch {
    /// A fetch into `scratch/model`, with an API key that the store knows.
    pub(crate) fn new(scratch: &Path, store: &LocalStore) -> Self {
        Self {
            uri: format!("oci://{BUCKET}/{PREFIX}"),
            directory: scratch.join("model"),
            access: Access::new(scratch, store),
            arguments: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// With a variable of its environment.
    pub(crate) fn and_variable(mut self, name: &'static str, value: &str) -> Self {
        self.access.environment.push((name, value.to_owned()));
        self
    }

    /// Starts the process. It is killed when the returned value is dropped.
    pub(crate) fn spawn(&self) -> Child {
        let mut command = self.access.command("fetch");
        command.args(&self.arguments).arg(&self.uri).arg(&self.directory);
        command.spawn().expect("the program")
    }

    /// Runs the process to its end.
    pub(crate) async fn run(&self) -> Fetched {
        Fetched::of(self.spawn()).await
    }
}

impl Fetched {
    /// Waits for the end of a started process.
    pub(crate) async fn of(child: Child) -> Self {
        let output = child.wait_with_output().await.expect("its output");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// The object on stdout of `--output json`.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", self.stdout, self.stderr))
    }
}
