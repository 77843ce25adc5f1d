//! Leases: the records of which volume uses which model.
//!
//! There is one file per (volume id, target path), since pods of one PV share the
//! volume id. It is written before the bind and removed after the unmount, so a
//! mount without a lease is one whose lease was deleted by hand. Leases outlive the
//! process but not the boot: mounts end with the boot, so a lease of an earlier
//! boot is void.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::disk_usage;
use super::files;
use super::foreign;
use super::layout::Layout;
use super::layout::names::{self, Directory};
use super::lock_order;
use super::models::CachedModel;
use super::set_aside::Older;
use super::trash::discard;
use crate::abort_point;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ModelKey, PodIdentity, RequestDigest};
use crate::mount::{self, DirId};
use crate::sync::{OrderedGuard, OrderedMutex};

const FORMAT: u32 = 1;

/// The volume that holds a model, and where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseHolder {
    /// CSI volume id.
    pub volume_id: String,
    /// Target path.
    pub target: PathBuf,
    /// The directory that the target is in.
    pub directory: DirId,
    /// Digest of the driver's own keys of the request.
    pub request: RequestDigest,
    /// The pod, if kubelet named it.
    pub pod: Option<PodIdentity>,
}

/// A lease as stored on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    format: u32,
    /// CSI volume id.
    pub volume_id: String,
    /// Target path.
    pub target: PathBuf,
    /// The directory that the target was in, since paths can be exchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<DirId>,
    /// Digest of the driver's own keys of the request.
    pub request: RequestDigest,
    /// The model that is held.
    pub model: ModelKey,
    /// The tree that was bound. A mount of it belongs to this volume, even if the
    /// model was rebuilt since.
    pub root: DirId,
    /// `namespace/name` of the pod, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Seconds since the epoch.
    pub since: u64,
    /// The part of it that is damaged on the disk, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
    boot_id: String,
    /// The id of the mount, while this process knows it. Ids are valid in one mount
    /// namespace, and the next process may have another.
    #[serde(skip)]
    pub mount: Option<u64>,
    /// Its origin, if it is a lease of an older layout.
    #[serde(skip)]
    pub older: Option<Older>,
}

impl LeaseRecord {
    /// Creates a lease of an older layout. Its request and model are not known in
    /// this layout: the volume stays as it was made.
    pub(in crate::cache) fn older(
        volume_id: String,
        target: PathBuf,
        root: DirId,
        pod: Option<String>,
        since: u64,
        older: Older,
    ) -> Self {
        let none = || RequestDigest::of_fields("oci-model-csi older layout", [].into_iter());
        Self {
            format: FORMAT,
            volume_id,
            target,
            directory: None,
            request: none(),
            model: ModelKey::unknown(),
            root,
            pod,
            since,
            damaged: None,
            boot_id: String::new(),
            mount: None,
            older: Some(older),
        }
    }
}

/// Proof that a model is leased and may be bound.
#[derive(Debug)]
pub struct Lease {
    /// The leased model.
    pub model: CachedModel,
    /// Where it will be mounted.
    pub target: PathBuf,
}

/// The leases of one cache.
#[derive(Debug)]
pub(in crate::cache) struct Leases {
    layout: Layout,
    boot_id: String,
    by_target: OrderedMutex<HashMap<PathBuf, LeaseRecord>>,
}

impl Leases {
    pub(in crate::cache) fn new(layout: Layout, boot_id: String) -> Self {
        Self { layout, boot_id, by_target: OrderedMutex::new(lock_order::LEASES, HashMap::new()) }
    }

    /// Leases a model. A lease of the same volume and target is replaced.
    pub(in crate::cache) fn take(&self, model: CachedModel, holder: LeaseHolder) -> Result<Lease> {
        // Async code takes the map's lock, so it is never held during disk access.
        // Calls for one target come one at a time.
        let other = self.of_target(&holder.target);
        if let Some(other) = other.as_ref().filter(|other| other.volume_id != holder.volume_id) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "{} is published for the volume {}; unpublish that first",
                    holder.target.display(),
                    other.volume_id
                ),
            ));
        }
        let evicted = || Error::new(ErrorKind::InProgress, "the model was just evicted; try again");
        let root = mount::identity(&model.tree).map_err(|_| evicted())?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let record = LeaseRecord {
            format: FORMAT,
            volume_id: holder.volume_id,
            target: holder.target.clone(),
            directory: Some(holder.directory),
            request: holder.request,
            model: model.key.clone(),
            root,
            pod: holder.pod.map(|pod| format!("{}/{}", pod.namespace, pod.name)),
            since,
            damaged: None,
            boot_id: self.boot_id.clone(),
            mount: None,
            older: None,
        };
        self.write(record)?;
        if let Some(older) = other.and_then(|other| other.older) {
            files::remove(&older.file)?;
        }
        if mount::identity(&model.tree) != Ok(root) {
            // Evicted after it was found and before the lease.
            self.release(&holder.target)?;
            return Err(evicted());
        }
        Ok(Lease { model, target: holder.target })
    }

    /// Marks the leases of volumes with damaged content, and returns them. A mark that
    /// cannot be written lasts until the process ends. Blocks.
    pub(in crate::cache) fn mark_damaged(&self, root: DirId, what: &str) -> Vec<LeaseRecord> {
        let mut showing: Vec<_> =
            self.all().into_iter().filter(|one| one.root == root && one.older.is_none()).collect();
        for lease in &mut showing {
            lease.damaged = Some(what.to_owned());
            let path = self.path(&lease.volume_id, &lease.target);
            let json = serde_json::to_vec(lease).unwrap_or_default();
            if let Err(error) = files::write_whole(&path, &json, 0o600) {
                tracing::warn!(%error, "marking a lease as damaged failed");
            }
            match self.lock().get_mut(&lease.target) {
                Some(current) => current.damaged.clone_from(&lease.damaged),
                // Released meanwhile; a leftover file would hold the model.
                None => drop(files::remove(&path)),
            }
        }
        showing
    }

    /// Ends the leases that are over, while the driver runs. Blocks.
    pub(in crate::cache) fn sweep(&self, is_over: impl Fn(&LeaseRecord) -> bool) -> Result<usize> {
        let over: Vec<_> = self.all().into_iter().filter(is_over).collect();
        for lease in &over {
            tracing::warn!(
                volume_id = lease.volume_id,
                target = %lease.target.display(),
                "a pod ended without an unpublish; its lease was removed"
            );
            self.release(&lease.target)?;
        }
        Ok(over.len())
    }

    fn write(&self, record: LeaseRecord) -> Result<()> {
        let json = serde_json::to_vec(&record)
            .map_err(|e| Error::internal(format!("writing a lease: {e}")).caused_by(e))?;
        files::write_whole(&self.path(&record.volume_id, &record.target), &json, 0o600)?;
        abort_point::reach("lease-1");
        self.lock().insert(record.target.clone(), record);
        Ok(())
    }

    /// Records the mount of a lease. Another lease with the same id is outdated: the
    /// kernel reuses the ids of mounts that are gone.
    pub(in crate::cache) fn record_mount(&self, target: &Path, mount: u64) {
        for (of, lease) in self.lock().iter_mut() {
            if of == target {
                lease.mount = Some(mount);
            } else if lease.mount == Some(mount) {
                lease.mount = None;
            }
        }
    }

    /// Ends the lease of a target, if there is one.
    pub(in crate::cache) fn release(&self, target: &Path) -> Result<()> {
        if let Some(record) = self.of_target(target) {
            let own = || self.path(&record.volume_id, target);
            files::remove(&record.older.as_ref().map_or_else(own, |older| older.file.clone()))?;
            self.lock().remove(target);
        }
        Ok(())
    }

    /// Adds a lease of an older layout, unless its target has a newer one.
    pub(in crate::cache) fn adopt(&self, record: LeaseRecord) {
        self.lock().entry(record.target.clone()).or_insert(record);
    }

    /// The lease of a target.
    pub(in crate::cache) fn of_target(&self, target: &Path) -> Option<LeaseRecord> {
        self.lock().get(target).cloned()
    }

    /// Whether a volume uses this model.
    pub(in crate::cache) fn has(&self, model: &ModelKey) -> bool {
        self.lock().values().any(|lease| lease.model == *model)
    }

    /// All leases.
    pub(in crate::cache) fn all(&self) -> Vec<LeaseRecord> {
        self.lock().values().cloned().collect()
    }

    /// Reads the leases at start. `is_over` decides about those of this boot.
    ///
    /// Leases of an earlier boot are void. Files that cannot be read are moved to the
    /// trash, which is safe since eviction checks mounts too.
    pub(in crate::cache) fn recover(
        &self,
        is_over: impl Fn(&LeaseRecord) -> bool,
    ) -> Result<usize> {
        let mut removed = 0;
        for name in files::names(&self.layout.leases())? {
            let path = self.layout.leases().join(&name);
            if !foreign::is_ours(Directory::Leases, &name) {
                continue;
            }
            let record = files::read(&path)?
                .and_then(|bytes| serde_json::from_slice::<LeaseRecord>(&bytes).ok())
                .filter(|r| r.format == FORMAT && path == self.path(&r.volume_id, &r.target));
            match record {
                None => {
                    if !names::is_unfinished(&name) {
                        tracing::warn!(
                            lease = name,
                            "a lease cannot be read and was moved to the trash"
                        );
                    }
                    discard(&self.layout, &path)?;
                    removed += 1;
                }
                Some(record) if record.boot_id != self.boot_id || is_over(&record) => {
                    // It was in use until now, or until the machine stopped.
                    disk_usage::touch(&self.layout, &record.model)?;
                    files::remove(&path)?;
                    removed += 1;
                }
                Some(record) => {
                    self.lock().insert(record.target.clone(), record);
                }
            }
        }
        Ok(removed)
    }

    fn path(&self, volume_id: &str, target: &Path) -> PathBuf {
        let target = target.to_string_lossy();
        let fields = [volume_id, &*target];
        self.layout.lease(&RequestDigest::of_fields("oci-model-csi lease", fields.into_iter()))
    }

    fn lock(&self) -> OrderedGuard<'_, HashMap<PathBuf, LeaseRecord>> {
        self.by_target.lock()
    }
}

/// Returns the id of this boot of the machine.
pub(in crate::cache) fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::io(format!("reading {}", path.display()), &e))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::holds::Holds;
    use super::*;
    use crate::model::{
        BucketName, Filters, ListedObject, Manifest, ModelSource, NamespaceName, Prefix, Tree,
    };

    struct LeaseFixture {
        _dir: tempfile::TempDir,
        layout: Layout,
        model: CachedModel,
    }

    fn fixture() -> LeaseFixture {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        for directory in Directory::ALL {
            std::fs::create_dir(layout.directory(directory)).unwrap();
        }
        let source = ModelSource {
            location: "l".into(),
            namespace: NamespaceName::parse("n").unwrap(),
            bucket: BucketName::parse("b").unwrap(),
            prefix: Prefix::parse("m").unwrap(),
        };
        let object = ListedObject {
            name: "m/w".into(),
            size: 1,
            etag: "e".into(),
            md5: None,
            archived: false,
        };
        let tree = Tree::arrange([object], &source.prefix, &Filters::default()).unwrap().unwrap();
        let summary = Arc::new(Manifest::new(source, "", tree).summary());
        let key = summary.key();
        std::fs::create_dir_all(layout.tree(&key)).unwrap();
        let hold = Holds::default().model(&key);
        let model = CachedModel { tree: layout.tree(&key), key, summary, _hold: hold };
        LeaseFixture { _dir: dir, layout, model }
    }

    fn holder(volume: &str, target: &str) -> LeaseHolder {
        LeaseHolder {
            volume_id: volume.into(),
            target: target.into(),
            directory: DirId { dev: 1, ino: 2 },
            request: RequestDigest::of_fields("t", [].into_iter()),
            pod: None,
        }
    }

    fn leases(f: &LeaseFixture, boot: &str) -> Leases {
        Leases::new(f.layout.clone(), boot.to_owned())
    }

    #[test]
    fn leases_outlive_the_process_but_not_the_boot() {
        let f = fixture();
        let first = leases(&f, "boot-1");
        first.take(f.model.clone(), holder("v", "/t/1")).unwrap();
        first.take(f.model.clone(), holder("v", "/t/2")).unwrap();
        let next = leases(&f, "boot-1");
        assert_eq!(next.recover(|_| false).unwrap(), 0);
        assert_eq!(next.all().len(), 2, "one PV, two pods");
        assert_eq!(next.of_target(Path::new("/t/2")).unwrap().model, f.model.key);
        let manifest = f.layout.manifest(&f.model.key);
        let long_ago = SystemTime::now() - std::time::Duration::from_secs(1_000_000);
        std::fs::File::create(&manifest).unwrap().set_modified(long_ago).unwrap();
        let rebooted = leases(&f, "boot-2");
        assert_eq!(rebooted.recover(|_| false).unwrap(), 2);
        assert_eq!(rebooted.all().len(), 0);
        let used = std::fs::metadata(&manifest).unwrap().modified().unwrap();
        assert!(used > long_ago, "it was in use until the machine stopped");
        assert_eq!(files::names(&f.layout.leases()).unwrap(), [""; 0]);
    }

    #[test]
    fn a_released_lease_is_gone_and_releasing_again_is_fine() {
        let f = fixture();
        let leases = leases(&f, "b");
        leases.take(f.model.clone(), holder("v", "/t/1")).unwrap();
        leases.release(Path::new("/t/1")).unwrap();
        leases.release(Path::new("/t/1")).unwrap();
        assert!(leases.of_target(Path::new("/t/1")).is_none());
        assert_eq!(files::names(&f.layout.leases()).unwrap(), [""; 0]);
    }

    #[test]
    fn another_volume_does_not_get_a_target_that_is_held() {
        let f = fixture();
        let leases = leases(&f, "b");
        leases.take(f.model.clone(), holder("v", "/t/1")).unwrap();
        let error = leases.take(f.model.clone(), holder("w", "/t/1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        leases.take(f.model.clone(), holder("v", "/t/1")).unwrap();
    }

    #[test]
    fn a_truncated_lease_is_moved_to_the_trash() {
        let f = fixture();
        leases(&f, "b").take(f.model.clone(), holder("v", "/t/1")).unwrap();
        let name = files::names(&f.layout.leases()).unwrap().remove(0);
        let path = f.layout.leases().join(name);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let next = leases(&f, "b");
        assert_eq!(next.recover(|_| false).unwrap(), 1);
        assert_eq!(files::names(&f.layout.trash()).unwrap().len(), 1);
    }

    #[test]
    fn a_model_that_vanished_cannot_be_leased() {
        let f = fixture();
        std::fs::remove_dir(&f.model.tree).unwrap();
        let leases = leases(&f, "b");
        let error = leases.take(f.model.clone(), holder("v", "/t/1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InProgress);
        assert!(leases.all().is_empty());
    }
}
