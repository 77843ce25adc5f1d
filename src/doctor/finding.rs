//! What a check found.

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::text::shown;

/// What a finding means for pods. Greater is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The check could not look, and nothing suggests a fault.
    Skipped,
    /// All is well.
    Fine,
    /// Models can be used, and something will hurt later or costs speed.
    Warning,
    /// Models cannot be used until this is mended.
    Fault,
}

impl Severity {
    /// The name in JSON, which does not change.
    pub fn name(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Fine => "fine",
            Self::Warning => "warning",
            Self::Fault => "fault",
        }
    }
}

/// The longest text of a finding, in characters: a driver's message may have 800.
const TEXT: usize = 900;

/// What is looked at: a check by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckId {
    /// The driver's configuration file.
    Configuration,
    /// Which identity signs requests, and whether it can.
    Identity,
    /// Where Object Storage is, and whether it answers.
    Endpoint,
    /// Proxies in the environment.
    Proxy,
    /// The offset of the node's clock.
    Clock,
    /// The Object Storage namespace.
    Namespace,
    /// Whether the bucket can be listed.
    Bucket,
    /// Whether objects can be read, decryption included.
    Read,
    /// The model's objects.
    Model,
    /// The directory of the cache.
    CacheDirectory,
    /// The disk that the cache is on.
    CacheDisk,
    /// The room that the cache has.
    CacheSpace,
    /// What the cache needs of its file system.
    FileSystem,
    /// kubelet's directory.
    Kubelet,
    /// Whether mounts made in the driver's container reach kubelet and pods.
    Propagation,
    /// SELinux.
    Selinux,
    /// What the driver needs of the kernel.
    Kernel,
    /// The limit on open files.
    Descriptors,
    /// Whether kubelet knows the driver.
    Registration,
    /// The running driver.
    Driver,
    /// Calls that failed within the last hour.
    Failures,
    /// How fast objects arrive, and what limits them.
    Speed,
}

impl CheckId {
    /// All checks, in the order in which they are documented.
    pub const ALL: [Self; 22] = [
        Self::Configuration,
        Self::Identity,
        Self::Endpoint,
        Self::Proxy,
        Self::Clock,
        Self::Namespace,
        Self::Bucket,
        Self::Read,
        Self::Model,
        Self::CacheDirectory,
        Self::CacheDisk,
        Self::CacheSpace,
        Self::FileSystem,
        Self::Kubelet,
        Self::Propagation,
        Self::Selinux,
        Self::Kernel,
        Self::Descriptors,
        Self::Registration,
        Self::Driver,
        Self::Failures,
        Self::Speed,
    ];

    /// The name in JSON and in the text, which does not change.
    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Identity => "identity",
            Self::Endpoint => "endpoint",
            Self::Proxy => "proxy",
            Self::Clock => "clock",
            Self::Namespace => "namespace",
            Self::Bucket => "bucket",
            Self::Read => "read",
            Self::Model => "model",
            Self::CacheDirectory => "cache-directory",
            Self::CacheDisk => "cache-disk",
            Self::CacheSpace => "cache-space",
            Self::FileSystem => "file-system",
            Self::Kubelet => "kubelet",
            Self::Propagation => "propagation",
            Self::Selinux => "selinux",
            Self::Kernel => "kernel",
            Self::Descriptors => "descriptors",
            Self::Registration => "registration",
            Self::Driver => "driver",
            Self::Failures => "failures",
            Self::Speed => "speed",
        }
    }
}

/// What a check found: one statement, and for everything but a fine one what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The check.
    pub check: CheckId,
    /// How bad it is.
    pub severity: Severity,
    /// Which meaning a fault has, for the exit code.
    pub kind: ErrorKind,
    /// What was seen, on what.
    pub what: String,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn fine(check: CheckId, what: impl Into<String>) -> Self {
        Self::new(check, Severity::Fine, what.into(), None)
    }

    /// The check could not look, for the reason given.
    pub fn skipped(check: CheckId, why: impl Into<String>) -> Self {
        Self::new(check, Severity::Skipped, why.into(), None)
    }

    /// Something that will hurt later, and what to do.
    pub fn warning(check: CheckId, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, Severity::Warning, what.into(), Some(fix.into()))
    }

    /// Something that has to be mended, and how.
    pub fn fault(check: CheckId, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, Severity::Fault, what.into(), Some(fix.into()))
    }

    /// An error as a fault. Its message says what to do.
    pub fn of_error(check: CheckId, error: &Error) -> Self {
        let fix = match error.kind() {
            ErrorKind::Unavailable => "run it again; if it stays, see docs/runbooks.md",
            _ => "do what the message says; docs/errors.md explains each",
        };
        Self::fault(check, error.message(), fix).meaning(error.kind())
    }

    /// The configuration in this file can be used.
    pub fn valid_configuration(file: &Path) -> Self {
        Self::fine(CheckId::Configuration, format!("{} is valid", file.display()))
    }

    /// The configuration cannot be used, for this reason.
    pub fn broken_configuration(error: &Error) -> Self {
        let fix = "correct it: docs/configuration.md has every key; a running driver keeps the \
                   last valid one, and these checks use the defaults";
        Self::fault(CheckId::Configuration, error.message(), fix).meaning(ErrorKind::Precondition)
    }

    /// The node did not answer in time.
    pub fn silent_node(cache: &Path, limit: Duration) -> Self {
        let what = format!(
            "looking at the node takes more than {} s: the disk of {} or of kubelet does not answer",
            limit.as_secs(),
            cache.display()
        );
        let fix = "read `dmesg`: a dead network file system or volume keeps everything waiting that \
                   looks at it; then unmount it";
        Self::fault(CheckId::CacheDisk, what, fix).meaning(ErrorKind::Disk)
    }

    /// The finding with another meaning of its fault.
    #[must_use]
    pub fn meaning(self, kind: ErrorKind) -> Self {
        Self { kind, ..self }
    }

    fn new(check: CheckId, severity: Severity, what: String, fix: Option<String>) -> Self {
        Self { check, severity, kind: ErrorKind::Internal, what, fix }
    }
}

/// Puts each text on one line, of limited length, without characters that a terminal acts on.
pub fn tidy(findings: Vec<Finding>) -> Vec<Finding> {
    let line = |text: String| shown(&text.replace(['\n', '\r', '\t'], " "), TEXT);
    let tidied = findings.into_iter().map(|finding| Finding {
        what: line(finding.what),
        fix: finding.fix.map(line),
        ..finding
    });
    tidied.collect()
}

/// Sorts findings: the worst first, and those of the same severity as they were found.
pub fn worst_first(findings: &mut [Finding]) {
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_equals_keep_their_order() {
        let mut found = vec![
            Finding::fine(CheckId::Identity, "a"),
            Finding::skipped(CheckId::Proxy, "b"),
            Finding::fault(CheckId::Clock, "c", "x"),
            Finding::warning(CheckId::Kernel, "d", "y"),
            Finding::fault(CheckId::Bucket, "e", "z"),
        ];
        worst_first(&mut found);
        let order: Vec<&str> = found.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(order, ["c", "e", "d", "a", "b"]);
    }

    #[test]
    fn texts_of_findings_are_one_line_of_limited_length() {
        let long = format!("a\nb\u{202e}c{}", "x".repeat(5000));
        let found = tidy(vec![Finding::fault(CheckId::Driver, long.clone(), long)]);
        for text in [&found[0].what, found[0].fix.as_ref().unwrap()] {
            assert!(text.starts_with("a b\\u{202e}c"), "{text}");
            assert!(text.chars().count() <= TEXT + 1);
        }
    }

    #[test]
    fn no_two_checks_have_one_name() {
        let names: std::collections::BTreeSet<&str> =
            CheckId::ALL.iter().map(|check| check.name()).collect();
        assert_eq!(names.len(), CheckId::ALL.len());
    }
}
