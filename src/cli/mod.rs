//! The command line: one file per subcommand, the flags they share, and the
//! exit codes. `app` is the composition root of the driver.

mod app;
mod cache;
mod cache_dir;
mod completions;
mod doctor;
mod exit;
mod fetch;
mod logging;
mod ls;
mod man;
mod nodes;
mod par_args;
mod process_limits;
mod progress_bar;
mod push;
mod reload;
mod service_args;
mod storage;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use console::Term;

use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::telemetry::Telemetry;
use app::Mode;
use logging::LogArgs;
use service_args::ServiceArgs;

const ABOUT: &str = "Kubernetes CSI driver: AI models from OCI Object Storage as shared, verified, \
                     read-only volumes";

const AFTER_HELP: &str = "\
Every flag but --all, --delete, --free, --move, --update and --yes, which remove or replace files, \
can be given by an environment variable: --cache-dir is OCI_MODEL_CSI_CACHE_DIR. If a value is \
given several times, the first of these wins: flag, OCI_MODEL_CSI_*, --config, OCI_CLI_*, the oci \
CLI's profile. Proxies are those of HTTPS_PROXY, HTTP_PROXY and NO_PROXY, as for curl.

Exit codes: 0 success, 1 failure, 2 usage error, 3 not found, 4 not allowed, 5 verification failed, \
6 something was left undone that the same command continues.";

/// Name of the program.
const NAME: &str = "oci-model-csi";

/// Help in wider terminals has lines of this width: longer ones are hard to read.
const MAX_COLUMNS: usize = 100;

/// In fewer columns, flags leave too little of the line for their texts.
const NARROW: u16 = 60;

#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about = ABOUT,
    after_help = AFTER_HELP,
    max_term_width = MAX_COLUMNS
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the CSI Identity and Node services: the node plugin
    Node(ServiceArgs),
    /// Serve the CSI Identity and Controller services: provisioning for StorageClasses
    Controller(ServiceArgs),
    /// Serve all CSI services from one process
    All(ServiceArgs),
    /// Download a model into a directory, without a cluster: verified and resumable
    Fetch(fetch::FetchArgs),
    /// List the models under a prefix: objects, size, revision, and what is wrong
    Ls(ls::LsArgs),
    /// Upload a directory or a Hub snapshot: with checksums, in parts, and resumable
    Push(push::PushArgs),
    /// Look for what keeps a model from a pod, and say how to mend it
    Doctor(doctor::DoctorArgs),
    /// Inspect and manage the models in this node's cache
    Cache(cache::CacheArgs),
    /// List all nodes of the cluster with the models in their caches
    Nodes(nodes::NodesArgs),
    /// Print the script that completes commands and flags in a shell
    Completions(completions::CompletionsArgs),
    /// Print the manual page, or write those of all commands; they have the words of --help
    Man(man::ManArgs),
}

/// Parses the arguments and runs the command.
pub fn run() -> ExitCode {
    crate::budget::limit_arenas();
    let allowed = process_limits::hide_memory().and_then(|()| par_args::check(std::env::args_os()));
    if let Err(error) = allowed {
        return exit::report(&error, false);
    }
    let cli = Cli::from_arg_matches(&command().get_matches()).unwrap_or_else(|e| e.exit());
    let (result, json) = match cli.command {
        Command::Node(args) => (serve(&cli.log, args, Mode::Node), false),
        Command::Controller(args) => (serve(&cli.log, args, Mode::Controller), false),
        Command::All(args) => (serve(&cli.log, args, Mode::All), false),
        Command::Fetch(args) => {
            logging::start(&cli.log, "warn", &Telemetry::default());
            let json = args.wants_json();
            (runtime().and_then(|runtime| fetch::run(&args, &runtime)), json)
        }
        Command::Ls(args) => {
            logging::start(&cli.log, "warn", &Telemetry::default());
            let json = args.wants_json();
            match runtime().and_then(|runtime| ls::run(&args, &runtime)) {
                Ok(code) => return code,
                Err(error) => (Err(error), json),
            }
        }
        Command::Push(args) => {
            logging::start(&cli.log, "warn", &Telemetry::default());
            let json = args.wants_json();
            match runtime().and_then(|runtime| push::run(&args, runtime)) {
                Ok(code) => return code,
                Err(error) => (Err(error), json),
            }
        }
        Command::Doctor(args) => {
            // Findings say what warnings would.
            logging::start(&cli.log, "error", &Telemetry::default());
            let json = args.wants_json();
            match runtime().and_then(|runtime| doctor::run(&args, runtime)) {
                Ok(code) => return code,
                Err(error) => (Err(error), json),
            }
        }
        Command::Cache(args) => {
            // Warnings of the driver would drown the answer.
            logging::start(&cli.log, "error", &Telemetry::default());
            let json = args.wants_json();
            match runtime().and_then(|runtime| cache::run(args, runtime)) {
                Ok(code) => return code,
                Err(error) => (Err(error), json),
            }
        }
        Command::Nodes(args) => {
            logging::start(&cli.log, "warn", &Telemetry::default());
            (runtime().and_then(|runtime| nodes::run(&args, &runtime)), args.wants_json())
        }
        Command::Completions(args) => (completions::run(&args, Cli::command()), false),
        Command::Man(args) => (man::run(&args, Cli::command()), false),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error, json),
    }
}

/// The commands and flags, with help for the width of this terminal.
fn command() -> clap::Command {
    let columns = Term::stdout().size_checked().map(|(_, columns)| columns);
    Cli::command().next_line_help(columns.is_some_and(|columns| columns < NARROW))
}

fn serve(log: &LogArgs, args: ServiceArgs, mode: Mode) -> Result<()> {
    let runtime = runtime()?;
    let metrics = Arc::new(Metrics::default());
    let node = (mode != Mode::Controller).then(|| args.node_name());
    let started = {
        let _context = runtime.enter();
        Telemetry::from_environment(node, &metrics)
    };
    let failure = started.as_ref().err().cloned();
    let telemetry = started.unwrap_or_default();
    logging::start(log, "info", &telemetry);
    if let Some(error) = failure {
        tracing::warn!(%error, "no traces are exported");
    }
    let result = app::run(args, mode, &runtime, metrics);
    telemetry.stop();
    // A sync of the disk may still run; files that it does not reach are checked
    // at the next start.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// Builds the runtime of everything but the downloads, which have their own. More threads would
/// not help, and the stacks of hundreds count for `--heap-limit`.
fn runtime() -> Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(2, 16))
        .enable_all()
        .build()
        .map_err(|e| Error::io("starting the runtime", &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_command_is_reviewed() {
        // Not the width of this terminal.
        let mut command = Cli::command().term_width(MAX_COLUMNS);
        command.build();
        let mut help = vec![command.render_long_help().to_string()];
        for one in command.get_subcommands_mut() {
            help.push(one.render_long_help().to_string());
            help.extend(one.get_subcommands_mut().map(|one| one.render_long_help().to_string()));
        }
        insta::assert_snapshot!(help.join("\n----\n\n"));
    }

    /// Flags that remove or replace files: only the command line itself may ask for that.
    const REMOVING: [&str; 6] = ["all", "delete", "free", "move", "update", "yes"];

    /// How the help of such a flag begins, or of one that does not ask before it removes anything.
    const REMOVES: [&str; 8] =
        ["Delete", "Do not ask", "Evict", "Free", "Move", "Overwrite", "Remove", "Replace"];

    /// The flags of a command and of all commands below it.
    fn flags(command: &clap::Command) -> Vec<&clap::Arg> {
        let own = command.get_arguments().filter(|flag| flag.get_long().is_some());
        own.chain(command.get_subcommands().flat_map(flags)).collect()
    }

    #[test]
    fn every_flag_has_its_variable_but_those_that_remove_files() {
        let mut command = Cli::command();
        command.build();
        let (mut seen, mut removing) = (0, Vec::new());
        for flag in flags(&command) {
            let long = flag.get_long().unwrap_or_default();
            let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
            let removes = REMOVES.iter().any(|verb| help.starts_with(verb));
            assert_eq!(removes, REMOVING.contains(&long), "--{long}: {help}");
            let variable = flag.get_env().map(|v| v.to_string_lossy().into_owned());
            if removes {
                removing.push(long);
                assert_eq!(variable, None, "--{long}");
                assert!(AFTER_HELP.contains(&format!("--{long}")), "--{long}");
            } else if !matches!(long, "help" | "version") {
                let expected = format!("OCI_MODEL_CSI_{}", long.to_uppercase().replace('-', "_"));
                assert_eq!(variable.as_deref(), Some(expected.as_str()), "--{long}");
                seen += 1;
            }
        }
        removing.sort_unstable();
        assert_eq!(removing, REMOVING);
        assert!(seen > 20, "{seen} flags");
    }
}
