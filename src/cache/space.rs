//! Space is admitted before the first byte: sizes are known from the listing,
//! and the running downloads' share counts.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::statvfs::statvfs;

use super::layout::Layout;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{BlobId, size_text};
use crate::mount;

/// What is never touched: the rest of the node lives on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve {
    /// Bytes that stay free.
    pub bytes: u64,
    /// Inodes that stay free.
    pub inodes: u64,
}

/// Counts what running downloads will still take.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    layout: Layout,
    reserve: Reserve,
    pending: Arc<Mutex<HashMap<BlobId, Pending>>>,
}

#[derive(Debug)]
struct Pending {
    size: u64,
    reservations: usize,
}

/// A model's admitted share; given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    ledger: Ledger,
    blobs: Vec<BlobId>,
}

/// What a file system has, in bytes and inodes.
#[derive(Debug, Clone, Copy)]
pub struct FileSystem {
    /// All bytes.
    pub total_bytes: u64,
    /// Bytes that may still be written.
    pub free_bytes: u64,
    /// All inodes; 0 where the file system makes them as needed.
    pub total_inodes: u64,
    /// Inodes that may still be made.
    pub free_inodes: u64,
}

impl FileSystem {
    /// Asks the file system that holds `path`.
    pub fn of(path: &Path) -> Result<Self> {
        let stat = statvfs(path).map_err(|e| {
            Error::io(format!("asking for the space on {}", path.display()), &e.into())
        })?;
        let block = stat.fragment_size();
        Ok(Self {
            total_bytes: stat.blocks().saturating_mul(block),
            free_bytes: stat.blocks_available().saturating_mul(block),
            total_inodes: stat.files(),
            free_inodes: stat.files_available(),
        })
    }
}

impl FileSystem {
    /// Whether the file system that holds `path` is also that of one of these,
    /// or may be: in a container `/` is an overlay, and a cache on the node's
    /// root disk is a bind of one of its directories.
    pub fn is_shared(path: &Path, others: &[&Path]) -> Result<bool> {
        let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
        let own = device(path);
        Ok(others.iter().any(|other| device(other) == own)
            || !mount::is_on_whole_file_system(path)?)
    }
}

impl Ledger {
    pub(super) fn new(layout: Layout, reserve: Reserve) -> Self {
        Self { layout, reserve, pending: Arc::default() }
    }

    /// Admits the missing blobs of a model, or says what is missing.
    /// `extra_inodes` are the tree's. Blocks on a few file system calls.
    pub(super) fn reserve(
        &self,
        title: &str,
        missing: &[(BlobId, u64)],
        extra_inodes: u64,
    ) -> Result<Reservation> {
        let fs = FileSystem::of(self.layout.root())?;
        let mut pending = self.lock();
        let outstanding: u64 = pending
            .iter()
            .map(|(id, p)| self.still_to_come(id, p.size))
            .fold(0, u64::saturating_add);
        let new = missing.iter().filter(|(id, _)| !pending.contains_key(id));
        let wanted =
            new.map(|(id, size)| self.still_to_come(id, *size)).fold(0, u64::saturating_add);
        let free = fs.free_bytes.saturating_sub(self.reserve.bytes);
        let available = free.saturating_sub(outstanding);
        let count = u64::try_from(missing.len()).unwrap_or(u64::MAX);
        // A blob takes two inodes, its record being one.
        let inodes = count.saturating_mul(2).saturating_add(extra_inodes);
        let root = self.layout.root().display();
        if wanted > available {
            let running = match outstanding {
                0 => String::new(),
                bytes => format!(", and running downloads will take {} of them", size_text(bytes)),
            };
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "{title} needs {}; {} can be had in {root} ({} free above the reserve of {} \
                     (cache.minFree){running}): free space there, give the cache a larger disk, or \
                     choose less with include/exclude",
                    size_text(wanted),
                    size_text(available),
                    size_text(free),
                    size_text(self.reserve.bytes),
                ),
            ));
        }
        let running_inodes = u64::try_from(pending.len()).unwrap_or(u64::MAX).saturating_mul(2);
        let free_inodes =
            fs.free_inodes.saturating_sub(self.reserve.inodes).saturating_sub(running_inodes);
        if fs.total_inodes > 0 && inodes > free_inodes {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "{title} needs {inodes} inodes; {free_inodes} can be had in {root} above the \
                     reserve of {} (cache.minFreeInodes)",
                    self.reserve.inodes
                ),
            ));
        }
        for (id, size) in missing {
            let entry = pending.entry(id.clone());
            entry.or_insert(Pending { size: *size, reservations: 0 }).reservations += 1;
        }
        let blobs = missing.iter().map(|(id, _)| id.clone()).collect();
        drop(pending);
        Ok(Reservation { ledger: self.clone(), blobs })
    }

    /// Bytes that this blob will still take: the staging file is preallocated,
    /// and what it has got is not free any more.
    fn still_to_come(&self, id: &BlobId, size: u64) -> u64 {
        const BLOCK: u64 = 4096;
        let allocated = |path: PathBuf| {
            std::fs::symlink_metadata(path).map(|m| m.blocks().saturating_mul(512)).ok()
        };
        let has = allocated(self.layout.part(id)).or_else(|| allocated(self.layout.blob(id)));
        size.next_multiple_of(BLOCK).saturating_sub(has.unwrap_or(0))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BlobId, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut pending = self.ledger.lock();
        for id in &self.blobs {
            if let Some(entry) = pending.get_mut(id) {
                entry.reservations -= 1;
                if entry.reservations == 0 {
                    pending.remove(id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> BlobId {
        BlobId::parse(&format!("{n:02x}").repeat(32)).unwrap()
    }

    fn ledger(dir: &Path, bytes: u64) -> Ledger {
        let free = FileSystem::of(dir).unwrap().free_bytes;
        // All but `bytes` of what is free is somebody else's.
        Ledger::new(Layout::new(dir), Reserve { bytes: free - bytes, inodes: 0 })
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path(), 1 << 30);
        let error = ledger.reserve("models/x/", &[(id(1), 100 << 30)], 3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.message().starts_with("models/x/ needs 100 GiB; "), "{error}");
        assert!(error.message().contains("cache.minFree"), "{error}");
    }

    #[test]
    fn running_downloads_count_once_and_until_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path(), 4 << 30);
        let first = ledger.reserve("a", &[(id(1), 3 << 30)], 0).unwrap();
        let shared = ledger.reserve("b", &[(id(1), 3 << 30)], 0).unwrap();
        let error = ledger.reserve("c", &[(id(2), 3 << 30)], 0).unwrap_err();
        assert!(error.message().contains("running downloads will take 3 GiB"), "{error}");
        drop(first);
        assert!(ledger.reserve("c", &[(id(2), 3 << 30)], 0).is_err(), "b still runs");
        drop(shared);
        ledger.reserve("c", &[(id(2), 3 << 30)], 0).unwrap();
    }

    #[test]
    fn inodes_are_admitted_too() {
        let dir = tempfile::tempdir().unwrap();
        let free = FileSystem::of(dir.path()).unwrap();
        let reserve = Reserve { bytes: 0, inodes: free.free_inodes };
        let ledger = Ledger::new(Layout::new(dir.path()), reserve);
        let refused = ledger.reserve("a", &[(id(1), 1)], 0);
        // A file system without a fixed number of inodes admits any.
        assert_eq!(refused.is_err(), free.total_inodes > 0);
    }
}
