//! The driver as a process: started, watched, killed and started again on the
//! same directories.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use localstore::LocalStore;
use oci_model_csi::csi::proto::ProbeRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::invariants::allocated;
use super::kubelet::{Kubelet, connect_identity};
use super::run::eventually;

/// The built program.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_oci-model-csi");

/// Longer than any start may take; other tests assert its duration.
const START: Duration = Duration::from_secs(20);

/// Kubernetes gives the driver 30 s.
const STOP: Duration = Duration::from_secs(30);

/// Limits that do not depend on how full the test machine is.
const ROOM: &str = "cache: {minFree: 1MiB, minFreeInodes: 0%}\n";

/// The weights of most tests are pseudo-random bytes.
const ANY_BYTES: &str = "checkSafetensors: ignore\n";

/// How a driver is started. Change fields before [`Setup::start`].
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) mode: &'static str,
    config: String,
    pub(crate) endpoint: String,
    pub(crate) auth: &'static str,
    pub(crate) oci_config: PathBuf,
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) arguments: Vec<String>,
    pub(crate) scratch: PathBuf,
    pub(crate) cache: PathBuf,
    pub(crate) socket: PathBuf,
    metrics: SocketAddr,
}

impl Setup {
    /// A driver that reads from `store` with an API key and has all its files in `scratch`.
    pub(crate) fn new(scratch: &Path, store: &LocalStore) -> Self {
        let oci = scratch.join("oci");
        fs::create_dir_all(&oci).expect("a directory for the oci CLI's file");
        fs::create_dir_all(scratch.join("kubelet/pods")).expect("kubelet's directory");
        Self {
            mode: "all",
            config: String::new(),
            endpoint: store.endpoint(),
            auth: "api_key",
            oci_config: store.write_cli_config(&oci).expect("the oci CLI's file"),
            environment: Vec::new(),
            arguments: Vec::new(),
            scratch: scratch.to_owned(),
            cache: scratch.join("cache"),
            socket: scratch.join("csi.sock"),
            metrics: own_address(),
        }
    }

    /// Adds these lines of YAML. The defaults for space stay unless there is a
    /// `cache:`, and weights may be any bytes unless `checkSafetensors` is named.
    pub(crate) fn with_config(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.config);
        self
    }

    /// Reads with the identity of the instance that `store` simulates.
    pub(crate) fn with_instance_principal(mut self, store: &LocalStore) -> Self {
        self.auth = "instance_principal";
        self.environment.push(("OCI_METADATA_BASE_URL", store.imds_base()));
        self.environment.push(("OCI_CLI_FEDERATION_ENDPOINT", store.federation_endpoint()));
        self
    }

    /// Starts the driver, and returns when it reports that it is ready.
    pub(crate) async fn start(self) -> Driver {
        let process = self.spawn();
        let mut driver = Driver { setup: self, process };
        driver.until_ready().await;
        driver
    }

    /// Starts a driver that is expected to exit at once, and returns its status and log.
    pub(crate) async fn refuses(self) -> (ExitStatus, String) {
        let mut process = self.spawn();
        let ended = tokio::time::timeout(START, process.wait()).await;
        let log = self.log();
        (ended.unwrap_or_else(|_| panic!("the driver did not end:\n{log}")).unwrap(), log)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.join("driver.log")
    }

    /// The configuration file's text.
    pub(crate) fn config_text(&self) -> String {
        let unless = |key, lines| if self.config.contains(key) { "" } else { lines };
        let (room, any) = (unless("cache:", ROOM), unless("checkSafetensors", ANY_BYTES));
        format!("{room}{}\n{any}", self.config)
    }

    fn spawn(&self) -> Child {
        let config = self.scratch.join("config.yaml");
        fs::write(&config, self.config_text()).expect("the configuration");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log");
        let path = |path: &Path| path.to_str().expect("a UTF-8 path").to_owned();
        let mut command = Command::new(BINARY);
        command
            .arg(self.mode)
            .args(["--csi-endpoint", &format!("unix://{}", path(&self.socket))])
            .args(["--node-id", "node-1", "--auth", self.auth])
            .args(["--cache-dir", &path(&self.cache)])
            .args(["--kubelet-dir", &path(&self.scratch.join("kubelet"))])
            .args(["--config", &path(&config), "--config-file", &path(&self.oci_config)])
            .args(["--oci-endpoint", &self.endpoint])
            .args(["--metrics-address", &self.metrics.to_string()])
            .args(&self.arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .kill_on_drop(true);
        command.spawn().expect("the driver's program")
    }
}

/// A running driver. It is killed when this value is dropped, and prints its log if
/// the test failed.
pub(crate) struct Driver {
    pub(crate) setup: Setup,
    process: Child,
}

impl Driver {
    /// A driver with the defaults of [`Setup::new`].
    pub(crate) async fn start(scratch: &Path, store: &LocalStore) -> Self {
        Setup::new(scratch, store).start().await
    }

    pub(crate) fn kubelet(&self) -> Kubelet {
        Kubelet::new(&self.setup.socket, &self.setup.scratch.join("kubelet"))
    }

    /// Where `/metrics` and the probes are.
    pub(crate) fn metrics_address(&self) -> SocketAddr {
        self.setup.metrics
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id().expect("a running driver")
    }

    /// Sends SIGKILL, and waits until the process is gone.
    pub(crate) async fn kill(&mut self) {
        self.process.kill().await.expect("SIGKILL");
    }

    /// Sends SIGTERM; [`Driver::ended`] waits for the end.
    pub(crate) async fn terminate(&self) {
        let killed = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().await;
        assert!(killed.expect("kill").success());
    }

    /// Starts it again with a budget that its models just fit in, so that the
    /// next one must evict another. Blobs of no model are gone by then.
    pub(crate) async fn restart_full(&mut self, config: &str) {
        let cache = &self.setup.cache;
        let blobs = cache.join("blobs");
        let uncounted = ["trash", "staging"].map(|directory| cache.join(directory));
        let limit = allocated(cache, |path, metadata| {
            let in_blobs = path.starts_with(&blobs);
            let is_blob = in_blobs && metadata.is_file() && path.extension().is_none();
            let is_orphan = is_blob && metadata.nlink() == 1;
            let is_fixed = path.parent() == Some(cache) || in_blobs && metadata.is_dir();
            !is_orphan && !is_fixed && !uncounted.iter().any(|one| path.starts_with(one))
        });
        self.setup = self.setup.clone().with_config(&with_budget(config, limit));
        self.restart_to(None).await;
        // Its gauges appear after its first check of the cache. Files that this check
        // removes would otherwise be evicted when the next driver starts.
        eventually("the driver has looked at its cache", START, async || {
            let looked = self.metric("cache_limit_bytes").await > 0;
            (looked && self.in_cache("trash").is_empty()).then_some(())
        })
        .await;
    }

    /// Waits until the process has stopped itself.
    pub(crate) async fn stopped(&self) {
        stopped(self.pid()).await;
    }

    /// Waits until the process has exited.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(STOP, self.process.wait()).await;
        let at = &self.setup.environment;
        ended
            .unwrap_or_else(|_| panic!("the driver did not end within 30 s: {at:?}"))
            .expect("its status")
    }

    /// Starts again on the same directories, and returns the time until it was ready.
    pub(crate) async fn restart(&mut self) -> Duration {
        let started = Instant::now();
        self.process = self.setup.spawn();
        self.until_ready().await;
        started.elapsed()
    }

    /// Kills it if it runs, and starts it so that it kills or stops itself at a
    /// step (`kill:STEP`, `stop:STEP`), or at none.
    pub(crate) async fn restart_to(&mut self, abort_at: Option<&str>) {
        self.kill().await;
        let abort_at = abort_at.map(|at| ("OCI_MODEL_CSI_ABORT_AT", at.to_owned()));
        self.setup.environment.retain(|(name, _)| *name != "OCI_MODEL_CSI_ABORT_AT");
        self.setup.environment.extend(abort_at);
        self.restart().await;
    }

    async fn until_ready(&mut self) {
        let (socket, process) = (self.setup.socket.clone(), &mut self.process);
        let log = self.setup.log_path();
        eventually("the driver is ready", START, async || {
            if let Some(status) = process.try_wait().expect("its status") {
                let log = fs::read_to_string(&log).unwrap_or_default();
                panic!("the driver ended with {status}:\n{log}");
            }
            let mut identity = connect_identity(&socket).await.ok()?;
            let probe = identity.probe(ProbeRequest {}).await.ok()?;
            probe.into_inner().ready.unwrap_or(true).then_some(())
        })
        .await;
    }

    pub(crate) fn log(&self) -> String {
        self.setup.log()
    }

    /// The metrics as a Prometheus server would read them.
    pub(crate) async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.setup.metrics).await.expect("the metrics' port");
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    /// The status of a POST to the port that is open to the cluster.
    pub(crate) async fn post_to_metrics(&self, path: &str, body: &str) -> u16 {
        let mut stream = TcpStream::connect(self.setup.metrics).await.expect("the metrics' port");
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: \
             {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer.split(' ').nth(1).expect("a status").parse().expect("a number")
    }

    /// The value of one series, named without the prefix; 0 while it is not there.
    pub(crate) async fn metric(&self, series: &str) -> u64 {
        let metrics = self.metrics().await;
        let name = format!("oci_model_csi_{series} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
        value.map_or(0, |value| value.trim().parse().expect("a whole number"))
    }

    /// Names in one of the cache's directories.
    pub(crate) fn in_cache(&self, directory: &str) -> Vec<String> {
        let listed = fs::read_dir(self.setup.cache.join(directory)).expect("a cache");
        listed.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// One lease file for each volume that holds a model.
    pub(crate) fn leases(&self) -> usize {
        self.in_cache("leases").len()
    }

    /// Whether a download has left its journal, or writes it now.
    pub(crate) fn journals(&self) -> usize {
        let names = self.in_cache("staging");
        let journal = |name: &&String| Path::new(name).extension().is_some_and(|e| e == "journal");
        names.iter().filter(journal).count()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            let text = format!("the driver's log ended with:\n{}\n", tail.join("\n"));
            super::namespace::forward(text.as_bytes());
        }
    }
}

/// A configuration that begins with `cache: {`, with a budget in bytes.
pub(crate) fn with_budget(config: &str, bytes: u64) -> String {
    config.replacen("cache: {", &format!("cache: {{maxSize: {bytes}, "), 1)
}

/// Waits until a process has stopped itself.
pub(crate) async fn stopped(pid: u32) {
    eventually("the process halts", START, async || {
        process_state(pid).is_some_and(|state| state == 'T').then_some(())
    })
    .await;
}

/// A kind of memory of a process in bytes: `VmRSS`, `RssAnon`, or `VmHWM`, the peak of the first.
pub(crate) fn memory_of(pid: u32, kind: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let (_, size) = lines.find(|(key, _)| *key == kind).expect("the line");
    size.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// The state of a process, as in its `stat`.
pub(crate) fn process_state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// An address of this test alone. All of 127/8 is loopback, and no two tests
/// that start drivers run in one process.
fn own_address() -> SocketAddr {
    static NEXT_PORT: AtomicU16 = AtomicU16::new(9100);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    // Not below 127.0, where other programs listen.
    SocketAddr::from(([127, 64 + a % 64, b, c], NEXT_PORT.fetch_add(1, Ordering::Relaxed)))
}
