//! How long a call may wait before it answers Aborted with the progress.
//!
//! kubelet gives up on every call after two minutes, and its next attempt
//! finds nothing to read in a call that was cut off. So the answer has to be
//! on its way before the caller stops listening; and not long before, since
//! the pauses between attempts grow to two minutes.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// The longest wait, and the wait of a caller that says no deadline.
const LONGEST: Duration = Duration::from_secs(110);

/// What is left of a deadline for the answer's way back.
const MARGIN: Duration = Duration::from_secs(5);

/// min(110 s, max(deadline − 5 s, deadline / 2)) of the caller's
/// `grpc-timeout`; 110 s without one, or with one that cannot be read.
pub(super) fn wait(metadata: &MetadataMap) -> Duration {
    let deadline = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    match deadline.and_then(parse) {
        Some(deadline) => LONGEST.min(deadline.saturating_sub(MARGIN).max(deadline / 2)),
        None => LONGEST,
    }
}

/// At most eight digits and a unit (gRPC over HTTP/2, "Timeout").
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
    fn every_unit_of_grpc_is_understood() {
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
    fn the_answer_leaves_before_the_caller_does() {
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
    fn no_deadline_and_a_broken_one_are_the_longest_wait() {
        assert_eq!(wait(&MetadataMap::new()), LONGEST);
        for broken in ["", "S", "5", "5s", "5 S", "-5S", "+5S", "123456789S", "5x"] {
            assert_eq!(wait_of(broken), LONGEST, "{broken:?}");
        }
    }
}
