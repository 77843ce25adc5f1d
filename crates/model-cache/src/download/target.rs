//! The file that a download fills, and the record of what is in it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use tokio::sync::Notify;

use super::ObjectProgress;
use super::journal::{self, Journal};
use super::spans::{Span, Spans};
use crate::abort_point;
use crate::sync::lock;

/// Bytes after which a download's data is pushed to the disk, so that the sync
/// after the publish finds little left to do.
const WRITE_BACK_BYTES: u64 = 256 << 20;

/// Opened file, journal and spans of one running download.
#[derive(Debug)]
pub(crate) struct DownloadTarget {
    file: Arc<File>,
    size: u64,
    record: Mutex<TargetRecord>,
    progress: Arc<ObjectProgress>,
    completed: Notify,
    write_back: bool,
    unsynced: AtomicU64,
    head_start: Arc<HeadStart>,
}

/// Data that is pushed to the disk early.
#[derive(Debug, Default)]
struct HeadStart {
    running: AtomicBool,
    /// The disk's error when it failed.
    errno: AtomicI32,
}

#[derive(Debug)]
struct TargetRecord {
    spans: Spans,
    /// `None` for a file that is only read.
    journal: Option<Journal>,
}

impl DownloadTarget {
    /// Opens the staging file and its journal, keeps the spans whose checksums match,
    /// and allocates the whole object. Blocks on the disk, and until an abandoned
    /// download has released the file.
    pub(crate) fn open(
        data: &Path,
        journal: &Path,
        size: u64,
        etag: &str,
        progress: Arc<ObjectProgress>,
        write_back: bool,
    ) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = loop {
            let file = open_exclusive(&options, data)?;
            if is_at(&file, data)? {
                break file;
            }
        };
        let (mut journal, entries) = Journal::open(journal, size, etag)?;
        let spans = journal::check(&file, entries.clone())?;
        if !entries.is_empty() {
            // Rewritten with the verified spans, so that no wrong entry is read again.
            journal.restart()?;
            for span in entries.into_iter().filter(|s| spans.covers(&(s.start..s.end()))) {
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
            record: Mutex::new(TargetRecord { spans, journal: Some(journal) }),
            progress,
            completed: Notify::new(),
            write_back,
            unsynced: AtomicU64::new(0),
            head_start: Arc::default(),
        })
    }

    /// Opens an existing file, to be verified and not to be changed.
    /// `None` when it has another size. Blocks on the disk.
    pub(crate) fn adopt(
        data: &Path,
        size: u64,
        progress: Arc<ObjectProgress>,
    ) -> io::Result<Option<Self>> {
        let file = File::open(data)?;
        if file.metadata()?.len() != size {
            return Ok(None);
        }
        let spans = journal::read(&file, size, |done| progress.set_done(done))?;
        Ok((spans.bytes() == size).then(|| Self {
            file: Arc::new(file),
            size,
            record: Mutex::new(TargetRecord { spans, journal: None }),
            progress,
            completed: Notify::new(),
            write_back: false,
            unsynced: AtomicU64::new(0),
            head_start: Arc::default(),
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
    ///
    /// # Errors
    /// Also those of earlier bytes that did not reach the disk: then nothing
    /// is recorded any more, since the page cache shows what no disk has.
    pub(crate) fn record(&self, span: Span) -> io::Result<()> {
        let mut record = self.lock();
        self.head_start.check(&mut record)?;
        let new = record.spans.insert(span);
        if let Some(journal) = record.journal.as_mut().filter(|_| new) {
            journal.append(span)?;
            abort_point::reach("download-3");
        }
        drop(record);
        self.completed.notify_waiters();
        if self.write_back {
            self.push_to_disk(span.len);
        }
        Ok(())
    }

    /// Checks that the disk accepted what was pushed to it so far.
    ///
    /// # Errors
    /// As [`DownloadTarget::record`].
    pub(crate) fn check_disk(&self) -> io::Result<()> {
        self.head_start.check(&mut self.lock())
    }

    /// Drops all that was recorded.
    pub(crate) fn restart(&self) -> io::Result<()> {
        self.lock().forget()?;
        self.progress.set_done(0);
        Ok(())
    }

    pub(crate) fn missing(&self, range_size: u64) -> Vec<Range<u64>> {
        self.lock().spans.missing(self.size, range_size)
    }

    pub(crate) fn whole(&self) -> Option<u32> {
        self.lock().spans.whole(self.size)
    }

    /// Whether every byte of the range is recorded.
    pub(crate) fn is_covered(&self, range: &Range<u64>) -> bool {
        self.lock().spans.covers(range)
    }

    /// Waits until every byte of the range is recorded. Cancellation safe.
    pub(crate) async fn covered(&self, range: Range<u64>) {
        loop {
            let completed = self.completed.notified();
            tokio::pin!(completed);
            // Registered before the check, so that no record falls in between.
            completed.as_mut().enable();
            if self.is_covered(&range) {
                return;
            }
            completed.await;
        }
    }

    fn push_to_disk(&self, bytes: u64) {
        if self.unsynced.fetch_add(bytes, Ordering::Relaxed) + bytes < WRITE_BACK_BYTES
            || self.head_start.running.swap(true, Ordering::Acquire)
        {
            return;
        }
        self.unsynced.store(0, Ordering::Relaxed);
        let (file, head_start) = (Arc::clone(&self.file), Arc::clone(&self.head_start));
        tokio::task::spawn_blocking(move || head_start.ended(&file.sync_data()));
    }

    fn lock(&self) -> MutexGuard<'_, TargetRecord> {
        lock(&self.record)
    }
}

impl HeadStart {
    /// The sync after the publish is the one that counts. But the kernel may report
    /// an error only once, and it may have been here.
    fn ended(&self, synced: &io::Result<()>) {
        if let Err(error) = synced {
            self.errno.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Release);
        }
        self.running.store(false, Ordering::Release);
    }

    fn check(&self, record: &mut TargetRecord) -> io::Result<()> {
        match self.errno.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => {
                record.forget()?;
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }
}

impl TargetRecord {
    fn forget(&mut self) -> io::Result<()> {
        self.spans = Spans::default();
        self.journal.as_mut().map_or(Ok(()), Journal::restart)
    }
}

/// Opens a staging file when no other download works on it, and locks others out
/// for as long as the file is open. An abandoned download may run for a moment
/// longer: a thread that writes, or punches holes, cannot be stopped. Blocks.
pub(super) fn open_exclusive(options: &OpenOptions, data: &Path) -> io::Result<File> {
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

/// Allocates the blocks now, so that a full disk fails the download at its start.
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
            // Some file systems cannot; there the length must do.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return file.set_len(size),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_did_not_reach_the_disk_are_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let (data, journal) = (dir.path().join("part"), dir.path().join("journal"));
            DownloadTarget::open(&data, &journal, 20, "etag", Arc::default(), true).unwrap()
        };
        let target = open();
        let span = |start| Span { start, len: 10, crc32c: crc32c::crc32c(&[1; 10]) };
        target.write(&[1; 20], 0).unwrap();
        target.record(span(0)).unwrap();
        target.head_start.ended(&Err(io::Error::from_raw_os_error(libc::EIO)));
        for _ in 0..2 {
            let error = target.record(span(10)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
            assert_eq!(target.whole(), None);
        }
        assert!(target.check_disk().is_err());
        drop(target);
        let again = open();
        assert_eq!(again.missing(u64::MAX), vec![0..20], "it is downloaded again");
        again.record(span(0)).unwrap();
    }
}
