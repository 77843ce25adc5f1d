//! The endpoint, proxies and the clock.

use std::time::{Duration, SystemTime};

use super::of_storage;
use crate::doctor::{CheckId, Finding, Severity};
use crate::model::duration_text;
use crate::oci::{ObjectStorage, ProxyUse, Reached};
use crate::source::StorageErrorKind;

/// Object Storage refuses requests whose date is further off. Source: Oracle's "Request
/// Signatures", which allows a skew of five minutes.
const ALLOWED_SKEW: Duration = Duration::from_secs(5 * 60);

/// A skew that NTP would not leave.
const SUSPICIOUS_SKEW: Duration = Duration::from_secs(30);

/// Says which proxy is between here and Object Storage, and why; nothing if there is none.
/// `location` is what [`reach`] found.
pub(super) async fn proxy(client: &ObjectStorage, location: Option<&Finding>) -> Option<Finding> {
    if location.is_some_and(|finding| finding.severity == Severity::Skipped) {
        // The region is not known, and asking again takes as long again.
        return None;
    }
    let way = client.way().await.ok()?;
    let what = match way.proxy {
        ProxyUse::None => return None,
        ProxyUse::Through { proxy, named_by } => format!(
            "{} is reached through the proxy {proxy}, which {named_by} names; the metadata service \
             and the cluster's own services never are",
            way.endpoint
        ),
        ProxyUse::Exempt { named_by, entry } => format!(
            "{} is reached directly: {entry} in NO_PROXY exempts it from the proxy that {named_by} \
             names",
            way.endpoint
        ),
    };
    Some(Finding::fine(CheckId::Proxy, what))
}

/// Asks the endpoint for an answer, whichever it is.
pub(super) async fn reach(client: &ObjectStorage) -> (Option<Reached>, Option<Finding>) {
    match client.reach().await {
        Ok(reached) => {
            let what = format!("{} answers", reached.endpoint);
            (Some(reached), Some(Finding::fine(CheckId::Endpoint, what)))
        }
        // The region is that of the instance, whose services are the identity's.
        Err(error) if error.kind() == StorageErrorKind::Identity => {
            let why = "the region is that of the instance, which does not say it";
            (None, Some(Finding::skipped(CheckId::Endpoint, why)))
        }
        Err(error) => {
            let mut finding = of_storage(CheckId::Endpoint, &error);
            if error.remedy().is_none() {
                finding.fix = Some(
                    "check the region's name, the DNS of this machine, and that its subnet has a \
                     way to Object Storage: a service gateway with a route and an egress rule for \
                     port 443"
                        .to_owned(),
                );
            }
            (None, Some(finding))
        }
    }
}

/// Compares the clock of this machine with the service's.
pub(super) fn clock(reached: &Reached) -> Finding {
    match reached.time {
        Some(theirs) => skew(SystemTime::now(), theirs),
        None => Finding::skipped(
            CheckId::Clock,
            format!("{} sends no Date header to compare the clock with", reached.endpoint),
        ),
    }
}

fn skew(ours: SystemTime, theirs: SystemTime) -> Finding {
    let (off, direction) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    let what = format!("this clock is {} {direction} Object Storage's", duration_text(off));
    let fix = "set it: chronyc makestep, or systemctl restart systemd-timesyncd";
    if off >= ALLOWED_SKEW {
        let what = format!("{what}, which refuses more than 5 minutes");
        return Finding::fault(CheckId::Clock, what, fix)
            .meaning(crate::ErrorKind::Unauthenticated);
    }
    if off >= SUSPICIOUS_SKEW {
        return Finding::warning(CheckId::Clock, what, fix);
    }
    Finding::fine(CheckId::Clock, "agrees with Object Storage's to a few seconds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_a_fault_from_the_skew_on_that_the_service_refuses() {
        let now = SystemTime::now();
        for (ours, theirs, severity, words) in [
            (now, now - Duration::from_secs(432), Severity::Fault, "7m12s ahead of"),
            (now, now + Duration::from_secs(300), Severity::Fault, "5m00s behind"),
            (now, now + Duration::from_secs(61), Severity::Warning, "1m01s behind"),
            (now, now - Duration::from_secs(2), Severity::Fine, "agrees"),
        ] {
            let finding = skew(ours, theirs);
            assert_eq!(finding.severity, severity, "{finding:?}");
            assert!(finding.what.contains(words), "{finding:?}");
        }
    }
}
