//! The wall clock, injectable, since tokens expire by it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::http_error::server_time;

/// A source of the time of day.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The system's clock.
    pub(crate) fn system() -> Self {
        Self(Arc::new(SystemTime::now))
    }

    /// A clock that starts now and follows tokio's, which tests can pause.
    #[cfg(test)]
    pub(crate) fn tokio() -> Self {
        let (wall, start) = (SystemTime::now(), tokio::time::Instant::now());
        Self(Arc::new(move || wall + start.elapsed()))
    }

    pub(crate) fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The service refuses dates that are five minutes off; below four the clock is not to blame.
const RELEVANT_SKEW: Duration = Duration::from_secs(4 * 60);

/// "this node's clock is 7m12s ahead of Object Storage", where the answer's
/// `Date` header shows that the clock explains a 401.
pub(crate) fn skew_remedy(
    now: SystemTime,
    answer: &http::HeaderMap,
    service: &str,
) -> Option<String> {
    let theirs = server_time(answer)?;
    let (skew, direction) = match now.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    (skew >= RELEVANT_SKEW).then(|| {
        let (minutes, seconds) = (skew.as_secs() / 60, skew.as_secs() % 60);
        format!(
            "this node's clock is {minutes}m{seconds:02}s {direction} {service}, which refuses \
             more than 5 minutes: set the clock (chronyd or systemd-timesyncd)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(at: SystemTime) -> http::HeaderMap {
        let mut headers = http::HeaderMap::new();
        headers.insert("date", httpdate::fmt_http_date(at).parse().unwrap());
        headers
    }

    #[test]
    fn a_clock_that_is_far_off_is_named_with_its_offset() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let ahead = skew_remedy(now, &answer(now - Duration::from_secs(432)), "Object Storage");
        assert!(ahead.unwrap().starts_with("this node's clock is 7m12s ahead of Object Storage"),);
        let behind = skew_remedy(now, &answer(now + Duration::from_secs(301)), "Object Storage");
        assert!(behind.unwrap().starts_with("this node's clock is 5m01s behind Object Storage"));
    }

    #[test]
    fn a_clock_that_is_right_is_not_blamed() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(skew_remedy(now, &answer(now - Duration::from_secs(200)), "x"), None);
        assert_eq!(skew_remedy(now, &http::HeaderMap::new(), "x"), None);
    }
}
