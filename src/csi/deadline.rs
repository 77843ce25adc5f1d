//! How long a call may wait before it answers Aborted with the progress.
//!
//! kubelet gives up on every call after two minutes, and then the user sees no
//! message. So the answer must be sent before the deadline, but not long before it:
//! the pauses between kubelet's attempts grow to two minutes.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// The longest wait, and the wait of a caller without a deadline.
const LONGEST: Duration = Duration::from_secs(110);

/// The part of a deadline that is reserved for sending the answer.
const MARGIN: Duration = Duration::from_secs(5);

/// Computes min(110 s, max(deadline − 5 s, deadline / 2)) from the caller's
/// `grpc-timeout`; 110 s without a valid one.
pub(super) fn wait(metadata: &MetadataMap) -> Duration {
    let deadline = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    match deadline.and_then(parse) {
        Some(deadline) => LONGEST.min(deadline.saturating_sub(MARGIN).max(deadline / 2)),
        None => LONGEST,
    }
}

/// Parses at most eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let digits = text.strip_suffix(unit)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(value * 3600)),
        'M' => Some(Duration::from_secs(value * 60)),
        'S' => Some(Duration::from_secs(value)),
        'm' => Some(Duration::from_millis(value)),
        'u' => Some(Duration::from_micros(value)),
        'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_of(timeout: &'static str) -> Duration {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", timeout.parse().unwrap());
        wait(&metadata)
    }

    #[test]
    fn every_grpc_time_unit_is_parsed() {
        for (text, millis) in [
            ("1H", 3_600_000),
            ("2M", 120_000),
            ("15S", 15_000),
            ("119999m", 119_999),
            ("2000000u", 2_000),
            ("99999999n", 99),
        ] {
            assert_eq!(parse(text).unwrap().as_millis(), millis, "{text}");
        }
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
    }

    #[test]
    fn the_answer_is_sent_before_the_callers_deadline() {
        for (timeout, seconds) in [
            ("2M", 110.0),
            ("119998m", 110.0),
            ("100S", 95.0),
            ("15S", 10.0),
            ("8S", 4.0),
            ("200m", 0.1),
            ("0S", 0.0),
            ("24H", 110.0),
        ] {
            assert_eq!(
                wait_of(timeout).as_secs_f64().to_bits(),
                f64::to_bits(seconds),
                "{timeout}"
            );
        }
    }

    #[test]
    fn a_missing_or_malformed_deadline_means_the_longest_wait() {
        assert_eq!(wait(&MetadataMap::new()), LONGEST);
        for broken in ["", "S", "5", "5s", "5 S", "-5S", "+5S", "123456789S", "5x"] {
            assert_eq!(wait_of(broken), LONGEST, "{broken:?}");
        }
    }
}
