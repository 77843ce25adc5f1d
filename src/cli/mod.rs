//! The command line: one file per subcommand, the flags they share, and the
//! exit codes. `app` is the composition root of the driver.

mod app;
mod cache;
mod cache_dir;
mod exit;
mod fetch;
mod logging;
mod ls;
mod process_limits;
mod progress_bar;
mod push;
mod reload;
mod service_args;
mod storage;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::error::{Error, Result};
use app::Mode;
use logging::LogArgs;
use service_args::ServiceArgs;

const ABOUT: &str = "Kubernetes CSI driver: AI models from OCI Object Storage as shared, verified, \
                     read-only volumes";

const AFTER_HELP: &str = "\
Every flag but --all, --delete, --move, --update and --yes, which remove or replace files, can be given
by an environment variable: --cache-dir is OCI_MODEL_CSI_CACHE_DIR.
If a value is given several times, the first of these wins: flag, OCI_MODEL_CSI_*, --config,
OCI_CLI_*, the oci CLI's profile.

Exit codes: 0 success, 1 failure, 2 usage error, 3 not found, 4 not allowed, 5 verification failed,
6 something was left undone that the same command continues.";

#[derive(Debug, Parser)]
#[command(name = "oci-model-csi", version, about = ABOUT, after_help = AFTER_HELP)]
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
    /// Inspect and manage the models in this node's cache
    Cache(cache::CacheArgs),
}

/// Parses the arguments and runs the command.
pub fn run() -> ExitCode {
    crate::budget::limit_arenas();
    let cli = Cli::parse();
    let (result, json) = match cli.command {
        Command::Node(args) => (serve(&cli.log, args, Mode::Node), false),
        Command::Controller(args) => (serve(&cli.log, args, Mode::Controller), false),
        Command::All(args) => (serve(&cli.log, args, Mode::All), false),
        Command::Fetch(args) => {
            logging::start(&cli.log, "warn");
            let json = args.wants_json();
            (runtime().and_then(|runtime| fetch::run(&args, &runtime)), json)
        }
        Command::Ls(args) => {
            logging::start(&cli.log, "warn");
            let json = args.wants_json();
            (runtime().and_then(|runtime| ls::run(&args, &runtime)), json)
        }
        Command::Push(args) => {
            logging::start(&cli.log, "warn");
            let json = args.wants_json();
            match runtime().and_then(|runtime| push::run(&args, runtime)) {
                Ok(code) => return code,
                Err(error) => (Err(error), json),
            }
        }
        Command::Cache(args) => {
            // Warnings of the driver would drown the answer.
            logging::start(&cli.log, "error");
            let json = args.wants_json();
            match runtime().and_then(|runtime| cache::run(args, runtime)) {
                Ok(code) => return code,
                Err(error) => (Err(error), json),
            }
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error, json),
    }
}

fn serve(log: &LogArgs, args: ServiceArgs, mode: Mode) -> Result<()> {
    logging::start(log, "info");
    let runtime = runtime()?;
    let result = app::run(args, mode, &runtime);
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
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_command_is_reviewed() {
        let mut command = Cli::command();
        command.build();
        let mut help = vec![command.render_long_help().to_string()];
        for one in command.get_subcommands_mut() {
            help.push(one.render_long_help().to_string());
            help.extend(one.get_subcommands_mut().map(|one| one.render_long_help().to_string()));
        }
        insta::assert_snapshot!(help.join("\n----\n\n"));
    }

    /// Flags that remove or replace files: only the command line itself may ask for that.
    const REMOVING: [&str; 5] = ["all", "delete", "move", "update", "yes"];

    #[test]
    fn every_flag_has_its_variable_but_those_that_remove_files() {
        let mut command = Cli::command();
        command.build();
        let all = command
            .get_subcommands()
            .flat_map(|one| [one].into_iter().chain(one.get_subcommands()));
        let flags = all
            .flat_map(clap::Command::get_arguments)
            .filter(|arg| arg.get_long().is_some_and(|long| !matches!(long, "help" | "version")));
        let mut seen = 0;
        for flag in flags {
            let long = flag.get_long().unwrap_or_default();
            if REMOVING.contains(&long) {
                assert_eq!(flag.get_env(), None, "--{long}");
                continue;
            }
            let expected = format!("OCI_MODEL_CSI_{}", long.to_uppercase().replace('-', "_"));
            let variable = flag.get_env().map(|v| v.to_string_lossy().into_owned());
            assert_eq!(variable.as_deref(), Some(expected.as_str()), "--{long}");
            seen += 1;
        }
        assert!(seen > 20, "{seen} flags");
    }
}
