//! The flight of a model: everything from a resolved revision to a complete model
//! in the cache.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{TryStreamExt, stream};
use tracing::{Instrument as _, info_span};

use super::CacheFill;
use super::progress::{BlobProgress, FillProgress, Phase};
use super::slots::{Candidate, DownloadSlot};
use crate::blocking::blocking;
use crate::cache::space::admission::Admission;
use crate::cache::space::reservations::{BLOCK, SpaceRequest};
use crate::cache::space::shortfall::Shortfall;
use crate::cache::store::disk_space::Space;
use crate::cache::store::models::CachedModel;
use crate::download::{Check, Engine, FairShare, ObjectVersion, Origin};
use crate::error::{Error, ErrorKind, Result};
use crate::flight::Waiter;
use crate::model::{BlobId, Manifest, ManifestFile, progress_text};
use crate::source::{Bucket, ObjectName};
use crate::text::shown;
use crate::trace::STEP;

/// Blobs of one model that download concurrently. The engine limits requests; this
/// only bounds the tasks of a model with many thousand files.
const BLOBS_AT_ONCE: usize = 64;

/// From this many files on, a model is large: only one large model downloads at a
/// time.
const LARGE: usize = 20_000;

/// Longest interval between two attempts of a model that waits for space: other programs
/// free space without an announcement.
const SPACE_POLL: Duration = Duration::from_secs(5);

/// Shortest interval between them.
const SPACE_PAUSE: Duration = Duration::from_millis(200);

/// How long to wait for the flights of a model's other blobs, after one has failed.
const FLIGHTS_END: Duration = Duration::from_secs(5);

/// Adds one model to the cache.
pub(super) async fn fill(
    fill: Arc<CacheFill>,
    engine: Engine,
    manifest: Arc<Manifest>,
    progress: Arc<FillProgress>,
) -> Result<CachedModel> {
    let ticker = async {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            progress.sample();
        }
    };
    let work = steps(&fill, &engine, &manifest, &progress);
    let done = tokio::select! {
        done = work => done,
        () = ticker => Err(Error::internal("a timer ended")),
    };
    if let Err(error) = &done {
        tracing::warn!(%error, "model download failed");
    }
    done
}

async fn steps(
    fill: &Arc<CacheFill>,
    engine: &Engine,
    manifest: &Arc<Manifest>,
    progress: &Arc<FillProgress>,
) -> Result<CachedModel> {
    let mut warned = false;
    loop {
        match attempt(fill, engine, manifest, progress).await? {
            FillOutcome::Complete(model) => {
                if progress.share().is_urgent() {
                    fill.space.await_pod(&model);
                }
                return Ok(model);
            }
            FillOutcome::Retry => {}
            FillOutcome::NoSpace(shortfall) => {
                if !progress.share().is_urgent() {
                    // Only pods wait for space.
                    let error = shortfall.error();
                    progress.short(Some(*shortfall));
                    return Err(error);
                }
                // Repeated every few seconds, so warn only once.
                let error = shortfall.error_of_pod(None);
                match std::mem::replace(&mut warned, true) {
                    false => tracing::warn!("{error}"),
                    true => tracing::debug!("{error}"),
                }
                progress.short(Some(*shortfall));
                wait_for_space(fill, progress).await;
            }
        }
    }
}

enum FillOutcome {
    Complete(CachedModel),
    /// Space was freed for it; try again.
    Retry,
    /// It does not fit now.
    NoSpace(Box<Shortfall>),
}

/// Waits until there may be space: the cache released or deleted something, a
/// caller asked again, or time has passed for others to free some.
async fn wait_for_space(fill: &CacheFill, progress: &FillProgress) {
    tokio::select! {
        () = fill.store.space_announced() => {}
        () = progress.asked_again() => {}
        () = tokio::time::sleep(SPACE_POLL) => {}
    }
    // A hundred pods that ask at once cause one attempt.
    tokio::time::sleep(SPACE_PAUSE).await;
}

async fn attempt(
    fill: &Arc<CacheFill>,
    engine: &Engine,
    manifest: &Arc<Manifest>,
    progress: &Arc<FillProgress>,
) -> Result<FillOutcome> {
    let candidate = Candidate {
        share: progress.share().clone(),
        origin: origin(manifest),
        // Tracking each file of a download takes as much memory as the manifest.
        large: manifest.files.len() >= LARGE,
    };
    let slot = fill.slots.take(&candidate).instrument(info_span!(target: STEP, "slot")).await;
    let preparing = progress.share().own_work();
    if progress.snapshot().phase != Phase::WaitingForSpace {
        progress.enter(Phase::Checking);
    }
    // Another flight may have ended after the caller looked, and a suspect of an
    // earlier process may be intact.
    let (found, _held) = {
        let (fill, manifest) = (Arc::clone(fill), Arc::clone(manifest));
        blocking(move || {
            let held =
                fill.store.holds().blobs(manifest.files.iter().map(|file| file.blob.clone()));
            Ok((fill.store.check_model(&manifest.key())?, held))
        })
        .await?
    };
    if let Some(model) = found {
        return Ok(FillOutcome::Complete(model));
    }
    let missing = missing(fill, manifest).await?;
    let directories = u64::try_from(manifest.all_directories().len()).unwrap_or(u64::MAX);
    let wanted = SpaceRequest {
        subject: progress.title().to_owned(),
        missing: missing.iter().map(|file| (file.blob.clone(), file.size)).collect(),
        // The tree's files are links. Counted are its directories, and five more: its
        // root, the model's directory, the manifest, the summary and `durable`.
        tree: Space {
            bytes: directories.saturating_mul(BLOCK).saturating_add(manifest.stored_bytes()),
            inodes: directories.saturating_add(5),
        },
    };
    let admitted = {
        let (fill, wanted) = (Arc::clone(fill), wanted.clone());
        blocking(move || fill.space.admit(&wanted))
            .instrument(info_span!(target: STEP, "admission"))
            .await?
    };
    let reservation = match admitted {
        Admission::Granted(reservation) => reservation,
        Admission::Short(shortfall) => return Ok(FillOutcome::NoSpace(shortfall)),
    };
    progress.short(None);
    let to_come: u64 = missing.iter().map(|file| file.size).fold(0, u64::saturating_add);
    progress.start(manifest.bytes(), manifest.bytes().saturating_sub(to_come));
    drop(preparing);
    let fetching = Fetching { fill, engine, manifest, progress };
    let outcome = fetching.run(slot, &candidate, missing).await;
    drop(reservation);
    match outcome {
        Ok(model) => Ok(FillOutcome::Complete(model)),
        Err(error) if error.kind() == ErrorKind::NoSpace => {
            let done = progress.snapshot().done;
            wait_for_flights(fill, &wanted).await;
            make_room(fill, &wanted).await;
            let space = Arc::clone(&fill.space);
            let request = wanted.clone();
            if blocking(move || space.evict_for_quota(&request)).await? {
                return Ok(FillOutcome::Retry);
            }
            let cause = format!(
                "the disk ran full after {} of it ({}); that is kept",
                progress_text(done, manifest.bytes()),
                shown(error.message(), 300)
            );
            let fill = Arc::clone(fill);
            let shortfall = blocking(move || fill.space.cut_short(&wanted, cause)).await?;
            Ok(FillOutcome::NoSpace(Box::new(shortfall)))
        }
        Err(error) => Err(error),
    }
}

/// Returns the bucket that a model comes from.
fn origin(manifest: &Manifest) -> Arc<Origin> {
    let source = &manifest.source;
    let bucket = Bucket::new(source.namespace.as_str(), source.bucket.as_str());
    Arc::new(Origin { location: source.location.clone(), bucket })
}

/// The download of one model.
struct Fetching<'a> {
    fill: &'a Arc<CacheFill>,
    engine: &'a Engine,
    manifest: &'a Arc<Manifest>,
    progress: &'a Arc<FillProgress>,
}

impl Fetching<'_> {
    async fn transfer(&self, missing: &[ManifestFile]) -> Result<()> {
        let bytes = missing.iter().map(|file| file.size).fold(0, u64::saturating_add);
        let objects = missing.len();
        let span = info_span!(target: STEP, "transfer", objects, bytes);
        let Self { fill, engine, manifest, progress } = *self;
        download(fill, engine, manifest, missing, progress).instrument(span).await
    }

    /// Downloads and commits the model. When it must yield its slot it pauses, and
    /// keeps what has arrived and its reservation.
    async fn run(
        &self,
        mut slot: DownloadSlot,
        candidate: &Candidate,
        mut missing: Vec<ManifestFile>,
    ) -> Result<CachedModel> {
        let Self { fill, manifest, progress, .. } = *self;
        loop {
            let arrived = tokio::select! {
                biased;
                arrived = self.transfer(&missing) => Some(arrived?),
                () = slot.asked_to_yield() => None,
            };
            if arrived.is_some() {
                break;
            }
            tracing::info!("the download yields its slot to another model");
            progress.yield_slot();
            drop(missing);
            slot = fill.slots.take_again(candidate, slot).await;
            let _own = progress.share().own_work();
            missing = self::missing(fill, manifest).await?;
            let to_come: u64 = missing.iter().map(|file| file.size).fold(0, u64::saturating_add);
            progress.start(manifest.bytes(), manifest.bytes().saturating_sub(to_come));
        }
        let _own = progress.share().own_work();
        progress.enter(Phase::Finishing);
        let model = commit(fill, manifest).instrument(info_span!(target: STEP, "commit")).await;
        drop(slot);
        model
    }
}

async fn download(
    fill: &Arc<CacheFill>,
    engine: &Engine,
    manifest: &Arc<Manifest>,
    missing: &[ManifestFile],
    progress: &Arc<FillProgress>,
) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let bytes = missing.iter().map(|file| file.size).fold(0, u64::saturating_add);
    let (revision, objects) = (manifest.revision.as_str(), missing.len());
    tracing::info!(revision, objects, bytes, "downloading");
    let started = Instant::now();
    fill.metrics.downloads_in_flight.inc();
    let _counted = InFlight(fill);
    stream::iter(missing.iter().map(Ok))
        .try_for_each_concurrent(BLOBS_AT_ONCE, |file| async {
            let mut waiter = join_blob(fill, engine, manifest, file, progress.share());
            progress.add_part(Arc::clone(&waiter.progress().progress));
            waiter.completed().await?;
            if waiter.progress().check() == Some(Check::UnknownLayout) {
                progress.add_unverified(&file.path);
            }
            Ok(())
        })
        .await
        .map_err(|error: Error| error.context(format!("downloading {}", progress.title())))?;
    let seconds = started.elapsed().as_secs_f64();
    fill.metrics.download_duration.observe(seconds);
    tracing::info!(revision, objects, bytes, seconds, "downloaded");
    Ok(())
}

/// Releases the preallocated blocks of bytes that have not arrived, after the disk
/// ran full. Bytes that have arrived are kept, to be resumed.
///
/// A blob that another model downloads is left alone, since its file is being
/// written. So the release is itself a flight of the blob: no download of it can
/// begin meanwhile.
async fn make_room(fill: &Arc<CacheFill>, wanted: &SpaceRequest) {
    for (id, _) in &wanted.missing {
        let mut waiter = give_back(fill, id);
        // The failed flight is remembered for a moment, and its blob took the most.
        if waiter.joined() && waiter.is_over() {
            waiter.forgotten().await;
            waiter = give_back(fill, id);
        }
        if waiter.joined() {
            continue;
        }
        match waiter.completed().await {
            Err(error) if error.kind() != ErrorKind::InProgress => {
                tracing::warn!(%error, "releasing the preallocated blocks of a download failed");
            }
            _ => {}
        }
    }
}

fn give_back(fill: &CacheFill, id: &BlobId) -> Waiter<BlobProgress, ()> {
    let staging = fill.store.staging_of(id);
    let progress = BlobProgress::new(FairShare::background());
    fill.flights.blobs.join(id.clone(), progress, move |_| async move {
        blocking(move || match staging.data.exists() {
            true => staging.give_back_unwritten(),
            false => Ok(()),
        })
        .await?;
        // A caller that joined this flight wants the blob, which does not exist.
        let text = "the disk ran full; the download will be retried";
        Err(Error::new(ErrorKind::InProgress, text))
    })
}

/// Waits for the flights of the model's other blobs, which end soon after the one
/// that failed.
async fn wait_for_flights(fill: &CacheFill, wanted: &SpaceRequest) {
    let ended = async {
        for (id, _) in &wanted.missing {
            fill.flights.blobs.ended(id).await;
        }
    };
    // Those that another model waits for too may take longer.
    let _ = tokio::time::timeout(FLIGHTS_END, ended).await;
}

struct InFlight<'a>(&'a CacheFill);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.metrics.downloads_in_flight.dec();
    }
}

/// Lists the files whose blobs must be downloaded, each blob once, in the order in which
/// a loader opens them.
pub(in crate::cache) async fn missing(
    fill: &Arc<CacheFill>,
    manifest: &Arc<Manifest>,
) -> Result<Vec<ManifestFile>> {
    let (fill, manifest) = (Arc::clone(fill), Arc::clone(manifest));
    blocking(move || {
        let mut seen = HashSet::new();
        let mut missing = Vec::new();
        for file in manifest.files.iter().filter(|file| seen.insert(file.blob.clone())) {
            let there =
                fill.store.find_blob(&file.blob)?.is_some_and(|blob| blob.size == file.size);
            if !there && !fill.store.find_by_content(&manifest, file)? {
                missing.push(file.clone());
            }
        }
        missing.sort_by(ManifestFile::in_load_order);
        Ok(missing)
    })
    .await
}

fn join_blob(
    fill: &Arc<CacheFill>,
    engine: &Engine,
    manifest: &Arc<Manifest>,
    file: &ManifestFile,
    share: &FairShare,
) -> Waiter<BlobProgress, ()> {
    let id = file.blob.clone();
    let started = BlobProgress::new(share.clone());
    let waiter = fill.flights.blobs.join(id, started, |progress| {
        let (engine, manifest, file) = (engine.clone(), Arc::clone(manifest), file.clone());
        fetch_blob(Arc::clone(fill), engine, manifest, file, progress).in_current_span()
    });
    waiter.progress().demand.join(share);
    waiter
}

async fn fetch_blob(
    fill: Arc<CacheFill>,
    engine: Engine,
    manifest: Arc<Manifest>,
    file: ManifestFile,
    blob: Arc<BlobProgress>,
) -> Result<()> {
    let id: BlobId = file.blob.clone();
    let _counted = fill.space.extend_reservation(&id, file.size);
    // Two models may share a blob; the second flight finds it complete.
    let known = {
        let (fill, id) = (Arc::clone(&fill), id.clone());
        blocking(move || fill.store.find_blob(&id)).await?
    };
    if known.is_some_and(|blob| blob.size == file.size) {
        return Ok(());
    }
    let source = &manifest.source;
    let bucket = Arc::new(Bucket::new(source.namespace.as_str(), source.bucket.as_str()));
    let name = manifest.object_name(&file);
    let staging = fill.store.staging_of(&id);
    let object = ObjectVersion {
        name: ObjectName::new(bucket, name.clone()),
        size: file.size,
        etag: file.etag.clone(),
        md5: file.md5.clone(),
        position: manifest.position(&file),
    };
    let (demand, progress) = (blob.demand.clone(), Arc::clone(&blob.progress));
    let downloaded = engine.download(object, staging, demand, progress).await;
    let verified = match downloaded {
        Err(error) if error.kind() == ErrorKind::Changed => {
            // This version is gone from the bucket; free its blocks.
            blocking(move || fill.store.blobs().abandon(&id)).await?;
            return Err(error);
        }
        other => other?,
    };
    blob.verified(verified.check);
    blocking(move || fill.store.commit_blob(&manifest, &file, verified)).await
}

async fn commit(fill: &Arc<CacheFill>, manifest: &Arc<Manifest>) -> Result<CachedModel> {
    let (fill, manifest) = (Arc::clone(fill), Arc::clone(manifest));
    blocking(move || fill.store.commit_model(&manifest)).await
}
