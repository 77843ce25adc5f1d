//! Returns blocks that were allocated ahead when the disk has run full.

use std::fs::OpenOptions;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::Staging;
use super::journal;
use super::target::{is_at, open_exclusive};
use crate::error::{Error, Result};

impl Staging {
    /// Punches holes where nothing has been downloaded yet, so that an interrupted
    /// download takes no more space than it has bytes. The next download allocates the
    /// blocks again. Blocks, and waits for a running download of the same object.
    pub fn give_back_unwritten(&self) -> Result<()> {
        self.punch().map_err(|e| Error::io(format!("shrinking {}", self.data.display()), &e))
    }

    fn punch(&self) -> io::Result<()> {
        let file = open_exclusive(OpenOptions::new().write(true), &self.data)?;
        // The journal is removed after the file got another name: in this order a
        // file that became a blob is not taken for a download without bytes.
        let written = journal::entries(&self.journal)?;
        if !is_at(&file, &self.data)? {
            return Ok(());
        }
        let size = file.metadata()?.len();
        // Blocks may also lie behind the end, where no hole can be punched.
        file.set_len(size)?;
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for hole in written.missing(size, u64::MAX) {
            let (Ok(start), Ok(len)) =
                (i64::try_from(hole.start), i64::try_from(hole.end - hole.start))
            else {
                continue;
            };
            match fallocate(&file, flags, start, len) {
                // A file system without holes allocated nothing ahead either.
                Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
    use std::thread;
    use std::time::Duration;

    use super::super::spans::Span;
    use super::super::target::DownloadTarget;
    use super::*;

    const SIZE: usize = 1 << 20;

    /// Long enough for a hole to be punched by a thread that does not wait.
    const MOMENT: Duration = Duration::from_millis(200);

    const LONG: Duration = Duration::from_secs(30);

    fn staging(dir: &Path) -> Staging {
        Staging { data: dir.join("part"), journal: dir.join("journal") }
    }

    fn open(staging: &Staging) -> DownloadTarget {
        let (data, journal) = (&staging.data, &staging.journal);
        DownloadTarget::open(data, journal, SIZE as u64, "etag", Arc::default(), false).unwrap()
    }

    fn content() -> Vec<u8> {
        (1..=250).cycle().take(SIZE).collect()
    }

    fn give_back(staging: &Staging) -> Receiver<Result<()>> {
        let (done, wait) = mpsc::channel();
        let staging = staging.clone();
        thread::spawn(move || done.send(staging.give_back_unwritten()));
        wait
    }

    #[test]
    fn bytes_that_a_download_writes_while_holes_are_punched_stay() {
        let dir = tempfile::tempdir().unwrap();
        let staging = staging(dir.path());
        let target = open(&staging);
        let given_back = give_back(&staging);
        assert_eq!(given_back.recv_timeout(MOMENT), Err(RecvTimeoutError::Timeout));
        let half = &content()[..SIZE / 2];
        target.write(half, 0).unwrap();
        let crc32c = crc32c::crc32c(half);
        target.record(Span { start: 0, len: half.len() as u64, crc32c }).unwrap();
        drop(target);
        given_back.recv_timeout(LONG).unwrap().unwrap();
        let found = fs::read(&staging.data).unwrap();
        assert!(found[..SIZE / 2] == *half, "bytes that had come are gone");
        assert!(found[SIZE / 2..].iter().all(|byte| *byte == 0));
        let taken = fs::metadata(&staging.data).unwrap().blocks() * 512;
        assert!(taken <= SIZE as u64 / 2 + 4096, "{taken} bytes are still taken");
    }

    #[test]
    fn a_file_that_became_a_blob_while_holes_were_to_be_punched_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let staging = staging(dir.path());
        let blob = dir.path().join("blob");
        let target = open(&staging);
        target.write(&content(), 0).unwrap();
        let given_back = give_back(&staging);
        assert_eq!(given_back.recv_timeout(MOMENT), Err(RecvTimeoutError::Timeout));
        fs::rename(&staging.data, &blob).unwrap();
        fs::remove_file(&staging.journal).unwrap();
        drop(target);
        given_back.recv_timeout(LONG).unwrap().unwrap();
        assert!(fs::read(&blob).unwrap() == content(), "a blob has holes");
    }

    #[test]
    fn a_download_waits_for_an_abandoned_one_and_believes_what_it_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let staging = staging(dir.path());
        let given_up = open(&staging);
        let (done, opened) = mpsc::channel();
        let staging_ = staging.clone();
        thread::spawn(move || done.send(open(&staging_).missing(u64::MAX)));
        assert_eq!(opened.recv_timeout(MOMENT), Err(RecvTimeoutError::Timeout));
        given_up.write(&content(), 0).unwrap();
        let crc32c = crc32c::crc32c(&content());
        given_up.record(Span { start: 0, len: SIZE as u64, crc32c }).unwrap();
        drop(given_up);
        assert_eq!(opened.recv_timeout(LONG).unwrap(), []);
    }

    #[test]
    fn blocks_behind_the_end_are_returned_too() {
        let dir = tempfile::tempdir().unwrap();
        let staging = staging(dir.path());
        let mut file = File::create(&staging.data).unwrap();
        file.write_all(&content()).unwrap();
        let taken = || fs::metadata(&staging.data).unwrap().blocks() * 512;
        // As xfs leaves it when a preallocation found too little.
        let behind = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, behind, 0, 64 << 20).unwrap();
        assert!(taken() >= 64 << 20);
        file.write_all_at(b"x", 0).unwrap();
        drop(file);
        staging.give_back_unwritten().unwrap();
        assert!(taken() <= 4096, "{} bytes are still taken", taken());
        assert_eq!(fs::metadata(&staging.data).unwrap().len(), SIZE as u64);
    }
}
