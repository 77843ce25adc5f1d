//! Log output: to stderr, as text or JSON.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// Format of the log lines on stderr
    #[arg(
        long,
        env = "OCI_MODEL_CSI_LOG_FORMAT",
        value_enum,
        default_value = "text",
        global = true,
        help_heading = "Logs"
    )]
    log_format: LogFormat,
    /// error, warn, info, debug, trace, or a filter such as oci_model_csi=debug [default: info for
    /// services, warn for commands]
    #[arg(long, env = "OCI_MODEL_CSI_LOG_LEVEL", global = true, help_heading = "Logs")]
    log_level: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Whether lines are colored: on a terminal, unless NO_COLOR (no-color.org) is set.
fn has_color() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !refused
}

/// Starts logging for the whole process.
pub(super) fn start(args: &LogArgs, default: &str) {
    let level = args.log_level.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(level);
    let unusable = filter.as_ref().err().map(ToString::to_string);
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .with_target(false);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(has_color()).init(),
        LogFormat::Json => {
            builder.json().flatten_event(true).with_span_list(false).init();
        }
    }
    if let Some(error) = unusable {
        tracing::warn!(level, error, "--log-level is invalid; using the default");
    }
}
