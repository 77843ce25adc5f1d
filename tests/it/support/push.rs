//! `oci-model-csi push` as a process.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use localstore::{Action, LocalStore, Operation, Rule, synthetic_bytes};
use tokio::process::{Child, Command};

use super::access::Access;
use super::fetch::Fetched;
use super::models::{BUCKET, MIB, PREFIX};
use super::run::eventually;

/// Starts a push to the model under [`PREFIX`].
#[derive(Debug, Clone)]
pub(crate) struct Push {
    pub(crate) directory: PathBuf,
    pub(crate) uri: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) access: Access,
}

/// An empty store, and a push to it in parts of 1 MiB with its result as JSON.
pub(crate) fn prepared() -> (tempfile::TempDir, LocalStore, Push) {
    let scratch = tempfile::tempdir().expect("a directory");
    let store = LocalStore::builder().start().expect("a local store");
    store.create_bucket(BUCKET).expect("a bucket");
    let push = Push::new(scratch.path(), &store);
    let push = push.with(&["--part-size", "1MiB", "--output", "json"]);
    (scratch, store, push)
}

/// Checks the exit code of a push, and what it said.
#[track_caller]
pub(crate) fn assert_failed(pushed: &Fetched, code: i32, words: &[&str]) {
    assert_eq!(pushed.code, code, "{}{}", pushed.stdout, pushed.stderr);
    for word in words {
        assert!(pushed.stderr.contains(word), "{word:?} is not in {:?}", pushed.stderr);
    }
}

/// Size of the file of [`slow_model`].
pub(crate) const SIZE: u64 = 24 * MIB;

/// The name of the large object.
pub(crate) fn large() -> String {
    format!("{PREFIX}model.safetensors")
}

/// A model of one large file, which takes 6 s to send, and the rule for that.
pub(crate) fn slow_model(push: &Push, store: &LocalStore) -> u64 {
    push.file("model.safetensors", synthetic_bytes(1, 0..SIZE));
    push.file("config.json", b"{}");
    let bandwidth = Action::Bandwidth { bytes_per_sec: SIZE / 6 };
    store.faults().add(Rule::new(bandwidth).operation(Operation::UploadPart))
}

/// Starts a push, does something when a good half was received, and waits for the end.
pub(crate) async fn half_way(push: &Push, store: &LocalStore, what: impl FnOnce(&str)) -> Fetched {
    store.reset_stats();
    // Few requests at once: one that is broken off has sent little.
    let process = push.clone().with(&["--concurrency", "3"]).spawn();
    eventually("half is received", Duration::from_secs(60), async || {
        (store.stats().received_bytes > SIZE / 2).then_some(())
    })
    .await;
    what(&process.id().expect("a running push").to_string());
    Fetched::of(process).await
}

/// Sends a signal to a process.
pub(crate) fn send(signal: &str, pid: &str) {
    assert!(std::process::Command::new("kill").args([signal, pid]).status().unwrap().success());
}

impl Push {
    /// A push of `scratch/local`, with an API key that the store knows.
    pub(crate) fn new(scratch: &Path, store: &LocalStore) -> Self {
        Self {
            directory: scratch.join("local"),
            uri: format!("oci://{BUCKET}/{PREFIX}"),
            arguments: Vec::new(),
            environment: Vec::new(),
            access: Access::new(scratch, store),
        }
    }

    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// The same in parts of another size.
    pub(crate) fn in_parts_of(mut self, size: &str) -> Self {
        let at = self.arguments.iter().position(|argument| argument == "--part-size");
        size.clone_into(&mut self.arguments[at.expect("the flag") + 1]);
        self
    }

    /// Writes a file of the directory.
    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("its directory");
        fs::write(&path, bytes).expect("a file");
        path
    }

    /// Writes a small model, of parts of 1 MiB.
    pub(crate) fn small_model(&self) {
        self.file("model-00001-of-00002.safetensors", synthetic_bytes(1, 0..3 * MIB + 7));
        self.file("model-00002-of-00002.safetensors", synthetic_bytes(2, 0..MIB));
        self.file("model.safetensors.index.json", b"{\"weight_map\": {}}");
        self.file("config.json", b"{\"model_type\": \"phi3\"}");
        self.file("tokenizer/vocab.txt", b"one\ntwo\n");
        self.file("empty.txt", b"");
    }

    /// The command, to be started. It is killed when the started process is dropped.
    pub(crate) fn command(&self) -> Command {
        let mut command = self.access.command("push");
        command.args(&self.arguments).arg(&self.directory).arg(&self.uri);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the process. It is killed when the returned value is dropped.
    pub(crate) fn spawn(&self) -> Child {
        self.command().spawn().expect("the program")
    }

    /// Runs the process to its end.
    pub(crate) async fn run(&self) -> Fetched {
        Fetched::of(self.spawn()).await
    }

    /// Runs a push that must succeed.
    pub(crate) async fn succeeds(&self) -> Fetched {
        let pushed = self.run().await;
        assert_eq!(pushed.code, 0, "{}{}", pushed.stdout, pushed.stderr);
        pushed
    }
}
