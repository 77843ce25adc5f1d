//! `ls` and `inspect`.

use super::answer::{CacheListing, CacheState, ModelEntry, SetAsideEntry};
use super::{Manager, PrefetchEntry, select};
use crate::blocking::blocking;
use crate::cache::CacheReport;
use crate::error::Result;

impl Manager {
    pub(super) async fn inventory(&self) -> Result<CacheReport> {
        let cache = self.0.cache.clone();
        blocking(move || cache.report()).await
    }

    /// The state of each entry of the prefetch list, in the order of the configuration.
    pub fn prefetch_list(&self) -> Vec<PrefetchEntry> {
        self.0.prefetch_queue.entries()
    }

    pub(super) async fn list(&self) -> Result<CacheListing> {
        let inventory = self.inventory().await?;
        let directory = self.0.cache.layout().root().to_owned();
        Ok(CacheListing {
            cache: CacheState::new(directory, &inventory.usage),
            models: inventory.models.iter().map(|report| ModelEntry::new(report, false)).collect(),
            set_aside: inventory.set_aside.into_iter().map(SetAsideEntry::from).collect(),
            prefetch: self.prefetch_list(),
        })
    }

    pub(super) async fn inspect(&self, model: String) -> Result<Vec<ModelEntry>> {
        let inventory = self.inventory().await?;
        let found = select::all(&inventory, &model)?;
        Ok(found.into_iter().map(|report| ModelEntry::new(report, true)).collect())
    }
}
