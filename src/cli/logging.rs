//! Log output: to stderr, as text or JSON.

use std::io::{self, IsTerminal, Write};

use clap::{Args, ValueEnum};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt};

use crate::telemetry::Telemetry;
use crate::trace;

use crate::redact::without_pars;

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
    io::stderr().is_terminal() && !refused
}

/// Writes lines without the credentials of pre-authenticated requests. The log has what libraries
/// and servers say too.
struct RedactedLog<W>(W);

impl<W: Write> Write for RedactedLog<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match without_pars(&String::from_utf8_lossy(line)) {
            Some(text) => self.0.write_all(text.as_bytes())?,
            None => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Starts logging for the whole process, and the traces of a service.
pub(super) fn start(args: &LogArgs, default: &str, telemetry: &Telemetry) {
    let level = args.log_level.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(level);
    let unusable = filter.as_ref().err().map(ToString::to_string);
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(default));
    // Steps are for traces only, at any level of the log.
    let filter = match format!("{}=off", trace::STEP).parse() {
        Ok(steps) => filter.add_directive(steps),
        Err(_) => filter,
    };
    let lines =
        fmt::layer::<Registry>().with_writer(|| RedactedLog(io::stderr())).with_target(false);
    let lines = match args.log_format {
        LogFormat::Text => lines.with_ansi(has_color()).with_filter(filter).boxed(),
        LogFormat::Json => {
            lines.json().flatten_event(true).with_span_list(false).with_filter(filter).boxed()
        }
    };
    let mut layers = vec![lines];
    layers.extend(telemetry.layer());
    tracing_subscriber::registry().with(layers).init();
    if let Some(error) = unusable {
        tracing::warn!(level, error, "--log-level is invalid; using the default");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_without_the_credential_of_a_url() {
        let mut log = RedactedLog(Vec::new());
        log.write_all(b"GET https://x/p/s3cret/n/ns/b/bk/o/m \xff\n").unwrap();
        log.write_all(b"another \xff\n").unwrap();
        log.flush().unwrap();
        let written = String::from_utf8_lossy(&log.0).into_owned();
        assert!(written.starts_with("GET https://x/p/…/n/ns/b/bk/o/m"), "{written}");
        assert!(log.0.ends_with(b"another \xff\n"), "other lines stay as they are");
    }
}
