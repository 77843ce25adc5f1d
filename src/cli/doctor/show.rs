//! Findings as text and as JSON.

use serde_json::{Value, json};

use crate::doctor::speed::{SpeedReport, SpeedStep, rate_text};
use crate::doctor::{Finding, Severity};
use crate::model::counted;

/// One line for each finding, and a sum.
pub(super) fn text(findings: &[Finding]) -> String {
    let mut lines: Vec<String> = findings.iter().map(line).collect();
    lines.push(sum(findings));
    lines.join("\n")
}

fn line(finding: &Finding) -> String {
    let severity = format!("{:7}", finding.severity.name());
    let severity = match finding.severity {
        Severity::Fault => console::style(severity).red().bold(),
        Severity::Warning => console::style(severity).yellow(),
        Severity::Fine => console::style(severity).green(),
        Severity::Skipped => console::style(severity).dim(),
    };
    let check = finding.check.name();
    let fix = finding.fix.as_ref().map_or_else(String::new, |fix| format!("; fix: {fix}"));
    format!("{severity}  {check:15}  {}{fix}", finding.what)
}

fn sum(findings: &[Finding]) -> String {
    let of = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    format!(
        "{}, {}, {} fine, {} skipped",
        counted(of(Severity::Fault), "fault"),
        counted(of(Severity::Warning), "warning"),
        of(Severity::Fine),
        of(Severity::Skipped)
    )
}

/// A step of the measurement, while it runs.
pub(super) fn step(step: &SpeedStep) -> String {
    let connections = counted(step.connections, "connection");
    format!("{connections}: {}", rate_text(step.bytes_per_second))
}

/// The findings, and the measurement if there was one, as one object. Its keys do not change.
pub(super) fn json(findings: &[Finding], speed: Option<&SpeedReport>) -> String {
    let findings: Vec<Value> = findings
        .iter()
        .map(|finding| {
            json!({
                "check": finding.check.name(),
                "severity": finding.severity.name(),
                "what": finding.what,
                "fix": finding.fix,
            })
        })
        .collect();
    json!({ "version": env!("CARGO_PKG_VERSION"), "findings": findings, "speed": speed })
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::CheckId;

    #[test]
    fn every_finding_is_one_line_with_its_fix() {
        let findings = [
            Finding::fault(CheckId::Clock, "is 7m off", "set it"),
            Finding::fine(CheckId::Namespace, "mytenancy"),
        ];
        let text = console::strip_ansi_codes(&text(&findings)).into_owned();
        assert_eq!(
            text,
            "fault    clock            is 7m off; fix: set it\n\
             fine     namespace        mytenancy\n\
             1 fault, 0 warnings, 1 fine, 0 skipped"
        );
    }
}
