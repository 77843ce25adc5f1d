//! The directory of the cache: what a driver that starts on it would find.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::system::LocalSystem;
use super::{CheckId, Finding, NodeView};
use crate::cache::{DirectoryContent, examine_directory};

/// Looks at the directory; returns what it holds, unless the driver would refuse it.
pub(super) fn examine(
    view: &NodeView,
    system: &LocalSystem,
) -> (Option<DirectoryContent>, Vec<Finding>) {
    let dir = view.cache_dir.display();
    if let Some(owner) = owner_of_others(&view.cache_dir, system) {
        let why = format!(
            "the cache {dir} belongs to user {owner}: run doctor as that user, with sudo or in the \
             driver's container"
        );
        return (None, vec![Finding::skipped(CheckId::CacheDirectory, why)]);
    }
    let mut findings = Vec::new();
    let content = match examine_directory(&view.cache_dir, view.require_mount) {
        Ok(content) => {
            findings.push(of_content(view, content));
            Some(content)
        }
        Err(error) => {
            let (what, fix) = (error.message(), fix_of_refusal(view));
            let fault = Finding::fault(CheckId::CacheDirectory, what, fix);
            findings.push(fault.meaning(error.kind()));
            None
        }
    };
    findings.extend(not_mounted(view, system));
    (content, findings)
}

/// Another user who owns the directory, where this one may not look.
fn owner_of_others(dir: &Path, system: &LocalSystem) -> Option<u32> {
    let owner = fs::symlink_metadata(dir).ok()?.uid();
    (!system.is_root && owner != nix::unistd::geteuid().as_raw()).then_some(owner)
}

fn of_content(view: &NodeView, content: DirectoryContent) -> Finding {
    let dir = view.cache_dir.display();
    let fine = |what: String| Finding::fine(CheckId::CacheDirectory, what);
    match content {
        DirectoryContent::Absent => match file_above(&view.cache_dir) {
            None => fine(format!("{dir} does not exist yet; the driver creates it")),
            Some(file) => Finding::fault(
                CheckId::CacheDirectory,
                format!("{dir} cannot be created: {} is a file", file.display()),
                "name another directory in config.cache.dir, or remove that file",
            ),
        },
        DirectoryContent::Empty => fine(format!("{dir} is empty and can become a cache")),
        DirectoryContent::Cache => fine(format!("{dir} is a cache of this driver")),
        DirectoryContent::OlderCache => Finding::warning(
            CheckId::CacheDirectory,
            format!(
                "{dir} is a cache of an older version: the driver sets it aside at its start, and \
                 downloads again what pods ask for"
            ),
            "nothing has to be done; `oci-model-csi cache gc --all` frees its space once no pod \
             uses it",
        ),
    }
}

/// What is in the way of a directory that does not exist.
fn file_above(dir: &Path) -> Option<&Path> {
    dir.ancestors().find(|path| path.exists()).filter(|path| !path.is_dir())
}

fn fix_of_refusal(view: &NodeView) -> String {
    let dir = view.cache_dir.display();
    if view.require_mount {
        return format!(
            "mount the disk (`mount {dir}`; `findmnt {dir}` shows whether it is), or select the \
             nodes that have one with node.nodeSelector, or set config.cache.requireMount to false"
        );
    }
    "do what the message says, or name another directory in config.cache.dir".to_owned()
}

/// A line of fstab for the directory, or one above it, whose disk is not mounted.
fn not_mounted(view: &NodeView, system: &LocalSystem) -> Option<Finding> {
    let table = system.mounts.as_ref().ok()?;
    let fstab = system.read("etc/fstab").ok()?;
    let planned = mount_points(&fstab);
    let missing = view.cache_dir.ancestors().find(|dir| {
        *dir != Path::new("/") && planned.contains(&dir.to_path_buf()) && table.at(dir).is_none()
    })?;
    let missing = missing.display();
    Some(Finding::fault(
        CheckId::CacheDirectory,
        format!(
            "/etc/fstab has a line for {missing}, and nothing is mounted there: models would fill \
             the disk below it"
        ),
        format!(
            "`mount {missing}`, and read `dmesg` if that fails; config.cache.requireMount: true \
             keeps a driver from starting on the wrong disk"
        ),
    ))
}

fn mount_points(fstab: &str) -> Vec<PathBuf> {
    let lines = fstab.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_whitespace().nth(1)).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::super::system::tests::imitated;
    use super::super::tests::view;
    use super::*;

    #[test]
    fn a_disk_of_fstab_that_is_not_mounted_is_a_fault_that_names_the_command() {
        let mounts =
            "20 1 8:1 / / rw - xfs /dev/sda3 rw\n21 20 8:2 / /mnt/other rw - xfs /dev/sdb rw\n";
        let fstab = "# comment\nLABEL=models /mnt/models xfs defaults,nofail 0 2\n\
                     /dev/sdb /mnt/other xfs defaults 0 2\n";
        let (_dir, system) = imitated(&[("proc/self/mountinfo", mounts), ("etc/fstab", fstab)]);
        for (cache, missing) in [
            ("/mnt/models", true),
            ("/mnt/models/cache", true),
            ("/mnt/other/cache", false),
            ("/var/lib/oci-model-csi", false),
        ] {
            let view = NodeView { cache_dir: cache.into(), ..view() };
            let found = not_mounted(&view, &system);
            assert_eq!(found.is_some(), missing, "{cache}");
            if let Some(found) = found {
                assert!(found.fix.unwrap().contains("`mount /mnt/models`"));
            }
        }
    }
}
