//! `oci-model-csi push DIR URI`

mod show;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use bytesize::ByteSize;
use clap::Args;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::fetch::Output;
use super::storage::{self, StorageArgs};
use super::{exit, progress_bar};
use crate::config::parse_size;
use crate::download::Concurrency;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Metrics;
use crate::model::{Filters, ModelUri, progress_text};
use crate::push::{PushFailure, PushOptions, PushProgress, PushReport, UnfinishedUpload, push};
use crate::source::AuthMethod;

const AFTER_HELP: &str = "\
Examples:
  oci-model-csi push ./phi3 oci://ai-model-cache/models/phi3-mini/
  oci-model-csi push ~/.cache/huggingface/hub/models--ORG--NAME/snapshots/COMMIT \\
    oci://ai-model-cache/models/NAME/
  oci-model-csi push ./phi3 oci://ai-model-cache/models/phi3-mini/ --dry-run --delete

.git and .cache are left out. Weights are sent first, indexes and config.json last. Run an \
interrupted push again to continue it.";

/// The most requests with bytes at once: each takes a thread, of which the runtime has 512 for
/// these and all other work on files.
const MOST_REQUESTS: usize = 256;

/// Size of a part unless given: that of the oci CLI, which readers try first.
const PART_SIZE: &str = "128MiB";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct PushArgs {
    /// Directory with the files of the model, or a snapshot of a Hugging Face Hub cache
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// oci://BUCKET@NAMESPACE/PREFIX, or oci://BUCKET/PREFIX in the tenancy's namespace
    #[arg(value_name = "URI")]
    uri: String,
    /// Only names that match one of these patterns, comma-separated: * (crosses /), ?, [...]
    #[arg(long, env = "OCI_MODEL_CSI_INCLUDE", value_name = "PATTERNS")]
    include: Option<String>,
    /// No names that match one of these patterns
    #[arg(long, env = "OCI_MODEL_CSI_EXCLUDE", value_name = "PATTERNS")]
    exclude: Option<String>,
    /// Only list what would be sent and deleted
    #[arg(long, env = "OCI_MODEL_CSI_DRY_RUN")]
    dry_run: bool,
    /// Delete the objects under the prefix that DIR does not have, once all files are stored; only
    /// those that --include and --exclude select
    #[arg(long)]
    delete: bool,
    /// Create the bucket if it does not exist; needs --compartment-id
    #[arg(long, env = "OCI_MODEL_CSI_CREATE_BUCKET", requires = "compartment_id")]
    create_bucket: bool,
    /// Compartment of the new bucket
    #[arg(
        long,
        env = "OCI_MODEL_CSI_COMPARTMENT_ID",
        value_name = "OCID",
        requires = "create_bucket"
    )]
    compartment_id: Option<String>,
    /// Size of a part, 1MiB to 50GiB; larger files are sent in parts
    #[arg(
        long,
        env = "OCI_MODEL_CSI_PART_SIZE",
        default_value = PART_SIZE,
        value_name = "SIZE",
        value_parser = part_size
    )]
    part_size: ByteSize,
    /// Concurrent requests with bytes: auto (4 to 256, by what the network gives), or 1 to 256
    #[arg(
        long,
        env = "OCI_MODEL_CSI_CONCURRENCY",
        default_value_t,
        value_name = "NUMBER",
        value_parser = concurrency
    )]
    concurrency: Concurrency,
    /// Format of the result on stdout
    #[arg(long, env = "OCI_MODEL_CSI_OUTPUT", value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    storage: StorageArgs,
}

fn part_size(text: &str) -> Result<ByteSize, String> {
    let size = parse_size(text)?;
    match (ByteSize::mib(1)..=ByteSize::gib(50)).contains(&size) {
        true => Ok(size),
        false => Err(format!("`{text}` is not from 1MiB to 50GiB, as parts are")),
    }
}

fn concurrency(text: &str) -> Result<Concurrency, String> {
    match text.parse()? {
        Concurrency::Fixed(number) if number > MOST_REQUESTS => {
            Err(format!("`{text}` is more than the {MOST_REQUESTS} requests of a push"))
        }
        concurrency => Ok(concurrency),
    }
}

impl PushArgs {
    /// The oci CLI's command that removes an unfinished upload, with the access of this command.
    fn abort_command(&self, upload: &UnfinishedUpload) -> String {
        upload.abort_command(&self.storage.of_the_oci_cli())
    }

    pub(super) fn wants_json(&self) -> bool {
        self.output == Output::Json
    }

    /// Whether the URI has its namespace.
    fn names_namespace(&self) -> bool {
        ModelUri::parse(&self.uri).is_ok_and(|uri| uri.namespace.is_some())
    }

    fn options(&self) -> Result<PushOptions> {
        Ok(PushOptions {
            filters: Filters::parse(self.include.as_deref(), self.exclude.as_deref())?,
            part_size: self.part_size.as_u64(),
            concurrency: self.concurrency,
            dry_run: self.dry_run,
            delete: self.delete,
            create_in: self.compartment_id.clone().filter(|_| self.create_bucket),
        })
    }
}

/// How a push ended.
enum PushEnd {
    Done(Box<PushReport>),
    Failed(PushFailure),
}

pub(super) fn run(args: &PushArgs, runtime: Runtime) -> Result<ExitCode> {
    let uri = ModelUri::parse(&args.uri)?;
    let options = args.options()?;
    let metrics = Arc::new(Metrics::default());
    let settings = args.storage.settings(None, AuthMethod::ApiKey, &metrics)?;
    let progress = Arc::new(PushProgress::default());
    let end = runtime.block_on(async {
        let sink = storage::connect_sink(settings).await?;
        let (mut interrupted, mut terminated) =
            (stop_on(SignalKind::interrupt())?, stop_on(SignalKind::terminate())?);
        let end = tokio::select! {
            end = push(&sink, &args.dir, &uri, &options, &progress) => match end {
                Ok(report) => PushEnd::Done(Box::new(report)),
                Err(failure) => PushEnd::Failed(failure),
            },
            _ = interrupted.recv() => PushEnd::Failed(interruption(&progress)),
            _ = terminated.recv() => PushEnd::Failed(interruption(&progress)),
            () = progress_bar::draw(|| progress.now()) => {
                return Err(Error::internal("the progress bar ended"));
            }
        };
        // Nothing is sent any more. What is left is to print, which may block.
        tokio::spawn(end_at_once(interrupted, terminated));
        Ok(end)
    });
    let code = end.and_then(|end| match end {
        PushEnd::Done(report) => show::print(args, &report).map(|()| ExitCode::SUCCESS),
        PushEnd::Failed(failure) => Ok(fail(args, &failure, &progress)),
    });
    // A thread may wait for a disk that does not answer.
    runtime.shutdown_background();
    code
}

fn stop_on(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|e| Error::io("waiting for signals", &e))
}

/// Ends the program at the next signal, whatever its main thread waits for.
#[expect(clippy::exit, reason = "the main thread may be blocked in a write, and cannot return")]
async fn end_at_once(mut interrupted: Signal, mut terminated: Signal) {
    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    std::process::exit(i32::from(exit::UNDONE));
}

fn interruption(progress: &PushProgress) -> PushFailure {
    let (done, total) = progress.now();
    let far = match total {
        0 => "the start".to_owned(),
        total => progress_text(done, total),
    };
    let text = format!(
        "interrupted at {far}; what is stored so far is kept, and no half object is visible; run the \
         same command again to continue"
    );
    PushFailure { error: Error::new(ErrorKind::Unavailable, text), undone: true }
}

/// Prints the error, and for what was left undone the commands that continue and that give up.
fn fail(args: &PushArgs, failure: &PushFailure, progress: &PushProgress) -> ExitCode {
    let uploads = progress.running_uploads();
    if !failure.undone && uploads.is_empty() {
        return exit::report(&failure.error, args.wants_json());
    }
    let again = show::same_command();
    let aborts: Vec<String> = uploads.iter().map(|upload| args.abort_command(upload)).collect();
    // With closed streams there is no way left to report anything.
    if args.wants_json() {
        let object = serde_json::json!({
            "error": failure.error.message(),
            "kind": format!("{:?}", failure.error.kind()),
            "continue": again,
            "abort": aborts,
        });
        let _ = writeln!(std::io::stdout(), "{object}");
    }
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "oci-model-csi: {}\nto continue: {again}", failure.error);
    for abort in &aborts {
        let _ = writeln!(err, "to give up instead: {abort}");
    }
    match failure.undone {
        true => ExitCode::from(exit::UNDONE),
        false => exit::code_of(&failure.error),
    }
}
