//! The endpoint, proxies and the clock.

use std::time::{Duration, SystemTime};

use super::of_storage;
use crate::doctor::{CheckId, Finding};
use crate::model::duration_text;
use crate::oci::{ObjectStorage, Reached};
use crate::source::StorageErrorKind;

/// Object Storage refuses requests whose date is further off. Source: Oracle's "Request
/// Signatures", which allows a skew of five minutes.
const ALLOWED_SKEW: Duration = Duration::from_secs(5 * 60);

/// A skew that NTP would not leave.
const SUSPICIOUS_SKEW: Duration = Duration::from_secs(30);

/// The variables that other clients take a proxy from.
const PROXIES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// Warns of a proxy that other clients would use.
pub(super) fn proxy(variable: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let set = PROXIES.into_iter().find(|name| variable(name).is_some_and(|url| !url.is_empty()));
    let Some(name) = set else { return Vec::new() };
    vec![Finding::warning(
        CheckId::Proxy,
        format!("{name} is set, and this version connects directly: it uses no proxy"),
        "give the nodes a direct way, such as a service gateway, or --oci-endpoint of a private \
         endpoint",
    )]
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
    use crate::doctor::Severity;

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

    #[test]
    fn a_proxy_in_the_environment_is_named_and_an_empty_one_is_not() {
        let with = |set: &'static str, url: &'static str| {
            proxy(move |name| (name == set).then(|| url.to_owned()))
        };
        assert!(with("https_proxy", "http://p:3128")[0].what.contains("https_proxy is set"));
        assert!(with("HTTPS_PROXY", "").is_empty());
        assert!(with("NO_PROXY", "*").is_empty());
    }
}
