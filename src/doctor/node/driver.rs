//! The running driver, as its socket for commands describes it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::system::age;
use super::{CheckId, Finding, NodeView, failures, registration, tidy};
use crate::admin::{self, DriverStatus};
use crate::error::{Error, ErrorKind, Result};
use crate::manage::{PrefetchEntry, PrefetchState};
use crate::model::{counted, duration_text};
use crate::text::shown;

/// How long the driver may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// A start that takes longer than this is worth a warning: recovery reads no blob.
const START: Duration = Duration::from_secs(120);

/// How many models of the prefetch list that failed are named.
const NAMED: usize = 5;

const LOGS: &str = "`kubectl -n NAMESPACE get pods -l app.kubernetes.io/component=node -o wide \
                    --field-selector spec.nodeName=NODE` shows its pod, and `kubectl logs POD -c \
                    driver` why it does not run";

/// Asks the driver that runs on this node: whether it is ready, what failed, and whether
/// kubelet knows it. Waits a few seconds at most.
///
/// That no driver runs is a warning on a node, and nothing elsewhere.
pub async fn ask_driver(view: &NodeView) -> Vec<Finding> {
    let is_node = view.has_kubelet();
    let mut findings = Vec::new();
    let status = match &view.admin_socket {
        Some(socket) => ask(socket).await,
        None => Ok(None),
    };
    match &status {
        Ok(Some(status)) => {
            findings.extend(of_status(status));
            findings.extend(failures::examine(&status.failures, SystemTime::now()));
        }
        Ok(None) if is_node => findings.push(absent(view)),
        Ok(None) => return findings,
        Err(error) => findings.push(of_error(error)),
    }
    if is_node {
        findings.extend(registration::examine(view, status.ok().flatten().as_ref()).await);
    }
    tidy(findings)
}

async fn ask(socket: &Path) -> Result<Option<DriverStatus>> {
    let late = |_| {
        let text = format!(
            "the driver at {} does not answer within {} s",
            socket.display(),
            LIMIT.as_secs()
        );
        Error::new(ErrorKind::Unavailable, text)
    };
    let asked = tokio::time::timeout(LIMIT, admin::status(socket)).await;
    asked.map_err(late).and_then(|answer| answer)
}

fn absent(view: &NodeView) -> Finding {
    let at = view.admin_socket.as_ref().map_or_else(
        || "in the cache, whose path is too long for a socket".to_owned(),
        |socket| format!("at {}", socket.display()),
    );
    Finding::warning(CheckId::Driver, format!("no driver listens {at}"), LOGS)
}

fn of_error(error: &Error) -> Finding {
    match error.kind() {
        ErrorKind::Denied => {
            let why = format!("{error}: run doctor with sudo, or in the driver's container");
            Finding::skipped(CheckId::Driver, why)
        }
        _ => Finding::fault(CheckId::Driver, error.message(), LOGS).meaning(error.kind()),
    }
}

fn of_status(status: &DriverStatus) -> Vec<Finding> {
    let mut findings = Vec::new();
    let since = age(status.started, SystemTime::now());
    if !status.ready {
        let activity = status.activity.as_deref().unwrap_or("starting");
        let what = format!("the driver is not ready for {}: {activity}", duration_text(since));
        let fix = "wait; the driver's log has each step of its start, and `dmesg` whether its disk \
                   is slow or fails";
        findings.push(match since > START {
            true => Finding::fault(CheckId::Driver, what, fix),
            false => Finding::warning(CheckId::Driver, what, fix),
        });
    }
    let own = env!("CARGO_PKG_VERSION");
    if status.version != own {
        let what = format!("the driver has version {}, this program {own}", status.version);
        let fix = "run the doctor of the driver's container: kubectl exec POD -c driver -- \
                   oci-model-csi doctor";
        findings.push(Finding::warning(CheckId::Driver, what, fix));
    }
    findings.extend(prefetch(status));
    findings.extend(unknown_labels(status));
    if findings.is_empty() {
        let text = format!(
            "version {own} runs for {}: {}, {}",
            duration_text(since),
            counted(status.leases.len(), "volume"),
            counted(status.downloads.len(), "download")
        );
        findings.push(Finding::fine(CheckId::Driver, text));
    }
    findings
}

fn prefetch(status: &DriverStatus) -> Vec<Finding> {
    let failed: Vec<_> =
        status.prefetch.iter().filter(|entry| entry.state == PrefetchState::Failed).collect();
    let fix = "do what the message says; the driver tries again by itself";
    let finding = |what: String| Finding::warning(CheckId::Driver, what, fix);
    let mut findings: Vec<Finding> = failed
        .iter()
        .take(NAMED)
        .map(|entry| {
            let why = entry.error.as_deref().unwrap_or("no reason is known");
            finding(format!("the prefetch of {} failed: {why}", shown(&entry.uri, 200)))
        })
        .collect();
    if failed.len() > NAMED {
        let more = counted(failed.len() - NAMED, "model");
        findings.push(finding(format!("the prefetch of {more} more failed (`cache ls`)")));
    }
    findings
}

/// Entries of the prefetch list that wait for the labels of the node, in one finding.
fn unknown_labels(status: &DriverStatus) -> Option<Finding> {
    let waits = |entry: &&PrefetchEntry| entry.state == PrefetchState::LabelsUnknown;
    let first = status.prefetch.iter().find(waits)?;
    let number = counted(status.prefetch.iter().filter(waits).count(), "model");
    let why = first.error.as_deref().unwrap_or("no reason is known");
    let what = format!(
        "the labels of this node are unknown, so {number} with a nodeSelector cannot be prefetched: \
         {why}"
    );
    let fix = "let the node plugin get nodes: the chart grants this right if config.prefetch has a \
               nodeSelector, unless rbac.create is false";
    Some(Finding::warning(CheckId::Driver, what, fix))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::doctor::Severity;

    fn now() -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
    }

    fn status() -> DriverStatus {
        DriverStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: true,
            started: now() - 600,
            ..DriverStatus::default()
        }
    }

    #[test]
    fn a_driver_that_is_ready_is_fine_and_one_that_starts_for_long_is_a_fault() {
        let fine = of_status(&status());
        assert_eq!((fine.len(), fine[0].severity), (1, Severity::Fine));
        let activity = Some("recovering the cache".to_owned());
        let starting = DriverStatus { ready: false, activity, ..status() };
        let found = of_status(&starting);
        assert_eq!(found[0].severity, Severity::Fault);
        assert!(found[0].what.contains("not ready for 10m00s: recovering the cache"), "{found:?}");
        let early = of_status(&DriverStatus { started: now() - 5, ..starting });
        assert_eq!(early[0].severity, Severity::Warning);
    }

    #[test]
    fn another_version_is_a_warning_with_both_versions() {
        let found = of_status(&DriverStatus { version: "0.0.9".to_owned(), ..status() });
        assert!(found[0].what.contains("0.0.9"), "{found:?}");
    }

    #[test]
    fn failed_prefetches_are_named_up_to_a_number() {
        let entry = |n: usize| PrefetchEntry {
            uri: format!("oci://bucket/{n}/"),
            node_selector: BTreeMap::new(),
            state: PrefetchState::Failed,
            key: None,
            error: Some("the bucket does not exist".to_owned()),
        };
        let found = of_status(&DriverStatus { prefetch: (0..9).map(entry).collect(), ..status() });
        assert_eq!(found.len(), NAMED + 1);
        assert!(found[0].what.contains("oci://bucket/0/ failed: the bucket does not exist"));
        assert!(found[NAMED].what.contains("4 models more"), "{found:?}");
    }

    #[test]
    fn models_that_wait_for_the_labels_of_the_node_are_one_warning_with_the_remedy() {
        let entry = |state| PrefetchEntry {
            uri: "oci://bucket/m/".to_owned(),
            node_selector: BTreeMap::from([("pool".to_owned(), "gpu".to_owned())]),
            state,
            key: None,
            error: Some("the API server answered 403 Forbidden".to_owned()),
        };
        let (unknown, elsewhere) = (PrefetchState::LabelsUnknown, PrefetchState::NotSelected);
        let prefetch = vec![entry(unknown), entry(elsewhere), entry(unknown)];
        let [found] = &of_status(&DriverStatus { prefetch, ..status() })[..] else { panic!("one") };
        assert_eq!(found.severity, Severity::Warning);
        assert!(found.what.contains("2 models with a nodeSelector"), "{}", found.what);
        assert!(found.what.ends_with("403 Forbidden"), "{}", found.what);
    }
}
