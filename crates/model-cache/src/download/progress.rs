//! The progress of a download.

use std::sync::atomic::{AtomicU64, Ordering};

/// The progress of one object. Shared by the workers that add bytes and by
/// all readers.
#[derive(Debug, Default)]
pub struct ObjectProgress {
    done: AtomicU64,
    received: AtomicU64,
}

impl ObjectProgress {
    /// Bytes of the object that are in the file.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes received over the network, repeated ones included.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Records bytes that were in the file already.
    pub fn found(&self, bytes: u64) {
        self.set_done(bytes);
    }

    pub(crate) fn set_done(&self, bytes: u64) {
        self.done.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }
}
