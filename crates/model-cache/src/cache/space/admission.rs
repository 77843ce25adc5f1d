//! Admission: finds space for a model before its first byte, evicting unused
//! models for it. A model that does not fit waits.

use std::collections::HashSet;

use tokio::time::Instant;

use super::CacheSpace;
use super::evict;
use super::policy::{self, EvictionGoal, RetentionReason};
use super::reservations::{MissingSpace, Reservation, ReserveOutcome, SpaceRequest, Taken};
use super::shortfall::{Shortfall, SpaceHolder};
use crate::cache::store::disk_space::Space;
use crate::error::Result;
use crate::metrics::EvictionReason;
use crate::model::{BlobId, Summary};

/// Evictions for one admission. One may not be enough: another process may hold
/// evicted files open, or fill the disk in the meantime.
const MAX_EVICTIONS: u32 = 3;

/// The answer to a request for space.
#[derive(Debug)]
pub(in crate::cache) enum Admission {
    /// The space is reserved.
    Granted(Reservation),
    /// There is not enough, even after evictions.
    Short(Box<Shortfall>),
}

impl CacheSpace {
    /// Admits a model's missing blobs, evicting other models as needed. Blocks while
    /// files are deleted.
    pub(in crate::cache) fn admit(&self, wanted: &SpaceRequest) -> Result<Admission> {
        let mut gap = match self.reserve(wanted)? {
            ReserveOutcome::Reserved(reservation) => return Ok(Admission::Granted(reservation)),
            ReserveOutcome::Missing(gap) => gap,
        };
        let _alone = self.admissions.lock();
        let own: HashSet<_> = wanted.missing.iter().map(|(id, _)| id.clone()).collect();
        for attempt in 0..=MAX_EVICTIONS {
            match attempt {
                0 => {
                    self.drop_leftovers(&own)?;
                    self.store.wake_deletion();
                }
                _ => {
                    let goal = EvictionGoal::Need(gap.deficit());
                    if !self.evict(&goal, Some(EvictionReason::Space))?.reached {
                        break;
                    }
                }
            }
            gap = match self.reserve_from_trash(wanted)? {
                ReserveOutcome::Reserved(reservation) => {
                    return Ok(Admission::Granted(reservation));
                }
                ReserveOutcome::Missing(gap) => gap,
            };
        }
        Ok(Admission::Short(Box::new(self.shortfall(wanted, gap)?)))
    }

    /// Reserves space, deleting only as much of the trash as that needs. The rest
    /// is deleted in the background.
    fn reserve_from_trash(&self, wanted: &SpaceRequest) -> Result<ReserveOutcome> {
        loop {
            let outcome = self.reserve(wanted)?;
            let ReserveOutcome::Missing(gap) = outcome else { return Ok(outcome) };
            // Each pass deletes something. After the last one, reserve once more:
            // the background task may have deleted the rest.
            if self.store.free_from_trash(Some(gap.deficit()))? == 0 {
                return self.reserve(wanted);
            }
        }
    }

    fn reserve(&self, wanted: &SpaceRequest) -> Result<ReserveOutcome> {
        self.reservations.reserve(wanted, self.taken()?.as_ref())
    }

    /// The size of the cache, if it is limited. Otherwise `None`, since measuring
    /// the whole cache costs time.
    fn taken(&self) -> Result<Option<Taken>> {
        if self.reservations.limits().max_size.is_none() {
            return Ok(None);
        }
        let counting = self.reservations.count();
        let usage = self.store.usage()?;
        let stored = usage.total_without(&counting.arriving()).bytes;
        Ok(Some(Taken::new(stored, counting)))
    }

    /// Describes the shortfall: what is missing, and which pods hold the rest.
    fn shortfall(&self, wanted: &SpaceRequest, gap: MissingSpace) -> Result<Shortfall> {
        let taken = self.store.usage()?;
        let kept = self.retention()?;
        let input = evict::eviction_input(&taken, &kept, &self.store.holds().held_blobs());
        // What exceeds the limits already must go before anything fits.
        let evictable = policy::evictable(&input).saturating_sub(gap.debt);
        let bytes_of = |summary: &Option<Summary>| summary.as_ref().map_or(0, |all| all.bytes);
        let pinned =
            taken.models.iter().filter(|m| kept.why(&m.key) == Some(RetentionReason::Pinned));
        let holders = self.store.leases().into_iter().map(|lease| {
            let model = taken.models.iter().find(|model| model.key == lease.model);
            let bytes = model.map_or(0, |model| bytes_of(&model.summary));
            SpaceHolder { pod: lease.pod, bytes }
        });
        Ok(Shortfall {
            subject: wanted.subject.clone(),
            needs: gap.needs,
            whole: gap.whole,
            capacity: gap.capacity,
            available: gap.free.saturating_add(evictable),
            evictable,
            running: gap.running,
            bound: gap.bound,
            holders: holders.collect(),
            pinned: pinned.map(|model| bytes_of(&model.summary)).fold(0, u64::saturating_add),
            dir: self.store.layout().root().to_owned(),
            cut_short: None,
            at: Instant::now(),
        })
    }

    /// Evicts unused models after the disk ran full although it reported free
    /// space, as under a quota. Returns whether anything was evicted. Blocks.
    pub(in crate::cache) fn evict_for_quota(&self, wanted: &SpaceRequest) -> Result<bool> {
        let gap = self.reservations.assess(wanted, self.taken()?.as_ref())?;
        // With a deficit, the next admission evicts. Without missing bytes, this
        // model needs nothing from an eviction.
        if gap.deficit() != Space::default() || gap.needs.bytes == 0 {
            return Ok(false);
        }
        let goal = EvictionGoal::BestEffort(Space { bytes: gap.needs.bytes, inodes: 0 });
        let evicted = self.evict(&goal, Some(EvictionReason::Space))?;
        self.store.empty_trash()?;
        Ok(!evicted.models.is_empty())
    }

    /// Extends the reservation of a blob; see [`Reservations::extend`].
    ///
    /// [`Reservations::extend`]: super::reservations::Reservations::extend
    pub(in crate::cache) fn extend_reservation(&self, id: &BlobId, size: u64) -> Reservation {
        self.reservations.extend(id, size)
    }

    /// Describes the shortfall when the disk runs full in the middle of a download:
    /// another process took space that had been admitted.
    pub(in crate::cache) fn cut_short(
        &self,
        wanted: &SpaceRequest,
        cause: String,
    ) -> Result<Shortfall> {
        let gap = self.reservations.assess(wanted, self.taken()?.as_ref())?;
        let mut shortfall = self.shortfall(wanted, gap)?;
        shortfall.cut_short = Some(cause);
        Ok(shortfall)
    }
}
