//! Calls that failed within the last hour, as the driver remembers them.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use super::system::age;
use super::{CheckId, Finding};
use crate::csi::FailedCall;
use crate::model::{counted, duration_text};
use crate::text::shown;

/// kubelet retries at least every two minutes: after this it has given up, or the pod is gone.
const RECENT: Duration = Duration::from_secs(5 * 60);

/// How many kinds of failures have a line of their own: the newest ones, in turns of the namespaces
/// of their pods.
const KINDS: usize = 10;

/// Failures with one method, code and message.
struct FailureKind<'a> {
    call: &'a FailedCall,
    count: u64,
    volumes: usize,
    last: u64,
}

/// One finding for each kind of failure whose volumes do not work yet, and one for the others.
pub(super) fn examine(failures: &[FailedCall], now: SystemTime) -> Vec<Finding> {
    let (mended, open): (Vec<_>, Vec<_>) = failures.iter().partition(|call| call.succeeded_later);
    let kinds = kinds_of(&open);
    let mut findings: Vec<Finding> =
        in_turns(&kinds).into_iter().map(|kind| kind.finding(now)).collect();
    if kinds.len() > KINDS {
        let more = counted(kinds.len() - KINDS, "other kind");
        findings.push(Finding::warning(
            CheckId::Failures,
            format!("{more} of failures within the last hour"),
            "`kubectl logs POD -c driver --since=1h` has all of them",
        ));
    }
    if findings.is_empty() {
        let mended = mended.len();
        let text = match mended {
            0 => "no call failed within the last hour".to_owned(),
            _ => format!(
                "calls for {} failed within the last hour, and succeeded later",
                counted(mended, "volume")
            ),
        };
        findings.push(Finding::fine(CheckId::Failures, text));
    }
    findings
}

/// The kinds of failures, the newest first.
fn kinds_of<'a>(open: &[&'a FailedCall]) -> Vec<FailureKind<'a>> {
    let mut kinds: Vec<FailureKind<'a>> = Vec::new();
    for &call in open {
        let is_same = |kind: &FailureKind<'_>| {
            let one = kind.call;
            (&one.method, &one.code, &one.message) == (&call.method, &call.code, &call.message)
        };
        match kinds.iter().position(is_same) {
            Some(at) => {
                kinds[at].count += call.count;
                kinds[at].volumes += 1;
                kinds[at].last = kinds[at].last.max(call.last);
            }
            None => {
                kinds.push(FailureKind { call, count: call.count, volumes: 1, last: call.last });
            }
        }
    }
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.last));
    kinds
}

/// Those that get a line: the newest one of each namespace, then the second one of each, as far as
/// there are lines. So many failing pods of one namespace hide none of another.
fn in_turns<'a, 'b>(kinds: &'b [FailureKind<'a>]) -> Vec<&'b FailureKind<'a>> {
    let mut seen = HashMap::<Option<&str>, usize>::new();
    let mut ranked: Vec<(usize, &FailureKind<'a>)> = Vec::new();
    for kind in kinds {
        let rank = seen.entry(kind.call.namespace()).or_default();
        ranked.push((*rank, kind));
        *rank += 1;
    }
    // Those of one rank stay in their order, the newest first.
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut chosen: Vec<_> = ranked.into_iter().take(KINDS).map(|(_, kind)| kind).collect();
    chosen.sort_by_key(|kind| std::cmp::Reverse(kind.last));
    chosen
}

impl FailureKind<'_> {
    fn finding(&self, now: SystemTime) -> Finding {
        let FailedCall { method, code, message, volume, pod, .. } = self.call;
        let ago = age(self.last, now);
        let times = counted(usize::try_from(self.count).unwrap_or(usize::MAX), "time");
        let first = match (pod, &**volume) {
            (Some(pod), _) => format!("pod {}", shown(pod, 128)),
            (None, "") => "no volume".to_owned(),
            (None, volume) => format!("volume {}", shown(volume, 128)),
        };
        let others = match self.volumes {
            1 => String::new(),
            several => format!(" and {}", counted(several - 1, "other volume")),
        };
        let what = format!(
            "{method} failed {times} ({code}), last {} ago, for {first}{others}: {message}",
            duration_text(ago)
        );
        if ago <= RECENT {
            let fix = "do what the message says; docs/errors.md explains each, and kubelet retries";
            return Finding::fault(CheckId::Failures, what, fix);
        }
        let fix = "if the pod still exists, do what the message says; else kubelet retries no more";
        Finding::warning(CheckId::Failures, what, fix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    const NOW: u64 = 1_000_000;

    fn failed(volume: &str, message: &str, ago: u64) -> FailedCall {
        FailedCall {
            method: "NodePublishVolume".to_owned(),
            code: "NotFound".to_owned(),
            message: message.to_owned(),
            volume: volume.to_owned(),
            pod: Some(format!("team/{volume}")),
            count: 3,
            first: NOW - ago - 60,
            last: NOW - ago,
            succeeded_later: false,
        }
    }

    fn found(calls: &[FailedCall]) -> Vec<Finding> {
        examine(calls, SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
    }

    #[test]
    fn failures_of_one_kind_are_one_line_with_their_count_and_message() {
        let calls = [
            failed("a", "the bucket does not exist", 60),
            failed("b", "the bucket does not exist", 30),
            failed("c", "the prefix is empty", 1200),
        ];
        let found = found(&calls);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].severity, Severity::Fault);
        let text = "NodePublishVolume failed 6 times (NotFound), last 30s ago, for pod team/a and \
                    1 other volume: the bucket does not exist";
        assert_eq!(found[0].what, text);
        assert_eq!(found[1].severity, Severity::Warning, "its pod may be gone");
    }

    #[test]
    fn what_succeeded_later_is_no_warning() {
        assert_eq!(found(&[])[0].severity, Severity::Fine);
        let mended = FailedCall { succeeded_later: true, ..failed("a", "no route", 60) };
        let found = found(&[mended]);
        assert_eq!((found.len(), found[0].severity), (1, Severity::Fine));
        assert!(found[0].what.contains("1 volume failed"), "{found:?}");
    }

    #[test]
    fn many_kinds_of_failures_do_not_fill_the_screen() {
        let calls: Vec<_> = (0..40).map(|n| failed("a", &format!("message {n}"), n)).collect();
        let found = found(&calls);
        assert_eq!(found.len(), KINDS + 1);
        assert!(found[KINDS].what.starts_with("30 other kinds"), "{:?}", found[KINDS]);
    }

    #[test]
    fn many_failures_of_one_namespace_hide_none_of_another() {
        let mut calls: Vec<_> = (0..40).map(|n| failed("a", &format!("message {n}"), n)).collect();
        let other = failed("b", "the prefix is empty", 1800);
        calls.push(FailedCall { pod: Some("other/b".to_owned()), ..other });
        let found = found(&calls);
        assert_eq!(found.len(), KINDS + 1);
        assert!(found[0].what.contains("message 0"), "the newest first: {:?}", found[0]);
        assert!(found[KINDS - 1].what.contains("the prefix is empty"), "{found:?}");
    }
}
