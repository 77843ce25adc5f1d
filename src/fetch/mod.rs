//! Downloads a model into a plain directory, without a cluster, with the same
//! engine: verified and resumable.
//!
//! All files are downloaded into `DIR/.oci-model-csi/` first, under the ids of
//! their object versions, and renamed into directory once all of them are complete: a
//! directory never mixes two revisions of a model. Files that were in the directory
//! before are never deleted, and overwritten only by an update: the model's own, if they differ.

mod directory;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::blocking::blocking;
use crate::download::{
    Check, Engine, FairShare, Interest, ObjectProgress, ObjectVersion, Staging, Verified,
};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Manifest, ManifestFile, ModelRequest, Revision};
use crate::resolve::{Changes, Resolver};
use crate::source::{Bucket, ObjectName, ObjectSource};
use crate::sync::lock;
use directory::{DirectoryClaim, FetchDirectory};

/// How many objects are downloaded concurrently.
const OBJECTS_AT_ONCE: usize = 64;

/// Result of a fetch.
#[derive(Debug, Clone)]
pub struct FetchReport {
    /// The revision in the directory.
    pub revision: Revision,
    /// Number of its files.
    pub files: usize,
    /// Total size of its files in bytes.
    pub bytes: u64,
    /// Bytes received over the network.
    pub received: u64,
    /// Number of files per kind of check that verified them.
    pub checks: BTreeMap<&'static str, usize>,
    /// Time from the first request to the last rename.
    pub elapsed: Duration,
    /// Warnings about the model.
    pub warnings: Vec<String>,
}

/// Progress of a fetch, for a progress bar.
#[derive(Debug, Default)]
pub struct FetchProgress {
    parts: std::sync::Mutex<(u64, Vec<Arc<ObjectProgress>>)>,
}

impl FetchProgress {
    /// Bytes done, and size of the model in bytes (0 while unknown).
    pub fn now(&self) -> (u64, u64) {
        let parts = self.lock();
        (parts.1.iter().map(|part| part.done()).sum(), parts.0)
    }

    fn received(&self) -> u64 {
        self.lock().1.iter().map(|part| part.received()).sum()
    }

    fn start(&self, total: u64, parts: Vec<Arc<ObjectProgress>>) {
        *self.lock() = (total, parts);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, Vec<Arc<ObjectProgress>>)> {
        lock(&self.parts)
    }
}

/// Fetches a model into `dir`. Dropping the future keeps what was downloaded;
/// the next fetch into the same directory resumes it. With `update`, files of the model that
/// are in the directory and differ from their objects are replaced, once all are downloaded.
///
/// # Errors
/// `Conflict` if the directory holds anything that does not belong to the model;
/// otherwise those of resolving and downloading.
pub async fn fetch(
    resolver: &Resolver,
    engine: &Engine,
    request: &ModelRequest,
    (dir, update): (&Path, bool),
    progress: &FetchProgress,
) -> Result<FetchReport> {
    let started = Instant::now();
    let mut received = 0;
    let mut changes = Changes::default();
    let mut claim = None;
    loop {
        let route = resolver.route(request, "").await?;
        let manifest = resolver.resolve_or_suggest(request, &route).await?;
        // Each file is renamed into its directory.
        let manifest = Arc::new(Manifest::clone(&manifest).with_a_blob_for_each_file());
        check_revision(request, &manifest)?;
        let claim = match &claim {
            Some(claim) => claim,
            None => claim.insert(DirectoryClaim::take(dir, &manifest, update)?),
        };
        let outcome = fetch_revision(engine, route.client(), &manifest, claim, progress).await;
        received += progress.received();
        match outcome {
            Ok(checks) => {
                return Ok(FetchReport {
                    revision: manifest.revision.clone(),
                    files: manifest.files.len(),
                    bytes: manifest.bytes(),
                    received,
                    checks,
                    elapsed: started.elapsed(),
                    warnings: manifest.warnings.iter().map(|one| one.text.clone()).collect(),
                });
            }
            Err(error) => changes.retry(&request.title(), error)?,
        }
    }
}

fn check_revision(request: &ModelRequest, manifest: &Manifest) -> Result<()> {
    match &request.revision {
        Some(wanted) if *wanted != manifest.revision => Err(Error::new(
            ErrorKind::Precondition,
            format!(
                "{} is at revision {}, and {wanted} was requested",
                request.title(),
                manifest.revision
            ),
        )),
        _ => Ok(()),
    }
}

/// Fetches one revision. Returns the number of files per kind of check.
async fn fetch_revision(
    engine: &Engine,
    client: &Arc<dyn ObjectSource>,
    manifest: &Arc<Manifest>,
    claim: &DirectoryClaim,
    progress: &FetchProgress,
) -> Result<BTreeMap<&'static str, usize>> {
    let directory = Arc::new(FetchDirectory::open(claim, manifest)?);
    let parts: Vec<Arc<ObjectProgress>> = manifest.files.iter().map(|_| Arc::default()).collect();
    progress.start(manifest.bytes(), parts.clone());
    let source = &manifest.source;
    let bucket = Arc::new(Bucket::new(source.namespace.as_str(), source.bucket.as_str()));
    let mut work: Vec<(&ManifestFile, Arc<ObjectProgress>)> =
        manifest.files.iter().zip(parts).collect();
    let share = FairShare::urgent();
    share.add_reader(client);
    work.sort_by(|(a, _), (b, _)| ManifestFile::in_load_order(a, b));
    let verified: Vec<Verified> = stream::iter(work)
        .map(|(file, part)| {
            let object = ObjectVersion {
                name: ObjectName::new(Arc::clone(&bucket), manifest.object_name(file)),
                size: file.size,
                etag: file.etag.clone(),
                md5: file.md5.clone(),
                position: manifest.position(file),
            };
            fetch_file(engine, client, &directory, file, object, &share, part)
        })
        .buffer_unordered(OBJECTS_AT_ONCE)
        .try_collect()
        .await?;
    let mut checks: BTreeMap<&'static str, usize> = BTreeMap::new();
    for Verified { check, .. } in verified {
        *checks.entry(check.label()).or_default() += 1;
    }
    let manifest = Arc::clone(manifest);
    blocking(move || directory.publish(&manifest)).await?;
    Ok(checks)
}

/// Fetches one file: finds it finished by an earlier fetch, verifies it in directory,
/// or downloads it.
async fn fetch_file(
    engine: &Engine,
    client: &Arc<dyn ObjectSource>,
    directory: &Arc<FetchDirectory>,
    file: &ManifestFile,
    object: ObjectVersion,
    share: &FairShare,
    progress: Arc<ObjectProgress>,
) -> Result<Verified> {
    let finished = {
        let directory = Arc::clone(directory);
        let file = file.clone();
        let progress = Arc::clone(&progress);
        blocking(move || directory.finished(&file, &progress)).await?
    };
    if let Some(verified) = finished {
        return Ok(verified);
    }
    if let Some(path) = directory.in_place(file) {
        let verified = engine.verify(client, object.clone(), &path, Arc::clone(&progress)).await?;
        if let Some(verified) = verified {
            return Ok(verified);
        }
        if !directory.may_replace(file) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "{} exists already and is not known to have the object's bytes; it was not \
                     changed: replace files of an older revision with --update, move it away, or \
                     fetch into an empty directory",
                    path.display()
                ),
            ));
        }
    }
    let staging =
        Staging { data: directory.part(&file.blob), journal: directory.journal(&file.blob) };
    let demand = Interest::of(share.clone());
    let verified = engine.download(object, staging, demand, progress).await?;
    let directory = Arc::clone(directory);
    let file = file.clone();
    blocking(move || directory.finish(&file, verified)).await?;
    Ok(verified)
}

/// Describes in a text how many files each kind of check verified.
pub fn describe_checks(checks: &BTreeMap<&'static str, usize>) -> String {
    let unproved = [
        (Check::SizeAndEtag, "the objects carry no usable checksum"),
        (Check::UnknownLayout, "the sizes of the objects' parts are unknown"),
    ];
    let mut texts: Vec<String> = checks
        .iter()
        .filter(|(label, _)| unproved.iter().all(|(check, _)| check.label() != **label))
        .map(|(label, n)| format!("{n} by {label}"))
        .collect();
    for (check, why) in unproved {
        if let Some(n) = checks.get(check.label()) {
            texts.push(format!("{n} by size and ETag only, since {why}"));
        }
    }
    texts.join(", ")
}
