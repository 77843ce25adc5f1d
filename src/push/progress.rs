//! How far a push is, and which uploads it has begun.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::report::UnfinishedUpload;
use crate::sync::lock;

/// Progress of a push, for a progress bar and for the message of one that was interrupted.
#[derive(Debug, Default)]
pub struct PushProgress {
    total: AtomicU64,
    done: AtomicU64,
    sent: AtomicU64,
    running: Mutex<Vec<UnfinishedUpload>>,
}

impl PushProgress {
    /// Bytes that are stored or being sent, and the size of all files (0 while unknown).
    pub fn now(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Bytes sent over the network, repeated ones included.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Multipart uploads that were begun and are not committed.
    pub fn running_uploads(&self) -> Vec<UnfinishedUpload> {
        lock(&self.running).clone()
    }

    pub(super) fn start(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Counts bytes that need not be sent.
    pub(super) fn found(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn began(&self, upload: UnfinishedUpload) {
        lock(&self.running).push(upload);
    }

    pub(super) fn ended(&self, id: &str) {
        lock(&self.running).retain(|upload| upload.id != id);
    }

    /// Counts the bytes of one request.
    pub(super) fn request(self: &Arc<Self>) -> (SentBytes, RequestBytes) {
        let count = Arc::new(AtomicU64::new(0));
        let sent = SentBytes { progress: Arc::clone(self), count: Arc::clone(&count) };
        (sent, RequestBytes { progress: Arc::clone(self), count })
    }
}

/// Counts the bytes of a request as the connection takes them.
#[derive(Debug)]
pub(super) struct SentBytes {
    progress: Arc<PushProgress>,
    count: Arc<AtomicU64>,
}

impl SentBytes {
    pub(super) fn add(&mut self, bytes: u64) {
        self.progress.sent.fetch_add(bytes, Ordering::Relaxed);
        self.progress.done.fetch_add(bytes, Ordering::Relaxed);
        self.count.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The bytes of one request, which may have been in vain.
#[derive(Debug)]
pub(super) struct RequestBytes {
    progress: Arc<PushProgress>,
    count: Arc<AtomicU64>,
}

impl RequestBytes {
    /// The request failed: its bytes are sent again.
    pub(super) fn were_in_vain(self) {
        self.progress.done.fetch_sub(self.count.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}
