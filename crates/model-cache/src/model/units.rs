//! Numbers as people read them, in messages and progress. Sizes are IEC.

use std::time::Duration;

const UNITS: &[(&str, u64)] =
    &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// `1.1 GiB`, `512 MiB`, `17 B`: three significant digits at most.
pub fn size_text(bytes: u64) -> String {
    let (unit, scale) = unit_of(bytes);
    format!("{} {unit}", number(bytes, scale))
}

/// `41.2 of 140 GiB (29 %)`: both in the unit of the total.
pub fn progress_text(done: u64, total: u64) -> String {
    let (unit, scale) = unit_of(total);
    let percent = if total == 0 { 100 } else { u128::from(done) * 100 / u128::from(total) };
    format!("{} of {} {unit} ({percent} %)", number(done, scale), number(total, scale))
}

/// `45s`, `1m30s`, `2h05m`.
pub fn duration_text(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `1 model`, `2 models`.
pub fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn unit_of(bytes: u64) -> (&'static str, u64) {
    UNITS.iter().copied().find(|(_, scale)| bytes >= *scale).unwrap_or(("B", 1))
}

fn number(bytes: u64, scale: u64) -> String {
    let tenths = u128::from(bytes) * 10 / u128::from(scale);
    if scale == 1 || tenths >= 1000 || tenths.is_multiple_of(10) {
        (tenths / 10).to_string()
    } else {
        format!("{}.{}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_documented() {
        assert_eq!(size_text(0), "0 B");
        assert_eq!(size_text(1 << 20), "1 MiB");
        assert_eq!(size_text(1_181_116_007), "1.1 GiB");
        let (done, total) = (44_238_163_149, 140 << 30);
        assert_eq!(progress_text(done, total), "41.2 of 140 GiB (29 %)");
        assert_eq!(progress_text(0, 0), "0 of 0 B (100 %)");
    }

    #[test]
    fn durations_read_as_documented() {
        assert_eq!(duration_text(Duration::from_secs(90)), "1m30s");
        assert_eq!(duration_text(Duration::from_secs(9)), "9s");
        assert_eq!(duration_text(Duration::from_secs(7500)), "2h05m");
    }
}
