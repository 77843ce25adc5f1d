//! Import: adopts the files of a directory that another program filled, and
//! downloads the rest.
//!
//! Files are searched under their path, and under prefix and path as
//! `oci os object bulk-download` writes them. Completeness markers and foreign
//! files are ignored. Only the checksums of Object Storage decide whether a file is
//! right; a file whose object has none is downloaded. Links of a snapshot in a
//! Hugging Face Hub cache are followed into its blobs, which are copied and never
//! moved, since other snapshots use them too. The report says why a file was not
//! adopted.
//!
//! A hard link would leave a writable name outside the cache. So a file is copied
//! (as a reflink where the file system supports it), or with `--move` renamed into
//! the cache, if there is no other way to its bytes: no other name, no other mount,
//! no writable descriptor. A file lease of the kernel shows the last.
//!
//! # How a file is moved
//!
//! 1. `import-1`: it is verified where it is, under a read lease.
//! 2. `import-2`: its owner becomes root and its mode 0444.
//! 3. `import-3`: `blobs/<2>/<id>.unsynced` is written: size, CRC-32C, check.
//! 4. `import-4`: it is renamed to `blobs/<2>/<id>`: now it is a blob. Lease,
//!    names and inode are checked again; if the file may have changed since it
//!    was verified, it is renamed back.
//!
//! A killed process loses nothing:
//! - after 1 or 2: the file is where it was; the next import adopts it.
//! - after 3: a record without a blob means nothing and is overwritten.
//! - after 4: it is a blob like any other. It is never in `staging/`, where a part
//!   without a journal is deleted. As for any blob whose record is `.unsynced`,
//!   the next process reads it before it is served.
//!
//! A copy is made as `staging/<id>.<n>.import`, which a start deletes. It is then
//! verified, and takes the same steps from 3 on.
//!
//! One race remains: an `open` for writing that found the file before 4 and reaches
//! the lease only after the last check. That window is some microseconds long.

mod adopt;
mod source;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::CacheFill;
use super::model_flight;
use super::progress::{FillProgress, Snapshot};
use super::slots::Priority;
use crate::blocking::blocking;
use crate::cache::store::layout::Layout;
use crate::cache::store::models::CachedModel;
use crate::cache::store::sys::ReadLease;
use crate::download::{Engine, ObjectProgress};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{BlobId, Manifest, ManifestFile, progress_text};
use crate::source::ObjectSource;
use crate::sync::lock;
use adopt::{AdoptOutcome, Adopter};
use source::{PathKind, SourceDirectory, SourceFile, check_movable};

/// Files that are verified concurrently.
const AT_ONCE: usize = 4;

/// Names of each kind in a report.
const NAMED: usize = 20;

/// Options of an import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The directory.
    pub dir: PathBuf,
    /// Move the files instead of copying them.
    pub move_files: bool,
}

/// The result of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    /// Files that were already in the cache.
    pub cached_files: usize,
    /// Files adopted from the directory.
    pub adopted_files: usize,
    /// Their bytes.
    pub adopted_bytes: u64,
    /// Bytes of adopted files that had to be copied.
    pub copied_bytes: u64,
    /// Files that were downloaded.
    pub downloaded_files: usize,
    /// Their bytes.
    pub downloaded_bytes: u64,
    /// The first files in the directory that differ from Object Storage.
    pub differing: Vec<String>,
    /// Files of the model that could not be adopted, and were downloaded instead.
    #[serde(default)]
    pub not_adopted_files: usize,
    /// The first of those, with the reason.
    #[serde(default)]
    pub not_adopted: Vec<NotAdopted>,
    /// Files that remain in the directory.
    pub left_files: usize,
    /// The first of their names.
    pub left: Vec<String>,
}

/// A file of a model that could not be adopted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotAdopted {
    /// Its path in the model.
    pub path: String,
    /// The reason, as text.
    pub why: String,
}

/// The progress of an import, updated while it runs.
#[derive(Debug, Default)]
pub struct ImportProgress(Mutex<Stage>);

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Scanning,
    Comparing {
        total: u64,
        parts: Vec<Arc<ObjectProgress>>,
    },
    Filling(Arc<FillProgress>),
}

/// A snapshot of the progress of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportSnapshot {
    /// The directory is scanned.
    Scanning,
    /// Its files are read and compared.
    Comparing {
        /// Bytes read so far.
        done: u64,
        /// Bytes to read in total.
        total: u64,
    },
    /// The rest is downloaded.
    Filling(Snapshot),
}

impl ImportProgress {
    /// Returns the present progress.
    pub fn snapshot(&self) -> ImportSnapshot {
        match &*self.lock() {
            Stage::Scanning => ImportSnapshot::Scanning,
            Stage::Comparing { total, parts } => {
                let done = parts.iter().map(|part| part.done()).fold(0, u64::saturating_add);
                ImportSnapshot::Comparing { done: done.min(*total), total: *total }
            }
            Stage::Filling(progress) => ImportSnapshot::Filling(progress.snapshot()),
        }
    }

    fn enter(&self, stage: Stage) {
        *self.lock() = stage;
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        lock(&self.0)
    }
}

impl ImportSnapshot {
    /// Returns the progress as text.
    pub fn text(&self, title: &str) -> String {
        match self {
            Self::Scanning => format!("{title}: scanning the directory"),
            Self::Comparing { done, total } => {
                format!("comparing with {title}: {}", progress_text(*done, *total))
            }
            Self::Filling(snapshot) => snapshot.text(title),
        }
    }
}

impl CacheFill {
    /// Adds a model to the cache, adopting files from a directory; see
    /// [`Cache::import`](crate::cache::Cache::import).
    pub(in crate::cache) async fn import(
        self: &Arc<Self>,
        engine: &Engine,
        client: &Arc<dyn ObjectSource>,
        manifest: &Arc<Manifest>,
        options: ImportOptions,
        progress: &ImportProgress,
    ) -> Result<(CachedModel, Imported)> {
        let mut imported = Imported::default();
        // Until a model refers to them, only the hold protects them.
        let (store, blobs) = (Arc::clone(&self.store), manifest.files.iter());
        let blobs: Vec<BlobId> = blobs.map(|file| file.blob.clone()).collect();
        let _held = blocking(move || Ok(store.holds().blobs(blobs.into_iter()))).await?;
        let missing = model_flight::missing(self, manifest).await?;
        imported.cached_files = manifest.files.len().saturating_sub(missing.len());
        let store = Arc::clone(&self.store);
        let wanted = Arc::clone(manifest);
        let take = options.move_files;
        let DirectorySurvey { source, candidates, differing, not_adopted } =
            blocking(move || survey(store.layout(), &wanted, missing, &options)).await?;
        (imported.differing, imported.not_adopted) = (differing, not_adopted);
        let parts: Vec<Arc<ObjectProgress>> = candidates.iter().map(|_| Arc::default()).collect();
        let total = candidates.iter().map(|one| one.file.size).fold(0, u64::saturating_add);
        progress.enter(Stage::Comparing { total, parts: parts.clone() });
        let adopter = Adopter {
            fill: Arc::clone(self),
            engine: engine.clone(),
            client: client.clone(),
            manifest: Arc::clone(manifest),
            source: Arc::clone(&source),
            take,
        };
        let outcomes: Vec<(ImportCandidate, AdoptOutcome)> =
            stream::iter(candidates.into_iter().zip(parts))
                .map(|(candidate, part)| {
                    let adopter = &adopter;
                    async move {
                        let outcome = adopter.adopt(&candidate, part).await;
                        outcome.map(|outcome| (candidate, outcome))
                    }
                })
                .buffer_unordered(AT_ONCE)
                .try_collect()
                .await?;
        for (candidate, outcome) in outcomes {
            imported.count(candidate, outcome);
        }
        imported.differing.sort();
        imported.differing.truncate(NAMED);
        imported.not_adopted_files = imported.not_adopted.len();
        imported.not_adopted.sort();
        imported.not_adopted.truncate(NAMED);

        let missing = model_flight::missing(self, manifest).await?;
        imported.downloaded_files = missing.len();
        imported.downloaded_bytes =
            missing.iter().map(|file| file.size).fold(0, u64::saturating_add);
        let mut waiter = self.fill(engine, manifest, &Priority::Prefetch, client);
        let filling = waiter.shared_progress();
        progress.enter(Stage::Filling(Arc::clone(&filling)));
        let model = tokio::select! {
            completed = waiter.completed() => completed?,
            short = filling.short_of_space() => return Err(short.error()),
        };
        (imported.left_files, imported.left) = blocking(move || Ok(source.left(NAMED))).await?;
        Ok((model, imported))
    }
}

impl Imported {
    fn count(&mut self, candidate: ImportCandidate, outcome: AdoptOutcome) {
        let size = candidate.file.size;
        match outcome {
            AdoptOutcome::Moved | AdoptOutcome::Cloned | AdoptOutcome::Copied => {
                self.adopted_files += 1;
                self.adopted_bytes = self.adopted_bytes.saturating_add(size);
                if outcome == AdoptOutcome::Copied {
                    self.copied_bytes = self.copied_bytes.saturating_add(size);
                }
            }
            AdoptOutcome::Differs => {
                let why =
                    "its bytes are not the object's, or no checksum of the object proves them";
                self.not_adopted.push(NotAdopted { path: candidate.file.path, why: why.into() });
                self.differing.push(candidate.path);
            }
            AdoptOutcome::Gone => {}
        }
    }
}

/// A file that the cache lacks and the directory may have.
#[derive(Debug)]
struct ImportCandidate {
    file: ManifestFile,
    /// Its path below the directory.
    path: String,
}

/// The files that a directory offers.
struct DirectorySurvey {
    source: Arc<SourceDirectory>,
    candidates: Vec<ImportCandidate>,
    /// Files of the wrong size.
    differing: Vec<String>,
    /// Files that it does not offer.
    not_adopted: Vec<NotAdopted>,
}

/// Opens the directory and finds the files worth reading. Changes nothing, so an
/// import is refused here. Blocks.
fn survey(
    layout: &Layout,
    manifest: &Manifest,
    missing: Vec<ManifestFile>,
    options: &ImportOptions,
) -> Result<DirectorySurvey> {
    let source = SourceDirectory::open(&options.dir)?;
    let cache = std::fs::canonicalize(layout.root())
        .map_err(|e| Error::io(format!("looking at {}", layout.root().display()), &e))?;
    if source.path().starts_with(&cache) || cache.starts_with(source.path()) {
        return Err(Error::invalid(format!(
            "{} and the cache {} overlap: name the directory of one model",
            source.path().display(),
            cache.display()
        )));
    }
    if options.move_files {
        check_movable(&source, &cache)?;
    }
    let (mut candidates, mut differing, mut not_adopted) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for file in missing {
        let (mut other, mut why) = (None, None);
        let mut chosen = None;
        for path in [file.path.clone(), manifest.object_name(&file)] {
            match source.find(&path)? {
                PathKind::File(found) if found.metadata.len() != file.size => {
                    let (has, size) = (found.metadata.len(), file.size);
                    why = Some(format!("it has {has} bytes, and the object {size}"));
                    other = Some(path);
                }
                PathKind::File(found) if seen.insert(path.clone()) => {
                    chosen = Some((path, found));
                    break;
                }
                PathKind::Link(text) => why = why.or(Some(text)),
                PathKind::File(_) | PathKind::Nothing => {}
            }
        }
        match chosen {
            Some((path, found)) => {
                if options.move_files && !found.linked {
                    check_unwritten(&found, &source.path().join(&path).display().to_string())?;
                }
                candidates.push(ImportCandidate { file, path });
            }
            None => {
                differing.extend(other);
                let why = why.unwrap_or_else(|| "it is not in the directory".to_owned());
                not_adopted.push(NotAdopted { path: file.path, why });
            }
        }
    }
    Ok(DirectorySurvey { source: Arc::new(source), candidates, differing, not_adopted })
}

fn check_unwritten(found: &SourceFile, shown: &str) -> Result<()> {
    match ReadLease::take(&found.file) {
        Ok(None) => Err(open_for_writing(shown)),
        // Without a lease, writers cannot be ruled out: it will be copied.
        Ok(Some(_)) | Err(_) => Ok(()),
    }
}

fn open_for_writing(shown: &str) -> Error {
    Error::new(
        ErrorKind::Precondition,
        format!(
            "{shown} cannot be imported with --move: a process has it open for writing; wait \
             until its download is finished, or stop that process, and try again"
        ),
    )
}
