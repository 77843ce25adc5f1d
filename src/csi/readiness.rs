//! Whether the driver is ready, and if not, what it is doing.

use std::sync::{Arc, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;

/// The readiness of the driver, which every call checks: kubelet and the registrar
/// need the socket within a second, and recovery may take longer.
///
/// Cheap to clone; all clones share one state.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<Option<String>>>);

impl Readiness {
    /// Creates the state "not ready" with the current activity, such as
    /// "recovering the cache".
    pub fn not_ready(activity: impl Into<String>) -> Self {
        Self(Arc::new(Mutex::new(Some(activity.into()))))
    }

    /// Sets the current activity, and marks the driver as not ready.
    pub fn set_activity(&self, activity: impl Into<String>) {
        *lock(&self.0) = Some(activity.into());
    }

    /// Marks the driver as ready.
    pub fn ready(&self) {
        *lock(&self.0) = None;
    }

    /// Whether the driver is ready.
    pub fn is_ready(&self) -> bool {
        lock(&self.0).is_none()
    }

    /// What the driver does while it is not ready.
    pub fn activity(&self) -> Option<String> {
        lock(&self.0).clone()
    }

    /// Checks that the driver is ready.
    ///
    /// # Errors
    /// `Unavailable` with the current activity until the driver is ready.
    pub fn check(&self) -> Result<()> {
        match &*lock(&self.0) {
            None => Ok(()),
            Some(activity) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("the driver is not ready yet: {activity}; the call will be retried"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_activity_is_reported_until_the_driver_is_ready() {
        let readiness = Readiness::not_ready("opening the cache");
        let seen_elsewhere = readiness.clone();
        readiness.set_activity("recovering the cache");
        let error = seen_elsewhere.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains("recovering the cache"), "{error}");
        assert!(!seen_elsewhere.is_ready());

        readiness.ready();
        seen_elsewhere.check().unwrap();
        assert!(seen_elsewhere.is_ready());
    }
}
