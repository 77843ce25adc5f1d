//! The errors of Oracle's services: those of [`source`](crate::source).

pub(crate) use crate::source::{StorageError, StorageErrorKind, excerpt};
use crate::transport::Unusable;

impl From<Unusable> for StorageError {
    fn from(unusable: Unusable) -> Self {
        let error = Self::config(unusable.attempted, unusable.why);
        match unusable.remedy {
            Some(remedy) => error.with_remedy(remedy),
            None => error,
        }
    }
}
