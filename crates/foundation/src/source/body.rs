//! An object's bytes as they arrive.

use std::fmt;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;

use super::{ObjectHead, StorageError, StorageErrorKind};

/// The chunks of a body as the network delivers them, and why it broke off.
pub type BodyChunks = BoxStream<'static, Result<Bytes, String>>;

/// The body of an answer: exactly the requested bytes, or an error, where
/// the answer has its length.
pub struct ObjectBody {
    /// The head of the answer.
    pub head: ObjectHead,
    chunks: BodyChunks,
    length: Option<u64>,
    received: u64,
    attempted: String,
}

impl ObjectBody {
    /// A body of `length` bytes, if the answer has its length; `attempted` describes the request
    /// in errors.
    pub fn new(
        head: ObjectHead,
        chunks: BodyChunks,
        length: Option<u64>,
        attempted: String,
    ) -> Self {
        Self { head, chunks, length, received: 0, attempted }
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

    /// The next bytes, as many as arrived together; `None` once all have been returned.
    ///
    /// An error is of kind [`Unavailable`](StorageErrorKind::Unavailable): the bytes
    /// returned before are good, and the rest can be requested again.
    ///
    /// Cancel safe: a chunk is either returned or comes with the next call.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, StorageError> {
        match self.chunks.next().await {
            Some(Ok(chunk)) => {
                self.received += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                if self.length.is_some_and(|length| self.received > length) {
                    return Err(self.broken("the body is longer than it should be"));
                }
                Ok(Some(chunk))
            }
            None if self.length.is_none_or(|length| self.received == length) => Ok(None),
            None => Err(self.broken("the body ended early")),
            Some(Err(why)) => Err(self.broken(&why)),
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
