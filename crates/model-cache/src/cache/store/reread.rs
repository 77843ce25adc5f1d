//! Reads blobs from the disk itself, past the page cache: cached pages say nothing
//! about the disk, and pods' pages should not be displaced.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;

/// Bytes per read.
const CHUNK: usize = 1 << 20;

/// The alignment of direct reads, a multiple of every disk's block size.
const ALIGNMENT: usize = 4096;

/// Limits reading to a rate in bytes per second.
#[derive(Debug)]
pub(in crate::cache) struct ReadPacer {
    rate: Option<u64>,
    started: Instant,
    passed: u64,
}

impl ReadPacer {
    pub(in crate::cache) fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0), started: Instant::now(), passed: 0 }
    }

    /// Counts bytes, and sleeps until they are due.
    fn pass(&mut self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        self.passed += bytes;
        let due = Duration::from_secs(self.passed / rate)
            + Duration::from_nanos((self.passed % rate).saturating_mul(1_000_000_000) / rate);
        thread::sleep(due.saturating_sub(self.started.elapsed()));
    }
}

/// Computes CRC-32C and length of a file as the disk has it; `None` once `keep_reading`
/// returns `false`. Blocks while it reads.
pub(in crate::cache) fn crc32c(
    path: &Path,
    pace: &mut ReadPacer,
    mut keep_reading: impl FnMut(u64) -> bool,
) -> io::Result<Option<(u32, u64)>> {
    let mut file = direct(path)?;
    let mut buffer = vec![0; CHUNK + ALIGNMENT];
    let start = buffer.as_ptr().align_offset(ALIGNMENT);
    let chunk = &mut buffer[start..start + CHUNK];
    let (mut crc, mut at) = (0, 0_u64);
    loop {
        let got = match file.read_at(chunk, at) {
            // Some file systems accept the flag, but refuse such reads.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                file = File::open(path)?;
                file.read_at(chunk, at)?
            }
            other => other?,
        };
        if got == 0 {
            return Ok(Some((crc, at)));
        }
        crc = ::crc32c::crc32c_append(crc, &chunk[..got]);
        at += got as u64;
        pace.pass(got as u64);
        if !keep_reading(got as u64) {
            return Ok(None);
        }
    }
}

/// Whether a read failed because the disk or the file system is damaged.
pub(in crate::cache) fn is_damage(error: &io::Error) -> bool {
    let broken = [libc::EIO, libc::EUCLEAN, libc::EBADMSG, libc::ENODATA, libc::EILSEQ];
    error.raw_os_error().is_some_and(|errno| broken.contains(&errno))
}

fn direct(path: &Path) -> io::Result<File> {
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
    match direct {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => File::open(path),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_length_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        for len in [0, 1, 4095, 4096, 4097, CHUNK, CHUNK + 1, 2 * CHUNK + 4096 + 7] {
            let content: Vec<u8> = (0..=250).cycle().take(len).collect();
            std::fs::write(&path, &content).unwrap();
            let mut seen = 0;
            let read = crc32c(&path, &mut ReadPacer::new(None), |bytes| {
                seen += bytes;
                true
            });
            assert_eq!(read.unwrap(), Some((::crc32c::crc32c(&content), len as u64)), "{len}");
            assert_eq!(seen, len as u64);
        }
    }

    #[test]
    fn reading_stops_when_the_callback_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        std::fs::write(&path, vec![1; 3 * CHUNK]).unwrap();
        assert_eq!(crc32c(&path, &mut ReadPacer::new(None), |_| false).unwrap(), None);
    }

    #[test]
    fn a_pacer_delays_reads_that_are_too_fast() {
        let started = Instant::now();
        let mut pace = ReadPacer::new(Some(1 << 20));
        pace.pass(100 << 10);
        assert!(started.elapsed() >= Duration::from_millis(90), "a tenth of a second is due");
    }
}
