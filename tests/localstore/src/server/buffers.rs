//! Reused buffers for bodies: allocating and zeroing one per chunk would cost as
//! much as the copy itself.

use std::sync::Arc;

use bytes::Bytes;

use crate::sync::Mutex;

/// One chunk of a body. Small enough to stay in a core's cache between the read
/// and the write.
pub(crate) const CHUNK: usize = 256 * 1024;

/// How many idle buffers are kept.
const KEPT: usize = 64;

/// Idle buffers; the last one used is the next.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// A buffer of [`CHUNK`] bytes with any content.
    pub(crate) fn take(&self) -> Buffer {
        let bytes = self.0.lock().pop().unwrap_or_else(|| vec![0; CHUNK]);
        Buffer { bytes, len: 0, home: self.clone() }
    }
}

/// Returns to its pool when dropped.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    home: Buffers,
}

impl Buffer {
    pub(crate) fn space(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[..len]
    }

    /// The first `len` bytes, without copying.
    pub(crate) fn filled(mut self, len: usize) -> Bytes {
        self.len = len;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut idle = self.home.0.lock();
        if idle.len() < KEPT {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}
