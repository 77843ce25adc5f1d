//! Prometheus' older text format (0.0.4), derived from OpenMetrics.
//!
//! OpenMetrics names a counter without its `_total`, has an `info` type, and
//! ends with a mark; the older format names each metric as it is read.

use std::fmt::Write as _;

/// Converts OpenMetrics text to the older format.
pub(super) fn of(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map(|(_, words)| words);
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (ending, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                other => ("", other),
            };
            let help = help.take().unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name}{ending} {help}");
            let _ = writeln!(text, "# TYPE {name}{ending} {kind}");
        } else if !line.starts_with("# ") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_is_named_as_it_is_read() {
        let newer = "# HELP a_bytes Bytes.\n# TYPE a_bytes counter\na_bytes_total 1\n\
                     # HELP b Build.\n# TYPE b info\nb_info{v=\"1\"} 1\n\
                     # HELP c_seconds Time.\n# TYPE c_seconds histogram\nc_seconds_sum 2.0\n# EOF\n";
        let older = "# HELP a_bytes_total Bytes.\n# TYPE a_bytes_total counter\na_bytes_total 1\n\
                     # HELP b_info Build.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n\
                     # HELP c_seconds Time.\n# TYPE c_seconds histogram\nc_seconds_sum 2.0\n";
        assert_eq!(of(newer), older);
    }
}
