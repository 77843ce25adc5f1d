//! What the cache needs of its file system, tried on a small file.

use std::io;

use nix::errno::Errno;

use super::system::LocalSystem;
use super::{CheckId, Finding, NodeView};
use crate::cache::{CacheDisk, DirectoryContent, FileSystemProbe, probe_file_system};

/// File systems that are tested with the driver.
const TESTED: [&str; 3] = ["ext4", "xfs", "btrfs"];

const FORMAT: &str = "format the disk as xfs, ext4 or btrfs, or name a directory on such a disk in \
                      config.cache.dir";

const REPAIR: &str = "read `dmesg` if the disk fails, and make room if it is full";

pub(super) fn examine(
    view: &NodeView,
    disk: &CacheDisk,
    content: Option<DirectoryContent>,
    system: &LocalSystem,
) -> Vec<Finding> {
    let dir = view.cache_dir.display();
    let fs_type = system.mount_of(&disk.existing).map(|mount| mount.fs_type.display().to_string());
    let fs_type = fs_type.unwrap_or_else(|| "the file system".to_owned());
    let skip = |why: &str| vec![Finding::skipped(CheckId::FileSystem, format!("{dir}: {why}"))];
    match content {
        // The directory has a fault already.
        None => Vec::new(),
        Some(DirectoryContent::Absent) => vec![of_type(&fs_type, disk)],
        _ if !view.may_write => skip("not tried, since nothing may be written"),
        _ => match probe_file_system(&view.cache_dir) {
            Ok(probe) => of_probe(&format!("{fs_type} at {dir}"), &probe),
            Err(error) => vec![Finding::fault(
                CheckId::FileSystem,
                format!("no file can be written to {dir}: {error}"),
                REPAIR,
            )],
        },
    }
}

/// Nothing can be tried in a directory that does not exist.
fn of_type(fs_type: &str, disk: &CacheDisk) -> Finding {
    let existing = disk.existing.display();
    if TESTED.contains(&fs_type) {
        let text = format!("{fs_type}, which has what a cache needs (not tried: no directory yet)");
        return Finding::fine(CheckId::FileSystem, text);
    }
    let why = format!(
        "{existing} is {fs_type}, and whether it has hard links is not known: tested are {}",
        TESTED.join(", ")
    );
    Finding::skipped(CheckId::FileSystem, why)
}

fn of_probe(place: &str, probe: &FileSystemProbe) -> Vec<Finding> {
    let needed = [
        ("hard links, which models are made of", &probe.hard_links),
        ("renames", &probe.renames),
        ("fsync, without which a power loss damages models", &probe.syncs),
    ];
    let faults = needed.into_iter().filter_map(|(what, outcome)| {
        let error = outcome.as_ref().err()?;
        Some(match is_unsupported(error) {
            true => {
                let what = format!("{place} is without {what}: {error}");
                Finding::fault(CheckId::FileSystem, what, FORMAT)
            }
            // A disk that is full or fails may have all of it.
            false => {
                let what = format!("trying {place}, with a small file: {error}");
                Finding::fault(CheckId::FileSystem, what, REPAIR)
            }
        })
    });
    let mut findings: Vec<Finding> = faults.collect();
    if findings.is_empty() {
        let lacks = lacks(probe);
        let lacks = if lacks.is_empty() { lacks } else { format!("; without {lacks}") };
        let text = format!("{place} has hard links, renames and fsync{lacks}");
        findings.push(Finding::fine(CheckId::FileSystem, text));
    }
    findings
}

/// The answers of file systems that cannot do what was asked for.
fn is_unsupported(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let answers = [
        Errno::EOPNOTSUPP,
        Errno::ENOSYS,
        Errno::EINVAL,
        Errno::EPERM,
        Errno::EMLINK,
        Errno::EXDEV,
    ];
    errno.is_some_and(|errno| answers.contains(&errno))
}

/// What a cache can do without, in words.
fn lacks(probe: &FileSystemProbe) -> String {
    let optional: [(&str, &io::Result<()>); 3] = [
        ("reflinks (`cache import` copies bytes)", &probe.reflinks),
        ("leases (`cache import --move` copies files too)", &probe.leases),
        ("preallocation (a disk that fills up ends downloads late)", &probe.preallocation),
    ];
    let lacking = optional.into_iter().filter(|(_, outcome)| outcome.is_err());
    lacking.map(|(what, _)| what).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    fn probe(hard_links: io::Result<()>, reflinks: io::Result<()>) -> FileSystemProbe {
        FileSystemProbe {
            hard_links,
            renames: Ok(()),
            syncs: Ok(()),
            preallocation: Ok(()),
            leases: Ok(()),
            reflinks,
        }
    }

    #[test]
    fn a_full_or_failing_disk_is_not_called_unable_nor_to_be_formatted() {
        for errno in [nix::libc::ENOSPC, nix::libc::EIO, nix::libc::EDQUOT, nix::libc::ENOENT] {
            let syncs = Err(io::Error::from_raw_os_error(errno));
            let found =
                of_probe("ext4 at /mnt", &FileSystemProbe { syncs, ..probe(Ok(()), Ok(())) });
            assert_eq!(found[0].severity, Severity::Fault);
            let text = format!("{found:?}");
            assert!(!text.contains("format the disk") && !text.contains("without fsync"), "{text}");
        }
    }

    #[test]
    fn what_is_needed_is_a_fault_and_what_is_not_is_named() {
        let refused = || Err(io::Error::from_raw_os_error(nix::libc::EPERM));
        let found = of_probe("vfat at /mnt", &probe(refused(), Ok(())));
        assert_eq!(found[0].severity, Severity::Fault);
        assert!(found[0].what.starts_with("vfat at /mnt is without hard links"), "{found:?}");
        let found = of_probe("ext4 at /mnt", &probe(Ok(()), refused()));
        assert_eq!((found.len(), found[0].severity), (1, Severity::Fine));
        assert!(found[0].what.contains("without reflinks"), "{found:?}");
    }
}
