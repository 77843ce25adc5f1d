//! Giving back blocks that were taken ahead, when the disk has run full.

use std::fs::OpenOptions;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::Staging;
use super::journal;
use crate::error::{Error, Result};

impl Staging {
    /// Makes holes of what has not been downloaded yet, so that an interrupted
    /// download takes no more space than it has bytes. The next one takes the
    /// blocks again. Not while a download of it runs. Blocks.
    pub fn give_back_unwritten(&self) -> Result<()> {
        self.punch().map_err(|e| Error::io(format!("shrinking {}", self.data.display()), &e))
    }

    fn punch(&self) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(&self.data)?;
        let size = file.metadata()?.len();
        let written = journal::noted(&self.journal)?;
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for hole in written.missing(size, u64::MAX) {
            let (Ok(start), Ok(len)) =
                (i64::try_from(hole.start), i64::try_from(hole.end - hole.start))
            else {
                continue;
            };
            match fallocate(&file, flags, start, len) {
                // Where there are no holes nothing was taken ahead either.
                Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}
