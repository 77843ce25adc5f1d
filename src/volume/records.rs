//! A bounded record of provisioned volumes, in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::{Error, ErrorKind, Result};
use crate::model::RequestDigest;
use crate::sync::lock;

/// How a volume was provisioned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeRecord {
    /// Digest of the request, before the claim's annotations were read: they may
    /// change, and the volume does not.
    pub(super) asked: RequestDigest,
    /// Digest of its context.
    pub(super) digest: RequestDigest,
    /// The prefix after the expansion of variables.
    pub(super) prefix: String,
    /// The capacity in the answer.
    pub(super) capacity_bytes: u64,
}

/// The most recently used volumes, by their ids.
#[derive(Clone)]
pub(super) struct Records {
    most: usize,
    state: Arc<Mutex<RecordsState>>,
}

#[derive(Default)]
struct RecordsState {
    by_id: HashMap<String, (u64, VolumeRecord)>,
    /// The least recently used first.
    by_use: BTreeMap<u64, String>,
    uses: u64,
    busy: HashSet<String>,
}

/// The exclusive right to work on a volume; ends when dropped.
pub(super) struct VolumeLock {
    records: Records,
    id: String,
}

impl Records {
    /// Creates a record of at most `most` volumes.
    pub(super) fn new(most: usize) -> Self {
        Self { most, state: Arc::default() }
    }

    /// Takes the right to work on a volume; `InProgress` while another call has it.
    pub(super) fn enter(&self, id: &str) -> Result<VolumeLock> {
        if self.lock().busy.insert(id.to_owned()) {
            return Ok(VolumeLock { records: self.clone(), id: id.to_owned() });
        }
        let text = format!("another call is running for volume {id}; the call will be retried");
        Err(Error::new(ErrorKind::InProgress, text))
    }

    /// The record of a volume, which counts as used now.
    pub(super) fn get(&self, id: &str) -> Option<VolumeRecord> {
        let mut state = self.lock();
        let record = state.by_id.get(id)?.1.clone();
        state.put(id, record.clone());
        Some(record)
    }

    fn lock(&self) -> MutexGuard<'_, RecordsState> {
        lock(&self.state)
    }
}

impl VolumeLock {
    /// Records the volume, and forgets the least recently used ones beyond the limit.
    pub(super) fn remember(&self, record: VolumeRecord) {
        let mut state = self.records.lock();
        state.put(&self.id, record);
        while state.by_id.len() > self.records.most {
            let Some((_, oldest)) = state.by_use.pop_first() else { break };
            state.by_id.remove(&oldest);
        }
    }

    /// Forgets the volume.
    pub(super) fn forget(&self) {
        let mut state = self.records.lock();
        if let Some((used, _)) = state.by_id.remove(&self.id) {
            state.by_use.remove(&used);
        }
    }
}

impl Drop for VolumeLock {
    fn drop(&mut self) {
        self.records.lock().busy.remove(&self.id);
    }
}

impl RecordsState {
    fn put(&mut self, id: &str, record: VolumeRecord) {
        self.uses += 1;
        if let Some((used, _)) = self.by_id.insert(id.to_owned(), (self.uses, record)) {
            self.by_use.remove(&used);
        }
        self.by_use.insert(self.uses, id.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(capacity_bytes: u64) -> VolumeRecord {
        let digest = RequestDigest::of_fields("test", std::iter::empty());
        VolumeRecord { asked: digest.clone(), digest, prefix: String::new(), capacity_bytes }
    }

    #[test]
    fn the_least_recently_used_is_forgotten_first() {
        let records = Records::new(2);
        records.enter("a").unwrap().remember(record(1));
        records.enter("b").unwrap().remember(record(2));
        assert_eq!(records.get("a"), Some(record(1)));
        records.enter("c").unwrap().remember(record(3));
        assert_eq!(records.get("b"), None);
        assert_eq!(records.get("a"), Some(record(1)));
        assert_eq!(records.get("c"), Some(record(3)));
    }

    #[test]
    fn a_new_record_replaces_the_old_one_and_can_be_forgotten() {
        let records = Records::new(2);
        let busy = records.enter("a").unwrap();
        for capacity in 0..10 {
            busy.remember(record(capacity));
        }
        assert_eq!(records.get("a"), Some(record(9)));
        busy.forget();
        busy.forget();
        assert_eq!(records.get("a"), None);
        assert!(records.lock().by_use.is_empty());
    }

    #[test]
    fn a_second_call_on_a_volume_is_in_progress() {
        let records = Records::new(2);
        let busy = records.enter("a").unwrap();
        let error = records.enter("a").map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InProgress);
        records.enter("b").unwrap();
        drop(busy);
        records.enter("a").unwrap();
    }
}
