//! Which models leave the cache: a pure choice, without a look at the disk.
//!
//! Least recently used first, and never one that has a reason to stay. Space is
//! counted as the disk counts it: a blob that several models share is freed with
//! the last of them, once, and bytes and inodes both have to suffice.
//!
//! 1. Idle models, unused since before `idle_before`, go whatever the goal is.
//! 2. If that does not reach the goal, blobs without any model go: all of them,
//!    since nobody sees them leave.
//! 3. If that does not reach it either, the least recently used models go, one
//!    after the other until it is reached.
//! 4. Then what turned out to be needless stays after all, the most recently
//!    used first: a model may free bytes where only inodes were missing, or less
//!    than a later one that frees enough alone.
//!
//! A need that cannot be reached ends with step 1: what is evicted for nothing
//! would only have to be downloaded again.
//!
//! The time is that of one sort of the models and of two passes over the models'
//! blobs.

use std::time::SystemTime;

use crate::model::ModelKey;

/// A part of a file system, or a need of one. Sums end at the largest number
/// instead of overflowing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Space {
    /// Allocated bytes.
    pub(super) bytes: u64,
    /// Inodes.
    pub(super) inodes: u64,
}

impl Space {
    pub(super) fn saturating_add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }

    pub(super) fn saturating_sub(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            inodes: self.inodes.saturating_sub(other.inodes),
        }
    }

    /// Whether it is enough for `need`, in bytes and in inodes.
    pub(super) fn covers(self, need: Self) -> bool {
        self.bytes >= need.bytes && self.inodes >= need.inodes
    }
}

/// One cached model, as the choice sees it.
#[derive(Debug, Clone)]
pub(super) struct EvictionCandidate {
    /// Which model; decides between models of the same last use.
    pub(super) key: ModelKey,
    /// When a pod last asked for it.
    pub(super) last_used: SystemTime,
    /// Why it stays whatever the goal is.
    pub(super) keep: Option<RetentionReason>,
    /// Its blobs, as indices into [`EvictionInput::blobs`], each once.
    pub(super) blobs: Vec<usize>,
    /// What is its own: the directories of its tree, and its manifest.
    pub(super) own: Space,
}

/// Why a model stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetentionReason {
    /// A volume has a lease on it.
    Leased,
    /// It is mounted somewhere, with a lease of ours or without.
    Mounted,
    /// Somebody pinned it.
    Pinned,
    /// A flight of it runs: a download, a check or a publish.
    Busy,
}

/// One blob, as the choice sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blob {
    /// What its file takes.
    pub(super) space: Space,
    /// A running download or publish wants it: it stays, also without a model.
    pub(super) busy: bool,
}

/// What the cache holds.
#[derive(Debug, Clone, Default)]
pub(super) struct EvictionInput {
    /// The models, in any order.
    pub(super) models: Vec<EvictionCandidate>,
    /// The blobs, with those that no model has.
    pub(super) blobs: Vec<Blob>,
}

/// How much is to be freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EvictionGoal {
    /// This much or nothing: a download asks for admission.
    Need(Space),
    /// This much or what there is: the file system runs full.
    BestEffort(Space),
    /// Everything that may go.
    All,
}

/// What leaves, by indices into the [`EvictionInput`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct EvictionChoice {
    /// The models, least recently used first: the order in which they go.
    pub(super) models: Vec<usize>,
    /// The blobs, ascending: no model that stays has one of them.
    pub(super) blobs: Vec<usize>,
    /// The space of all of these.
    pub(super) freed: Space,
    /// Whether that is what the goal asked for.
    pub(super) reached: bool,
}

/// Chooses what leaves the cache for this goal. Models that were last used
/// before `idle_before` leave in any case, unless something keeps them.
pub(super) fn choose(
    stock: &EvictionInput,
    goal: &EvictionGoal,
    idle_before: Option<SystemTime>,
) -> EvictionChoice {
    // What is enough; `None`: nothing is, everything goes.
    let enough = match *goal {
        EvictionGoal::Need(need) if !evictable(stock).covers(need) => Some(Space::default()),
        EvictionGoal::Need(space) | EvictionGoal::BestEffort(space) => Some(space),
        EvictionGoal::All => None,
    };
    let is_enough = |freed: Space| enough.is_some_and(|enough| freed.covers(enough));
    let mut order = least_recently_used_first(stock);
    let is_idle = |&model: &usize| idle_before.is_some_and(|t| stock.models[model].last_used < t);
    let later = order.split_off(order.partition_point(is_idle));
    let mut gone = Gone::new(stock);
    let mut models = order;
    for &model in &models {
        gone.add(model);
    }
    if !is_enough(gone.freed) {
        gone.add_orphans();
    }
    let mut chosen = Vec::new();
    for model in later {
        if is_enough(gone.freed) {
            break;
        }
        gone.add(model);
        chosen.push(model);
    }
    chosen.reverse();
    chosen.retain(|&model| {
        let needed = !is_enough(gone.freed_without(model));
        if !needed {
            gone.bring_back(model);
        }
        needed
    });
    models.extend(chosen.into_iter().rev());
    let reached = match *goal {
        EvictionGoal::Need(space) | EvictionGoal::BestEffort(space) => gone.freed.covers(space),
        EvictionGoal::All => true,
    };
    EvictionChoice { models, blobs: gone.blobs(), freed: gone.freed, reached }
}

/// All that could go.
pub(super) fn evictable(stock: &EvictionInput) -> Space {
    let mut gone = Gone::new(stock);
    gone.add_orphans();
    may_go(stock).for_each(|model| gone.add(model));
    gone.freed
}

fn may_go(stock: &EvictionInput) -> impl Iterator<Item = usize> + '_ {
    let models = stock.models.iter().enumerate();
    models.filter(|(_, model)| model.keep.is_none()).map(|(index, _)| index)
}

/// Those of the same last use by their keys, so that the choice does not depend
/// on the order of the stock.
fn least_recently_used_first(stock: &EvictionInput) -> Vec<usize> {
    let mut order: Vec<usize> = may_go(stock).collect();
    let models = &stock.models;
    order.sort_unstable_by_key(|&model| (models[model].last_used, &models[model].key));
    order
}

/// What is gone so far.
struct Gone<'a> {
    stock: &'a EvictionInput,
    /// What still holds each blob: the models that are there, and for an orphan
    /// that it was not its turn yet.
    holders: Vec<usize>,
    orphans: Vec<usize>,
    freed: Space,
}

impl<'a> Gone<'a> {
    fn new(stock: &'a EvictionInput) -> Self {
        let mut holders = vec![0; stock.blobs.len()];
        for &blob in stock.models.iter().flat_map(|model| &model.blobs) {
            holders[blob] += 1;
        }
        let orphans: Vec<usize> = (0..holders.len()).filter(|&blob| holders[blob] == 0).collect();
        for &blob in &orphans {
            holders[blob] = 1;
        }
        Self { stock, holders, orphans, freed: Space::default() }
    }

    fn add_orphans(&mut self) {
        for blob in std::mem::take(&mut self.orphans) {
            self.let_go(blob);
        }
    }

    fn add(&mut self, model: usize) {
        let model = &self.stock.models[model];
        self.freed = self.freed.saturating_add(model.own);
        model.blobs.iter().for_each(|&blob| self.let_go(blob));
    }

    fn let_go(&mut self, blob: usize) {
        self.holders[blob] -= 1;
        if self.is_gone(blob) {
            self.freed = self.freed.saturating_add(self.stock.blobs[blob].space);
        }
    }

    /// What would be freed if this model had stayed.
    fn freed_without(&self, model: usize) -> Space {
        let model = &self.stock.models[model];
        let blobs = model.blobs.iter().filter(|&&blob| self.is_gone(blob));
        let spaces = blobs.map(|&blob| self.stock.blobs[blob].space);
        spaces.fold(self.freed.saturating_sub(model.own), Space::saturating_sub)
    }

    fn bring_back(&mut self, model: usize) {
        self.freed = self.freed_without(model);
        for &blob in &self.stock.models[model].blobs {
            self.holders[blob] += 1;
        }
    }

    fn is_gone(&self, blob: usize) -> bool {
        self.holders[blob] == 0 && !self.stock.blobs[blob].busy
    }

    fn blobs(&self) -> Vec<usize> {
        (0..self.holders.len()).filter(|&blob| self.is_gone(blob)).collect()
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
