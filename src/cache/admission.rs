//! Admission: space is found before the first byte, at the expense of what
//! nobody uses, or the model waits for it.

use std::collections::HashSet;

use tokio::time::Instant;

use super::CacheInner;
use super::disk_usage::DiskUsage;
use super::evict::{self, RetentionReasons};
use super::policy::{self, EvictionGoal, RetentionReason, Space};
use super::shortfall::{Shortfall, SpaceHolder};
use super::space::{MissingSpace, Reservation, SpaceRequest, Taken};
use crate::error::Result;
use crate::metrics::EvictionReason;
use crate::model::Summary;

/// Evictions for one admission: what is evicted may turn out to be held open
/// by somebody, and others may fill the disk meanwhile.
const EVICTIONS: u32 = 3;

impl CacheInner {
    /// Admits a model's missing blobs, evicting for it what has to go, or says
    /// what lacks. Blocks, as long as deleting takes.
    pub(super) fn admit(&self, wanted: &SpaceRequest) -> Result<Result<Reservation, Shortfall>> {
        let lack = match self.reserve(wanted)? {
            Ok(reservation) => return Ok(Ok(reservation)),
            Err(lack) => lack,
        };
        // One at a time: two that each evict for themselves would evict twice.
        let _alone = self.admissions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let own: HashSet<_> = wanted.missing.iter().map(|(id, _)| id.clone()).collect();
        let mut lack = lack;
        for attempt in 0..=EVICTIONS {
            match attempt {
                0 => {
                    self.drop_leftovers(&own)?;
                    self.trash_filled.notify_one();
                }
                _ => {
                    let goal = EvictionGoal::Need(lack.deficit());
                    if !self.evict(&goal, Some(EvictionReason::Space))?.reached {
                        break;
                    }
                }
            }
            lack = match self.reserve_from_trash(wanted)? {
                Ok(reservation) => return Ok(Ok(reservation)),
                Err(lack) => lack,
            };
        }
        self.shortage(lack).map(Err)
    }

    /// Reserves, deleting of the trash what that needs; the rest is left to the
    /// background, since nobody waits for it.
    fn reserve_from_trash(
        &self,
        wanted: &SpaceRequest,
    ) -> Result<Result<Reservation, MissingSpace>> {
        let mut more = true;
        loop {
            let lack = match self.reserve(wanted)? {
                Ok(reservation) => return Ok(Ok(reservation)),
                Err(lack) if more => lack,
                Err(lack) => return Ok(Err(lack)),
            };
            // Each turn deletes something. After the last one it is looked once
            // more: the background may have deleted it.
            more = self.free_from_trash(Some(lack.deficit()))? > 0;
        }
    }

    fn reserve(&self, wanted: &SpaceRequest) -> Result<Result<Reservation, MissingSpace>> {
        self.ledger.reserve(wanted, self.taken()?.as_ref())
    }

    /// What the cache takes, where that is limited: looking at all of it is
    /// not for free.
    fn taken(&self) -> Result<Option<Taken>> {
        if self.ledger.limits().max_size.is_none() {
            return Ok(None);
        }
        let counting = self.ledger.count();
        let stock = DiskUsage::read(&self.layout)?;
        let standing = stock.total_without(&counting.arriving()).bytes;
        Ok(Some(Taken::new(standing, counting)))
    }

    /// The lack, with who holds the rest.
    pub(super) fn shortage(&self, lack: MissingSpace) -> Result<Shortfall> {
        let taken = DiskUsage::read(&self.layout)?;
        let kept = RetentionReasons::now(self)?;
        let stock = evict::stock(&taken, &kept, &self.holds.held_blobs());
        // What is over the limits already has to go before anything fits.
        let evictable = policy::evictable(&stock).saturating_sub(lack.debt);
        let bytes_of = |summary: &Option<Summary>| summary.as_ref().map_or(0, |all| all.bytes);
        let pinned =
            taken.models.iter().filter(|m| kept.why(&m.key) == Some(RetentionReason::Pinned));
        let holders = self.leases.all().into_iter().map(|lease| {
            let model = taken.models.iter().find(|model| model.key == lease.model);
            let bytes = model.map_or(0, |model| bytes_of(&model.summary));
            SpaceHolder { pod: lease.pod, bytes }
        });
        Ok(Shortfall {
            needs: lack.needs,
            available: lack.free.saturating_add(evictable),
            evictable,
            running: lack.running,
            bound: lack.bound,
            holders: holders.collect(),
            pinned: pinned.map(|model| bytes_of(&model.summary)).fold(0, u64::saturating_add),
            dir: self.layout.root().to_owned(),
            cut_short: None,
            at: Instant::now(),
        })
    }

    /// After the disk ran full although there seemed to be space, as a quota has
    /// it: what nobody uses makes way for what the model still needs. Whether
    /// anything did. Blocks.
    pub(super) fn evict_unasked(&self, wanted: &SpaceRequest) -> Result<bool> {
        let lack = self.ledger.look(wanted, self.taken()?.as_ref())?;
        // The next admission evicts what has to go; and who needs no more bytes of
        // its own was only in the way of others.
        if lack.deficit() != Space::default() || lack.needs.bytes == 0 {
            return Ok(false);
        }
        let goal = EvictionGoal::BestEffort(Space { bytes: lack.needs.bytes, inodes: 0 });
        let evicted = self.evict(&goal, Some(EvictionReason::Space))?;
        self.empty_trash()?;
        Ok(!evicted.models.is_empty())
    }

    /// The shortage that a full disk in the middle of a download is: somebody
    /// else took what had been admitted.
    pub(super) fn cut_short(&self, wanted: &SpaceRequest, told: String) -> Result<Shortfall> {
        let lack = self.ledger.look(wanted, self.taken()?.as_ref())?;
        let mut shortage = self.shortage(lack)?;
        shortage.cut_short = Some(told);
        Ok(shortage)
    }
}
