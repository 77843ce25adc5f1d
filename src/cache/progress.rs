//! How far a model is: what pods' events and the Aborted answers say.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::shortfall::Shortfall;
use crate::download::{Check, FairShare, Interest, ObjectProgress};
use crate::model::{Manifest, duration_text, progress_text, size_text};
use crate::trace;

/// The rate is that of the last seconds, so that it follows what happens now.
const WINDOW: Duration = Duration::from_secs(15);

/// What a model's flight is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Waiting until fewer models download (`download.maxModels`).
    #[default]
    Waiting,
    /// Waiting for a place again, which another model got meanwhile.
    GaveWay,
    /// Waiting until there is space.
    WaitingForSpace,
    /// Looking at what the cache already has.
    Checking,
    /// Downloading.
    Downloading,
    /// All bytes are there; the tree is built.
    Finishing,
}

/// Progress of one blob, shared by the models that have it.
#[derive(Debug)]
pub(super) struct BlobProgress {
    /// Its bytes.
    pub(super) progress: Arc<ObjectProgress>,
    /// The models that it is downloaded for.
    pub(super) demand: Interest,
    check: OnceLock<Check>,
}

impl BlobProgress {
    pub(super) fn new(share: FairShare) -> Self {
        Self { progress: Arc::default(), demand: Interest::of(share), check: OnceLock::new() }
    }

    /// Records how the download was verified. Later calls are ignored.
    pub(super) fn verified(&self, check: Check) {
        let _ = self.check.set(check);
    }

    /// How the download was verified, once it is.
    pub(super) fn check(&self) -> Option<Check> {
        self.check.get().copied()
    }
}

/// Files that were downloaded and whose content no checksum could prove, since
/// the sizes of their objects' parts are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unverified {
    /// How many.
    pub files: usize,
    /// The path of one of them.
    pub example: String,
}

/// Progress of one model, shared with everybody who waits for it.
#[derive(Debug)]
pub struct FillProgress {
    id: String,
    manifest: Option<Arc<Manifest>>,
    state: Mutex<ProgressState>,
    /// What keeps it from going on, while there is no space.
    shortage: watch::Sender<Option<Arc<Shortfall>>>,
    /// Somebody asks whether there is space by now.
    asked: Notify,
    share: FairShare,
}

#[derive(Debug, Default)]
struct ProgressState {
    phase: Phase,
    total: u64,
    /// Bytes that the cache had before.
    cached: u64,
    parts: Vec<Arc<ObjectProgress>>,
    samples: VecDeque<(Instant, u64)>,
    unverified: Unverified,
}

/// The progress at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// What is being done.
    pub phase: Phase,
    /// Bytes that are there.
    pub done: u64,
    /// Bytes of the model.
    pub total: u64,
    /// Bytes per second, once it can be told.
    pub rate: Option<u64>,
}

impl FillProgress {
    pub(super) fn new(manifest: Option<Arc<Manifest>>, share: FairShare) -> Self {
        let (shortage, _) = watch::channel(None);
        Self {
            id: trace::id(),
            manifest,
            state: Mutex::default(),
            shortage,
            asked: Notify::new(),
            share,
        }
    }

    /// The id of the flight, in its own lines of the log and in those of who waits for it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is brought in.
    pub(super) fn manifest(&self) -> Option<Arc<Manifest>> {
        self.manifest.clone()
    }

    /// The model's share of what the node downloads.
    pub(super) fn share(&self) -> &FairShare {
        &self.share
    }

    /// Returns when the model waits for space, as of now or later: an answer
    /// that somebody else got before is asked for again. Cancellation safe.
    pub async fn short_of_space(&self) -> Arc<Shortfall> {
        let asked = Instant::now();
        self.asked.notify_one();
        let mut shortage = self.shortage.subscribe();
        loop {
            let found = shortage.borrow_and_update().clone();
            if let Some(found) = found.filter(|found| found.at >= asked) {
                return found;
            }
            if shortage.changed().await.is_err() {
                // The sender is this value itself.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Notes that there is no space, or that there is again.
    pub(super) fn short(&self, shortage: Option<Shortfall>) {
        if shortage.is_some() {
            self.enter(Phase::WaitingForSpace);
        }
        self.shortage.send_replace(shortage.map(Arc::new));
    }

    /// Returns when somebody asks again. Cancellation safe.
    pub(super) async fn asked_again(&self) {
        self.asked.notified().await;
    }

    /// Counts a file whose content no checksum could prove.
    pub(super) fn add_unverified(&self, path: &str) {
        let unverified = &mut self.lock().unverified;
        if unverified.files == 0 {
            path.clone_into(&mut unverified.example);
        }
        unverified.files += 1;
    }

    /// What was downloaded unverified; `None` where nothing was.
    pub fn unverified(&self) -> Option<Unverified> {
        Some(self.lock().unverified.clone()).filter(|unverified| unverified.files > 0)
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    pub(super) fn start(&self, total: u64, cached: u64) {
        let mut state = self.lock();
        (state.phase, state.total, state.cached) = (Phase::Downloading, total, cached);
        state.parts.clear();
    }

    /// The model waits for a slot again; nothing is noted of its files meanwhile.
    pub(super) fn give_way(&self) {
        let mut state = self.lock();
        (state.phase, state.cached) = (Phase::GaveWay, state.done());
        state.parts = Vec::new();
    }

    pub(super) fn add_part(&self, part: Arc<ObjectProgress>) {
        self.lock().parts.push(part);
    }

    /// Notes where it stands; called once a second.
    pub(super) fn sample(&self) {
        let mut state = self.lock();
        let (now, done) = (Instant::now(), state.done());
        state.samples.push_back((now, done));
        while state.samples.front().is_some_and(|(then, _)| now - *then > WINDOW) {
            state.samples.pop_front();
        }
    }

    /// Where it stands.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let done = state.done();
        let rate = state.samples.front().and_then(|(then, before)| {
            let elapsed = then.elapsed();
            let gained = u128::from(done.checked_sub(*before)?);
            let rate = gained * 1000 / elapsed.as_millis().max(1);
            (elapsed >= Duration::from_secs(1)).then(|| u64::try_from(rate).unwrap_or(u64::MAX))
        });
        Snapshot { phase: state.phase, done, total: state.total, rate }
    }

    fn lock(&self) -> MutexGuard<'_, ProgressState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProgressState {
    fn done(&self) -> u64 {
        let parts = self.parts.iter().map(|part| part.done());
        parts.fold(self.cached, u64::saturating_add).min(self.total)
    }
}

impl Snapshot {
    /// `downloading models/x/ from b: 41.2 of 140 GiB (29 %), 1.1 GiB/s, about 1m30s left`.
    pub fn text(&self, title: &str) -> String {
        match self.phase {
            Phase::Waiting => {
                format!("{title} waits until fewer models download (download.maxModels)")
            }
            Phase::GaveWay => {
                let progress = progress_text(self.done, self.total);
                format!(
                    "{title} gave its place to another model (download.maxModels), since it made \
                     no progress or its namespace had the most; it goes on in turn: {progress}"
                )
            }
            Phase::WaitingForSpace => format!("{title}: waiting for space in the cache"),
            Phase::Checking => format!("{title}: looking at what the cache has of it"),
            Phase::Finishing => {
                format!("{title}: all {} are here, building the tree", size_text(self.total))
            }
            Phase::Downloading => {
                let progress = progress_text(self.done, self.total);
                let pace = match (self.rate, self.left()) {
                    (Some(rate), Some(left)) => {
                        format!(", {}/s, about {} left", size_text(rate), duration_text(left))
                    }
                    (Some(_), None) => ", stalled for the last seconds".to_owned(),
                    (None, _) => String::new(),
                };
                format!("downloading {title}: {progress}{pace}")
            }
        }
    }

    /// The time left at the rate of now.
    pub fn left(&self) -> Option<Duration> {
        let rate = self.rate.filter(|rate| *rate > 0)?;
        Some(Duration::from_secs(self.total.saturating_sub(self.done).div_ceil(rate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_text_is_the_contracts() {
        let snapshot = Snapshot {
            phase: Phase::Downloading,
            done: 44_238_163_149,
            total: 140 * GIB,
            rate: Some(1_181_116_007),
        };
        assert_eq!(
            snapshot.text("models/llama3-70b/ from ai-model-cache"),
            "downloading models/llama3-70b/ from ai-model-cache: 41.2 of 140 GiB (29 %), 1.1 GiB/s, \
             about 1m30s left"
        );
    }

    #[test]
    fn a_stalled_download_says_so() {
        let snapshot = Snapshot { phase: Phase::Downloading, done: 1, total: GIB, rate: Some(0) };
        assert!(snapshot.text("m").ends_with("stalled for the last seconds"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_that_of_the_last_seconds() {
        let progress = FillProgress::new(None, FairShare::urgent());
        let part = Arc::new(ObjectProgress::default());
        progress.start(1000 * GIB, 10 * GIB);
        progress.add_part(Arc::clone(&part));
        assert_eq!(progress.snapshot().rate, None, "nothing is known yet");
        for second in 0..60 {
            progress.sample();
            tokio::time::advance(Duration::from_secs(1)).await;
            part.add(if second < 40 { 5 * GIB } else { GIB });
        }
        let snapshot = progress.snapshot();
        assert_eq!(snapshot.rate, Some(GIB));
        assert_eq!(snapshot.done, (10 + 40 * 5 + 20) * GIB);
    }
}
