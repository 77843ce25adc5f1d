//! What a node says about its cache in an annotation, beside the labels that name models.
//!
//! It has numbers and no names: who may read nodes learns no more about single models
//! than the labels say.

use serde::{Deserialize, Serialize};

use crate::cache::{CacheReport, ModelState};

/// The longest annotation that is read; ours is shorter.
const LONGEST: usize = 1000;

/// The annotation's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheSummary {
    /// The driver's version.
    pub version: String,
    /// Complete models, named by labels or not.
    pub models: usize,
    /// The size of the cache.
    pub bytes: u64,
    /// What models could take more than now, if all that is not in use were evicted.
    pub available_bytes: u64,
}

impl CacheSummary {
    /// The key of the annotation.
    pub fn key(driver: &str) -> String {
        format!("{driver}/cache")
    }

    /// Parses an annotation; `None` for one of another form, as another version may write it.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().filter(|_| text.len() <= LONGEST)
    }

    pub(super) fn of(report: &CacheReport) -> Self {
        let usage = &report.usage;
        let complete =
            |state: &ModelState| matches!(state, ModelState::Complete | ModelState::Unchecked);
        let room = usage.limit.saturating_sub(usage.total);
        let room = room.min(usage.free.saturating_sub(usage.min_free));
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            models: report.models.iter().filter(|model| complete(&model.state)).count(),
            bytes: usage.total,
            available_bytes: room.saturating_add(usage.evictable),
        }
    }
}
