//! `oci-model-csi cache …`: manages the node's cache through the running driver,
//! or, without one, directly in its directory.

mod bars;
mod local;
pub(super) mod show;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand};
use tokio::runtime::Runtime;

use super::fetch::Output;
use super::storage::StorageArgs;
use super::{cache_dir, exit};
use crate::admin;
use crate::cache::Layout;
use crate::config::{Config, parse_size};
use crate::error::{Error, ErrorKind, Result};
use crate::manage::{
    CacheCommand, CollectionScope, CommandAnswer, ModelSpec, PrefetchResult, ProgressCallback,
};
use crate::model::counted;
use crate::socket::SocketEndpoint;
use crate::text::shown;
use bars::Bars;

const AFTER_HELP: &str = "\
Examples:
  oci-model-csi cache ls
  oci-model-csi cache prefetch oci://ai-model-cache/models/phi3-mini/
  oci-model-csi cache import /data/phi3 oci://ai-model-cache/models/phi3-mini/ --move
  oci-model-csi cache gc --free 100GiB --dry-run

A MODEL is a key as `ls` shows it, the beginning of a key, or oci://BUCKET@NAMESPACE/PREFIX. If a \
driver runs on the node, it executes the command. In a cluster:
  kubectl exec POD -- oci-model-csi cache ls";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CacheArgs {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Debug, Subcommand)]
enum Commands {
    /// List the models in the cache: size, last use, pods, state
    Ls {
        #[command(flatten)]
        common: Common,
    },
    /// Show everything about a model: files, pods, mounts
    Inspect {
        /// Key or URI
        model: String,
        #[command(flatten)]
        common: Common,
    },
    /// Compare cached files with their checksums; damaged files go to quarantine
    Verify {
        /// Keys or URIs [default: all models]
        models: Vec<String>,
        /// Bytes to read per second at most, such as 100MiB [default: no limit]
        #[arg(long, env = "OCI_MODEL_CSI_RATE", value_name = "SIZE", value_parser = size)]
        rate: Option<u64>,
        #[command(flatten)]
        common: Common,
    },
    /// Remove unused models, least recently used first [default: until the limits are met]
    Gc {
        /// Only list what would be removed
        #[arg(long, env = "OCI_MODEL_CSI_DRY_RUN", value_parser = BoolishValueParser::new())]
        dry_run: bool,
        /// Remove every model that no pod uses and that is not pinned
        #[arg(long)]
        all: bool,
        /// Free this much, such as 100GiB
        #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "all")]
        free: Option<u64>,
        #[command(flatten)]
        common: Common,
    },
    /// Keep a model in the cache even when no pod uses it
    Pin {
        /// Key or URI
        model: String,
        #[command(flatten)]
        common: Common,
    },
    /// Allow the eviction of a pinned model
    Unpin {
        /// Key or URI
        model: String,
        #[command(flatten)]
        common: Common,
    },
    /// Download models before a pod asks for them
    Prefetch {
        /// oci://BUCKET@NAMESPACE/PREFIX
        #[arg(value_name = "URI", required = true)]
        uris: Vec<String>,
        #[command(flatten)]
        filters: FilterArgs,
        /// Do not wait; the driver continues in the background
        #[arg(long, env = "OCI_MODEL_CSI_DETACH", value_parser = BoolishValueParser::new())]
        detach: bool,
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        storage: StorageArgs,
    },
    /// Import a model's files from a directory; what is missing or differs is downloaded
    Import {
        /// Path of the directory, as the driver sees it
        dir: PathBuf,
        /// oci://BUCKET@NAMESPACE/PREFIX
        uri: String,
        /// Move the files into the cache instead of copying them
        #[arg(long = "move")]
        take: bool,
        #[command(flatten)]
        filters: FilterArgs,
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        storage: StorageArgs,
    },
    /// Remove the whole cache; refused while pods use it
    Purge {
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Clone, Args)]
struct FilterArgs {
    /// Only names that match one of these patterns, comma-separated: * (crosses /), ?, [...]
    #[arg(long, env = "OCI_MODEL_CSI_INCLUDE", value_name = "PATTERNS")]
    include: Option<String>,
    /// No names that match one of these patterns
    #[arg(long, env = "OCI_MODEL_CSI_EXCLUDE", value_name = "PATTERNS")]
    exclude: Option<String>,
}

#[derive(Debug, Args)]
struct Common {
    /// Format of the result on stdout
    #[arg(long, env = "OCI_MODEL_CSI_OUTPUT", value_enum, default_value = "text")]
    output: Output,
    /// The driver's configuration, YAML
    #[arg(long, env = "OCI_MODEL_CSI_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the cache [default: cache.dir of the configuration, /var/lib/oci-model-csi]
    #[arg(long, env = "OCI_MODEL_CSI_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// kubelet's root directory
    #[arg(
        long,
        env = "OCI_MODEL_CSI_KUBELET_DIR",
        value_name = "DIR",
        default_value = "/var/lib/kubelet"
    )]
    kubelet_dir: PathBuf,
    /// Socket of the running driver [default: admin.sock in the cache]
    #[arg(long, env = "OCI_MODEL_CSI_ADMIN_ENDPOINT", value_name = "unix:///path")]
    admin_endpoint: Option<SocketEndpoint>,
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map(|size| size.as_u64())
}

impl Common {
    /// Whether the arguments say where the driver is, without its configuration.
    fn names_driver(&self) -> bool {
        self.admin_endpoint.is_some() || self.cache_dir.is_some()
    }
}

impl FilterArgs {
    fn of(self, uri: String) -> ModelSpec {
        ModelSpec { uri, include: self.include, exclude: self.exclude }
    }
}

impl Commands {
    fn common(&self) -> &Common {
        match self {
            Self::Ls { common }
            | Self::Inspect { common, .. }
            | Self::Verify { common, .. }
            | Self::Gc { common, .. }
            | Self::Pin { common, .. }
            | Self::Unpin { common, .. }
            | Self::Prefetch { common, .. }
            | Self::Import { common, .. }
            | Self::Purge { common, .. } => common,
        }
    }

    /// Splits the arguments into the command, the common flags, and the storage
    /// flags of commands that download.
    fn into_parts(self) -> Result<(CacheCommand, Common, Option<StorageArgs>)> {
        let alone = |command, common| Ok((command, common, None));
        match self {
            Self::Ls { common } => alone(CacheCommand::Ls, common),
            Self::Inspect { model, common } => alone(CacheCommand::Inspect { model }, common),
            Self::Verify { models, rate, common } => {
                alone(CacheCommand::Verify { models, rate }, common)
            }
            Self::Gc { dry_run, all, free, common } => {
                let selection = match free {
                    Some(bytes) => CollectionScope::Free { bytes },
                    None if all => CollectionScope::All,
                    None => CollectionScope::Limits,
                };
                alone(CacheCommand::Gc { dry_run, selection }, common)
            }
            Self::Pin { model, common } => alone(CacheCommand::Pin { model }, common),
            Self::Unpin { model, common } => alone(CacheCommand::Unpin { model }, common),
            Self::Prefetch { uris, filters, detach, common, storage } => {
                let models = uris.into_iter().map(|uri| filters.clone().of(uri)).collect();
                Ok((CacheCommand::Prefetch { models, detach }, common, Some(storage)))
            }
            Self::Import { dir, uri, take, filters, common, storage } => {
                // The driver's working directory is not the caller's.
                let dir = std::path::absolute(&dir)
                    .map_err(|e| Error::io(format!("looking for {}", dir.display()), &e))?;
                let model = filters.of(uri);
                Ok((CacheCommand::Import { dir, model, take }, common, Some(storage)))
            }
            Self::Purge { yes, common } => {
                confirm(yes)?;
                alone(CacheCommand::Purge, common)
            }
        }
    }
}

impl CacheArgs {
    pub(super) fn wants_json(&self) -> bool {
        self.command.common().output == Output::Json
    }
}

pub(super) fn run(args: CacheArgs, runtime: Runtime) -> Result<ExitCode> {
    let json = args.wants_json();
    let (command, common, storage) = args.command.into_parts()?;
    let bars = Arc::new(Bars::default());
    let on_progress: ProgressCallback = {
        let bars = Arc::clone(&bars);
        Arc::new(move |progress| bars.update(&progress))
    };
    let answer = runtime.block_on(async {
        tokio::select! {
            answer = execute(command, &common, storage.as_ref(), &on_progress) => answer,
            interrupted = tokio::signal::ctrl_c() => Err(match interrupted {
                Ok(()) => Error::new(
                    ErrorKind::Unavailable,
                    "interrupted; what was downloaded so far is kept; run the same command again to \
                     resume",
                ),
                Err(e) => Error::io("waiting for an interrupt", &e),
            }),
        }
    });
    bars.clear();
    // Do not wait for background reads.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let answer = answer?;
    let text = if json { show::json(&answer) } else { show::text(&answer) };
    writeln!(std::io::stdout(), "{}", text.trim_end())
        .map_err(|e| Error::io("writing the result", &e))?;
    let mut code = ExitCode::SUCCESS;
    for (index, error) in failures_in(&answer).iter().enumerate() {
        // The answer has it already, so JSON output does not repeat it.
        let reported = exit::report(error, false);
        if index == 0 {
            code = reported;
        }
    }
    Ok(code)
}

/// Executes the command in the running driver, or in this process without one.
async fn execute(
    command: CacheCommand,
    common: &Common,
    storage: Option<&StorageArgs>,
    on_progress: &ProgressCallback,
) -> Result<CommandAnswer> {
    let loaded = common.config.as_deref().map_or_else(|| Ok(Config::default()), Config::load);
    let (config, broken) = match loaded {
        Ok(config) => (config, None),
        // The running driver does not need the file, and may show what is wrong.
        Err(error) if common.names_driver() || command.only_reads() => {
            (Config::default(), Some(error))
        }
        Err(error) => return Err(error),
    };
    let dir = common.cache_dir.as_deref().unwrap_or(&config.cache.dir);
    let socket = match &common.admin_endpoint {
        Some(endpoint) => Ok(endpoint.clone()),
        None => cache_dir::admin_endpoint(dir),
    };
    let answer = match &socket {
        Ok(socket) => admin::call(socket.path(), &command, on_progress).await?,
        // The path is too long for a socket, so no driver listens there.
        Err(_) => None,
    };
    if let Some(error) = broken {
        if answer.is_none() {
            return Err(error);
        }
        // With a closed stderr there is no way left to report it.
        let _ = writeln!(std::io::stderr(), "oci-model-csi: warning: {error}");
    }
    match (answer, &common.admin_endpoint) {
        (Some(answer), _) => Ok(answer),
        (None, Some(endpoint)) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("no driver listens at {endpoint} (--admin-endpoint)"),
        )),
        (None, None) => local::execute(command, &config, dir, common, storage, on_progress).await,
    }
}

/// The failures in an answer, for stderr; the first one must become the exit code.
fn failures_in(answer: &CommandAnswer) -> Vec<Error> {
    match answer {
        CommandAnswer::Verify(found) if !found.damaged.is_empty() => vec![Error::new(
            ErrorKind::Corrupt,
            format!(
                "damage in {}; what is damaged is in quarantine, and downloaded again at the next use",
                counted(found.damaged.len(), "file")
            ),
        )],
        CommandAnswer::Gc(collection) if !collection.reached => {
            vec![Error::new(ErrorKind::NoSpace, "nothing more can be evicted")]
        }
        CommandAnswer::Prefetch(models) => models.iter().filter_map(prefetch_failure).collect(),
        _ => Vec::new(),
    }
}

fn prefetch_failure(result: &PrefetchResult) -> Option<Error> {
    let (kind, error) = (result.kind?, result.error.as_deref()?);
    let (uri, error) = (shown(&result.uri, 200), shown(error, 800));
    Some(Error::new(kind, format!("prefetch failed: {uri}: {error}")))
}

fn confirm(yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    let terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if !terminal {
        return Err(Error::invalid("a purge removes the whole cache: confirm it with --yes"));
    }
    let mut answer = String::new();
    write!(std::io::stderr(), "Remove the whole cache of this node? [y/N] ")
        .and_then(|()| std::io::stdin().read_line(&mut answer))
        .map_err(|e| Error::io("asking for confirmation", &e))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Error::invalid("nothing was removed")),
    }
}

/// Reports whether this directory holds a cache.
fn is_cache(dir: &Path) -> bool {
    Layout::new(dir).version().exists()
}
