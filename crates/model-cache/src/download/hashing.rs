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

mod thread;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use self::thread::HashThread;
use crate::md5_lanes::{Lanes, Md5Stream};
use crate::sync::lock;

/// The length of a step, unless a stream ends: those of equal length keep all lanes busy.
pub(super) const STEP: u64 = 4 << 20;

/// Bytes of one read of each lane. 16 of them fit into the second-level cache of a core.
const PIECE: usize = 64 << 10;

/// Steps of at most so many bytes are hashed at once, where they are: in two milliseconds.
const SMALL: u64 = 1 << 20;

/// How long a step waits before another thread starts for it.
const PATIENCE: Duration = Duration::from_millis(500);

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

#[cfg(test)]
mod tests;
