//! Space is admitted before the first byte: sizes are known from the listing,
//! and the running downloads' share counts.

mod measure;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::statvfs::statvfs;

use self::measure::Measured;
use super::layout::Layout;
use super::policy::Space;
use super::shortfall::ExhaustedLimit;
use crate::error::{Error, Result};
use crate::model::BlobId;
use crate::mount;

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

    /// Whether two directories are known to be on one file system.
    pub fn is_same(path: &Path, other: &Path) -> bool {
        mount::same_file_system(path, other).unwrap_or(false)
    }

    /// Whether the file system that holds `path` is also that of one of these,
    /// or may be: in a container `/` is an overlay, and a cache on the node's
    /// root disk is a bind of one of its directories. What takes its space from
    /// one pool is one file system, as subvolumes of a btrfs do.
    pub fn is_shared(path: &Path, others: &[&Path]) -> Result<bool> {
        Ok(others.iter().any(|other| Self::is_same(path, other))
            || !mount::is_on_whole_file_system(path)?)
    }
}

/// What a file's size is rounded up to.
pub(super) const BLOCK: u64 = 4096;

/// A blob, its record, its entry in the index of contents; and its journal,
/// while it downloads.
const INODES_PER_BLOB: u64 = 4;

/// What the cache may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes that stay free on its file system, whoever fills it.
    pub min_free: u64,
    /// Inodes that stay free.
    pub min_free_inodes: u64,
    /// Bytes that the cache takes at most; `None` leaves it at what is free.
    pub max_size: Option<u64>,
}

/// Counts what running downloads will still take.
#[derive(Debug, Clone)]
pub(super) struct Reservations {
    layout: Layout,
    limits: CacheLimits,
    book: Arc<Mutex<ReservationTotals>>,
}

#[derive(Debug, Default)]
struct ReservationTotals {
    pending: HashMap<BlobId, Pending>,
    /// Bytes of the trees that were admitted.
    trees: u64,
    /// How many count the cache at this moment.
    counting: usize,
    /// What ended while somebody counts, with the whole sizes.
    ended: HashMap<BlobId, u64>,
}

impl ReservationTotals {
    /// All that was on its way at any time since the counting began, with the
    /// whole sizes: meanwhile they grow, and move from here to there.
    fn arriving(&self) -> HashMap<BlobId, u64> {
        let pending = self.pending.iter().map(|(id, pending)| (id.clone(), pending.size));
        pending.chain(self.ended.iter().map(|(id, size)| (id.clone(), *size))).collect()
    }
}

#[derive(Debug)]
struct Pending {
    size: u64,
    reservations: usize,
}

/// A model's admitted share; given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    ledger: Reservations,
    blobs: Vec<BlobId>,
    tree: u64,
}

/// What a model needs to be brought in.
#[derive(Debug, Clone)]
pub(super) struct SpaceRequest {
    /// Blobs that are not there, and their sizes.
    pub(super) missing: Vec<(BlobId, u64)>,
    /// The directories of the tree, and what stands beside it.
    pub(super) tree: Space,
}

/// From before the cache is counted until the sum is used: what begins and
/// ends in between is seen neither on its way nor standing, and is noted here.
#[derive(Debug)]
pub(super) struct Counting(Reservations);

impl Counting {
    /// What has been on its way since it began, with the whole sizes. After the
    /// cache was read, that is all that the sum of it has to leave out.
    pub(super) fn arriving(&self) -> HashMap<BlobId, u64> {
        self.0.lock().arriving()
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let mut book = self.0.lock();
        book.counting -= 1;
        if book.counting == 0 {
            book.ended.clear();
        }
    }
}

/// What the cache takes, where that is limited.
#[derive(Debug)]
pub(super) struct Taken {
    standing: u64,
    /// Goes on until the sum was compared.
    _counting: Counting,
}

impl Taken {
    /// `standing` leaves out the bytes of [`Counting::arriving`].
    pub(super) fn new(standing: u64, counting: Counting) -> Self {
        Self { standing, _counting: counting }
    }
}

/// What is not there, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MissingSpace {
    /// What the model still needs.
    pub(super) needs: Space,
    /// What is free for it, running downloads taken off.
    pub(super) free: Space,
    /// What is taken already of what should be free.
    pub(super) debt: Space,
    /// What running downloads will still take.
    pub(super) running: u64,
    pub(super) bound: ExhaustedLimit,
}

impl MissingSpace {
    /// What has to become free.
    pub(super) fn deficit(&self) -> Space {
        self.needs.saturating_add(self.debt).saturating_sub(self.free)
    }
}

impl Reservations {
    pub(super) fn new(layout: Layout, limits: CacheLimits) -> Self {
        Self { layout, limits, book: Arc::default() }
    }

    pub(super) fn limits(&self) -> CacheLimits {
        self.limits
    }

    /// The blobs that running downloads have been admitted for.
    pub(super) fn admitted(&self) -> HashSet<BlobId> {
        self.lock().pending.keys().cloned().collect()
    }

    /// To be called before the cache is read, for a [`Taken`].
    pub(super) fn count(&self) -> Counting {
        self.lock().counting += 1;
        Counting(self.clone())
    }

    /// Admits the missing blobs of a model, or says what lacks. `taken` is
    /// there where the cache is limited. Blocks on a few file system calls.
    pub(super) fn reserve(
        &self,
        wanted: &SpaceRequest,
        taken: Option<&Taken>,
    ) -> Result<Result<Reservation, MissingSpace>> {
        let measured = self.measure(wanted)?;
        let mut book = self.lock();
        let lack = self.compare(&book, &measured, wanted, taken);
        if lack.deficit() != Space::default() {
            return Ok(Err(lack));
        }
        for (id, size) in &wanted.missing {
            let entry = book.pending.entry(id.clone());
            entry.or_insert(Pending { size: *size, reservations: 0 }).reservations += 1;
        }
        let blobs = wanted.missing.iter().map(|(id, _)| id.clone()).collect();
        let tree = wanted.tree.bytes;
        book.trees = book.trees.saturating_add(tree);
        drop(book);
        Ok(Ok(Reservation { ledger: self.clone(), blobs, tree }))
    }

    /// Keeps counting a blob that was admitted, for as long as its own download
    /// runs: that ends a moment after the model's when that is given up.
    pub(super) fn go_on(&self, id: &BlobId, size: u64) -> Reservation {
        let mut book = self.lock();
        let entry = book.pending.entry(id.clone());
        entry.or_insert(Pending { size, reservations: 0 }).reservations += 1;
        Reservation { ledger: self.clone(), blobs: vec![id.clone()], tree: 0 }
    }

    /// What a model needs and what is there for it, whether that lacks or not.
    pub(super) fn look(
        &self,
        wanted: &SpaceRequest,
        taken: Option<&Taken>,
    ) -> Result<MissingSpace> {
        let measured = self.measure(wanted)?;
        Ok(self.compare(&self.lock(), &measured, wanted, taken))
    }

    fn compare(
        &self,
        book: &ReservationTotals,
        measured: &Measured,
        wanted: &SpaceRequest,
        taken: Option<&Taken>,
    ) -> MissingSpace {
        let (pending, fs) = (&book.pending, &measured.fs);
        // What came since counts as a whole, and what ended since as it was.
        let since = pending.iter().filter(|(id, _)| !measured.running.contains_key(id));
        let since = since.map(|(_, p)| p.size.next_multiple_of(BLOCK));
        let running = since.chain(measured.running.values().copied()).fold(0, u64::saturating_add);
        // Trees are built last, so that all of theirs is still to come.
        let running = running.saturating_add(book.trees);
        let counted = |id| pending.contains_key(id) || measured.running.contains_key(id);
        let new = measured.wanted.iter().filter(|(id, _)| !counted(*id));
        let bytes = new.map(|(_, to_come)| *to_come).fold(0, u64::saturating_add);
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let inodes = count(wanted.missing.len())
            .saturating_mul(INODES_PER_BLOB)
            .saturating_add(measured.fans);
        let needs = Space { bytes, inodes }.saturating_add(wanted.tree);
        let ended = measured.running.keys().filter(|id| !pending.contains_key(*id)).count();
        let new_inodes = count(pending.len() + ended).saturating_mul(INODES_PER_BLOB);
        let kept = Space {
            bytes: self.limits.min_free.saturating_add(running),
            inodes: self.limits.min_free_inodes.saturating_add(new_inodes),
        };
        // A file system without a fixed number of inodes has any.
        let free_inodes = if fs.total_inodes == 0 { u64::MAX } else { fs.free_inodes };
        let standing = Space { bytes: fs.free_bytes, inodes: free_inodes };
        let (free, debt) = (standing.saturating_sub(kept), kept.saturating_sub(standing));
        let on_disk = MissingSpace {
            needs,
            free,
            debt,
            running,
            bound: match free.inodes < needs.inodes {
                true => ExhaustedLimit::Inodes { inodes: self.limits.min_free_inodes },
                false => {
                    ExhaustedLimit::Reserve { bytes: self.limits.min_free, of: fs.total_bytes }
                }
            },
        };
        let within = self.limits.max_size.zip(taken).map(|(most, taken)| {
            let arriving = book.arriving().into_values().map(|size| size.next_multiple_of(BLOCK));
            let taken = arriving.fold(taken.standing, u64::saturating_add);
            MissingSpace {
                free: Space { bytes: most.saturating_sub(taken), ..free },
                debt: Space { bytes: taken.saturating_sub(most), ..debt },
                bound: ExhaustedLimit::Limit { bytes: most },
                ..on_disk
            }
        });
        // The one that lacks more decides.
        match within {
            Some(within) if within.deficit().bytes > on_disk.deficit().bytes => within,
            _ => on_disk,
        }
    }

    fn lock(&self) -> MutexGuard<'_, ReservationTotals> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut book = self.ledger.lock();
        book.trees = book.trees.saturating_sub(self.tree);
        for id in &self.blobs {
            let Some(entry) = book.pending.get_mut(id) else { continue };
            entry.reservations -= 1;
            let (size, over) = (entry.size, entry.reservations == 0);
            if over {
                book.pending.remove(id);
            }
            if over && book.counting > 0 {
                book.ended.insert(id.clone(), size);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::files;
    use super::*;

    fn id(n: u8) -> BlobId {
        BlobId::parse(&format!("{n:02x}").repeat(32)).unwrap()
    }

    fn ledger(dir: &Path, bytes: u64, max_size: Option<u64>) -> Reservations {
        files::make_directory(&dir.join("staging"), 0o755).unwrap();
        let free = FileSystem::of(dir).unwrap().free_bytes;
        // All but `bytes` of what is free is somebody else's.
        let min_free = free.saturating_sub(bytes);
        Reservations::new(Layout::new(dir), CacheLimits { min_free, min_free_inodes: 0, max_size })
    }

    fn wanted(n: u8, size: u64) -> SpaceRequest {
        SpaceRequest { missing: vec![(id(n), size)], tree: Space { bytes: 0, inodes: 3 } }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path(), 1 << 30, None);
        let lack = ledger.reserve(&wanted(1, 100 << 30), None).unwrap().unwrap_err();
        assert_eq!(lack.needs, Space { bytes: 100 << 30, inodes: INODES_PER_BLOB + 1 + 3 });
        assert!(matches!(lack.bound, ExhaustedLimit::Reserve { .. }));
        assert!(lack.deficit().bytes > 98 << 30);
        assert_eq!(lack.deficit().inodes, 0);
    }

    #[test]
    fn running_downloads_count_once_and_until_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path(), 4 << 30, None);
        let first = ledger.reserve(&wanted(1, 3 << 30), None).unwrap().unwrap();
        let shared = ledger.reserve(&wanted(1, 3 << 30), None).unwrap().unwrap();
        let lack = ledger.reserve(&wanted(2, 3 << 30), None).unwrap().unwrap_err();
        assert_eq!(lack.running, 3 << 30);
        drop(first);
        assert!(ledger.reserve(&wanted(2, 3 << 30), None).unwrap().is_err(), "b still runs");
        drop(shared);
        ledger.reserve(&wanted(2, 3 << 30), None).unwrap().unwrap();
    }

    #[test]
    fn the_caches_own_limit_counts_what_it_has_and_what_is_on_its_way() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path(), 1 << 40, Some(10 << 30));
        let taken = |gib: u64| Taken::new(gib << 30, ledger.count());
        let running = ledger.reserve(&wanted(1, 3 << 30), Some(&taken(4))).unwrap().unwrap();
        let lack = ledger.reserve(&wanted(2, 4 << 30), Some(&taken(4))).unwrap().unwrap_err();
        assert_eq!(lack.bound, ExhaustedLimit::Limit { bytes: 10 << 30 });
        assert_eq!((lack.free.bytes, lack.deficit().bytes), (3 << 30, 1 << 30));
        drop(running);
        ledger.reserve(&wanted(2, 4 << 30), Some(&taken(4))).unwrap().unwrap();
        let over = ledger.reserve(&wanted(2, 4 << 30), Some(&taken(15))).unwrap().unwrap_err();
        assert_eq!(over.deficit().bytes, 9 << 30, "what is over the limit has to go first");
    }

    #[test]
    fn what_arrives_while_one_looks_counts_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path(), 1 << 40, Some(10 << 30));
        let before = Taken::new(4 << 30, ledger.count());
        // Admitted since the look, or ended since: neither was seen standing.
        let running = ledger.reserve(&wanted(1, 3 << 30), Some(&before)).unwrap().unwrap();
        let lack = ledger.reserve(&wanted(2, 4 << 30), Some(&before)).unwrap().unwrap_err();
        assert_eq!(lack.free.bytes, 3 << 30);
        // Both since the look: it was seen nowhere.
        drop(running);
        let lack = ledger.reserve(&wanted(2, 4 << 30), Some(&before)).unwrap().unwrap_err();
        assert_eq!(lack.free.bytes, 3 << 30);
        drop(before);
        let after = Taken::new(4 << 30, ledger.count());
        ledger.reserve(&wanted(2, 4 << 30), Some(&after)).unwrap().unwrap();
    }

    #[test]
    fn what_comes_or_goes_while_the_disk_is_asked_counts_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path(), 4 << 30, None);
        let second = wanted(2, 3 << 30);
        let before = ledger.measure(&second).unwrap();
        let compare = |measured| ledger.compare(&ledger.lock(), measured, &second, None);
        assert_eq!(compare(&before).deficit(), Space::default());
        let first = ledger.reserve(&wanted(1, 3 << 30), None).unwrap().unwrap();
        assert_eq!(compare(&before).running, 3 << 30);
        let before = ledger.measure(&second).unwrap();
        drop(first);
        let lack = compare(&before);
        assert_eq!(lack.running, 3 << 30, "what it took is not seen in what was free");
        assert!(lack.deficit().bytes > 0);
    }

    #[test]
    fn inodes_are_admitted_too() {
        let dir = tempfile::tempdir().unwrap();
        files::make_directory(&dir.path().join("staging"), 0o755).unwrap();
        let free = FileSystem::of(dir.path()).unwrap();
        let limits = CacheLimits { min_free: 0, min_free_inodes: free.free_inodes, max_size: None };
        let ledger = Reservations::new(Layout::new(dir.path()), limits);
        let lack = ledger.reserve(&wanted(1, 1), None).unwrap();
        // A file system without a fixed number of inodes admits any.
        assert_eq!(lack.is_err(), free.total_inodes > 0);
        if let Err(lack) = lack {
            assert!(matches!(lack.bound, ExhaustedLimit::Inodes { .. }));
        }
    }
}
