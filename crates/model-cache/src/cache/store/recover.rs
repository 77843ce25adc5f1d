//! Recovery at start: what it finds, and what it does.
//!
//! | found | meaning | action |
//! |---|---|---|
//! | `staging/model-*` | a model was being built | trash |
//! | `.part` without `.journal`, or the reverse | a step of a commit | trash |
//! | both, younger than a day | an interrupted download | kept for the next request |
//! | both, older | not requested again | trash |
//! | unfinished temporary files | an interrupted write | removed |
//! | other names | foreign | left alone |
//! | a lease of an earlier boot | its mount ended with the boot | removed |
//! | a lease of this boot with its mount | a running pod | kept |
//! | a lease of this boot without a visible mount | unclear: propagation may be broken | kept while the pod's directory exists |
//! | a lease in `old-layout-*` with its mount | a pod that has run since before an upgrade | kept, where it is |
//! | `trash/*` | an interrupted deletion | deleted in the background, unless mounted |
//!
//! Nothing here reads a blob or a manifest, so the time does not depend on the
//! size of the cache.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::files;
use super::foreign;
use super::layout::Layout;
use super::layout::names::{self, Directory, StagingFile};
use super::leases::{LeaseRecord, Leases};
use super::set_aside;
use super::trash::discard;
use crate::error::Result;
use crate::model::BlobId;
use crate::mount::{self, OpenTarget};

/// How long an interrupted download is kept for the next request.
const JOURNAL_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The result of a recovery.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// Interrupted downloads that can be resumed.
    pub resumable: usize,
    /// Leftovers that were moved to the trash.
    pub leftovers: usize,
    /// Leases of pods that still run.
    pub leases: usize,
    /// Leases that were void.
    pub void_leases: usize,
}

/// Recovers the cache; see the table above. Blocks.
pub(in crate::cache) fn recover(
    layout: &Layout,
    leases: &Leases,
    pods: &Path,
) -> Result<Recovered> {
    let mut recovered = Recovered::default();
    staging(layout, &mut recovered)?;
    let mounted: HashSet<PathBuf> =
        mount::mount_points_of_file_system(layout.root())?.into_iter().collect();
    recovered.void_leases =
        leases.recover(|lease| !mounted.contains(&lease.target) && pod_is_gone(lease, pods))?;
    set_aside::adopt(layout, leases)?;
    record_mounts(layout, leases, pods)?;
    recovered.leases = leases.all().len();
    Ok(recovered)
}

/// Records the mount of each lease, so that another mount of the same tree that is
/// later moved to its target is not mistaken for it. Mount points are not accessed,
/// since one may hang.
fn record_mounts(layout: &Layout, leases: &Leases, pods: &Path) -> Result<()> {
    let (all, Some(kubelet)) = (leases.all(), pods.parent()) else { return Ok(()) };
    if all.is_empty() {
        return Ok(());
    }
    let uses = mount::uses_of(layout.root())?;
    for lease in all {
        let Ok(Some(place)) = OpenTarget::open(kubelet, &lease.target) else { continue };
        let spelled = mount::spelled(&lease.target);
        let mut there = uses.iter().filter(|one| one.target == spelled);
        let (Some(shown), None) = (there.next(), there.next()) else { continue };
        let is_in_place = lease.directory.is_none_or(|it| it == place.directory());
        if is_in_place && mount::identity(&layout.root().join(&shown.root)) == Ok(lease.root) {
            leases.record_mount(&lease.target, shown.id);
        }
    }
    Ok(())
}

/// Ends leases whose mount and pod are gone, while the driver runs. Blocks.
pub(in crate::cache) fn drop_dead_leases(
    layout: &Layout,
    leases: &Leases,
    pods: &Path,
) -> Result<usize> {
    if leases.all().iter().all(|lease| !pod_is_gone(lease, pods)) {
        return Ok(0);
    }
    let mounted: HashSet<PathBuf> =
        mount::mount_points_of_file_system(layout.root())?.into_iter().collect();
    // A volume whose directory was moved is still in use.
    let shown: HashSet<u64> = mount::uses_of(layout.root())?.iter().map(|one| one.id).collect();
    let is_mounted = |lease: &LeaseRecord| {
        mounted.contains(&lease.target) || lease.mount.is_some_and(|id| shown.contains(&id))
    };
    leases.sweep(|lease| !is_mounted(lease) && pod_is_gone(lease, pods))
}

fn staging(layout: &Layout, recovered: &mut Recovered) -> Result<()> {
    let directory = layout.staging();
    let names = files::names(&directory)?;
    let present: HashSet<&str> = names.iter().map(String::as_str).collect();
    let now = SystemTime::now();
    for name in &names {
        let path = directory.join(name);
        if !foreign::is_ours(Directory::Staging, name) {
            continue;
        }
        if names::is_unfinished(name) {
            files::remove(&path)?;
            continue;
        }
        let staged = StagingFile::parse(name);
        let is_part = matches!(staged, Some(StagingFile::Part(_)));
        let partner = match staged {
            Some(StagingFile::Part(id)) => Some(StagingFile::Journal(id)),
            Some(StagingFile::Journal(id)) => Some(StagingFile::Part(id)),
            _ => None,
        };
        let whole = partner.is_some_and(|partner| present.contains(&*partner.to_string()));
        if whole && is_young(&path, now) {
            recovered.resumable += usize::from(is_part);
        } else {
            discard_quickly(layout, &path, name)?;
            recovered.leftovers += 1;
        }
    }
    Ok(())
}

/// Drops interrupted downloads that were not resumed for a day, except those in
/// `busy`. Blocks.
pub(in crate::cache) fn drop_stale_downloads(
    layout: &Layout,
    busy: &HashSet<BlobId>,
) -> Result<()> {
    let now = SystemTime::now();
    for name in files::names(&layout.staging())? {
        let Some(StagingFile::Part(id)) = StagingFile::parse(&name) else { continue };
        if !busy.contains(&id) && !is_young(&layout.part(&id), now) {
            files::remove(&layout.part(&id))?;
            files::remove(&layout.journal(&id))?;
        }
    }
    Ok(())
}

/// Whether a file is younger than [`JOURNAL_KEPT`]. After a clock jumped back, all files
/// are young: they are kept, and dropped later.
fn is_young(path: &Path, now: SystemTime) -> bool {
    std::fs::symlink_metadata(path).and_then(|metadata| metadata.modified()).is_ok_and(|modified| {
        now.duration_since(modified).is_ok_and(|age| age < JOURNAL_KEPT) || modified > now
    })
}

/// Like `discard`, without listing the names in the trash: there may be many
/// leftovers, and a file may replace a file.
fn discard_quickly(layout: &Layout, path: &Path, name: &str) -> Result<()> {
    let trashed = layout.trash().join(names::trashed_staging(name));
    if path.is_dir() {
        return discard(layout, path);
    }
    files::rename(path, &trashed).map(|_| ())
}

/// Whether the pod of a lease is gone: kubelet removes a pod's directory once nothing
/// of the pod is left.
fn pod_is_gone(lease: &LeaseRecord, pods: &Path) -> bool {
    let Ok(below) = lease.target.strip_prefix(pods) else { return false };
    let Some(pod) = below.components().next() else { return false };
    // The parent first: if kubelet's directory is not visible, nothing is known.
    pods.is_dir() && matches!(pods.join(pod).try_exists(), Ok(false))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn layout(dir: &Path) -> Layout {
        let layout = Layout::new(dir);
        for directory in Directory::ALL {
            fs::create_dir(layout.directory(directory)).unwrap();
        }
        layout
    }

    #[test]
    fn interrupted_downloads_are_kept_and_leftovers_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let staging = layout.staging();
        let own = |digit: &str, end: &str| format!("{}{end}", digit.repeat(64));
        let [part, journal] = [own("a", ".part"), own("a", ".journal")];
        let unfinished = ".x.1.0.tmp".to_owned();
        for name in [&part, &journal, &own("b", ".part"), &own("c", ".journal"), &unfinished] {
            fs::write(staging.join(name), "x").unwrap();
        }
        fs::write(staging.join("notes.part"), "mine").unwrap();
        fs::create_dir_all(staging.join(format!("model-{}/tree/d", own("e", "")))).unwrap();
        for name in [own("d", ".part"), own("d", ".journal")] {
            let file = fs::File::create(staging.join(name)).unwrap();
            file.set_modified(SystemTime::now() - JOURNAL_KEPT * 2).unwrap();
        }
        let mut recovered = Recovered::default();
        super::staging(&layout, &mut recovered).unwrap();
        let mut left = files::names(&staging).unwrap();
        left.sort();
        assert_eq!(left, [journal, part, "notes.part".to_owned()]);
        assert_eq!((recovered.resumable, recovered.leftovers), (1, 5));
        assert_eq!(files::names(&layout.trash()).unwrap().len(), 5);
    }

    #[test]
    fn a_clock_that_jumped_back_drops_no_download() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::File::create(&path)
            .unwrap()
            .set_modified(SystemTime::now() + JOURNAL_KEPT * 365)
            .unwrap();
        assert!(is_young(&path, SystemTime::now()));
    }

    #[test]
    fn a_lease_without_a_mount_ends_only_with_its_pod() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cache")).unwrap();
        let layout = layout(&dir.path().join("cache"));
        let pods = dir.path().join("pods");
        fs::create_dir_all(pods.join("alive")).unwrap();
        let lease = |target: PathBuf| -> LeaseRecord {
            serde_json::from_value(serde_json::json!({
                "format": 1, "volume_id": "v", "target": target, "request": "0".repeat(64),
                "root": {"dev": 1, "ino": 1},
                "model": "0".repeat(64), "since": 0, "boot_id": "b",
            }))
            .unwrap()
        };
        assert!(!pod_is_gone(&lease(pods.join("alive/volumes/x/mount")), &pods));
        assert!(pod_is_gone(&lease(pods.join("dead/volumes/x/mount")), &pods));
        assert!(!pod_is_gone(&lease("/elsewhere/dead/mount".into()), &pods));
        assert!(!pod_is_gone(&lease(pods.join("dead/v")), &dir.path().join("invisible")));
        assert!(layout.root().is_dir());
    }
}
