//! How fast the disk of a directory takes what a download writes.
//!
//! As a download does: positional writes of several threads into an allocated file, through the
//! page cache, while another thread syncs what was written; at the end all of it is synced. How
//! far writers may be ahead of the disk depends on how fast it is, so that the end comes soon on
//! a slow disk, too. The file has no name: nothing is left of it, however the process ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::statvfs::statvfs;
use tokio_util::sync::CancellationToken;

use super::cpu;
use super::report::DiskSpeed;
use crate::cache::passing_name;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;

/// Bytes that a thread takes at once.
const BLOCK: u64 = 1 << 20;

/// Bytes of one write, as chunks arrive from a connection.
const CHUNK: usize = 256 << 10;

/// The size of the file, whose blocks are written again and again.
const FILE: u64 = 1 << 30;

/// The part of the free space that the file may have, and its least size.
const PART_OF_FREE: u64 = 8;
const LEAST_FILE: u64 = 64 << 20;

/// Bytes between two syncs: few at first, and as many as the download's if the disk is fast.
const FIRST_BATCH: u64 = 16 << 20;
const BATCH: u64 = 256 << 20;

/// A sync that takes less time is followed by one of twice as many bytes.
const FAST_SYNC: Duration = Duration::from_millis(250);

/// How far the writers and the disk are, in bytes.
#[derive(Debug)]
struct WriteState {
    taken: u64,
    written: u64,
    synced: u64,
    batch: u64,
    over: bool,
    error: Option<io::Error>,
}

/// One measurement.
#[derive(Debug)]
struct Writing<'a> {
    file: File,
    size: u64,
    until: Instant,
    stop: &'a CancellationToken,
    state: Mutex<WriteState>,
    changed: Condvar,
}

/// Writes to the disk of a directory for this long, and syncs. Blocks.
///
/// # Errors
/// Those of the file system; `NoSpace` if too little is free, `InProgress` if it was stopped.
pub(super) fn measure(
    directory: &Path,
    time: Duration,
    stop: &CancellationToken,
) -> Result<DiskSpeed> {
    let failed = |error: &io::Error| {
        Error::io(format!("writing to the disk of {}", directory.display()), error)
    };
    let size = size_of_file(directory)?;
    let file = nameless(directory).map_err(|error| failed(&error))?;
    allocate(&file, size).map_err(|error| failed(&error))?;
    let (started, cpu_before) = (Instant::now(), cpu::of_process());
    let writing = Writing::new(file, size, started + time, stop);
    let bytes = writing.run().map_err(|error| failed(&error))?;
    if stop.is_cancelled() {
        return Err(Error::new(ErrorKind::InProgress, "the measurement was interrupted"));
    }
    let used = cpu::of_process().saturating_sub(cpu_before);
    let per_second = u128::from(bytes) * 1_000_000 / started.elapsed().as_micros().max(1);
    let nanos_per_mib = used.as_nanos() / u128::from((bytes >> 20).max(1));
    Ok(DiskSpeed {
        directory: directory.to_owned(),
        bytes_per_second: u64::try_from(per_second).unwrap_or(u64::MAX),
        cpu_nanos_per_mib: u64::try_from(nanos_per_mib).unwrap_or(u64::MAX),
    })
}

impl<'a> Writing<'a> {
    fn new(file: File, size: u64, until: Instant, stop: &'a CancellationToken) -> Self {
        let batch = FIRST_BATCH.min(size / 4);
        let state = WriteState { taken: 0, written: 0, synced: 0, batch, over: false, error: None };
        Self { file, size, until, stop, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Writes and syncs; the number of bytes that are on the disk then.
    fn run(&self) -> io::Result<u64> {
        let threads = thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let block = incompressible();
        thread::scope(|scope| {
            let writers: Vec<_> = (0..threads.clamp(2, 8))
                .map(|_| scope.spawn(|| self.keep(self.write(&block))))
                .collect();
            let syncer = scope.spawn(|| self.keep(self.sync()));
            for writer in writers {
                let _ = writer.join();
            }
            lock(&self.state).over = true;
            self.changed.notify_all();
            let _ = syncer.join();
        });
        let state = &mut *lock(&self.state);
        state.error.take().map_or(Ok(state.synced), Err)
    }

    fn keep(&self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            lock(&self.state).error.get_or_insert(error);
            self.changed.notify_all();
        }
    }

    fn write(&self, block: &[u8]) -> io::Result<()> {
        while let Some(at) = self.take_block() {
            let at = at % self.size;
            for (chunk, offset) in block.chunks(CHUNK).zip((at..).step_by(CHUNK)) {
                self.file.write_all_at(chunk, offset)?;
            }
            lock(&self.state).written += BLOCK;
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Where the next block belongs; `None` once the time is over. Waits for the disk.
    fn take_block(&self) -> Option<u64> {
        let mut state = lock(&self.state);
        loop {
            if self.is_over(&state) {
                return None;
            }
            if state.taken < state.synced + 2 * state.batch {
                state.taken += BLOCK;
                return Some(state.taken - BLOCK);
            }
            // Not longer than that, to see the end and an interruption.
            state = self.wait(state);
        }
    }

    fn sync(&self) -> io::Result<()> {
        loop {
            let (written, is_last) = {
                let mut state = lock(&self.state);
                while !state.over
                    && state.error.is_none()
                    && state.written < state.synced + state.batch
                {
                    state = self.wait(state);
                }
                (state.written, state.over || state.error.is_some())
            };
            if self.stop.is_cancelled() {
                return Ok(());
            }
            let started = Instant::now();
            self.file.sync_data()?;
            let mut state = lock(&self.state);
            state.synced = written;
            if started.elapsed() < FAST_SYNC {
                state.batch = (state.batch * 2).min(BATCH).min(self.size / 4);
            }
            drop(state);
            self.changed.notify_all();
            if is_last {
                return Ok(());
            }
        }
    }

    fn is_over(&self, state: &WriteState) -> bool {
        state.error.is_some() || self.stop.is_cancelled() || Instant::now() >= self.until
    }

    fn wait<'s>(
        &self,
        state: std::sync::MutexGuard<'s, WriteState>,
    ) -> std::sync::MutexGuard<'s, WriteState> {
        let waited = self.changed.wait_timeout(state, Duration::from_millis(50));
        waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
    }
}

/// A part of the free space, in whole blocks.
fn size_of_file(directory: &Path) -> Result<u64> {
    let stat = statvfs(directory).map_err(|errno| {
        let attempted = format!("looking at the disk of {}", directory.display());
        Error::io(attempted, &errno.into())
    })?;
    #[allow(clippy::useless_conversion, reason = "the type differs between architectures")]
    let free = u64::from(stat.blocks_available()).saturating_mul(stat.fragment_size().into());
    let size = (free / PART_OF_FREE).min(FILE) / BLOCK * BLOCK;
    if size < LEAST_FILE {
        let text = format!(
            "the disk of {} has {} MiB free, too few for a measurement",
            directory.display(),
            free >> 20
        );
        return Err(Error::new(ErrorKind::NoSpace, text));
    }
    Ok(size)
}

/// A file without a name, or where the file system has none: one whose name is removed at once.
fn nameless(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(directory) {
        Err(error) if is_unsupported(&error) => {}
        opened => return opened,
    }
    let path = directory.join(passing_name("speed"));
    let file = options.create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// The answers of file systems without nameless files, and of kernels that do not know them.
fn is_unsupported(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOSYS | Errno::EINVAL))
}

fn allocate(file: &File, size: u64) -> io::Result<()> {
    let length = i64::try_from(size).unwrap_or(i64::MAX);
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        Ok(()) => Ok(()),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => file.set_len(size),
        Err(errno) => Err(errno.into()),
    }
}

/// A block that no file system or drive stores in less space.
fn incompressible() -> Vec<u8> {
    let mut word = 0x9E37_79B9_7F4A_7C15_u64;
    let words = std::iter::repeat_with(|| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    });
    words.take(usize::try_from(BLOCK).unwrap_or(0) / 8).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn a_disk_is_measured_and_nothing_is_left_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let started = Instant::now();
        let speed = measure(directory.path(), Duration::from_millis(200), &stop).unwrap();
        assert!(speed.bytes_per_second > 1_000_000, "{speed:?}");
        assert!(speed.cpu_nanos_per_mib > 0, "{speed:?}");
        assert!(started.elapsed() >= Duration::from_millis(200));
        assert_eq!(names(directory.path()), 0);
    }

    #[test]
    fn the_file_has_no_name_while_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = nameless(directory.path()).unwrap();
        assert_eq!(names(directory.path()), 0);
        allocate(&file, LEAST_FILE).unwrap();
        assert_eq!(file.metadata().unwrap().len(), LEAST_FILE);
    }

    #[test]
    fn a_measurement_that_is_stopped_ends_soon() {
        let directory = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        thread::scope(|scope| {
            let measured =
                scope.spawn(|| measure(directory.path(), Duration::from_secs(600), &stop));
            stop.cancel();
            let error = measured.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InProgress);
        });
    }

    #[test]
    fn a_directory_that_is_absent_is_an_error_with_its_name() {
        let stop = CancellationToken::new();
        let error = measure(Path::new("/nowhere/x"), Duration::ZERO, &stop).unwrap_err();
        assert!(error.message().starts_with("looking at the disk of /nowhere/x: "), "{error}");
    }
}
