//! Adopts one file of a directory. The numbered steps are described in the parent
//! module.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::unistd::Uid;

use super::source::{PathKind, SourceDirectory, SourceFile};
use super::{ImportCandidate, open_for_writing};
use crate::abort_point;
use crate::blocking::blocking;
use crate::cache::fill::CacheFill;
use crate::cache::space::admission::Admission;
use crate::cache::space::reservations::{Reservation, SpaceRequest};
use crate::cache::store::blobs::Placed;
use crate::cache::store::disk_space::Space;
use crate::cache::store::sys::{ReadLease, reflink};
use crate::download::{Engine, ObjectProgress, ObjectVersion, Verified};
use crate::error::{Error, Result};
use crate::model::{Manifest, ManifestFile};
use crate::source::{Bucket, ObjectName, ObjectSource};

/// Bytes per copy operation.
const CHUNK: u64 = 64 << 20;

/// The outcome of adopting a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AdoptOutcome {
    /// It was moved: its inode is the blob's.
    Moved,
    /// It was cloned: the blob shares its blocks.
    Cloned,
    /// Its bytes were copied.
    Copied,
    /// It differs from Object Storage, or no checksum proves that it does not.
    Differs,
    /// It no longer exists, or the cache got its blob meanwhile.
    Gone,
}

/// The outcome of taking a file over without a copy.
enum Takeover {
    Done(AdoptOutcome),
    /// It must be copied instead.
    Impossible(Box<SourceFile>),
}

/// Adopts the files of one import.
pub(super) struct Adopter {
    pub(super) fill: Arc<CacheFill>,
    pub(super) engine: Engine,
    pub(super) client: Arc<dyn ObjectSource>,
    pub(super) manifest: Arc<Manifest>,
    pub(super) source: Arc<SourceDirectory>,
    pub(super) take: bool,
}

impl Adopter {
    /// Adopts one file, or returns why not.
    pub(super) async fn adopt(
        &self,
        candidate: &ImportCandidate,
        progress: Arc<ObjectProgress>,
    ) -> Result<AdoptOutcome> {
        let (source, path) = (Arc::clone(&self.source), candidate.path.clone());
        let size = candidate.file.size;
        let found = match blocking(move || source.find(&path)).await? {
            PathKind::File(found) if found.metadata.len() == size => found,
            _ => return Ok(AdoptOutcome::Gone),
        };
        if self.take && !found.linked {
            let shown = self.source.path().join(&candidate.path).display().to_string();
            return match self.take(&candidate.file, found, shown, Arc::clone(&progress)).await? {
                Takeover::Done(outcome) => Ok(outcome),
                Takeover::Impossible(found) => self.copy(&candidate.file, *found, progress).await,
            };
        }
        self.copy(&candidate.file, found, progress).await
    }

    /// Performs steps 1 to 4.
    async fn take(
        &self,
        file: &ManifestFile,
        found: SourceFile,
        shown: String,
        progress: Arc<ObjectProgress>,
    ) -> Result<Takeover> {
        let failed = |e: io::Error| Error::io(format!("looking at {shown}"), &e);
        if found.has_other_names().map_err(failed)? {
            return Ok(Takeover::Impossible(Box::new(found)));
        }
        // A file system without leases, or another user's file and no right to
        // lease it: writers cannot be ruled out.
        let Ok(lease) = ReadLease::take(Arc::clone(&found.file)) else {
            return Ok(Takeover::Impossible(Box::new(found)));
        };
        let Some(lease) = lease else { return Err(open_for_writing(&shown)) };
        let verified = self.verify(file, &found.as_opened(), progress).await?;
        let Some(verified) = verified else {
            return Ok(Takeover::Done(AdoptOutcome::Differs));
        };
        let (fill, manifest) = (Arc::clone(&self.fill), Arc::clone(&self.manifest));
        let file = file.clone();
        blocking(move || match fill.take_file(&manifest, &file, &found, &lease, verified)? {
            Placed::Blob => Ok(Takeover::Done(AdoptOutcome::Moved)),
            Placed::Late => Ok(Takeover::Done(AdoptOutcome::Gone)),
            Placed::Refused if lease.holds().is_ok_and(|holds| holds) => {
                Ok(Takeover::Impossible(Box::new(found)))
            }
            Placed::Refused => Err(open_for_writing(&shown)),
        })
        .await
    }

    async fn copy(
        &self,
        file: &ManifestFile,
        found: SourceFile,
        progress: Arc<ObjectProgress>,
    ) -> Result<AdoptOutcome> {
        let fill = Arc::clone(&self.fill);
        let copied = file.clone();
        let (staged, how) = blocking(move || fill.stage(&copied, &found)).await?;
        let verified = self.verify(file, &staged.path, progress).await?;
        let Some(verified) = verified else { return Ok(AdoptOutcome::Differs) };
        let (fill, manifest) = (Arc::clone(&self.fill), Arc::clone(&self.manifest));
        let file = file.clone();
        blocking(move || {
            let placed = fill.store.place_blob(&manifest, &file, verified, |blob| {
                fs::rename(&staged.path, blob).map(|()| true)
            })?;
            Ok(if placed == Placed::Blob { how } else { AdoptOutcome::Gone })
        })
        .await
    }

    /// Verifies the file at `path` against Object Storage.
    async fn verify(
        &self,
        file: &ManifestFile,
        path: &Path,
        progress: Arc<ObjectProgress>,
    ) -> Result<Option<Verified>> {
        let source = &self.manifest.source;
        let bucket = Bucket::new(source.namespace.as_str(), source.bucket.as_str());
        let object = ObjectVersion {
            name: ObjectName::new(Arc::new(bucket), self.manifest.object_name(file)),
            size: file.size,
            etag: file.etag.clone(),
            md5: file.md5.clone(),
            position: self.manifest.position(file),
        };
        self.engine.verify(&self.client, object, path, progress).await
    }
}

/// A copy in the staging directory. Dropping this removes it, unless it was renamed.
struct Staged {
    path: PathBuf,
    /// Space of the copy, until it counts as a blob.
    room: Option<Reservation>,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // If removing fails, the next start deletes it.
        let _ = fs::remove_file(&self.path);
    }
}

impl CacheFill {
    /// Performs steps 2 to 4. Blocks.
    fn take_file(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        found: &SourceFile,
        lease: &ReadLease<Arc<File>>,
        verified: Verified,
    ) -> Result<Placed> {
        let shown = found.as_named();
        let changing = |e: io::Error| Error::io(format!("taking over {}", shown.display()), &e);
        let before = &found.metadata;
        abort_point::reach("import-1");
        own(&found.file, 0, 0, 0o444).map_err(changing)?;
        abort_point::reach("import-2");
        let placed = self.store.place_blob(manifest, file, verified, |blob| {
            let named = found.as_named();
            abort_point::reach("import-3");
            if !lease.holds()? || !found.is_at(&named) {
                return Ok(false);
            }
            match fs::rename(&named, blob) {
                // Such as project quotas and encrypted directories.
                Err(e) if e.kind() == io::ErrorKind::CrossesDevices => return Ok(false),
                other => other?,
            }
            abort_point::reach("import-4");
            if lease.holds()? && found.is_at(blob) && !found.has_other_names()? {
                return Ok(true);
            }
            let back = RenameFlags::RENAME_NOREPLACE;
            renameat2(AT_FDCWD, blob, AT_FDCWD, &named, back)?;
            Ok(false)
        });
        // Also after a failure that left the file in its place.
        let give_back = match &placed {
            Ok(placed) => *placed != Placed::Blob,
            Err(_) => found.is_at(&found.as_named()),
        };
        if give_back {
            let mode = before.permissions().mode();
            let given_back = own(&found.file, before.uid(), before.gid(), mode).map_err(changing);
            match &placed {
                Ok(_) => given_back?,
                Err(_) => given_back.unwrap_or_else(
                    |error| tracing::warn!(%error, "restoring the owner and mode of a file failed"),
                ),
            }
        }
        placed
    }

    /// Clones or copies a file into the staging directory, with mode 0444. Blocks.
    fn stage(&self, file: &ManifestFile, found: &SourceFile) -> Result<(Staged, AdoptOutcome)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.store.layout().copy(&file.blob, number);
        let failed = |e: io::Error| Error::io(format!("copying to {}", path.display()), &e);
        let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let to = to.map_err(failed)?;
        let mut staged = Staged { path: path.clone(), room: None };
        let how = if reflink(&found.file, &to).is_ok() {
            AdoptOutcome::Cloned
        } else {
            let missing = vec![(file.blob.clone(), file.size)];
            let subject = file.path.clone();
            let wanted = SpaceRequest { subject, missing, tree: Space::default() };
            staged.room = match self.space.admit(&wanted)? {
                Admission::Granted(room) => Some(room),
                Admission::Short(shortfall) => {
                    return Err(shortfall.error_of_administrator());
                }
            };
            copy(&found.file, &to).map_err(failed)?;
            AdoptOutcome::Copied
        };
        to.set_permissions(Permissions::from_mode(0o444)).map_err(failed)?;
        Ok((staged, how))
    }
}

/// Copies a whole file. The kernel may do so without passing bytes to this process.
fn copy(from: &File, mut to: &File) -> io::Result<()> {
    use io::Read;
    while io::copy(&mut from.take(CHUNK), &mut to)? > 0 {}
    Ok(())
}

/// Sets a file's owner and mode. Without root, the owner stays.
fn own(file: &File, user: u32, group: u32, mode: u32) -> io::Result<()> {
    if Uid::effective().is_root() {
        fchown(file, Some(user), Some(group))?;
    }
    // After the owner: changing that clears mode bits.
    file.set_permissions(Permissions::from_mode(mode & 0o7777))
}
