//! `oci-model-csi doctor [URI]`

mod show;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser as _};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::fetch::Output;
use super::service_args::ServiceArgs;
use super::storage::StorageArgs;
use super::{Cli, Command, cache_dir, exit};
use crate::cache::CacheDisk;
use crate::config::Config;
use crate::doctor::speed::{self, SpeedOptions, SpeedReport};
use crate::doctor::{
    CheckId, Finding, NodeView, ReadableObjects, Severity, StorageView, ask_driver, examine_node,
    examine_storage, tidy, worst_first,
};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Metrics;
use crate::model::{ModelRequest, ModelUri};
use crate::resolve::ResolveLimits;
use crate::source::AuthMethod;

const AFTER_HELP: &str = "\
Examples:
  oci-model-csi doctor
  oci-model-csi doctor oci://ai-model-cache/models/phi3-mini/
  oci-model-csi doctor oci://ai-model-cache/models/phi3-mini/ --bench
  kubectl -n oci-model-csi exec POD -c driver -- oci-model-csi doctor oci://ai-model-cache/models/

It changes nothing; a file that it writes into the directory of the cache is removed at once.
In the driver's container it uses the flags and the configuration of the driver; elsewhere an API
key if there is a profile of the oci CLI, else the instance's own identity.
docs/doctor.md explains every check.

Exit codes: 0 no fault, 1 a fault, 3 something is not found, 4 not allowed.";

/// kubelet's root directory, and the name of the driver, where nothing says otherwise.
const KUBELET: &str = "/var/lib/kubelet";
const DRIVER: &str = "oci-model-csi.dev";

/// How long the node may take to answer.
const NODE_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct DoctorArgs {
    /// The model, or a prefix with models, that has to be readable
    #[arg(value_name = "URI")]
    uri: Option<String>,
    /// Also read the model with more and more connections, write to the cache's disk, and say what
    /// limits the speed; takes half a minute and reads some gigabytes
    #[arg(long, env = "OCI_MODEL_CSI_BENCH", value_parser = BoolishValueParser::new(), requires = "uri")]
    bench: bool,
    /// The driver's configuration, YAML
    #[arg(long, env = "OCI_MODEL_CSI_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the cache [default: cache.dir of the configuration, /var/lib/oci-model-csi]
    #[arg(long, env = "OCI_MODEL_CSI_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// kubelet's root directory [default: /var/lib/kubelet]
    #[arg(long, env = "OCI_MODEL_CSI_KUBELET_DIR", value_name = "DIR")]
    kubelet_dir: Option<PathBuf>,
    /// Name of the CSI driver [default: oci-model-csi.dev]
    #[arg(long, env = "OCI_MODEL_CSI_DRIVER_NAME", value_name = "NAME")]
    driver_name: Option<String>,
    /// Format of the result on stdout
    #[arg(long, env = "OCI_MODEL_CSI_OUTPUT", value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    storage: StorageArgs,
}

impl DoctorArgs {
    pub(super) fn wants_json(&self) -> bool {
        self.output == Output::Json
    }

    fn model(&self) -> Result<Option<ModelRequest>> {
        let Some(uri) = &self.uri else { return Ok(None) };
        let ModelUri { namespace, bucket, prefix } = ModelUri::parse(uri)?;
        Ok(Some(ModelRequest::of(namespace, bucket, prefix)))
    }
}

/// Looks, prints what was found, and returns the exit code of the worst.
pub(super) fn run(args: &DoctorArgs, runtime: Runtime) -> Result<ExitCode> {
    let model = args.model()?;
    let driver = driver_of_this_container();
    let has_node = driver.as_ref().is_none_or(|driver| driver.has_node);
    let driver = driver.map(|driver| driver.flags);
    let (mut findings, mut speed) = (Vec::new(), None);
    let config = read_config(args, driver.as_ref(), &mut findings);
    let node = node_view(args, driver.as_ref(), &config);
    if has_node {
        findings.extend(look_at_node(node.clone(), config.clone()));
    }
    runtime.block_on(async {
        if has_node {
            findings.extend(ask_driver(&node).await);
        }
        let readable = match storage_view(args, driver.as_ref(), &config, has_node, model) {
            Ok(view) => {
                let storage = examine_storage(view).await;
                findings.extend(storage.findings);
                storage.readable
            }
            Err(error) => {
                findings.push(Finding::of_error(CheckId::Identity, &error));
                None
            }
        };
        if args.bench {
            let directory = directory_to_measure(&node.cache_dir, &findings);
            let measured = measure_speed(readable, directory).await;
            findings
                .extend(measured.as_ref().map_or_else(speed::unmeasured, SpeedReport::findings));
            speed = measured;
        }
    });
    // A name that is still looked up keeps a thread waiting.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let mut findings = tidy(findings);
    worst_first(&mut findings);
    let text = match args.wants_json() {
        true => show::json(&findings, speed.as_ref()),
        false => show::text(&findings),
    };
    exit::print(&text)?;
    Ok(code(&findings))
}

/// Looks at the node on a thread of its own, since a dead mount keeps everything waiting that looks
/// at it.
fn look_at_node(mut node: NodeView, config: Config) -> Vec<Finding> {
    let (sender, receiver) = mpsc::channel();
    let directory = node.cache_dir.clone();
    thread::spawn(move || {
        let disk = CacheDisk::of(&node.cache_dir, &node.kubelet_dir);
        node.limits = disk.map(|disk| cache_dir::limits(&config, &disk));
        // After the time limit there is no receiver.
        let _ = sender.send(examine_node(&node));
    });
    let found = receiver.recv_timeout(NODE_LIMIT);
    found.unwrap_or_else(|_| vec![Finding::silent_node(&directory, NODE_LIMIT)])
}

/// The directory of the cache, if a large file may be written there for a moment.
fn directory_to_measure(cache_dir: &Path, findings: &[Finding]) -> Option<PathBuf> {
    let may = |finding: &Finding| match finding.check {
        CheckId::CacheDirectory | CheckId::CacheSpace => finding.severity < Severity::Warning,
        CheckId::CacheDisk | CheckId::FileSystem => finding.severity < Severity::Fault,
        _ => true,
    };
    (findings.iter().all(may) && cache_dir.is_dir()).then(|| cache_dir.to_owned())
}

/// Reads the objects, and writes to the disk of the cache, until it is clear what limits or Ctrl-C
/// is pressed. `None` without objects to read.
async fn measure_speed(
    readable: Option<ReadableObjects>,
    directory: Option<PathBuf>,
) -> Option<SpeedReport> {
    let ReadableObjects { source, objects, shape } = readable?;
    let options = SpeedOptions { directory, shape, ..SpeedOptions::default() };
    let cancelled = CancellationToken::new();
    let interrupted = cancelled.clone();
    let waiting = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    let is_watched = std::io::stderr().is_terminal();
    let report = speed::measure(source, &objects, &options, &cancelled, |step| {
        if is_watched {
            // Progress only: a closed stream is no reason to end.
            let _ = writeln!(std::io::stderr(), "{}", show::step(step));
        }
    });
    let report = report.await;
    waiting.abort();
    Some(report)
}

/// The driver in whose container this process runs.
struct ContainersDriver {
    flags: ServiceArgs,
    /// Whether it is a node plugin, and not only the Controller.
    has_node: bool,
}

/// The driver in whose container this process runs: there it is process 1.
fn driver_of_this_container() -> Option<ContainersDriver> {
    let line = std::fs::read("/proc/1/cmdline").ok()?;
    let arguments = line.split(|byte| *byte == 0).filter(|argument| !argument.is_empty());
    flags_of_a_driver(arguments.map(|argument| OsString::from_vec(argument.to_vec())).collect())
}

/// The flags, if this is the command line of a driver.
fn flags_of_a_driver(arguments: Vec<OsString>) -> Option<ContainersDriver> {
    let program = Path::new(arguments.first()?).file_name()?;
    if program != "oci-model-csi" {
        return None;
    }
    match Cli::try_parse_from(arguments).ok()?.command {
        Command::Node(flags) | Command::All(flags) => {
            Some(ContainersDriver { flags, has_node: true })
        }
        Command::Controller(flags) => Some(ContainersDriver { flags, has_node: false }),
        _ => None,
    }
}

/// The configuration; the defaults, and a finding, if it cannot be read.
fn read_config(
    args: &DoctorArgs,
    driver: Option<&ServiceArgs>,
    findings: &mut Vec<Finding>,
) -> Config {
    let file = args.config.as_ref().or_else(|| driver?.config.as_ref());
    let Some(file) = file else { return Config::default() };
    let read =
        Config::read(file).and_then(|text| Config::parse(&text, &file.display().to_string()));
    match read {
        Ok(config) => {
            findings.push(Finding::valid_configuration(file));
            config
        }
        Err(error) => {
            findings.push(Finding::broken_configuration(&error));
            Config::default()
        }
    }
}

/// Where the node's parts are: the flags of this command, those of the driver, the defaults.
fn node_view(args: &DoctorArgs, driver: Option<&ServiceArgs>, config: &Config) -> NodeView {
    let given = args.cache_dir.as_ref().or_else(|| driver?.cache_dir.as_ref());
    let cache_dir = given.unwrap_or(&config.cache.dir).clone();
    let kubelet_dir = args.kubelet_dir.as_ref().or_else(|| Some(&driver?.kubelet_dir));
    let kubelet_dir = kubelet_dir.map_or(Path::new(KUBELET), PathBuf::as_path).to_owned();
    let driver_name = args.driver_name.as_ref().or_else(|| Some(&driver?.driver_name));
    let admin = driver.and_then(|driver| driver.admin_endpoint.clone());
    NodeView {
        require_mount: config.cache.require_mount,
        // Known once the disk has answered.
        limits: Err(Error::internal("the disk was not looked at")),
        driver_name: driver_name.map_or(DRIVER, String::as_str).to_owned(),
        csi_socket: driver.map(|driver| driver.csi_endpoint.path().to_owned()),
        admin_socket: admin
            .or_else(|| cache_dir::admin_endpoint(&cache_dir).ok())
            .map(|endpoint| endpoint.path().to_owned()),
        may_write: true,
        cache_dir,
        kubelet_dir,
    }
}

fn storage_view(
    args: &DoctorArgs,
    driver: Option<&ServiceArgs>,
    config: &Config,
    has_node: bool,
    model: Option<ModelRequest>,
) -> Result<StorageView> {
    let default = if driver.is_some() { AuthMethod::InstancePrincipal } else { AuthMethod::Auto };
    let flags =
        driver.map_or_else(|| args.storage.clone(), |driver| args.storage.or(&driver.storage));
    // Without a file the configuration's own default is no choice of anybody.
    let chosen = (driver.is_some() || args.config.is_some()).then_some(&config.object_storage);
    let mut settings = flags.settings(chosen, default, &Arc::new(Metrics::default()))?;
    if has_node {
        settings = settings.coming_from(&config.download);
    }
    if let Some(driver) = driver {
        settings = settings.with_service_account(&driver.service_account_dir);
    }
    Ok(StorageView {
        settings: settings.impatient()?,
        of_driver: driver.is_some(),
        buckets: config.object_storage.buckets.clone(),
        limits: ResolveLimits::from(&config.limits),
        model,
    })
}

/// The exit code of the worst fault; the first of equals.
fn code(findings: &[Finding]) -> ExitCode {
    let fault = findings.iter().find(|finding| finding.severity == Severity::Fault);
    match fault.map(|fault| fault.kind) {
        None => ExitCode::SUCCESS,
        // Whatever is wrong is not how the command was typed.
        Some(ErrorKind::Invalid) => exit::code_of_kind(ErrorKind::Precondition),
        Some(kind) => exit::code_of_kind(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_a_driver_are_those_of_its_command_line() {
        let flags = |line: &str| flags_of_a_driver(line.split(' ').map(OsString::from).collect());
        let driver =
            flags("/usr/bin/oci-model-csi node --config /etc/c.yaml --cache-dir /x").unwrap();
        assert!(driver.has_node && !flags("oci-model-csi controller").unwrap().has_node);
        let driver = driver.flags;
        assert_eq!(driver.config.as_deref(), Some(Path::new("/etc/c.yaml")));
        assert_eq!(driver.cache_dir.as_deref(), Some(Path::new("/x")));
        for other in ["/sbin/init", "oci-model-csi ls oci://b/", "oci-model-csi node --no-such", ""]
        {
            assert!(flags(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_doctor_exchanges_tokens_where_the_driver_of_its_container_does() {
        let line = "/usr/bin/oci-model-csi node --auth oke_workload_identity --oke-endpoint \
                    https://10.0.0.1:12250 --oke-ca-file /a.crt --oke-token-file /token";
        let driver = flags_of_a_driver(line.split(' ').map(OsString::from).collect()).unwrap();
        let parsed = Cli::try_parse_from(["oci-model-csi", "doctor", "--oke-ca-file", "/b.crt"]);
        let Command::Doctor(args) = parsed.unwrap().command else { panic!("doctor") };
        let view =
            storage_view(&args, Some(&driver.flags), &Config::default(), true, None).unwrap();
        let settings = view.settings;
        assert_eq!(settings.oke_endpoint.as_deref(), Some("https://10.0.0.1:12250"));
        assert_eq!(settings.oke_ca_file.as_deref(), Some(Path::new("/b.crt")));
        assert_eq!(settings.oke_token_file.as_deref(), Some(Path::new("/token")));
        assert!(view.of_driver);
    }
}
