//! `localstore serve`: the local Object Storage as a process.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use localstore::{Builder, DEFAULT_NAMESPACE, LocalStore};
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  Serve ./root, whose sub directories are the buckets, with a key for the oci CLI:
    mkdir -p ./root/models
    localstore serve --root ./root --listen 127.0.0.1:8080 --write-config ./cfg
    oci --config-file ./cfg/config --endpoint http://127.0.0.1:8080 os ns get
    oci --config-file ./cfg/config --endpoint http://127.0.0.1:8080 \\
        os object bulk-upload -ns axlocalstore -bn models --src-dir ./my-model

  As an instance, without a config file:
    OCI_METADATA_BASE_URL=http://127.0.0.1:8080/opc/v2 oci --auth instance_principal \\
        --federation-endpoint http://127.0.0.1:8080/v1/x509 \\
        --endpoint http://127.0.0.1:8080 os ns get

  As pods of an OKE cluster, whose identity service is on the same port:
    localstore serve --root ./root --tls --ca-file ./ca.pem --cluster-keys ./sa.pub \\
        --allow 'system:serviceaccount:team-a:*=models'

  Without signatures, for curl:
    localstore serve --root ./root --auth off
    curl http://127.0.0.1:8080/n/axlocalstore/b/models/o

  Let two of three downloads fail, then look at the counters:
    curl -d '{\"match\": {\"operation\": \"get\"}, \"skip\": 1, \"times\": 2,
              \"action\": {\"status\": {\"code\": 503, \"retry_after\": 1}}}' \\
        http://127.0.0.1:8080/_localstore/faults
    curl http://127.0.0.1:8080/_localstore/stats

Faults, each for all matching requests, or with \"skip\", \"every\" and \"times\" for some:
  latency{ms} bandwidth{bytes_per_sec} connection_bandwidth{bytes_per_sec}
  crowding{bytes_per_sec,bodies} connection_limit{connections}
  status{code,oci_code,message,retry_after} disconnect lost_answer reset_after{bytes} stall_after{bytes} short_body{missing} wrong_range
  ignore_range flip_byte{offset} replace_object{seed,size} date_offset{secs} archived
  header{name,value} proxied
Admin: GET POST DELETE /_localstore/faults, GET /_localstore/stats and /requests,
  POST /_localstore/stats/reset, /objects, /tokens/expire,
  /tokens/service-account, /tokens/session, /imds/rotate";

/// A local OCI Object Storage for tests and demos.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves a directory as buckets until SIGINT or SIGTERM. When it is ready, one
    /// line of JSON on stdout says where.
    #[command(after_help = EXAMPLES)]
    Serve(Box<Serve>),
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Directory whose sub directories are the buckets; without it a temporary one.
    #[arg(long)]
    root: Option<PathBuf>,
    /// Address and port; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Listen on an address that others can reach. The admin interface is open to them.
    #[arg(long)]
    allow_non_loopback: bool,
    /// Object Storage namespace.
    #[arg(long, default_value = DEFAULT_NAMESPACE)]
    namespace: String,
    /// Region of the instance and of written config files.
    #[arg(long, default_value = "us-ashburn-1")]
    region: String,
    /// OCID of the tenancy.
    #[arg(long)]
    tenancy: Option<String>,
    /// Whether requests must be signed by a known key or token.
    #[arg(long, value_enum, default_value = "verify")]
    auth: Auth,
    /// Accept this key: tenancy/user/fingerprint=public.pem. Repeatable.
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// Accept the API keys of this oci CLI config file. Repeatable.
    #[arg(long, value_name = "FILE")]
    cli_config: Vec<PathBuf>,
    /// Write an oci CLI config with a new key that is accepted: DIR/config.
    #[arg(long, value_name = "DIR")]
    write_config: Option<PathBuf>,
    /// Hide buckets from callers: CALLER=BUCKET, both with `*`. Repeatable.
    #[arg(long, value_name = "CALLER=BUCKET")]
    hide: Vec<String>,
    /// Let callers read buckets, and nothing else: CALLER=BUCKET, both with `*`. Repeatable.
    #[arg(long, value_name = "CALLER=BUCKET")]
    allow: Vec<String>,
    /// Accept this token for a service account: TOKEN=NAMESPACE/NAME. Repeatable.
    #[arg(long, value_name = "TOKEN=ACCOUNT")]
    cluster_token: Vec<String>,
    /// Trust service-account tokens signed by these RSA keys: PEM, or a JWKS. Repeatable.
    #[arg(long, value_name = "FILE")]
    cluster_keys: Vec<PathBuf>,
    /// Serve https, and http on the same port, with a certificate of a new CA.
    #[arg(long)]
    tls: bool,
    /// Where to write that CA's certificate.
    #[arg(long, requires = "tls", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// How long tokens from federation live: 90s, 20m, 1h.
    #[arg(long, default_value = "20m", value_parser = parse_duration)]
    token_ttl: Duration,
    /// Serve a new instance certificate after this many fetches; 0 is never.
    #[arg(long, default_value_t = 0, value_name = "FETCHES")]
    rotate_leaf_every: u64,
    /// The most entries of one page of a listing.
    #[arg(long, default_value_t = 1000)]
    max_page: usize,
    /// Also write the line of JSON to this file, when ready.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// What to log on stderr, such as `localstore=debug`.
    #[arg(long, default_value = "warn")]
    log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Auth {
    Verify,
    Off,
}

fn main() -> ExitCode {
    let Command::Serve(arguments) = Arguments::parse().command;
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "localstore: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Serve) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&arguments.log).context("--log")?)
        .with_writer(std::io::stderr)
        .init();
    // Before the server, so that no signal is lost between ready and waiting.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stop = runtime.block_on(async { StopSignals::listen() })?;
    let store = builder(arguments)?.start()?;
    let config =
        arguments.write_config.as_deref().map(|dir| store.write_cli_config(dir)).transpose()?;
    announce(&ready(&store, config.as_deref()), arguments.ready_file.as_deref())?;
    runtime.block_on(stop.first());
    Ok(())
}

fn builder(arguments: &Serve) -> anyhow::Result<Builder> {
    let mut builder = LocalStore::builder()
        .listen(arguments.listen)
        .allow_non_loopback(arguments.allow_non_loopback)
        .namespace(&arguments.namespace)
        .region(&arguments.region)
        .verify_signatures(arguments.auth == Auth::Verify)
        .tls(arguments.tls)
        .token_ttl(arguments.token_ttl)
        .rotate_leaf_every(arguments.rotate_leaf_every)
        .max_page(arguments.max_page);
    if let Some(root) = &arguments.root {
        builder = builder.root(root);
    }
    if let Some(tenancy) = &arguments.tenancy {
        builder = builder.tenancy(tenancy);
    }
    if let Some(ca_file) = &arguments.ca_file {
        builder = builder.ca_file(ca_file);
    }
    for key in &arguments.api_key {
        builder = builder.api_key(key);
    }
    for path in &arguments.cli_config {
        builder = builder.cli_config(path);
    }
    for pair in &arguments.hide {
        let (caller, bucket) = pair.split_once('=').context("--hide takes CALLER=BUCKET")?;
        builder = builder.hide(caller, bucket);
    }
    for pair in &arguments.allow {
        let (caller, bucket) = pair.split_once('=').context("--allow takes CALLER=BUCKET")?;
        builder = builder.allow(caller, bucket);
    }
    for pair in &arguments.cluster_token {
        // Tokens may end with '='.
        let (token, account) = pair.rsplit_once('=').context(CLUSTER_TOKEN)?;
        let (namespace, name) = account.split_once('/').context(CLUSTER_TOKEN)?;
        builder = builder.cluster_token(token, namespace, name);
    }
    for path in &arguments.cluster_keys {
        builder = builder.cluster_keys(path);
    }
    Ok(builder)
}

const CLUSTER_TOKEN: &str = "--cluster-token takes TOKEN=NAMESPACE/NAME";

fn ready(store: &LocalStore, config: Option<&Path>) -> Value {
    json!({
        "endpoint": store.endpoint(),
        "namespace": store.namespace(),
        "imds": store.imds_base(),
        "federation": store.federation_endpoint(),
        "admin": format!("{}/_localstore", store.endpoint()),
        "ca_file": store.ca_file(),
        "config": config,
        "pid": std::process::id(),
    })
}

/// Announces the ready message on stdout, and in the file if one is given. The
/// file appears complete, so that a process that waits for it may read it.
fn announce(ready: &Value, file: Option<&Path>) -> anyhow::Result<()> {
    let line = format!("{ready}\n");
    if let Some(file) = file {
        let temporary = file.with_extension("tmp");
        std::fs::write(&temporary, &line)
            .and_then(|()| std::fs::rename(&temporary, file))
            .with_context(|| format!("writing {}", file.display()))?;
    }
    let mut stdout = std::io::stdout();
    stdout.write_all(line.as_bytes())?;
    Ok(stdout.flush()?)
}

struct StopSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn first(mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("'{text}' is not like 90s, 20m or 1h"))?;
    match &text[digits.len()..] {
        "" | "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3600)),
        unit => Err(format!("'{unit}' is not one of ms, s, m, h")),
    }
}
