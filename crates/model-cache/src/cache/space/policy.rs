//! The eviction policy: chooses the models to evict, without touching the disk.
//!
//! Models go least recently used first, and never one with a reason to stay. Space is
//! counted as the disk counts it: a blob that several models share is freed once,
//! with the last of them, and both bytes and inodes must suffice.
//!
//! Revisions that the administrator prefers to keep go after all others, those with the
//! most newer ones first, and never because they are idle.
//!
//! 1. Idle models, unused since before `idle_before`, go regardless of the goal.
//! 2. If that does not reach the goal, all orphaned blobs go, since no model needs
//!    them.
//! 3. If that does not reach it either, the least recently used models go, one by one
//!    until it is reached.
//! 4. Then models that turned out not to be needed are kept, the most recently used
//!    first: a model may free bytes where only inodes were missing, or less than a
//!    later one that frees enough alone.
//!
//! For a need that cannot be met, only step 1 applies: further evictions would be in
//! vain, and cause downloads later.
//!
//! The cost is one sort of the models and two passes over their blobs.

use std::time::SystemTime;

use crate::cache::store::disk_space::Space;
use crate::model::ModelKey;

/// A cached model, as input of the policy.
#[derive(Debug, Clone)]
pub(in crate::cache) struct EvictionCandidate {
    /// Its key; orders models with the same last use.
    pub(in crate::cache) key: ModelKey,
    /// When a pod last asked for it.
    pub(in crate::cache) last_used: SystemTime,
    /// Why it must stay, if it must.
    pub(in crate::cache) keep: Option<RetentionReason>,
    /// For a revision that is preferably kept: how many newer ones there are.
    pub(in crate::cache) newer_kept: Option<usize>,
    /// Its blobs, as indices into [`EvictionInput::blobs`], each once.
    pub(in crate::cache) blobs: Vec<usize>,
    /// Space of its directories and its manifest.
    pub(in crate::cache) own: Space,
}

/// Why a model must stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum RetentionReason {
    /// A volume has a lease on it.
    Leased,
    /// It is mounted, with or without a lease.
    Mounted,
    /// An administrator pinned it.
    Pinned,
    /// An operation holds it: a download, a check or a publish.
    Busy,
}

/// A blob, as input of the policy.
#[derive(Debug, Clone, Copy)]
pub(in crate::cache) struct Blob {
    /// Space of its file.
    pub(in crate::cache) space: Space,
    /// A running download or publish holds it: it stays, even without a model.
    pub(in crate::cache) busy: bool,
}

/// The input of the policy: the content of the cache.
#[derive(Debug, Clone, Default)]
pub(in crate::cache) struct EvictionInput {
    /// The models, in any order.
    pub(in crate::cache) models: Vec<EvictionCandidate>,
    /// The blobs, including orphans.
    pub(in crate::cache) blobs: Vec<Blob>,
}

/// How much to free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum EvictionGoal {
    /// This much or nothing, for the admission of a download.
    Need(Space),
    /// This much or as much as possible, when the disk is almost full.
    BestEffort(Space),
    /// Everything that may be evicted.
    All,
}

/// What to evict, as indices into the [`EvictionInput`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::cache) struct EvictionChoice {
    /// The models in the order of eviction.
    pub(in crate::cache) models: Vec<usize>,
    /// The blobs, ascending. No remaining model refers to them.
    pub(in crate::cache) blobs: Vec<usize>,
    /// The space of all of these.
    pub(in crate::cache) freed: Space,
    /// Whether that reaches the goal.
    pub(in crate::cache) reached: bool,
}

/// Chooses what to evict for this goal. Models last used before `idle_before` are
/// always chosen, unless they have a reason to stay.
pub(in crate::cache) fn choose(
    input: &EvictionInput,
    goal: &EvictionGoal,
    idle_before: Option<SystemTime>,
) -> EvictionChoice {
    // The space that is enough; `None` evicts everything.
    let enough = match *goal {
        EvictionGoal::Need(need) if !evictable(input).covers(need) => Some(Space::default()),
        EvictionGoal::Need(space) | EvictionGoal::BestEffort(space) => Some(space),
        EvictionGoal::All => None,
    };
    let is_enough = |freed: Space| enough.is_some_and(|enough| freed.covers(enough));
    let mut order = order_of_eviction(input);
    let is_idle = |&model: &usize| {
        let model = &input.models[model];
        model.newer_kept.is_none() && idle_before.is_some_and(|t| model.last_used < t)
    };
    let later = order.split_off(order.partition_point(is_idle));
    let mut gone = Gone::new(input);
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
            gone.restore(model);
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

/// Returns the space of everything that may be evicted.
pub(in crate::cache) fn evictable(input: &EvictionInput) -> Space {
    let mut gone = Gone::new(input);
    gone.add_orphans();
    may_go(input).for_each(|model| gone.add(model));
    gone.freed
}

fn may_go(input: &EvictionInput) -> impl Iterator<Item = usize> + '_ {
    let models = input.models.iter().enumerate();
    models.filter(|(_, model)| model.keep.is_none()).map(|(index, _)| index)
}

/// Orders the models that may be evicted: least recently used first, and preferred
/// revisions last, of which those with the most newer ones go first. Models with the same
/// last use are ordered by key, so that the choice does not depend on the order of the input.
fn order_of_eviction(input: &EvictionInput) -> Vec<usize> {
    let mut order: Vec<usize> = may_go(input).collect();
    order.sort_unstable_by_key(|&at| {
        let model = &input.models[at];
        let preferred = model.newer_kept.map(std::cmp::Reverse);
        (preferred, model.last_used, &model.key)
    });
    order
}

/// What was chosen so far.
struct Gone<'a> {
    input: &'a EvictionInput,
    /// How many remaining models refer to each blob; 1 for an orphan that was not
    /// chosen yet.
    holders: Vec<usize>,
    orphans: Vec<usize>,
    freed: Space,
}

impl<'a> Gone<'a> {
    fn new(input: &'a EvictionInput) -> Self {
        let mut holders = vec![0; input.blobs.len()];
        for &blob in input.models.iter().flat_map(|model| &model.blobs) {
            holders[blob] += 1;
        }
        let orphans: Vec<usize> = (0..holders.len()).filter(|&blob| holders[blob] == 0).collect();
        for &blob in &orphans {
            holders[blob] = 1;
        }
        Self { input, holders, orphans, freed: Space::default() }
    }

    fn add_orphans(&mut self) {
        for blob in std::mem::take(&mut self.orphans) {
            self.release(blob);
        }
    }

    fn add(&mut self, model: usize) {
        let model = &self.input.models[model];
        self.freed = self.freed.saturating_add(model.own);
        model.blobs.iter().for_each(|&blob| self.release(blob));
    }

    fn release(&mut self, blob: usize) {
        self.holders[blob] -= 1;
        if self.is_gone(blob) {
            self.freed = self.freed.saturating_add(self.input.blobs[blob].space);
        }
    }

    /// The space that would be freed if this model stayed.
    fn freed_without(&self, model: usize) -> Space {
        let model = &self.input.models[model];
        let blobs = model.blobs.iter().filter(|&&blob| self.is_gone(blob));
        let spaces = blobs.map(|&blob| self.input.blobs[blob].space);
        spaces.fold(self.freed.saturating_sub(model.own), Space::saturating_sub)
    }

    fn restore(&mut self, model: usize) {
        self.freed = self.freed_without(model);
        for &blob in &self.input.models[model].blobs {
            self.holders[blob] += 1;
        }
    }

    fn is_gone(&self, blob: usize) -> bool {
        self.holders[blob] == 0 && !self.input.blobs[blob].busy
    }

    fn blobs(&self) -> Vec<usize> {
        (0..self.holders.len()).filter(|&blob| self.is_gone(blob)).collect()
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
