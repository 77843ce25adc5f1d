//! Times in the forms of the wire.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The largest accepted distance between a request's signed date and the clock.
pub(crate) const MAX_SKEW: Duration = Duration::from_secs(5 * 60);

/// The clock, shifted by a fault rule's seconds.
pub(crate) fn now(offset_secs: i64) -> SystemTime {
    let shift = Duration::from_secs(offset_secs.unsigned_abs());
    if offset_secs < 0 { SystemTime::now() - shift } else { SystemTime::now() + shift }
}

/// Whole seconds since 1970.
pub(crate) fn unix_secs(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Milliseconds since 1970, as the side files keep times.
pub(crate) fn unix_millis(time: SystemTime) -> u64 {
    let elapsed = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    elapsed.as_secs() * 1000 + u64::from(elapsed.subsec_millis())
}

/// The inverse of [`unix_millis`].
pub(crate) fn from_unix_millis(millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(millis)
}

/// RFC 3339 with milliseconds, as OCI writes times in JSON.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let millis = unix_millis(time);
    let (days, in_day) = (millis / 86_400_000, millis % 86_400_000);
    let (year, month, day) = civil_date(days);
    let (hours, minutes) = (in_day / 3_600_000, in_day / 60_000 % 60);
    let (seconds, fraction) = (in_day / 1000 % 60, in_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{fraction:03}Z")
}

/// A time of RFC 3339, with `Z` or an offset; parts of a second are ignored.
pub(crate) fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hours, minutes, seconds) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let zone = text.get(19..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match zone {
        "Z" | "z" => 0,
        _ => {
            let sign = if zone.starts_with('-') { -1 } else { 1 };
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            sign * (hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?)
        }
    };
    // Days from years that start in March, the inverse of `civil_date`.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100
        + day_of_year
        - 719_468;
    let seconds = days * 86_400 + hours * 3600 + (minutes - offset) * 60 + seconds;
    Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// Year, month and day of a number of days since 1970-01-01, by counting in
/// years that start in March, so that the leap day is the last of its year.
fn civil_date(days_since_1970: u64) -> (u64, u64, u64) {
    let days = days_since_1970 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339_with_milliseconds() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_704_490_300_007, "2024-01-05T21:31:40.007Z"),
            (1_798_761_599_999, "2026-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339(from_unix_millis(millis)), text);
            let parsed = parse_rfc3339(text).unwrap();
            assert_eq!(unix_millis(parsed), millis / 1000 * 1000, "{text}");
        }
        let of = |text| parse_rfc3339(text).map(unix_secs);
        assert_eq!(of("1970-01-02T01:00:00+01:00"), Some(86_400));
        assert_eq!(of("1970-01-01T23:30:00.5-00:30"), Some(86_400));
        assert_eq!((of("tomorrow"), of("")), (None, None));
    }
}
