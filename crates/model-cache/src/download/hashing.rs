//! Hashes the MD5 streams of all downloads together.
//!
//! A stream adds the bytes that have arrived, step by step. One thread takes all steps that
//! wait, and hashes them side by side in the lanes of the CPU's vector registers; another thread
//! starts when there are enough for all of its lanes, too, or when a step waits for long. So a few
//! streams share one core, and many use all of them.
//!
//! One stream in the lanes takes as long as sixteen, so a thread waits for a moment until more
//! streams have a step. Nothing is lost meanwhile: the bytes are in the page cache. Where they are
//! not, streams have threads of their own, since a read from the disk would stop all other lanes.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use tokio::sync::oneshot;

use crate::md5_lanes::{Lanes, Md5Stream, Piece};
use crate::sync::lock;

/// The length of a step, unless a stream ends: those of equal length keep all lanes busy.
pub(super) const STEP: u64 = 4 << 20;

/// Bytes of one read of each lane. 16 of them fit into the second-level cache of a core.
const PIECE: usize = 64 << 10;

/// Steps of at most so many bytes are hashed at once, where they are: in two milliseconds.
const SMALL: u64 = 1 << 20;

/// How long a thread waits for more streams, which get their bytes from the network.
const GATHER: Duration = Duration::from_millis(100);

/// How long it waits where a stream has many more bytes than its step already, or ends with it.
const GATHER_BEHIND: Duration = Duration::from_millis(5);

/// How long a step waits before another thread starts for it.
const PATIENCE: Duration = Duration::from_millis(500);

/// A read of [`PIECE`] that takes longer may come from the disk.
const SLOW_READ: Duration = Duration::from_millis(5);

/// The service; clones share its threads.
#[derive(Debug, Clone)]
pub(super) struct HashService(Arc<ServiceInner>);

#[derive(Debug)]
struct ServiceInner {
    lanes: Lanes,
    /// For each source of bytes.
    most_threads: usize,
    state: Mutex<HashQueues>,
    /// Notified when all streams that a thread waits for have a step.
    gathered: Condvar,
}

/// Where the bytes of a stream come from, as far as its last step showed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum BytesFrom {
    #[default]
    PageCache,
    Disk,
}

#[derive(Debug, Default)]
struct HashQueues {
    page_cache: HashQueue,
    disk: HashQueue,
    open_streams: usize,
}

#[derive(Debug, Default)]
struct HashQueue {
    /// In the order of their arrival.
    waiting: VecDeque<HashStep>,
    threads: usize,
}

/// Bytes of a file that a stream continues with.
#[derive(Debug)]
struct HashStep {
    file: Arc<File>,
    range: Range<u64>,
    stream: Md5Stream,
    since: Instant,
    /// Whether the next steps could be hashed too, or there is none.
    behind: bool,
    /// Whether a read was slow.
    slow: bool,
    /// Closed when the caller has left.
    hashed: oneshot::Sender<io::Result<(Md5Stream, BytesFrom)>>,
}

impl HashQueues {
    fn of(&mut self, from: BytesFrom) -> &mut HashQueue {
        match from {
            BytesFrom::PageCache => &mut self.page_cache,
            BytesFrom::Disk => &mut self.disk,
        }
    }
}

impl HashQueue {
    /// Counts another thread, if the waiting steps need one.
    fn count_thread(&mut self, lanes: usize, most: usize) -> bool {
        let Some(oldest) = self.waiting.front() else { return false };
        let long = oldest.since.elapsed() >= PATIENCE;
        let needed = self.threads == 0 || self.waiting.len() >= lanes || long;
        let another = needed && self.threads < most;
        self.threads += usize::from(another);
        another
    }
}

impl HashService {
    /// A service for these lanes, which uses all cores.
    pub(super) fn new(lanes: Lanes) -> Self {
        let most_threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let (state, gathered) = (Mutex::default(), Condvar::new());
        Self(Arc::new(ServiceInner { lanes, most_threads, state, gathered }))
    }

    pub(super) fn lanes(&self) -> Lanes {
        self.0.lanes
    }

    /// Begins a stream.
    pub(super) fn open(&self) -> OpenStream {
        self.0.lock().open_streams += 1;
        OpenStream { service: self.clone(), stream: Md5Stream::new(), from: BytesFrom::default() }
    }
}

/// A stream that gets its bytes in steps.
#[derive(Debug)]
pub(super) struct OpenStream {
    service: HashService,
    stream: Md5Stream,
    from: BytesFrom,
}

impl OpenStream {
    /// Adds bytes of a file. `behind`: the stream does not wait for the network. The stream of a call that was cancelled is of no use any more.
    ///
    /// # Errors
    /// Those of reading the file.
    pub(super) async fn hash(
        &mut self,
        file: Arc<File>,
        range: Range<u64>,
        behind: bool,
    ) -> io::Result<()> {
        if range.end - range.start <= SMALL {
            return self.hash_here(&file, range);
        }
        let (hashed, mut answer) = oneshot::channel();
        let stream = std::mem::take(&mut self.stream);
        let since = Instant::now();
        let step = HashStep { file, range, stream, since, behind, slow: false, hashed };
        self.service.0.add(step, self.from);
        loop {
            match tokio::time::timeout(PATIENCE, &mut answer).await {
                Ok(answer) => {
                    (self.stream, self.from) = answer.map_err(io::Error::other)??;
                    return Ok(());
                }
                // Its thread may have failed to start, or have its lanes full.
                Err(_) => self.service.0.start_threads(),
            }
        }
    }

    fn hash_here(&mut self, file: &File, range: Range<u64>) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        let mut at = range.start;
        while at < range.end {
            let left = usize::try_from(range.end - at).unwrap_or(PIECE);
            let bytes = &mut buffer[..left.min(PIECE)];
            file.read_exact_at(bytes, at)?;
            self.stream.update(bytes);
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// The digest.
    pub(super) fn finish(mut self) -> [u8; 16] {
        std::mem::take(&mut self.stream).finish()
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut queues = self.service.0.lock();
        queues.open_streams -= 1;
        // A step whose caller has left keeps its file open, and locked, in either queue.
        for from in [BytesFrom::PageCache, BytesFrom::Disk] {
            queues.of(from).waiting.retain(|step| !step.hashed.is_closed());
        }
        if self.service.0.is_gathered(&queues) {
            self.service.0.gathered.notify_one();
        }
    }
}

impl ServiceInner {
    /// Puts a step into its queue, and starts a thread if that needs one.
    fn add(self: &Arc<Self>, step: HashStep, from: BytesFrom) {
        let mut queues = self.lock();
        queues.of(from).waiting.push_back(step);
        if self.is_gathered(&queues) {
            self.gathered.notify_one();
        }
        drop(queues);
        self.start_threads();
    }

    /// Starts a thread for each queue that needs one.
    fn start_threads(self: &Arc<Self>) {
        for from in [BytesFrom::PageCache, BytesFrom::Disk] {
            let lanes = self.lanes.count();
            if self.lock().of(from).count_thread(lanes, self.most_threads) {
                let thread = HashThread { inner: Arc::clone(self), from, counts: true };
                tokio::task::spawn_blocking(move || thread.work());
            }
        }
    }

    /// Whether no more steps will come soon, or enough for all lanes are there.
    fn is_gathered(&self, queues: &HashQueues) -> bool {
        queues.page_cache.waiting.len() >= queues.open_streams.min(self.lanes.count())
    }

    fn lock(&self) -> MutexGuard<'_, HashQueues> {
        lock(&self.state)
    }
}

/// A thread of the service. It counts until it has nothing to do; also if it panics, or never
/// starts.
struct HashThread {
    inner: Arc<ServiceInner>,
    from: BytesFrom,
    counts: bool,
}

impl HashThread {
    /// Hashes until no step waits. Blocks.
    fn work(mut self) {
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

#[cfg(test)]
mod tests {
    use md5::{Digest as _, Md5};

    use super::*;

    /// A file of 3 MiB and 5 bytes.
    fn file() -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..(3 << 20) + 5).map(|n: u32| (n % 253) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &bytes).unwrap();
        (file, bytes)
    }

    async fn digest(service: &HashService, file: &Arc<File>, range: Range<u64>) -> [u8; 16] {
        let mut stream = service.open();
        let mut at = range.start;
        while at < range.end {
            let step = at..(at + 300_001).min(range.end);
            at = step.end;
            stream.hash(Arc::clone(file), step, false).await.unwrap();
        }
        stream.finish()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn streams_of_any_lengths_side_by_side_get_their_own_digests() {
        let (file, bytes) = file();
        let file = Arc::new(file);
        for lanes in Lanes::available() {
            let service = HashService::new(lanes);
            let ranges = (0..50).map(|n| n * 1000..((n + 1) * 61_001).min(bytes.len() as u64));
            let digests = ranges.clone().map(|range| digest(&service, &file, range));
            let found = futures_util::future::join_all(digests).await;
            for (range, found) in ranges.zip(found) {
                let index = |n| usize::try_from(n).unwrap();
                let content = &bytes[index(range.start)..index(range.end)];
                assert_eq!(found, <[u8; 16]>::from(Md5::digest(content)), "{}", lanes.name());
            }
            let queues = service.0.lock();
            let left = (queues.page_cache.waiting.len(), queues.open_streams);
            assert_eq!(left, (0, 0), "{}", lanes.name());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_step_whose_caller_has_left_and_one_that_cannot_be_read_harm_no_other() {
        let (file, bytes) = file();
        let file = Arc::new(file);
        let service = HashService::new(Lanes::detect());
        let size = bytes.len() as u64;
        let (mut beyond, mut left) = (service.open(), service.open());
        let behind_the_end = beyond.hash(Arc::clone(&file), 0..size + 1, true);
        let given_up = left.hash(Arc::clone(&file), 0..size, true);
        let given_up = tokio::time::timeout(Duration::ZERO, given_up);
        let whole = digest(&service, &file, 0..size);
        let (behind_the_end, _, whole) = tokio::join!(behind_the_end, given_up, whole);
        assert_eq!(behind_the_end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(whole, <[u8; 16]>::from(Md5::digest(&bytes)));
    }

    #[test]
    fn a_further_thread_starts_for_as_many_streams_as_there_are_lanes_or_for_one_that_waits_long() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let step = |since| HashStep {
            file: Arc::clone(&file),
            range: 0..1,
            stream: Md5Stream::new(),
            since,
            behind: false,
            slow: false,
            hashed: oneshot::channel().0,
        };
        let mut queue = HashQueue::default();
        assert!(!queue.count_thread(4, 2), "no step");
        let started: Vec<bool> = (0..12)
            .map(|_| {
                queue.waiting.push_back(step(Instant::now()));
                queue.count_thread(4, 2)
            })
            .collect();
        let starts: Vec<usize> = (0..12).filter(|n| started[*n]).collect();
        assert_eq!(starts, [0, 3], "the first step, and the fourth; two threads at most");

        queue = HashQueue { waiting: VecDeque::new(), threads: 1 };
        queue.waiting.push_back(step(Instant::now()));
        assert!(!queue.count_thread(4, 2));
        queue.waiting[0] = step(Instant::now().checked_sub(PATIENCE).unwrap());
        assert!(queue.count_thread(4, 2));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn streams_whose_bytes_come_from_the_disk_get_their_digests_too() {
        let (file, bytes) = file();
        let (file, size) = (Arc::new(file), bytes.len() as u64);
        let service = HashService::new(Lanes::detect());
        let mut stream = service.open();
        stream.from = BytesFrom::Disk;
        stream.hash(Arc::clone(&file), 0..size, true).await.unwrap();
        assert_eq!(stream.finish(), <[u8; 16]>::from(Md5::digest(&bytes)));
        assert_eq!(service.0.lock().disk.waiting.len(), 0);
    }
}
