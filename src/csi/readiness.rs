//! Whether the driver can serve already, and if not, what it does meanwhile.

use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, ErrorKind, Result};

/// Said by every call until the driver is ready: kubelet and the registrar
/// want the socket within a second, and recovery may take longer.
///
/// Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<RwLock<Option<String>>>);

impl Readiness {
    /// Not ready, and what goes on, as in "recovering the cache".
    pub fn not_ready(doing: impl Into<String>) -> Self {
        Self(Arc::new(RwLock::new(Some(doing.into()))))
    }

    /// Changes what is said to go on; the driver is not ready from now on.
    pub fn doing(&self, doing: impl Into<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(doing.into());
    }

    /// The driver serves from now on.
    pub fn ready(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether the driver serves.
    pub fn is_ready(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// `Unavailable`, with what goes on, until the driver is ready.
    pub fn check(&self) -> Result<()> {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(doing) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("the driver is not ready yet: {doing}; it will be tried again"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_said_until_the_driver_is_ready() {
        let readiness = Readiness::not_ready("opening the cache");
        let seen_elsewhere = readiness.clone();
        readiness.doing("recovering the cache");
        let error = seen_elsewhere.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains("recovering the cache"), "{error}");
        assert!(!seen_elsewhere.is_ready());

        readiness.ready();
        seen_elsewhere.check().unwrap();
        assert!(seen_elsewhere.is_ready());
    }
}
