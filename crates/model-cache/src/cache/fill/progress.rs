//! The progress of a model, as pods' events and `Aborted` answers show it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{Span, span};

use crate::cache::space::shortfall::Shortfall;
use crate::download::{Check, FairShare, Interest, ObjectProgress};
use crate::model::{Manifest, duration_text, progress_text, size_text};
use crate::sync::lock;
use crate::trace;

/// The window over which the rate is measured. It is short, so that the rate is
/// current.
const WINDOW: Duration = Duration::from_secs(15);

/// The phase of a model's flight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for a slot (`download.maxModels`).
    #[default]
    Waiting,
    /// Waiting for a slot again, after it yielded its slot to another model.
    Yielded,
    /// Waiting for space.
    WaitingForSpace,
    /// Checking what the cache already has.
    Checking,
    /// Downloading.
    Downloading,
    /// All bytes have arrived; the tree is being built.
    Finishing,
}

/// Progress of one blob, shared by the models that need it.
#[derive(Debug)]
pub(in crate::cache) struct BlobProgress {
    /// The bytes so far.
    pub(in crate::cache) progress: Arc<ObjectProgress>,
    /// The models that wait for it.
    pub(in crate::cache) demand: Interest,
    check: OnceLock<Check>,
}

impl BlobProgress {
    pub(in crate::cache) fn new(share: FairShare) -> Self {
        Self { progress: Arc::default(), demand: Interest::of(share), check: OnceLock::new() }
    }

    /// Records how the download was verified. Later calls are ignored.
    pub(in crate::cache) fn verified(&self, check: Check) {
        let _ = self.check.set(check);
    }

    /// How the download was verified, once it is.
    pub(in crate::cache) fn check(&self) -> Option<Check> {
        self.check.get().copied()
    }
}

/// Downloaded files that no checksum could verify, since the part sizes of their
/// objects are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unverified {
    /// The number of such files.
    pub files: usize,
    /// The path of one of them.
    pub example: String,
}

/// Progress of one model, shared with all waiters.
#[derive(Debug)]
pub struct FillProgress {
    id: String,
    /// The span of the flight, once it has begun.
    span: OnceLock<span::Id>,
    title: String,
    manifest: Option<Arc<Manifest>>,
    state: Mutex<ProgressState>,
    /// The shortfall, while the model waits for space.
    shortfall: watch::Sender<Option<Arc<Shortfall>>>,
    /// Notified when a caller asks whether there is space now.
    asked: Notify,
    share: FairShare,
}

#[derive(Debug, Default)]
struct ProgressState {
    phase: Phase,
    total: u64,
    /// Bytes that were in the cache before.
    cached: u64,
    parts: Vec<Arc<ObjectProgress>>,
    samples: VecDeque<(Instant, u64)>,
    unverified: Unverified,
}

/// A snapshot of the progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The present phase.
    pub phase: Phase,
    /// Bytes in the cache.
    pub done: u64,
    /// Bytes of the model.
    pub total: u64,
    /// Bytes per second, once it is known.
    pub rate: Option<u64>,
}

impl FillProgress {
    pub(in crate::cache) fn new(manifest: Option<Arc<Manifest>>, share: FairShare) -> Self {
        let (shortfall, _) = watch::channel(None);
        Self {
            id: trace::id(),
            span: OnceLock::new(),
            title: manifest.as_ref().map_or_else(String::new, |all| all.source.title()),
            manifest,
            state: Mutex::default(),
            shortfall,
            asked: Notify::new(),
            share,
        }
    }

    /// The id of the flight, for its own log lines and those of its waiters.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The span of the flight, to which those of its waiters are linked.
    pub fn span(&self) -> Option<span::Id> {
        self.span.get().cloned()
    }

    /// Records the span of the flight. Later calls are ignored.
    pub(in crate::cache) fn runs_in(&self, span: &Span) {
        if let Some(id) = span.id() {
            let _ = self.span.set(id);
        }
    }

    /// The model's name for people.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The manifest of the model.
    pub(in crate::cache) fn manifest(&self) -> Option<Arc<Manifest>> {
        self.manifest.clone()
    }

    /// The model's fair share of the downloads.
    pub(in crate::cache) fn share(&self) -> &FairShare {
        &self.share
    }

    /// Waits until the model is short of space, and returns the shortfall. One that was
    /// found before this call does not count. Cancellation safe.
    pub async fn short_of_space(&self) -> Arc<Shortfall> {
        let asked = Instant::now();
        self.asked.notify_one();
        let mut shortfall = self.shortfall.subscribe();
        loop {
            let found = shortfall.borrow_and_update().clone();
            if let Some(found) = found.filter(|found| found.at >= asked) {
                return found;
            }
            if shortfall.changed().await.is_err() {
                // The sender is this value itself.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Records a shortfall, or its end.
    pub(in crate::cache) fn short(&self, shortfall: Option<Shortfall>) {
        if shortfall.is_some() {
            self.enter(Phase::WaitingForSpace);
        }
        self.shortfall.send_replace(shortfall.map(Arc::new));
    }

    /// Waits until a caller asks again. Cancellation safe.
    pub(in crate::cache) async fn asked_again(&self) {
        self.asked.notified().await;
    }

    /// Counts a file that no checksum could verify.
    pub(in crate::cache) fn add_unverified(&self, path: &str) {
        let unverified = &mut self.lock().unverified;
        if unverified.files == 0 {
            path.clone_into(&mut unverified.example);
        }
        unverified.files += 1;
    }

    /// Returns the files that were downloaded unverified; `None` if there are none.
    pub fn unverified(&self) -> Option<Unverified> {
        Some(self.lock().unverified.clone()).filter(|unverified| unverified.files > 0)
    }

    pub(in crate::cache) fn enter(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    pub(in crate::cache) fn start(&self, total: u64, cached: u64) {
        let mut state = self.lock();
        (state.phase, state.total, state.cached) = (Phase::Downloading, total, cached);
        state.parts.clear();
    }

    /// Records that the model waits for a slot again. The progress of single files is
    /// dropped meanwhile.
    pub(in crate::cache) fn yield_slot(&self) {
        let mut state = self.lock();
        (state.phase, state.cached) = (Phase::Yielded, state.done());
        state.parts = Vec::new();
    }

    pub(in crate::cache) fn add_part(&self, part: Arc<ObjectProgress>) {
        self.lock().parts.push(part);
    }

    /// Records a sample for the rate; called once a second.
    pub(in crate::cache) fn sample(&self) {
        let mut state = self.lock();
        let (now, done) = (Instant::now(), state.done());
        state.samples.push_back((now, done));
        while state.samples.front().is_some_and(|(then, _)| now - *then > WINDOW) {
            state.samples.pop_front();
        }
    }

    /// Returns the present progress.
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
        lock(&self.state)
    }
}

impl ProgressState {
    fn done(&self) -> u64 {
        let parts = self.parts.iter().map(|part| part.done());
        parts.fold(self.cached, u64::saturating_add).min(self.total)
    }
}

impl Snapshot {
    /// Returns the progress as text, such as
    /// `downloading models/x/ from b: 41.2 of 140 GiB (29 %), 1.1 GiB/s, about 1m30s left`.
    pub fn text(&self, title: &str) -> String {
        match self.phase {
            Phase::Waiting => {
                format!("{title} waits for another download to end (download.maxModels)")
            }
            Phase::Yielded => {
                let progress = progress_text(self.done, self.total);
                format!(
                    "{title} yielded its slot to another model (download.maxModels), since it \
                     made no progress or its namespace had the most slots; it will resume in \
                     turn: {progress}"
                )
            }
            Phase::WaitingForSpace => format!("{title}: waiting for space in the cache"),
            Phase::Checking => format!("{title}: checking what the cache has of it"),
            Phase::Finishing => {
                format!("{title}: all {} downloaded, building the tree", size_text(self.total))
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

    /// Estimates the remaining time at the present rate.
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
    fn the_text_is_as_documented() {
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
    fn a_stalled_download_is_shown_as_stalled() {
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
