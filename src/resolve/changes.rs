//! Resolving again when a model changed while it was in use.

use crate::error::{Error, ErrorKind, Result};

/// How often a model may change during one download before that is an error.
const RESOLVES: u32 = 3;

/// Counts how often a model changed during its download.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    seen: u32,
}

impl Changes {
    /// Returns if the caller should resolve again.
    ///
    /// # Errors
    /// `error` itself unless it is `Changed`; `Precondition` after too many changes.
    pub(crate) fn retry(&mut self, title: &str, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::Changed {
            return Err(error);
        }
        self.seen += 1;
        if self.seen < RESOLVES {
            tracing::info!(model = title, %error, "the model changed; resolving it again");
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Precondition,
            format!(
                "{title} kept changing while it was downloaded, {RESOLVES} times in a row \
                 ({error}); wait until its upload is finished"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_changes_is_resolved_three_times_at_most() {
        let changed = || Error::new(ErrorKind::Changed, "oci://b/m/ is another one");
        let mut changes = Changes::default();
        assert_eq!(changes.retry("m", changed()), Ok(()));
        assert_eq!(changes.retry("m", changed()), Ok(()));
        let error = changes.retry("m", changed()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition);
        assert!(error.message().contains("3 times in a row (oci://b/m/ is"), "{error}");
    }

    #[test]
    fn another_error_is_returned_as_it_is() {
        let error = Error::new(ErrorKind::Denied, "no");
        assert_eq!(Changes::default().retry("m", error.clone()), Err(error));
    }
}
