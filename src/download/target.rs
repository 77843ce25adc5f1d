//! The file that a download fills, and the record of what stands in it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use tokio::sync::Notify;

use super::Progress;
use super::journal::{self, Journal};
use super::spans::{Span, Spans};
use crate::abort_point;

/// Bytes after which a download's data is pushed to the disk, so that the sync
/// after the publish finds little left to do.
const WRITE_BACK_BYTES: u64 = 256 << 20;

/// Opened file, journal and spans of one running download.
#[derive(Debug)]
pub(crate) struct Target {
    file: Arc<File>,
    size: u64,
    record: Mutex<Record>,
    progress: Arc<Progress>,
    landed: Notify,
    write_back: bool,
    unsynced: AtomicU64,
    syncing: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Record {
    spans: Spans,
    /// `None` for a file that is only looked at.
    journal: Option<Journal>,
}

impl Target {
    /// Opens the staging file and its journal, believes what can be proved,
    /// and makes room for the whole object. Blocks on the disk, and until
    /// whoever was given up has let go of the file.
    pub(crate) fn open(
        data: &Path,
        journal: &Path,
        size: u64,
        etag: &str,
        progress: Arc<Progress>,
        write_back: bool,
    ) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = loop {
            let file = alone(&options, data)?;
            if is_at(&file, data)? {
                break file;
            }
        };
        let (mut journal, noted) = Journal::open(journal, size, etag)?;
        let spans = journal::check(&file, noted.clone())?;
        if !noted.is_empty() {
            // Rewritten with what was found true: a wrong entry is believed by nobody again.
            journal.restart()?;
            for span in noted.into_iter().filter(|s| spans.covers(&(s.start..s.end()))) {
                journal.append(span)?;
            }
        }
        abort_point::reach("download-1");
        preallocate(&file, size)?;
        abort_point::reach("download-2");
        progress.set_done(spans.bytes());
        Ok(Self {
            file: Arc::new(file),
            size,
            record: Mutex::new(Record { spans, journal: Some(journal) }),
            progress,
            landed: Notify::new(),
            write_back,
            unsynced: AtomicU64::new(0),
            syncing: Arc::new(AtomicBool::new(false)),
        })
    }

    /// Reads a file that is there, to be verified and not to be changed.
    /// `None` when it has another size. Blocks on the disk.
    pub(crate) fn adopt(
        data: &Path,
        size: u64,
        progress: Arc<Progress>,
    ) -> io::Result<Option<Self>> {
        let file = File::open(data)?;
        if file.metadata()?.len() != size {
            return Ok(None);
        }
        let spans = journal::read(&file, size, |done| progress.set_done(done))?;
        Ok((spans.bytes() == size).then(|| Self {
            file: Arc::new(file),
            size,
            record: Mutex::new(Record { spans, journal: None }),
            progress,
            landed: Notify::new(),
            write_back: false,
            unsynced: AtomicU64::new(0),
            syncing: Arc::new(AtomicBool::new(false)),
        }))
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Writes a chunk where it belongs. Counted, but not yet recorded.
    pub(crate) fn write(&self, chunk: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(chunk, at)?;
        self.progress.add(chunk.len() as u64);
        Ok(())
    }

    /// Records a span whose bytes have been written.
    pub(crate) fn record(&self, span: Span) -> io::Result<()> {
        let mut record = self.lock();
        let new = record.spans.insert(span);
        if let Some(journal) = record.journal.as_mut().filter(|_| new) {
            journal.append(span)?;
            abort_point::reach("download-3");
        }
        drop(record);
        self.landed.notify_waiters();
        if self.write_back {
            self.push_to_disk(span.len);
        }
        Ok(())
    }

    /// Forgets all that was recorded.
    pub(crate) fn restart(&self) -> io::Result<()> {
        let mut record = self.lock();
        record.spans = Spans::default();
        if let Some(journal) = &mut record.journal {
            journal.restart()?;
        }
        self.progress.set_done(0);
        Ok(())
    }

    pub(crate) fn missing(&self, range_size: u64) -> Vec<Range<u64>> {
        self.lock().spans.missing(self.size, range_size)
    }

    pub(crate) fn whole(&self) -> Option<u32> {
        self.lock().spans.whole(self.size)
    }

    /// Waits until every byte of the range is recorded. Cancellation safe.
    pub(crate) async fn covered(&self, range: Range<u64>) {
        loop {
            let landed = self.landed.notified();
            tokio::pin!(landed);
            // Registered before the look, so that no record falls in between.
            landed.as_mut().enable();
            if self.lock().spans.covers(&range) {
                return;
            }
            landed.await;
        }
    }

    fn push_to_disk(&self, bytes: u64) {
        if self.unsynced.fetch_add(bytes, Ordering::Relaxed) + bytes < WRITE_BACK_BYTES
            || self.syncing.swap(true, Ordering::Acquire)
        {
            return;
        }
        self.unsynced.store(0, Ordering::Relaxed);
        let (file, syncing) = (Arc::clone(&self.file), Arc::clone(&self.syncing));
        tokio::task::spawn_blocking(move || {
            // Only a head start: the sync after the publish is the one that counts.
            let _ = file.sync_data();
            syncing.store(false, Ordering::Release);
        });
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a staging file when nobody else works on it, and keeps others from it
/// for as long as the file is open. What was given up may go on for a moment:
/// a thread that writes, or makes holes, cannot be stopped. Blocks.
pub(super) fn alone(options: &OpenOptions, data: &Path) -> io::Result<File> {
    let file = options.open(data)?;
    file.lock()?;
    Ok(file)
}

/// Whether a file still has its name: it may have become a blob, or have been
/// removed, while its lock was waited for.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let id = |metadata: &Metadata| (metadata.dev(), metadata.ino());
    match fs::symlink_metadata(path) {
        Ok(named) => Ok(id(&named) == id(&file.metadata()?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Takes the blocks now: no space is an error of the first second and not of the last.
fn preallocate(file: &File, size: u64) -> io::Result<()> {
    let len = i64::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    if file.metadata()?.len() > size {
        file.set_len(size)?;
    }
    if len == 0 {
        return Ok(());
    }
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            // Some file systems cannot; there the length has to do.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return file.set_len(size),
            Err(errno) => return Err(errno.into()),
        }
    }
}
