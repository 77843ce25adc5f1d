//! `oci-model-csi cache …` as a process.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;
use tokio::process::{Child, Command};

use super::driver::{BINARY, Setup};
use super::fetch::Fetched;

/// Runs the commands of one cache.
#[derive(Debug, Clone)]
pub(crate) struct Commands {
    cache: PathBuf,
    kubelet: PathBuf,
    oci_config: PathBuf,
    endpoint: String,
    config: PathBuf,
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Commands {
    /// The commands on the cache of this driver, whether it runs or not.
    pub(crate) fn of(setup: &Setup) -> Self {
        let config = setup.scratch.join("commands.yaml");
        std::fs::write(&config, setup.config_text()).expect("the configuration");
        Self {
            cache: setup.cache.clone(),
            kubelet: setup.scratch.join("kubelet"),
            oci_config: setup.oci_config.clone(),
            endpoint: setup.endpoint.clone(),
            config,
            environment: Vec::new(),
        }
    }

    /// Starts a command. The process ends when the returned value is dropped.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(BINARY);
        command
            .arg("cache")
            .args(arguments)
            .env_clear()
            .env("OCI_MODEL_CSI_CACHE_DIR", &self.cache)
            .env("OCI_MODEL_CSI_KUBELET_DIR", &self.kubelet)
            // Without a driver the commands ask Object Storage themselves.
            .env("OCI_MODEL_CSI_CONFIG", &self.config)
            .env("OCI_MODEL_CSI_AUTH", "api_key")
            .env("OCI_MODEL_CSI_CONFIG_FILE", &self.oci_config)
            .env("OCI_MODEL_CSI_OCI_ENDPOINT", &self.endpoint)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command.spawn().expect("the program")
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Fetched {
        Fetched::of(self.spawn(arguments)).await
    }

    /// Runs a command that must succeed, and returns its text.
    pub(crate) async fn text(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments).await;
        assert_eq!(ran.code, 0, "{arguments:?}: {}{}", ran.stdout, ran.stderr);
        ran.stdout
    }

    /// Runs a command that must succeed, with `--output json`.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Value {
        let text = self.text(&[arguments, &["--output", "json"]].concat()).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Runs a command that must fail with this code, and returns its message.
    pub(crate) async fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let ran = self.run(arguments).await;
        assert_eq!(ran.code, code, "{arguments:?}: {}{}", ran.stdout, ran.stderr);
        format!("{}{}", ran.stdout, ran.stderr)
    }
}
