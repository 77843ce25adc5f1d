//! Adopting a directory that somebody else filled: what is right is taken,
//! the rest is downloaded.
//!
//! Files are looked for under their path, and under prefix and path as
//! `oci os object bulk-download` writes them. Completeness markers and foreign
//! files mean nothing and are left. What a file is worth say the checksums of
//! Object Storage alone; a file whose object has none is downloaded. Links of a
//! snapshot in a Hugging Face Hub cache are followed into its blobs, which are
//! copied and never moved: other snapshots have them too. Why a file was not
//! adopted is reported.
//!
//! A hard link would leave a writable name in a pod's directory. So a file is
//! copied (a reflink where the file system can), or with `--move` renamed into
//! the cache, if nobody can have another way to its bytes: no other name, no
//! other mount, no descriptor that may write, which a lease of the kernel shows.
//!
//! # How a file is moved
//!
//! 1. `import-1`: it is verified where it is, under a read lease.
//! 2. `import-2`: its owner becomes root and its mode 0444.
//! 3. `import-3`: `blobs/<2>/<id>.unsynced` is written: size, CRC-32C, what proved it.
//! 4. `import-4`: it is renamed to `blobs/<2>/<id>`: now it is a blob. A look
//!    at lease, names and inode says whether it is still what was verified; if
//!    not, it is renamed back.
//!
//! A killed process loses nothing of this:
//! - after 1 or 2: the file is where it was; the next import takes it.
//! - after 3: a record without a blob means nothing and is overwritten.
//! - after 4: a blob like any other. It is never in `staging/`, where a part
//!   without a journal is thrown away. As for any blob whose record is
//!   `.unsynced`, the next process reads it before it is served.
//!
//! A copy is made as `staging/<id>.<n>.import`, which a start throws away, then
//! verified, and goes the same way from 3 on.
//!
//! What remains is an `open` for writing that has found the file before 4 and
//! reaches the lease only after the last look: some microseconds.

mod adopt;
mod source;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::fill;
use super::models::CachedModel;
use super::progress::{FillProgress, Snapshot};
use super::sys::ReadLease;
use super::{Cache, CacheInner, Priority};
use crate::blocking::blocking;
use crate::download::{Engine, ObjectProgress};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{BlobId, Manifest, ManifestFile, progress_text};
use crate::oci::ObjectStorage;
use adopt::{AdoptOutcome, Adopter};
use source::{PathKind, SourceDirectory, SourceFile, check_movable};

/// Files that are read and compared side by side.
const AT_ONCE: usize = 4;

/// Names that a report lists of each kind.
const NAMED: usize = 20;

/// What to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The directory.
    pub dir: PathBuf,
    /// Take the files themselves, instead of copies.
    pub take: bool,
}

/// What became of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    /// Files that the cache had already.
    pub cached_files: usize,
    /// Files that were taken from the directory.
    pub adopted_files: usize,
    /// Their bytes.
    pub adopted_bytes: u64,
    /// Bytes of them that had to be written once more.
    pub copied_bytes: u64,
    /// Files that were downloaded.
    pub downloaded_files: usize,
    /// Their bytes.
    pub downloaded_bytes: u64,
    /// Files that were there and are not what Object Storage has, the first of them.
    pub differing: Vec<String>,
    /// Files of the model that the directory could not give, and that were
    /// downloaded instead.
    #[serde(default)]
    pub not_adopted_files: usize,
    /// The first of those, with the reason.
    #[serde(default)]
    pub not_adopted: Vec<NotAdopted>,
    /// Files that are in the directory now.
    pub left_files: usize,
    /// The first names of those.
    pub left: Vec<String>,
}

/// A file of a model that the directory could not give.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotAdopted {
    /// Its path in the model.
    pub path: String,
    /// Why, for people.
    pub why: String,
}

/// How far an import is.
#[derive(Debug, Default)]
pub struct ImportProgress(Mutex<Stage>);

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Looking,
    Comparing {
        total: u64,
        parts: Vec<Arc<ObjectProgress>>,
    },
    Filling(Arc<FillProgress>),
}

/// The progress of an import at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportSnapshot {
    /// It is being found out what the directory has.
    Looking,
    /// Its files are being read.
    Comparing {
        /// Bytes that were read.
        done: u64,
        /// Bytes to be read.
        total: u64,
    },
    /// The rest is being downloaded.
    Filling(Snapshot),
}

impl ImportProgress {
    /// Where it stands.
    pub fn snapshot(&self) -> ImportSnapshot {
        match &*self.lock() {
            Stage::Looking => ImportSnapshot::Looking,
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImportSnapshot {
    /// For people.
    pub fn text(&self, title: &str) -> String {
        match self {
            Self::Looking => format!("{title}: looking at what the directory has"),
            Self::Comparing { done, total } => {
                format!("comparing with {title}: {}", progress_text(*done, *total))
            }
            Self::Filling(snapshot) => snapshot.text(title),
        }
    }
}

impl Cache {
    /// Brings a model into the cache, from a directory as far as that has it.
    ///
    /// When the future is dropped, what was adopted so far stays in the cache,
    /// and the download goes on for a while; the same import can be run again.
    /// Object Storage is asked as `client`.
    ///
    /// # Errors
    /// `Precondition` when `take` is set and files cannot be taken safely (the
    /// message says why), before any was; `Changed` when the model is no longer
    /// at this revision; and those of [`Cache::fill`].
    pub async fn import(
        &self,
        engine: &Engine,
        client: &ObjectStorage,
        manifest: &Arc<Manifest>,
        title: &str,
        options: ImportOptions,
        progress: &ImportProgress,
    ) -> Result<(CachedModel, Imported)> {
        let mut imported = Imported::default();
        // Until a model has them, nothing else says that they are wanted.
        let (inner, blobs) = (Arc::clone(&self.0), manifest.files.iter());
        let blobs: Vec<BlobId> = blobs.map(|file| file.blob.clone()).collect();
        let _held = blocking(move || Ok(inner.holds.blobs(blobs.into_iter()))).await?;
        let missing = fill::missing(&self.0, manifest).await?;
        imported.cached_files = manifest.files.len().saturating_sub(missing.len());
        let (inner, manifest_, take) = (Arc::clone(&self.0), Arc::clone(manifest), options.take);
        let DirectorySurvey { source, candidates, differing, not_adopted } =
            blocking(move || survey(&inner, &manifest_, missing, &options)).await?;
        (imported.differing, imported.not_adopted) = (differing, not_adopted);
        let parts: Vec<Arc<ObjectProgress>> = candidates.iter().map(|_| Arc::default()).collect();
        let total = candidates.iter().map(|one| one.file.size).fold(0, u64::saturating_add);
        progress.enter(Stage::Comparing { total, parts: parts.clone() });
        let adopter = Adopter {
            inner: Arc::clone(&self.0),
            engine: engine.clone(),
            client: client.clone(),
            manifest: Arc::clone(manifest),
            source: Arc::clone(&source),
            take,
        };
        let fates: Vec<(ImportCandidate, AdoptOutcome)> =
            stream::iter(candidates.into_iter().zip(parts))
                .map(|(candidate, part)| {
                    let adopter = &adopter;
                    async move {
                        let fate = adopter.adopt(&candidate, part).await;
                        fate.map(|fate| (candidate, fate))
                    }
                })
                .buffer_unordered(AT_ONCE)
                .try_collect()
                .await?;
        for (candidate, fate) in fates {
            imported.count(candidate, fate);
        }
        imported.differing.sort();
        imported.differing.truncate(NAMED);
        imported.not_adopted_files = imported.not_adopted.len();
        imported.not_adopted.sort();
        imported.not_adopted.truncate(NAMED);

        let missing = fill::missing(&self.0, manifest).await?;
        imported.downloaded_files = missing.len();
        imported.downloaded_bytes =
            missing.iter().map(|file| file.size).fold(0, u64::saturating_add);
        let mut ticket = self.fill(engine, manifest, title, &Priority::Prefetch, client);
        let filling = ticket.shared_progress();
        progress.enter(Stage::Filling(Arc::clone(&filling)));
        let model = tokio::select! {
            completed = ticket.completed() => completed?,
            short = filling.short_of_space() => return Err(short.error(title)),
        };
        (imported.left_files, imported.left) = blocking(move || Ok(source.left(NAMED))).await?;
        Ok((model, imported))
    }
}

impl Imported {
    fn count(&mut self, candidate: ImportCandidate, fate: AdoptOutcome) {
        let size = candidate.file.size;
        match fate {
            AdoptOutcome::Moved | AdoptOutcome::Cloned | AdoptOutcome::Copied => {
                self.adopted_files += 1;
                self.adopted_bytes = self.adopted_bytes.saturating_add(size);
                if fate == AdoptOutcome::Copied {
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

/// A file that the cache has not and the directory may have.
#[derive(Debug)]
struct ImportCandidate {
    file: ManifestFile,
    /// Where it is, below the directory.
    path: String,
}

/// What a directory has to offer.
struct DirectorySurvey {
    source: Arc<SourceDirectory>,
    candidates: Vec<ImportCandidate>,
    /// Files of another size than they should have.
    differing: Vec<String>,
    /// What it cannot give.
    not_adopted: Vec<NotAdopted>,
}

/// Opens the directory and finds what is worth reading. Nothing is changed
/// yet, so this is where an import is refused. Blocks.
fn survey(
    inner: &CacheInner,
    manifest: &Manifest,
    missing: Vec<ManifestFile>,
    options: &ImportOptions,
) -> Result<DirectorySurvey> {
    let source = SourceDirectory::open(&options.dir)?;
    let cache = std::fs::canonicalize(inner.layout.root())
        .map_err(|e| Error::io(format!("looking at {}", inner.layout.root().display()), &e))?;
    if source.path().starts_with(&cache) || cache.starts_with(source.path()) {
        return Err(Error::invalid(format!(
            "{} and the cache {} are not apart: name the directory of one model",
            source.path().display(),
            cache.display()
        )));
    }
    if options.take {
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
                if options.take && !found.linked {
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
        // Without leases nothing can be known: it will be copied.
        Ok(Some(_)) | Err(_) => Ok(()),
    }
}

fn open_for_writing(shown: &str) -> Error {
    Error::new(
        ErrorKind::Precondition,
        format!(
            "{shown} cannot be imported with --move: somebody has it open for writing; wait until \
             its download is finished, or stop who does it, and try again"
        ),
    )
}
