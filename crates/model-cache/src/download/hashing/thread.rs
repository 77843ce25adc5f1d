//! A thread that hashes the steps that wait.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use super::{BytesFrom, HashStep, PIECE, ServiceInner};
use crate::md5_lanes::Piece;

/// How long a thread waits for more streams, which get their bytes from the network.
const GATHER: Duration = Duration::from_millis(100);

/// How long it waits where a stream has many more bytes than its step already, or ends with it.
const GATHER_BEHIND: Duration = Duration::from_millis(5);

/// A read of [`PIECE`] that takes longer may come from the disk.
const SLOW_READ: Duration = Duration::from_millis(5);

/// A thread of the service. It counts until it has nothing to do; also if it panics, or never
/// starts.
pub(super) struct HashThread {
    pub(super) inner: Arc<ServiceInner>,
    pub(super) from: BytesFrom,
    pub(super) counts: bool,
}

impl HashThread {
    /// Hashes until no step waits. Blocks.
    pub(super) fn work(mut self) {
        let count = self.inner.lanes.count();
        let mut buffers = vec![0; count * PIECE];
        let mut active: Vec<HashStep> = Vec::with_capacity(count);
        let mut disk = DiskReads::default();
        disk.was_read();
        while self.take(&mut active) {
            active.retain(|step| !step.hashed.is_closed());
            active = self.round(active, &mut buffers, &mut disk);
        }
    }

    /// Fills the free lanes. `false` where there is nothing to do: then the thread no longer
    /// counts, so that the next step starts another.
    fn take(&mut self, active: &mut Vec<HashStep>) -> bool {
        let inner = &self.inner;
        let mut queues = inner.lock();
        let gathers = self.from == BytesFrom::PageCache && active.is_empty();
        if gathers && !queues.page_cache.waiting.is_empty() {
            let behind = queues.page_cache.waiting.iter().any(|step| step.behind);
            let most = if behind { GATHER_BEHIND } else { GATHER };
            let gathering =
                inner.gathered.wait_timeout_while(queues, most, |all| !inner.is_gathered(all));
            queues = gathering.unwrap_or_else(PoisonError::into_inner).0;
        }
        let queue = queues.of(self.from);
        let most = (inner.lanes.count() - active.len()).min(queue.waiting.len());
        active.extend(queue.waiting.drain(..most));
        if active.is_empty() {
            queue.threads -= 1;
            self.counts = false;
        }
        !active.is_empty()
    }

    /// Reads a piece of each step, and hashes all of them; returns the steps that continue here.
    fn round(
        &self,
        active: Vec<HashStep>,
        buffers: &mut [u8],
        disk: &mut DiskReads,
    ) -> Vec<HashStep> {
        let mut lengths = Vec::with_capacity(active.len());
        let mut read = Vec::with_capacity(active.len());
        for (mut step, buffer) in active.into_iter().zip(buffers.chunks_exact_mut(PIECE)) {
            match step.read(buffer, disk) {
                Ok(len) => {
                    lengths.push(&buffer[..len]);
                    read.push(step);
                }
                Err(error) => drop(step.hashed.send(Err(error))),
            }
        }
        let mut pieces: Vec<_> = read
            .iter_mut()
            .zip(lengths)
            .map(|(step, bytes)| Piece::new(&mut step.stream, bytes))
            .collect();
        self.inner.lanes.update(&mut pieces);
        let mut continues = Vec::with_capacity(read.len());
        for step in read {
            if step.range.is_empty() {
                let from = if step.slow { BytesFrom::Disk } else { BytesFrom::PageCache };
                // The stream may have been given up.
                let _ = step.hashed.send(Ok((step.stream, from)));
            } else if step.slow && self.from == BytesFrom::PageCache {
                self.inner.add(step, BytesFrom::Disk);
            } else {
                continues.push(step);
            }
        }
        continues
    }
}

/// The reads from disks of the current thread.
#[derive(Debug, Default)]
struct DiskReads(i64);

impl DiskReads {
    /// Whether there were any since the last call.
    fn was_read(&mut self) -> bool {
        // Where the kernel does not count them, a slow read is taken for one.
        let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else { return true };
        let before = std::mem::replace(&mut self.0, usage.block_reads());
        self.0 > before
    }
}

impl HashStep {
    /// Reads the next piece, and returns its length.
    fn read(&mut self, buffer: &mut [u8], disk: &mut DiskReads) -> io::Result<usize> {
        let left = self.range.end - self.range.start;
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let started = Instant::now();
        self.file.read_exact_at(&mut buffer[..len], self.range.start)?;
        // On a busy machine a read from memory may take as long.
        self.slow |= started.elapsed() >= SLOW_READ && disk.was_read();
        self.range.start += len as u64;
        Ok(len)
    }
}

impl Drop for HashThread {
    fn drop(&mut self) {
        if self.counts {
            self.inner.lock().of(self.from).threads -= 1;
        }
    }
}
