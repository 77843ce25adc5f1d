//! A model's flight: everything between "this revision is wanted" and "it
//! stands complete in the cache".

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{TryStreamExt, stream};

use super::Inner;
use super::durability::Unsynced;
use super::flight::Ticket;
use super::models::CachedModel;
use super::progress::{FillProgress, Phase};
use crate::blocking::blocking;
use crate::download::{Engine, Progress, Staging};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{BlobId, Manifest, ManifestFile};
use crate::oci::{Bucket, ObjectName};

/// Blobs of one model that download side by side. Requests are limited by the
/// engine; this only bounds tasks for models of many thousand files.
const BLOBS_AT_ONCE: usize = 64;

/// Fills the cache with one model.
pub(super) async fn fill(
    inner: Arc<Inner>,
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
    tokio::select! {
        done = work => done,
        () = ticker => Err(Error::internal("a clock stopped")),
    }
}

async fn steps(
    inner: &Arc<Inner>,
    engine: &Engine,
    manifest: &Arc<Manifest>,
    title: &str,
    progress: &Arc<FillProgress>,
) -> Result<CachedModel> {
    let _slot = inner
        .model_slots
        .acquire()
        .await
        .map_err(|_| Error::internal("the download slots are closed"))?;
    progress.enter(Phase::Checking);
    // Somebody else's flight may have ended between the caller's look and the
    // start of this one; and a suspect of an earlier process may be whole.
    let found = {
        let (inner, key) = (Arc::clone(inner), manifest.key());
        blocking(move || inner.models.check(&key, &inner.blobs)).await?
    };
    if let Some(model) = found {
        return Ok(model);
    }
    let missing = missing(inner, manifest).await?;
    let reservation = {
        let (inner, title) = (Arc::clone(inner), title.to_owned());
        let blobs: Vec<_> = missing.iter().map(|file| (file.blob.clone(), file.size)).collect();
        let inodes = manifest.inodes().saturating_add(2);
        blocking(move || inner.ledger.reserve(&title, &blobs, inodes)).await?
    };
    let to_come: u64 = missing.iter().map(|file| file.size).fold(0, u64::saturating_add);
    progress.start(manifest.bytes(), manifest.bytes().saturating_sub(to_come));
    if !missing.is_empty() {
        tracing::info!(
            model = title,
            revision = manifest.revision.as_str(),
            objects = missing.len(),
            bytes = to_come,
            "downloading"
        );
        inner.metrics.downloads_in_flight.inc();
        let _counted = InFlight(inner);
        stream::iter(missing.iter().map(Ok))
            .try_for_each_concurrent(BLOBS_AT_ONCE, |file| async {
                let mut ticket = join_blob(inner, engine, manifest, file);
                progress.add_part(ticket.shared_progress());
                ticket.landed().await
            })
            .await
            .map_err(|error| error.context(format!("downloading {title}")))?;
    }
    progress.enter(Phase::Finishing);
    drop(reservation);
    commit(inner, manifest).await
}

struct InFlight<'a>(&'a Inner);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.metrics.downloads_in_flight.dec();
    }
}

/// The files whose blobs have to be downloaded, each blob once, small ones
/// first: a loader starts with the configuration and the tokenizer.
async fn missing(inner: &Arc<Inner>, manifest: &Arc<Manifest>) -> Result<Vec<ManifestFile>> {
    let (inner, manifest) = (Arc::clone(inner), Arc::clone(manifest));
    blocking(move || {
        let mut seen = HashSet::new();
        let mut missing = Vec::new();
        for file in manifest.files.iter().filter(|file| seen.insert(file.blob.clone())) {
            let there = inner.blobs.find(&file.blob)?.is_some_and(|blob| blob.size == file.size);
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
    inner: &Arc<Inner>,
    engine: &Engine,
    manifest: &Arc<Manifest>,
    file: &ManifestFile,
) -> Ticket<Progress, ()> {
    let id = file.blob.clone();
    let (inner_, engine, manifest, file) =
        (Arc::clone(inner), engine.clone(), Arc::clone(manifest), file.clone());
    inner.blob_flights.join(id, Progress::default(), move |progress| {
        fetch_blob(inner_, engine, manifest, file, progress)
    })
}

async fn fetch_blob(
    inner: Arc<Inner>,
    engine: Engine,
    manifest: Arc<Manifest>,
    file: ManifestFile,
    progress: Arc<Progress>,
) -> Result<()> {
    let id: BlobId = file.blob.clone();
    // Two models may share a blob; the second flight of it finds it done.
    let known = {
        let (inner, id) = (Arc::clone(&inner), id.clone());
        blocking(move || inner.blobs.find(&id)).await?
    };
    if known.is_some_and(|blob| blob.size == file.size) {
        return Ok(());
    }
    let source = &manifest.source;
    let bucket = Arc::new(Bucket::new(source.namespace.as_str(), source.bucket.as_str()));
    let name = manifest.object_name(&file);
    let staging = Staging { data: inner.layout.part(&id), journal: inner.layout.journal(&id) };
    let object = ObjectName::new(bucket, name.clone());
    let downloaded = engine.download(object, file.size, &file.etag, staging, progress).await;
    let verified = match downloaded {
        Err(error) if error.kind() == ErrorKind::Changed => {
            // Nobody can ask for this version again, and its blocks are taken.
            blocking(move || inner.blobs.abandon(&id)).await?;
            return Err(error);
        }
        other => other?,
    };
    blocking(move || {
        inner.blobs.commit(&id, &name, file.size, verified)?;
        inner.note_content(&manifest, &file, verified.check)
    })
    .await
}

async fn commit(inner: &Arc<Inner>, manifest: &Arc<Manifest>) -> Result<CachedModel> {
    let (inner, manifest) = (Arc::clone(inner), Arc::clone(manifest));
    blocking(move || {
        let model = inner.models.commit(&manifest)?;
        inner.make_durable(&model);
        Ok(model)
    })
    .await
}

impl Inner {
    /// Hands a complete model to the task that syncs it, if it needs that.
    pub(super) fn make_durable(&self, model: &CachedModel) {
        if self.models.is_durable(&model.key) {
            return;
        }
        let blobs = model.manifest.files.iter().map(|file| &file.blob);
        let blobs = blobs.filter(|id| !self.blobs.is_durable(id)).cloned().collect();
        self.syncer.enqueue(Unsynced { model: model.key.clone(), blobs });
    }
}
