//! The standard variables, as far as the library does not read them itself.

use crate::error::{Error, Result};

/// Where traces go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TraceSettings {
    /// `http(s)://host:port`.
    pub(super) endpoint: String,
    /// A file of certificates to trust instead of the system's.
    pub(super) certificate_file: Option<String>,
    /// How many ended spans wait for their export at most.
    pub(super) queue: usize,
}

/// The default of `OTEL_BSP_MAX_QUEUE_SIZE`.
const QUEUE: usize = 2048;

/// The most spans that wait, whatever the variable says: a span takes some kilobytes.
const LARGEST_QUEUE: usize = 16 * 1024;

impl TraceSettings {
    /// Reads the variables; `None` unless they name a collector.
    ///
    /// # Errors
    /// `Invalid` for a value that the driver cannot do. It quotes no endpoint, which may contain
    /// a password.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        // That for traces alone wins.
        let otlp = |rest: &str| {
            set(&format!("OTEL_EXPORTER_OTLP_TRACES_{rest}"))
                .or_else(|| set(&format!("OTEL_EXPORTER_OTLP_{rest}")))
        };
        if set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let Some(endpoint) = otlp("ENDPOINT") else { return Ok(None) };
        match set("OTEL_TRACES_EXPORTER").as_deref() {
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(_) => return Err(Error::invalid("OTEL_TRACES_EXPORTER must be otlp or none")),
        }
        if otlp("PROTOCOL").is_some_and(|protocol| protocol != "grpc") {
            let text = "OTEL_EXPORTER_OTLP_PROTOCOL must be grpc: use the collector's port for it";
            return Err(Error::invalid(text));
        }
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            let text = "OTEL_EXPORTER_OTLP_ENDPOINT must begin with http:// or https://";
            return Err(Error::invalid(text));
        }
        let queue = set("OTEL_BSP_MAX_QUEUE_SIZE").and_then(|size| size.parse().ok());
        Ok(Some(Self {
            endpoint,
            certificate_file: otlp("CERTIFICATE"),
            queue: queue.unwrap_or(QUEUE).clamp(1, LARGEST_QUEUE),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");

    fn of(variables: &[(&str, &str)]) -> Result<Option<TraceSettings>> {
        TraceSettings::of(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn traces_are_off_unless_an_endpoint_is_named_and_nothing_turns_them_off() {
        for off in [
            &[][..],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            &[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")],
            &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            assert_eq!(of(off), Ok(None), "{off:?}");
        }
        let on = of(&[ENDPOINT, ("OTEL_SDK_DISABLED", "false")]).unwrap().unwrap();
        assert_eq!((on.endpoint.as_str(), on.queue), ("http://collector:4317", 2048));
    }

    #[test]
    fn variables_for_traces_win_and_the_queue_is_bounded() {
        let settings = of(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "1000000"),
        ]);
        let expected = TraceSettings {
            endpoint: "https://traces:4317".to_owned(),
            certificate_file: Some("/ca.pem".to_owned()),
            queue: LARGEST_QUEUE,
        };
        assert_eq!(settings, Ok(Some(expected)));
    }

    #[test]
    fn what_the_driver_cannot_do_is_refused_without_quoting_the_endpoint() {
        for (name, value) in [
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "user:s3cret@collector:4317"),
        ] {
            let error = of(&[ENDPOINT, (name, value)]).unwrap_err();
            assert!(error.message().starts_with("OTEL_"), "{error}");
            assert!(!error.message().contains("s3cret"), "{error}");
        }
    }
}
