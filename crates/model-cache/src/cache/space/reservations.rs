//! Reservations: space is reserved before the first byte. Sizes are known from the
//! listing, and space that running downloads will still take is counted.

mod measure;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use nix::sys::statvfs::statvfs;

use self::measure::Measured;
use super::shortfall::ExhaustedLimit;
use crate::cache::store::disk_space::Space;
use crate::cache::store::layout::Layout;
use crate::cache::store::lock_order;
use crate::error::{Error, Result};
use crate::model::BlobId;
use crate::mount;
use crate::sync::{OrderedGuard, OrderedMutex};

/// Bytes and inodes of a file system.
#[derive(Debug, Clone, Copy)]
pub struct FileSystem {
    /// Total bytes.
    pub total_bytes: u64,
    /// Free bytes.
    pub free_bytes: u64,
    /// Total inodes; 0 where the file system creates them as needed.
    pub total_inodes: u64,
    /// Free inodes.
    pub free_inodes: u64,
}

impl FileSystem {
    /// Queries the file system that holds `path`.
    pub fn of(path: &Path) -> Result<Self> {
        let stat = statvfs(path).map_err(|e| {
            Error::io(format!("querying the free space of {}", path.display()), &e.into())
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

    /// Whether `path` shares, or may share, its file system with one of `others`. In a
    /// container `/` is an overlay, and a cache on the node's root disk is a bind of
    /// one of its directories. Subvolumes of a btrfs share one pool of space, so they
    /// count as one file system.
    pub fn is_shared(path: &Path, others: &[&Path]) -> Result<bool> {
        Ok(others.iter().any(|other| Self::is_same(path, other))
            || !mount::is_on_whole_file_system(path)?)
    }
}

/// File sizes are rounded up to this many bytes.
pub(in crate::cache) const BLOCK: u64 = 4096;

/// Inodes of a blob: the file, its record, its entry in the index of contents, and its
/// journal while it downloads.
const INODES_PER_BLOB: u64 = 4;

/// Limits of the cache's space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes to keep free on its file system.
    pub min_free: u64,
    /// Inodes to keep free.
    pub min_free_inodes: u64,
    /// Most bytes that the cache may take; `None` means no limit of its own.
    pub max_size: Option<u64>,
}

impl CacheLimits {
    /// The most that a cache may take on this file system, if nothing else were on it.
    fn capacity(&self, fs: &FileSystem) -> Space {
        let inodes = match fs.total_inodes {
            0 => u64::MAX,
            total => total.saturating_sub(self.min_free_inodes),
        };
        let bytes = fs.total_bytes.saturating_sub(self.min_free);
        Space { bytes: bytes.min(self.max_size.unwrap_or(u64::MAX)), inodes }
    }
}

/// Counts the space that running downloads will still take.
#[derive(Debug, Clone)]
pub(in crate::cache) struct Reservations {
    layout: Layout,
    limits: CacheLimits,
    totals: Arc<OrderedMutex<ReservationTotals>>,
}

#[derive(Debug, Default)]
struct ReservationTotals {
    pending: HashMap<BlobId, Pending>,
    /// Bytes of the admitted trees.
    trees: u64,
    /// How many callers are measuring the cache now.
    counting: usize,
    /// Blobs whose reservation ended during a measurement, with their full sizes.
    ended: HashMap<BlobId, u64>,
}

impl ReservationTotals {
    /// Returns all blobs that were being downloaded at any time since the measurement
    /// began, with their full sizes: meanwhile they grow, and are moved.
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

/// Space reserved for a model. Dropping it ends the reservation.
#[derive(Debug)]
pub(in crate::cache) struct Reservation {
    reservations: Reservations,
    blobs: Vec<BlobId>,
    tree: u64,
}

/// The answer to a request for a reservation.
#[derive(Debug)]
pub(in crate::cache) enum ReserveOutcome {
    Reserved(Reservation),
    Missing(MissingSpace),
}

/// The space that a model needs.
#[derive(Debug, Clone)]
pub(in crate::cache) struct SpaceRequest {
    /// What it is for, in messages: a model or a file.
    pub(in crate::cache) subject: String,
    /// Missing blobs, and their sizes.
    pub(in crate::cache) missing: Vec<(BlobId, u64)>,
    /// The directories of the tree, and the files beside it.
    pub(in crate::cache) tree: Space,
}

/// A measurement of the cache, from before the scan until the sum is used. It tracks
/// downloads that begin and end in between, which the scan may miss.
#[derive(Debug)]
pub(in crate::cache) struct Counting(Reservations);

impl Counting {
    /// Returns the blobs downloaded since the measurement began, with their full sizes.
    /// Called after the scan, these are the blobs that its sum must exclude.
    pub(in crate::cache) fn arriving(&self) -> HashMap<BlobId, u64> {
        self.0.lock().arriving()
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let mut totals = self.0.lock();
        totals.counting -= 1;
        if totals.counting == 0 {
            totals.ended.clear();
        }
    }
}

/// The size of the cache, where it is limited.
#[derive(Debug)]
pub(in crate::cache) struct Taken {
    stored: u64,
    /// Kept until the sum was compared.
    _counting: Counting,
}

impl Taken {
    /// `stored` excludes the bytes of [`Counting::arriving`].
    pub(in crate::cache) fn new(stored: u64, counting: Counting) -> Self {
        Self { stored, _counting: counting }
    }
}

/// The needed and the free space, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) struct MissingSpace {
    /// Space that the model still needs.
    pub(in crate::cache) needs: Space,
    /// Space that its missing files take in all, with what was downloaded of them.
    pub(in crate::cache) whole: Space,
    /// The most that the limits allow on this disk, were the rest of it empty.
    pub(in crate::cache) capacity: Space,
    /// Free space, minus the reservations of running downloads.
    pub(in crate::cache) free: Space,
    /// By how much the limits are already exceeded.
    pub(in crate::cache) debt: Space,
    /// Bytes that running downloads will still take.
    pub(in crate::cache) running: u64,
    pub(in crate::cache) bound: ExhaustedLimit,
}

impl MissingSpace {
    /// The space that must be freed.
    pub(in crate::cache) fn deficit(&self) -> Space {
        self.needs.saturating_add(self.debt).saturating_sub(self.free)
    }
}

impl Reservations {
    pub(in crate::cache) fn new(layout: Layout, limits: CacheLimits) -> Self {
        let totals = OrderedMutex::new(lock_order::RESERVATIONS, ReservationTotals::default());
        Self { layout, limits, totals: Arc::new(totals) }
    }

    pub(in crate::cache) fn limits(&self) -> CacheLimits {
        self.limits
    }

    /// Returns the blobs with a reservation.
    pub(in crate::cache) fn admitted(&self) -> HashSet<BlobId> {
        self.lock().pending.keys().cloned().collect()
    }

    /// Begins a measurement. Call it before the scan, and build a [`Taken`] with it.
    pub(in crate::cache) fn count(&self) -> Counting {
        self.lock().counting += 1;
        Counting(self.clone())
    }

    /// Reserves space for the missing blobs of a model, if there is enough. `taken` is required where the cache has a limit. Blocks on a few file system
    /// calls.
    pub(in crate::cache) fn reserve(
        &self,
        wanted: &SpaceRequest,
        taken: Option<&Taken>,
    ) -> Result<ReserveOutcome> {
        let measured = self.measure(wanted)?;
        let mut totals = self.lock();
        let gap = self.compare(&totals, &measured, wanted, taken);
        if gap.deficit() != Space::default() {
            return Ok(ReserveOutcome::Missing(gap));
        }
        for (id, size) in &wanted.missing {
            let entry = totals.pending.entry(id.clone());
            entry.or_insert(Pending { size: *size, reservations: 0 }).reservations += 1;
        }
        let blobs = wanted.missing.iter().map(|(id, _)| id.clone()).collect();
        let tree = wanted.tree.bytes;
        totals.trees = totals.trees.saturating_add(tree);
        drop(totals);
        let reservation = Reservation { reservations: self.clone(), blobs, tree };
        Ok(ReserveOutcome::Reserved(reservation))
    }

    /// Extends the reservation of a blob until its own download ends, which is a moment
    /// after an abandoned model's.
    pub(in crate::cache) fn extend(&self, id: &BlobId, size: u64) -> Reservation {
        let mut totals = self.lock();
        let entry = totals.pending.entry(id.clone());
        entry.or_insert(Pending { size, reservations: 0 }).reservations += 1;
        Reservation { reservations: self.clone(), blobs: vec![id.clone()], tree: 0 }
    }

    /// Compares the space that a model needs with the free space.
    pub(in crate::cache) fn assess(
        &self,
        wanted: &SpaceRequest,
        taken: Option<&Taken>,
    ) -> Result<MissingSpace> {
        let measured = self.measure(wanted)?;
        Ok(self.compare(&self.lock(), &measured, wanted, taken))
    }

    fn compare(
        &self,
        totals: &ReservationTotals,
        measured: &Measured,
        wanted: &SpaceRequest,
        taken: Option<&Taken>,
    ) -> MissingSpace {
        let (pending, fs) = (&totals.pending, &measured.fs);
        // Blobs reserved since the measurement count with their full size; those that
        // ended since count as measured.
        let since = pending.iter().filter(|(id, _)| !measured.running.contains_key(id));
        let since = since.map(|(_, p)| p.size.next_multiple_of(BLOCK));
        let running = since.chain(measured.running.values().copied()).fold(0, u64::saturating_add);
        // Trees are built last, so all of their space is still to come.
        let running = running.saturating_add(totals.trees);
        let counted = |id| pending.contains_key(id) || measured.running.contains_key(id);
        let new = measured.wanted.iter().filter(|(id, _)| !counted(*id));
        let bytes = new.map(|(_, to_come)| *to_come).fold(0, u64::saturating_add);
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let inodes = count(wanted.missing.len())
            .saturating_mul(INODES_PER_BLOB)
            .saturating_add(measured.fans);
        let needs = Space { bytes, inodes }.saturating_add(wanted.tree);
        let sizes = wanted.missing.iter().map(|(_, size)| size.next_multiple_of(BLOCK));
        let bytes = sizes.fold(0, u64::saturating_add);
        let whole = Space { bytes, inodes }.saturating_add(wanted.tree);
        let ended = measured.running.keys().filter(|id| !pending.contains_key(*id)).count();
        let new_inodes = count(pending.len() + ended).saturating_mul(INODES_PER_BLOB);
        let kept = Space {
            bytes: self.limits.min_free.saturating_add(running),
            inodes: self.limits.min_free_inodes.saturating_add(new_inodes),
        };
        // A file system without a fixed number of inodes never runs out.
        let free_inodes = if fs.total_inodes == 0 { u64::MAX } else { fs.free_inodes };
        let available = Space { bytes: fs.free_bytes, inodes: free_inodes };
        let (free, debt) = (available.saturating_sub(kept), kept.saturating_sub(available));
        let on_disk = MissingSpace {
            needs,
            whole,
            capacity: self.limits.capacity(fs),
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
            let arriving = totals.arriving().into_values().map(|size| size.next_multiple_of(BLOCK));
            let taken = arriving.fold(taken.stored, u64::saturating_add);
            MissingSpace {
                free: Space { bytes: most.saturating_sub(taken), ..free },
                debt: Space { bytes: taken.saturating_sub(most), ..debt },
                bound: ExhaustedLimit::Limit { bytes: most },
                ..on_disk
            }
        });
        // The limit with the larger deficit decides.
        match within {
            Some(within) if within.deficit().bytes > on_disk.deficit().bytes => within,
            _ => on_disk,
        }
    }

    fn lock(&self) -> OrderedGuard<'_, ReservationTotals> {
        self.totals.lock()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut totals = self.reservations.lock();
        totals.trees = totals.trees.saturating_sub(self.tree);
        for id in &self.blobs {
            let Some(entry) = totals.pending.get_mut(id) else { continue };
            entry.reservations -= 1;
            let (size, over) = (entry.size, entry.reservations == 0);
            if over {
                totals.pending.remove(id);
            }
            if over && totals.counting > 0 {
                totals.ended.insert(id.clone(), size);
            }
        }
    }
}

#[cfg(test)]
#[path = "reservations_tests.rs"]
mod tests;
