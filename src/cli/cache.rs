//! `oci-model-csi cache …`: the node's cache, through the driver that runs, or
//! through its directory where none does.

mod bars;
mod local;
mod show;

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
use super::{exit, options};
use crate::admin;
use crate::config::{Config, parse_size};
use crate::csi::server::SocketEndpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::manage::{CacheCommand, CollectionScope, CommandAnswer, ModelSpec, Tell};
use bars::Bars;

const AFTER_HELP: &str = "\
Examples:
  oci-model-csi cache ls
  oci-model-csi cache prefetch oci://ai-model-cache/models/phi3-mini/
  oci-model-csi cache import /data/phi3 oci://ai-model-cache/models/phi3-mini/ --move
  oci-model-csi cache gc --free 100GiB --dry-run

A MODEL is a key as `ls` shows it, or its beginning, or oci://BUCKET@NAMESPACE/PREFIX. Where a driver
runs on the node, it does what is asked; in a cluster: kubectl exec POD -- oci-model-csi cache ls";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CacheArgs {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Debug, Subcommand)]
enum Commands {
    /// The models of the cache: size, last use, pods, state
    Ls {
        #[command(flatten)]
        common: Common,
    },
    /// Everything about a model: files, pods, mounts
    Inspect {
        /// Key or URI
        model: String,
        #[command(flatten)]
        common: Common,
    },
    /// Read models again and compare them with what was downloaded; damage is put aside
    Verify {
        /// Keys or URIs [default: everything]
        models: Vec<String>,
        /// Read at most so much in a second, such as 100MiB [default: no limit]
        #[arg(long, env = "OCI_MODEL_CSI_RATE", value_name = "SIZE", value_parser = size)]
        rate: Option<u64>,
        #[command(flatten)]
        common: Common,
    },
    /// Remove what nobody uses, least recently used first [default: what the limits ask for]
    Gc {
        /// Only tell what would go
        #[arg(long, env = "OCI_MODEL_CSI_DRY_RUN", value_parser = BoolishValueParser::new())]
        dry_run: bool,
        /// Everything that no pod uses and nobody pinned
        #[arg(long, env = "OCI_MODEL_CSI_ALL", value_parser = BoolishValueParser::new())]
        all: bool,
        /// So much, such as 100GiB
        #[arg(
            long,
            env = "OCI_MODEL_CSI_FREE",
            value_name = "SIZE",
            value_parser = size,
            conflicts_with = "all"
        )]
        free: Option<u64>,
        #[command(flatten)]
        common: Common,
    },
    /// Keep a model although nobody uses it
    Pin {
        /// Key or URI
        model: String,
        #[command(flatten)]
        common: Common,
    },
    /// Let a pinned model go when space is needed
    Unpin {
        /// Key or URI
        model: String,
        #[command(flatten)]
        common: Common,
    },
    /// Bring models in before a pod asks for them
    Prefetch {
        /// oci://BUCKET@NAMESPACE/PREFIX
        #[arg(value_name = "URI", required = true)]
        uris: Vec<String>,
        #[command(flatten)]
        filters: FilterArgs,
        /// Do not wait; the driver goes on
        #[arg(long, env = "OCI_MODEL_CSI_DETACH", value_parser = BoolishValueParser::new())]
        detach: bool,
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        storage: StorageArgs,
    },
    /// Adopt a directory with a model's files: what is right is taken, the rest is downloaded
    Import {
        /// The directory, as the driver sees it
        dir: PathBuf,
        /// oci://BUCKET@NAMESPACE/PREFIX
        uri: String,
        /// Take the files themselves and copy nothing
        #[arg(long = "move", env = "OCI_MODEL_CSI_MOVE", value_parser = BoolishValueParser::new())]
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
        /// Do not ask
        #[arg(long, env = "OCI_MODEL_CSI_YES", value_parser = BoolishValueParser::new())]
        yes: bool,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
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
    /// Form of the result on stdout
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
    /// Socket of the driver that runs [default: admin.sock in the cache]
    #[arg(long, env = "OCI_MODEL_CSI_ADMIN_ENDPOINT", value_name = "unix:///path")]
    admin_endpoint: Option<SocketEndpoint>,
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map(|size| size.as_u64())
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

    /// The command, and where its models come from if it brings some in.
    fn take_apart(self) -> Result<(CacheCommand, Common, Option<StorageArgs>)> {
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
                let FilterArgs { include, exclude } = filters;
                let wanted = |uri| {
                    let (include, exclude) = (include.clone(), exclude.clone());
                    FilterArgs { include, exclude }.of(uri)
                };
                let models = uris.into_iter().map(wanted).collect();
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
    let (command, common, storage) = args.command.take_apart()?;
    let bars = Arc::new(Bars::default());
    let tell: Tell = {
        let bars = Arc::clone(&bars);
        Arc::new(move |progress| bars.show(&progress))
    };
    let answer = runtime.block_on(async {
        tokio::select! {
            answer = execute(command, &common, storage.as_ref(), &tell) => answer,
            interrupted = tokio::signal::ctrl_c() => Err(match interrupted {
                Ok(()) => Error::new(
                    ErrorKind::Unavailable,
                    "interrupted; what was brought in is kept, run the same command to go on",
                ),
                Err(e) => Error::io("waiting for an interrupt", &e),
            }),
        }
    });
    bars.clear();
    // What reads on in the background is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let answer = answer?;
    let text = if json { show::json(&answer) } else { show::text(&answer) };
    writeln!(std::io::stdout(), "{}", text.trim_end())
        .map_err(|e| Error::io("writing the result", &e))?;
    Ok(match shortcoming(&answer) {
        // It stands in the answer; JSON is told once.
        Some(error) => exit::report(&error, false),
        None => ExitCode::SUCCESS,
    })
}

/// Through the driver, or without one.
async fn execute(
    command: CacheCommand,
    common: &Common,
    storage: Option<&StorageArgs>,
    tell: &Tell,
) -> Result<CommandAnswer> {
    let config = common.config.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
    let dir = common.cache_dir.as_deref().unwrap_or(&config.cache.dir);
    let socket = match &common.admin_endpoint {
        Some(endpoint) => Ok(endpoint.clone()),
        None => options::admin_endpoint(dir),
    };
    let asked = match &socket {
        Ok(socket) => admin::call(socket.path(), &command, tell).await?,
        // Too long a path for a socket, so no driver has one there.
        Err(_) => None,
    };
    match (asked, &common.admin_endpoint) {
        (Some(answer), _) => Ok(answer),
        (None, Some(endpoint)) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("no driver listens at {endpoint} (--admin-endpoint)"),
        )),
        (None, None) => local::execute(command, &config, dir, common, storage, tell).await,
    }
}

/// What an answer says that has to be an exit code.
fn shortcoming(answer: &CommandAnswer) -> Option<Error> {
    match answer {
        CommandAnswer::Verify(found) if !found.damaged.is_empty() => Some(Error::new(
            ErrorKind::Corrupt,
            format!(
                "{} damaged; what was damaged is put aside, and downloaded again when it is asked \
                 for",
                found.damaged.len()
            ),
        )),
        CommandAnswer::Gc(collection) if !collection.reached => {
            Some(Error::new(ErrorKind::NoSpace, "that is all that can be had"))
        }
        CommandAnswer::Prefetch(models) => models.iter().find_map(|one| {
            let kind = one.kind?;
            Some(Error::new(kind, format!("{}: {}", one.uri, one.error.as_deref()?)))
        }),
        _ => None,
    }
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

/// Whether this directory holds a cache.
fn is_cache(dir: &Path) -> bool {
    dir.join("VERSION").exists()
}
