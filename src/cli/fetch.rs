//! `oci-model-csi fetch URI DIR`

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::par_args::ParArgs;
use super::progress_bar;
use super::storage::{self, StorageArgs};
use crate::config::{Download, LimitsSection};
use crate::download::{Concurrency, Engine};
use crate::error::{Error, ErrorKind, Result};
use crate::fetch::{FetchProgress, FetchReport, describe_checks, fetch};
use crate::metrics::Metrics;
use crate::model::{Filters, ModelRequest, ModelUri, Revision, counted, duration_text, size_text};
use crate::resolve::{ClientPool, ResolveLimits, Resolver};
use crate::source::AuthMethod;

const AFTER_HELP: &str = "\
Examples:
  oci-model-csi fetch oci://ai-model-cache/models/phi3-mini/ ./phi3
  oci-model-csi fetch oci://ai-model-cache@mytenancy/models/phi3-mini ./phi3 --include '*.json'
  oci-model-csi fetch oci://public-models@mytenancy/tiny ./tiny --auth none --region us-ashburn-1
  oci-model-csi fetch --par-file url.txt ./phi3

Run an interrupted fetch again to resume it. After a new upload, --update replaces what changed.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, allow_missing_positional = true)]
pub(super) struct FetchArgs {
    /// oci://BUCKET@NAMESPACE/PREFIX, or oci://BUCKET/PREFIX in the tenancy's namespace; may be
    /// left out with --par-file
    #[arg(value_name = "URI")]
    uri: Option<String>,
    /// Directory for the content of the prefix; absent, empty, or from an earlier fetch
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Only names that match one of these patterns, comma-separated: * (crosses /), ?, [...]
    #[arg(long, env = "OCI_MODEL_CSI_INCLUDE", value_name = "PATTERNS")]
    include: Option<String>,
    /// No names that match one of these patterns
    #[arg(long, env = "OCI_MODEL_CSI_EXCLUDE", value_name = "PATTERNS")]
    exclude: Option<String>,
    /// Fail unless the model is at this revision (sha256:…)
    #[arg(long, env = "OCI_MODEL_CSI_REVISION")]
    revision: Option<String>,
    /// Replace what is in DIR at the paths of the model's files, such as an older revision of it;
    /// other files are refused as ever
    #[arg(long)]
    update: bool,
    /// Concurrent requests: auto (16 to 256, by what the network gives), or 1 to 1024
    #[arg(long, env = "OCI_MODEL_CSI_CONCURRENCY", default_value_t, value_name = "NUMBER")]
    concurrency: Concurrency,
    /// Format of the result on stdout
    #[arg(long, env = "OCI_MODEL_CSI_OUTPUT", value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    par: ParArgs,
    #[command(flatten)]
    storage: StorageArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    Text,
    Json,
}

impl FetchArgs {
    pub(super) fn wants_json(&self) -> bool {
        self.output == Output::Json
    }

    fn request(&self, uri: &ModelUri) -> Result<ModelRequest> {
        let ModelUri { namespace, bucket, prefix } = uri.clone();
        let mut request = ModelRequest::of(namespace, bucket, prefix);
        request.filters = Filters::parse(self.include.as_deref(), self.exclude.as_deref())?;
        request.revision = self.revision.as_deref().map(Revision::parse).transpose()?;
        Ok(request)
    }
}

pub(super) fn run(args: &FetchArgs, runtime: &Runtime) -> Result<()> {
    let par = args.par.read()?;
    let uri = ParArgs::model(args.uri.as_deref(), par.as_ref())?;
    let request = args.request(&uri)?;
    let metrics = Arc::new(Metrics::default());
    let settings = args.storage.settings(None, AuthMethod::ApiKey, &metrics)?.with_par(par);
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let download = Download { concurrency: args.concurrency, ..Download::default() };
    let limits = ResolveLimits::from(&LimitsSection::default());
    let progress = FetchProgress::default();
    let report = runtime.block_on(async {
        let connector = storage::connect(settings, &metrics).await?;
        let engine = Engine::new(download.engine(false), metrics)?;
        let resolver = Resolver::new(ClientPool::new(connector, Vec::new()), limits, &tasks, &shutdown);
        let dir = (args.dir.as_path(), args.update);
        let work = fetch(&resolver, &engine, &request, dir, &progress);
        let outcome = tokio::select! {
            outcome = work => outcome,
            interrupted = tokio::signal::ctrl_c() => Err(match interrupted {
                Ok(()) => Error::new(
                    ErrorKind::Unavailable,
                    "interrupted; what was downloaded so far is kept; run the same command again to \
                     resume",
                ),
                Err(e) => Error::io("waiting for an interrupt", &e),
            }),
            () = progress_bar::draw(|| progress.now()) => Err(Error::internal("the progress bar ended")),
        };
        // The last journal entries are written before the program ends.
        tokio::task::spawn_blocking(move || engine.stop(Duration::from_secs(5)))
            .await
            .map_err(|e| Error::internal(format!("stopping the downloads: {e}")).caused_by(e))?;
        outcome
    })?;
    print(args, &uri, &report)
}

fn print(args: &FetchArgs, uri: &ModelUri, report: &FetchReport) -> Result<()> {
    let seconds = report.elapsed.as_secs_f64();
    let text = if args.wants_json() {
        serde_json::json!({
            "uri": args.uri.clone().unwrap_or_else(|| uri.to_string()),
            "directory": args.dir,
            "revision": report.revision,
            "files": report.files,
            "bytes": report.bytes,
            "receivedBytes": report.received,
            "seconds": seconds,
            "verifiedBy": report.checks,
            "warnings": report.warnings,
        })
        .to_string()
    } else {
        let millis = report.elapsed.as_millis().max(1);
        let rate = u128::from(report.received) * 1000 / millis;
        let warnings = report.warnings.iter().map(|warning| format!("\nwarning: {warning}"));
        format!(
            "{}, {} in {}: {} received in {} ({}/s)\nverified: {}\nrevision {}{}",
            counted(report.files, "file"),
            size_text(report.bytes),
            args.dir.display(),
            size_text(report.received),
            match report.elapsed.as_secs() {
                0..10 => format!("{seconds:.1}s"),
                _ => duration_text(report.elapsed),
            },
            size_text(u64::try_from(rate).unwrap_or(u64::MAX)),
            describe_checks(&report.checks),
            report.revision,
            warnings.collect::<String>(),
        )
    };
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("writing the result", &e))
}
