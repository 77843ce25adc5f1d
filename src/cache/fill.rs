//! A model's flight: everything between "this revision is wanted" and "it
//! stands complete in the cache".

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{TryStreamExt, stream};
use tracing::Instrument as _;

use super::CacheInner;
use super::durability::Unsynced;
use super::flight::{MEMO, Waiter};
use super::models::CachedModel;
use super::policy::Space;
use super::progress::{BlobProgress, FillProgress, Phase};
use super::shortfall::Shortfall;
use super::slots::{Candidate, DownloadSlot};
use super::space::{BLOCK, SpaceRequest};
use crate::blocking::blocking;
use crate::download::{Check, Engine, FairShare, ObjectVersion, Origin, Staging};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{BlobId, Manifest, ManifestFile, progress_text, shown};
use crate::oci::{Bucket, ObjectName};

/// Blobs of one model that download side by side. Requests are limited by the
/// engine; this only bounds tasks for models of many thousand files.
const BLOBS_AT_ONCE: usize = 64;

/// Files of a model that is not downloaded beside another of that many.
const LARGE: usize = 20_000;

/// A model that waits for space looks at least this often whether there is.
const SPACE_POLL: Duration = Duration::from_secs(5);

/// And at most this often.
const SPACE_PAUSE: Duration = Duration::from_millis(200);

/// Looks, a fifth of [`MEMO`] apart, whether a failure is forgotten.
const MEMO_LOOKS: u32 = 20;

/// Fills the cache with one model.
pub(super) async fn fill(
    inner: Arc<CacheInner>,
    engine: Engine,
    manifest: Arc<Manifest>,
    title: String,
    progress: Arc<FillProgress>,
) -> Result<CachedModel> {
    let ticker = async {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            progress.sample();
        }
    };
    let work = steps(&inner, &engine, &manifest, &title, &progress);
    let done = tokio::select! {
        done = work => done,
        () = ticker => Err(Error::internal("a clock stopped")),
    };
    if let Err(error) = &done {
        tracing::warn!(%error, "the model did not come");
    }
    done
}

async fn steps(
    inner: &Arc<CacheInner>,
    engine: &Engine,
    manifest: &Arc<Manifest>,
    title: &str,
    progress: &Arc<FillProgress>,
) -> Result<CachedModel> {
    let mut told = false;
    loop {
        match attempt(inner, engine, manifest, title, progress).await? {
            FillOutcome::Stands(model) => {
                if progress.share().is_urgent() {
                    inner.await_pod(&model);
                }
                return Ok(model);
            }
            FillOutcome::Again => {}
            FillOutcome::Short(shortage) => {
                let error = shortage.error(title);
                if !progress.share().is_urgent() {
                    // Only pods wait for space: nobody misses this one yet.
                    return Err(error);
                }
                // Every few seconds it is looked at again.
                let error = shortage.error_of_pod(title, None);
                match std::mem::replace(&mut told, true) {
                    false => tracing::warn!("{error}"),
                    true => tracing::debug!("{error}"),
                }
                progress.short(Some(*shortage));
                wait_for_space(inner, progress).await;
            }
        }
    }
}

enum FillOutcome {
    Stands(CachedModel),
    /// Something made way for it.
    Again,
    /// There is no space for it now.
    Short(Box<Shortfall>),
}

/// Until there may be space: something was released or deleted here, somebody
/// asks again, or others may have tidied up.
async fn wait_for_space(inner: &CacheInner, progress: &FillProgress) {
    tokio::select! {
        () = inner.space_freed.notified() => {}
        () = progress.asked_again() => {}
        () = tokio::time::sleep(SPACE_POLL) => {}
    }
    // A hundred pods that ask at once cost one look.
    tokio::time::sleep(SPACE_PAUSE).await;
}

async fn attempt(
    inner: &Arc<CacheInner>,
    engine: &Engine,
    manifest: &Arc<Manifest>,
    title: &str,
    progress: &Arc<FillProgress>,
) -> Result<FillOutcome> {
    let candidate = Candidate {
        share: progress.share().clone(),
        origin: origin(manifest),
        // What is noted of each file while it comes is as much as its manifest.
        large: manifest.files.len() >= LARGE,
    };
    let slot = inner.model_slots.take(&candidate).await;
    let preparing = progress.share().own_work();
    if progress.snapshot().phase != Phase::WaitingForSpace {
        progress.enter(Phase::Checking);
    }
    // Somebody else's flight may have ended between the caller's look and the
    // start of this one; and a suspect of an earlier process may be whole.
    let (found, _held) = {
        let (inner, manifest) = (Arc::clone(inner), Arc::clone(manifest));
        blocking(move || {
            let held = inner.holds.blobs(manifest.files.iter().map(|file| file.blob.clone()));
            Ok((inner.check_model(&manifest.key())?, held))
        })
        .await?
    };
    if let Some(model) = found {
        return Ok(FillOutcome::Stands(model));
    }
    let missing = missing(inner, manifest).await?;
    let directories = u64::try_from(manifest.all_directories().len()).unwrap_or(u64::MAX);
    let wanted = SpaceRequest {
        missing: missing.iter().map(|file| (file.blob.clone(), file.size)).collect(),
        // The tree's files are links; directories are not, nor the tree's root,
        // the model's directory, its manifest, that one's summary and its mark.
        tree: Space {
            bytes: directories.saturating_mul(BLOCK).saturating_add(manifest.stored_bytes()),
            inodes: directories.saturating_add(5),
        },
    };
    let admitted = {
        let (inner, wanted) = (Arc::clone(inner), wanted.clone());
        blocking(move || inner.admit(&wanted)).await?
    };
    let reservation = match admitted {
        Ok(reservation) => reservation,
        Err(shortage) => return Ok(FillOutcome::Short(Box::new(shortage))),
    };
    progress.short(None);
    let to_come: u64 = missing.iter().map(|file| file.size).fold(0, u64::saturating_add);
    progress.start(manifest.bytes(), manifest.bytes().saturating_sub(to_come));
    drop(preparing);
    let fetching = Fetching { inner, engine, manifest, title, progress };
    let brought = fetching.in_turn(slot, &candidate, missing).await;
    drop(reservation);
    match brought {
        Ok(model) => Ok(FillOutcome::Stands(model)),
        Err(error) if error.kind() == ErrorKind::NoSpace => {
            let done = progress.snapshot().done;
            until_flights_end(inner, &wanted).await;
            make_room(inner, &wanted).await;
            let (evicting, wanted_) = (Arc::clone(inner), wanted.clone());
            if blocking(move || evicting.evict_unasked(&wanted_)).await? {
                return Ok(FillOutcome::Again);
            }
            let told = format!(
                "the disk ran full with {} of it there ({}); that is kept",
                progress_text(done, manifest.bytes()),
                shown(error.message(), 300)
            );
            let inner = Arc::clone(inner);
            let shortage = blocking(move || inner.cut_short(&wanted, told)).await?;
            Ok(FillOutcome::Short(Box::new(shortage)))
        }
        Err(error) => Err(error),
    }
}

/// Which bucket a model comes from.
fn origin(manifest: &Manifest) -> Arc<Origin> {
    let source = &manifest.source;
    let bucket = Bucket::new(source.namespace.as_str(), source.bucket.as_str());
    Arc::new(Origin { location: source.location.clone(), bucket })
}

/// The model whose bytes are fetched.
struct Fetching<'a> {
    inner: &'a Arc<CacheInner>,
    engine: &'a Engine,
    manifest: &'a Arc<Manifest>,
    title: &'a str,
    progress: &'a Arc<FillProgress>,
}

impl Fetching<'_> {
    /// Downloads and commits the model. While it has to give way to another one
    /// it downloads nothing; what has arrived is kept, and its space.
    async fn in_turn(
        &self,
        mut slot: DownloadSlot,
        candidate: &Candidate,
        mut missing: Vec<ManifestFile>,
    ) -> Result<CachedModel> {
        let Self { inner, engine, manifest, title, progress } = *self;
        loop {
            let arrived = tokio::select! {
                biased;
                arrived = download(inner, engine, manifest, &missing, title, progress) => {
                    Some(arrived?)
                }
                () = slot.asked_back() => None,
            };
            if arrived.is_some() {
                break;
            }
            tracing::info!("the download gives way to another model");
            progress.give_way();
            drop(missing);
            slot = inner.model_slots.take_again(candidate, slot).await;
            let _own = progress.share().own_work();
            missing = self::missing(inner, manifest).await?;
            let to_come: u64 = missing.iter().map(|file| file.size).fold(0, u64::saturating_add);
            progress.start(manifest.bytes(), manifest.bytes().saturating_sub(to_come));
        }
        let _own = progress.share().own_work();
        progress.enter(Phase::Finishing);
        let model = commit(inner, manifest).await;
        drop(slot);
        model
    }
}

async fn download(
    inner: &Arc<CacheInner>,
    engine: &Engine,
    manifest: &Arc<Manifest>,
    missing: &[ManifestFile],
    title: &str,
    progress: &Arc<FillProgress>,
) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let bytes = missing.iter().map(|file| file.size).fold(0, u64::saturating_add);
    let (revision, objects) = (manifest.revision.as_str(), missing.len());
    tracing::info!(revision, objects, bytes, "downloading");
    let started = Instant::now();
    inner.metrics.downloads_in_flight.inc();
    let _counted = InFlight(inner);
    stream::iter(missing.iter().map(Ok))
        .try_for_each_concurrent(BLOBS_AT_ONCE, |file| async {
            let mut ticket = join_blob(inner, engine, manifest, file, progress.share());
            progress.add_part(Arc::clone(&ticket.progress().progress));
            ticket.completed().await?;
            if ticket.progress().check() == Some(Check::UnknownLayout) {
                progress.add_unverified(&file.path);
            }
            Ok(())
        })
        .await
        .map_err(|error: Error| error.context(format!("downloading {title}")))?;
    let seconds = started.elapsed().as_secs_f64();
    inner.metrics.download_duration.observe(seconds);
    tracing::info!(revision, objects, bytes, seconds, "downloaded");
    Ok(())
}

/// After the disk ran full: gives back the blocks that were taken for bytes
/// which have not come. What has come stays, to be gone on with.
///
/// A blob that another model goes on with is left alone: its file is being
/// written. So the giving back is a flight of the blob itself, and nobody can
/// begin to write meanwhile.
async fn make_room(inner: &Arc<CacheInner>, wanted: &SpaceRequest) {
    for (id, _) in &wanted.missing {
        let mut ticket = give_back(inner, id);
        // The one that found the disk full is remembered for a moment, and it
        // took the most.
        for _ in 0..MEMO_LOOKS {
            if !(ticket.joined() && ticket.is_over()) {
                break;
            }
            drop(ticket);
            tokio::time::sleep(MEMO / 5).await;
            ticket = give_back(inner, id);
        }
        if ticket.joined() {
            continue;
        }
        match ticket.completed().await {
            Err(error) if error.kind() != ErrorKind::InProgress => {
                tracing::warn!(%error, "could not give back what a download had taken ahead");
            }
            _ => {}
        }
    }
}

fn give_back(inner: &CacheInner, id: &BlobId) -> Waiter<BlobProgress, ()> {
    let staging = inner.staging_of(id);
    let progress = BlobProgress::new(FairShare::background());
    inner.blob_flights.join(id.clone(), progress, move |_| async move {
        blocking(move || match staging.data.exists() {
            true => staging.give_back_unwritten(),
            false => Ok(()),
        })
        .await?;
        // Who joined wants the blob, which is not there.
        let text = "the disk ran full; the download is tried again";
        Err(Error::new(ErrorKind::InProgress, text))
    })
}

/// The other blobs' flights end soon after the one that failed.
async fn until_flights_end(inner: &CacheInner, wanted: &SpaceRequest) {
    let ours: HashSet<_> = wanted.missing.iter().map(|(id, _)| id).collect();
    for _ in 0..100 {
        if !inner.blob_flights.running().iter().any(|(id, _)| ours.contains(id)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

struct InFlight<'a>(&'a CacheInner);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.metrics.downloads_in_flight.dec();
    }
}

/// The files whose blobs have to be downloaded, each blob once, small ones
/// first: a loader starts with the configuration and the tokenizer.
pub(super) async fn missing(
    inner: &Arc<CacheInner>,
    manifest: &Arc<Manifest>,
) -> Result<Vec<ManifestFile>> {
    let (inner, manifest) = (Arc::clone(inner), Arc::clone(manifest));
    blocking(move || {
        let mut seen = HashSet::new();
        let mut missing = Vec::new();
        for file in manifest.files.iter().filter(|file| seen.insert(file.blob.clone())) {
            let there = inner.find_blob(&file.blob)?.is_some_and(|blob| blob.size == file.size);
            if !there && !inner.find_by_content(&manifest, file)? {
                missing.push(file.clone());
            }
        }
        missing.sort_by(|a, b| (a.size, &a.path).cmp(&(b.size, &b.path)));
        Ok(missing)
    })
    .await
}

fn join_blob(
    inner: &Arc<CacheInner>,
    engine: &Engine,
    manifest: &Arc<Manifest>,
    file: &ManifestFile,
    share: &FairShare,
) -> Waiter<BlobProgress, ()> {
    let id = file.blob.clone();
    let (inner_, engine, manifest, file) =
        (Arc::clone(inner), engine.clone(), Arc::clone(manifest), file.clone());
    let started = BlobProgress::new(share.clone());
    let ticket = inner.blob_flights.join(id, started, move |progress| {
        fetch_blob(inner_, engine, manifest, file, progress).in_current_span()
    });
    ticket.progress().demand.join(share);
    ticket
}

async fn fetch_blob(
    inner: Arc<CacheInner>,
    engine: Engine,
    manifest: Arc<Manifest>,
    file: ManifestFile,
    blob: Arc<BlobProgress>,
) -> Result<()> {
    let id: BlobId = file.blob.clone();
    let _counted = inner.ledger.go_on(&id, file.size);
    // Two models may share a blob; the second flight of it finds it done.
    let known = {
        let (inner, id) = (Arc::clone(&inner), id.clone());
        blocking(move || inner.find_blob(&id)).await?
    };
    if known.is_some_and(|blob| blob.size == file.size) {
        return Ok(());
    }
    let source = &manifest.source;
    let bucket = Arc::new(Bucket::new(source.namespace.as_str(), source.bucket.as_str()));
    let name = manifest.object_name(&file);
    let staging = inner.staging_of(&id);
    let object = ObjectVersion {
        name: ObjectName::new(bucket, name.clone()),
        size: file.size,
        etag: file.etag.clone(),
        md5: file.md5.clone(),
    };
    let (demand, progress) = (blob.demand.clone(), Arc::clone(&blob.progress));
    let downloaded = engine.download(object, staging, demand, progress).await;
    let verified = match downloaded {
        Err(error) if error.kind() == ErrorKind::Changed => {
            // Nobody can ask for this version again, and its blocks are taken.
            blocking(move || inner.blobs.abandon(&id)).await?;
            return Err(error);
        }
        other => other?,
    };
    blob.verified(verified.check);
    blocking(move || {
        inner.blobs.commit(&id, &name, file.size, verified)?;
        inner.note_content(&manifest, &file, verified.check)
    })
    .await
}

async fn commit(inner: &Arc<CacheInner>, manifest: &Arc<Manifest>) -> Result<CachedModel> {
    let (inner, manifest) = (Arc::clone(inner), Arc::clone(manifest));
    blocking(move || {
        let model = inner.models.commit(&manifest)?;
        inner.make_durable(&model, &manifest);
        // A torn one, and torn blobs, were put there to make way.
        inner.trash_filled.notify_one();
        Ok(model)
    })
    .await
}

impl CacheInner {
    fn staging_of(&self, id: &BlobId) -> Staging {
        Staging { data: self.layout.part(id), journal: self.layout.journal(id) }
    }

    /// Hands a complete model to the task that syncs it, if it needs that.
    pub(super) fn make_durable(&self, model: &CachedModel, manifest: &Manifest) {
        if self.models.is_durable(&model.key) {
            return;
        }
        let blobs = manifest.files.iter().map(|file| &file.blob);
        let blobs = blobs.filter(|id| !self.blobs.is_durable(id)).cloned().collect();
        self.syncer.enqueue(Unsynced::Model { model: model.key.clone(), blobs });
    }
}
