//! An object's bytes as they arrive.

use std::fmt;

use bytes::Bytes;
use hyper::body::Incoming;

use super::answer::ObjectHead;
use super::error::{StorageError, StorageErrorKind};
use crate::transport::{self, MinimumProgress};

/// The body of a `GetObject`: exactly the requested bytes, or an error, where
/// the answer has its length.
pub struct ObjectBody {
    /// The headers of the answer.
    pub head: ObjectHead,
    body: Incoming,
    length: Option<u64>,
    received: u64,
    idle: MinimumProgress,
    attempted: String,
}

impl ObjectBody {
    pub(crate) fn new(
        head: ObjectHead,
        body: Incoming,
        length: Option<u64>,
        idle: MinimumProgress,
        attempted: String,
    ) -> Self {
        Self { head, body, length, received: 0, idle, attempted }
    }

    /// The number of bytes in all; `None` for a whole object whose
    /// answer has no length, as proxies may cause.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// Sets the expected length where the answer has none:
    /// fewer or more bytes are an error then.
    pub fn expect_length(&mut self, length: u64) {
        self.length.get_or_insert(length);
    }

    /// How many bytes [`chunk`](Self::chunk) has returned.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The next bytes, up to 512 KiB of them; `None` once all have been returned.
    ///
    /// An error is of kind [`Unavailable`](ErrorKind::Unavailable): the bytes
    /// returned before are good, and the rest can be requested again.
    ///
    /// Cancel safe: a chunk is either returned or comes with the next call.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, StorageError> {
        match transport::next_chunk(&mut self.body, &mut self.idle).await {
            Ok(Some(chunk)) => {
                self.received += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                if self.length.is_some_and(|length| self.received > length) {
                    return Err(self.broken("the body is longer than it should be"));
                }
                Ok(Some(chunk))
            }
            Ok(None) if self.length.is_none_or(|length| self.received == length) => Ok(None),
            Ok(None) => Err(self.broken("the body ended early")),
            Err(failure) => Err(self.broken(&failure.what)),
        }
    }

    fn broken(&self, why: &str) -> StorageError {
        let Self { received, length, attempted, .. } = self;
        let length = length.map_or_else(|| "an unknown number of".to_owned(), |l| l.to_string());
        let cause = format!("{why} ({received} of {length} bytes received)");
        StorageError::new(StorageErrorKind::Unavailable, attempted.clone(), cause)
    }
}

impl fmt::Debug for ObjectBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectBody")
            .field("head", &self.head)
            .field("length", &self.length)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}
