//! Decides when a running request must give its permit to a waiting one.
//!
//! A request that has waited for [`PATIENCE`] preempts one
//!
//! - that is downloaded ahead, if a pod waits for the other;
//! - of a tenant that has at least two requests more than the other's, or, in
//!   the same tenant, of such a model: so each gets its share soon, even where
//!   ranges take minutes, and permits do not go back and forth;
//! - that receives next to nothing, if its own bucket is not slow, while its
//!   tenant (in the same tenant its model) has fewer, or slow requests hold more
//!   than half of all permits.
//!
//! A request from a slow bucket preempts only another slow one.
//! A request that gives way because it is slow marks its bucket as slow for a
//! while: that bucket then has fewer requests at once and comes after the others.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::{LimiterState, LimiterTurns, ObjectQueue, PATIENCE, Rank};
use crate::download::fair_share::FairShare;
use crate::model::Tenant;

/// A waiting request, and whose it is.
struct PreemptionCandidate {
    line: u64,
    rank: Rank,
    share: FairShare,
    tenant: Tenant,
}

impl LimiterState {
    /// Asks requests to give way, a few at a time.
    pub(super) fn preempt(&mut self, now: Instant) {
        let mut after = self.standings.clone();
        let mut leaving = 0;
        for running in self.running.values().filter(|running| running.leaves) {
            after.end(&running.share, &running.tenant);
            leaving += 1;
        }
        let mut placed: HashMap<u64, usize> = HashMap::new();
        for _ in leaving..(self.most / 4).max(1) {
            let mut long_waiting = self.long_waiting(&after, &placed, now).into_iter();
            let found = long_waiting.find_map(|next| Some((self.victim(&after, &next)?, next)));
            let Some((leaving, next)) = found else { return };
            self.ask_to_give_way(leaving, &mut after, now);
            after.begin(&next.share, &next.tenant);
            *placed.entry(next.line).or_default() += 1;
        }
    }

    /// Those that have waited long enough, the next one first.
    fn long_waiting(
        &self,
        after: &LimiterTurns,
        placed: &HashMap<u64, usize>,
        now: Instant,
    ) -> Vec<PreemptionCandidate> {
        let slow = self.slow_origins();
        let long_waiting = |line: &&ObjectQueue| {
            let placed = placed.get(&line.download.id).copied().unwrap_or_default();
            let waiting = line.waiting.get(placed);
            waiting.is_some_and(|waiting| now - waiting.since >= PATIENCE)
                && self.buckets.admits(&line.download.origin, placed, now)
        };
        let candidates = self.lines.values().filter(long_waiting).map(|line| {
            let (rank, (share, tenant)) = self.rank(after, &line.download, &slow, now);
            PreemptionCandidate { line: line.download.id, rank, share, tenant }
        });
        let mut candidates: Vec<PreemptionCandidate> = candidates.collect();
        candidates.sort_by_key(|candidate| candidate.rank);
        candidates
    }

    /// The request that gives its permit to `next`: a slow one first, then the last
    /// one of the tenant and of the model that have the most.
    fn victim(&self, after: &LimiterTurns, next: &PreemptionCandidate) -> Option<u64> {
        let (ahead, slow) = (next.rank.0, next.rank.1);
        let (their_tenant, their_share) = after.of(&next.share, &next.tenant);
        let slow_running = self.running.values().filter(|one| !one.leaves && one.flow.is_slow());
        let too_many_slow = slow_running.count() > self.buckets.slow_limit();
        let staying = self.running.iter().filter(|(_, running)| !running.leaves);
        let leaving = staying.filter_map(|(id, running)| {
            let (of_tenant, of_share) = after.of(&running.share, &running.tenant);
            let urgent = running.share.is_urgent();
            let (mine, theirs) = if running.tenant == next.tenant {
                (of_share.running, their_share.running)
            } else {
                (of_tenant.running, their_tenant.running)
            };
            let same = running.share.id() == next.share.id();
            let is_slow = running.flow.is_slow();
            let more = !same && theirs + 1 < mine && (is_slow || !slow);
            let idle = is_slow && !slow && (theirs < mine || too_many_slow);
            let gives_way = if urgent == ahead { !urgent } else { more || idle };
            gives_way.then_some((is_slow, !urgent, of_tenant.running, of_share.running, *id))
        });
        leaving.max().map(|(.., id)| id)
    }

    fn ask_to_give_way(&mut self, id: u64, after: &mut LimiterTurns, now: Instant) {
        let Some(running) = self.running.get_mut(&id) else { return };
        running.leaves = true;
        running.asked.notify_one();
        after.end(&running.share, &running.tenant);
        if running.flow.is_slow() {
            let origin = Arc::clone(&running.origin);
            self.buckets.slow(&origin, now);
        }
    }
}
