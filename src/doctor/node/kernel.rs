//! What the driver needs of the kernel: the right to mount, newer calls, descriptors.

use std::io;
use std::path::Path;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit};

use super::system::LocalSystem;
use super::{CheckId, Finding, NodeView};
use crate::mount::{MountCalls, probe_calls};

/// Descriptors that a busy driver may need: 1,024 connections of kubelet and the sidecars, 256
/// requests, and files of the models that are downloaded.
const DESCRIPTORS: u64 = 8192;

/// Tries the calls with which volumes are mounted.
pub(super) fn calls(view: &NodeView, system: &LocalSystem) -> Vec<Finding> {
    let release = system.read("proc/sys/kernel/osrelease");
    let linux = release.map_or_else(|_| "this kernel".to_owned(), |name| format!("Linux {name}"));
    match system.may_mount() {
        None => return vec![Finding::skipped(CheckId::Kernel, "/proc/self/status cannot be read")],
        Some(false) if system.is_container() => {
            return vec![Finding::fault(
                CheckId::Kernel,
                "this container lacks CAP_SYS_ADMIN, so no volume can be mounted",
                "set securityContext.privileged: true in the driver's container, as the chart \
                 does; Bidirectional mounts need it too",
            )];
        }
        Some(false) => {
            let why = "this user may not mount: run doctor with sudo to try the kernel's calls";
            return vec![Finding::skipped(CheckId::Kernel, why)];
        }
        Some(true) => {}
    }
    let place = if view.kubelet_dir.is_dir() { &view.kubelet_dir } else { Path::new("/") };
    match probe_calls(place) {
        Ok(calls) => vec![of_calls(&linux, &calls)],
        Err(error) => {
            let why = format!("opening {}: {error}", place.display());
            vec![Finding::skipped(CheckId::Kernel, why)]
        }
    }
}

fn of_calls(linux: &str, calls: &MountCalls) -> Finding {
    let named = [
        ("open_tree", &calls.open_tree),
        ("mount_setattr", &calls.mount_setattr),
        ("openat2", &calls.openat2),
    ];
    let failed: Vec<(&str, &io::Error)> =
        named.iter().filter_map(|(name, outcome)| Some((*name, outcome.as_ref().err()?))).collect();
    if failed.is_empty() {
        let text = format!("{linux} makes mounts that are read-only from their first moment");
        return Finding::fine(CheckId::Kernel, text);
    }
    let names = failed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let old = failed.iter().all(|(_, error)| error.raw_os_error() == Some(libc::ENOSYS));
    let (why, fix) = if old {
        (
            format!("{linux} has no {names}"),
            "use nodes with Linux 5.12 or newer, such as Oracle Linux with UEK 7 (5.15)",
        )
    } else {
        let error = failed[0].1;
        (
            format!("{linux} refuses {names} ({error}): a sandbox filters them"),
            "let the driver's container run privileged and with seccompProfile RuntimeDefault of \
             a current container runtime",
        )
    };
    let what = format!("{why}; the driver mounts first, and makes the mount read-only right after");
    Finding::warning(CheckId::Kernel, what, fix)
}

/// Looks at the limit on open files, and at how many the whole machine has left.
pub(super) fn descriptors(system: &LocalSystem) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((used, most)) = open_files(system)
        && used > most / 10 * 9
    {
        findings.push(Finding::warning(
            CheckId::Descriptors,
            format!("{used} of {most} files that the node may have open are open"),
            "find the process with `lsof | cut -d' ' -f1 | sort | uniq -c | sort -n`, or raise \
             fs.file-max with sysctl",
        ));
    }
    match getrlimit(Resource::RLIMIT_NOFILE) {
        // On the node itself the limit of this shell says nothing about the driver's.
        Ok((_, hard)) if system.is_container() => findings.push(of_limit(hard)),
        Ok(_) => {}
        Err(errno) => {
            let why = format!("the limit on open files cannot be read: {errno}");
            findings.push(Finding::skipped(CheckId::Descriptors, why));
        }
    }
    findings
}

fn of_limit(hard: u64) -> Finding {
    if hard >= DESCRIPTORS {
        let text = format!("{hard} files may be open, and {DESCRIPTORS} are enough");
        return Finding::fine(CheckId::Descriptors, text);
    }
    Finding::warning(
        CheckId::Descriptors,
        format!("{hard} files may be open in this container; a busy driver needs {DESCRIPTORS}"),
        "raise LimitNOFILE in the unit of the container runtime (`systemctl edit crio` or \
         containerd), then restart it and the driver's pod",
    )
}

/// How many files are open, and how many may be (`/proc/sys/fs/file-nr`, see proc(5)).
fn open_files(system: &LocalSystem) -> Option<(u64, u64)> {
    let text = system.read("proc/sys/fs/file-nr").ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    Some((numbers.next()?.ok()?, numbers.next_back()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::system::tests::imitated;
    use super::super::tests::view;
    use super::*;
    use crate::doctor::Severity;

    fn outcome(errno: i32) -> io::Result<()> {
        if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
    }

    #[test]
    fn an_old_kernel_and_a_sandbox_are_distinguished() {
        let found = |tree, setattr, openat2| {
            of_calls(
                "Linux 5.4",
                &MountCalls {
                    open_tree: outcome(tree),
                    mount_setattr: outcome(setattr),
                    openat2: outcome(openat2),
                },
            )
        };
        assert_eq!(found(0, 0, 0).severity, Severity::Fine);
        let old = found(0, libc::ENOSYS, libc::ENOSYS);
        assert_eq!(old.severity, Severity::Warning);
        assert!(old.what.starts_with("Linux 5.4 has no mount_setattr, openat2"), "{}", old.what);
        let filtered = found(libc::EPERM, libc::EPERM, 0);
        assert!(filtered.what.contains("a sandbox filters them"), "{}", filtered.what);
    }

    #[test]
    fn a_container_without_the_right_to_mount_is_a_fault_and_a_user_is_not() {
        let status = ("proc/self/status", "CapEff:\t00000000a80425fb\n");
        let overlay = ("proc/self/mountinfo", "20 1 0:40 / / ro - overlay overlay rw\n");
        let found = |files: &[_]| calls(&view(), &imitated(files).1)[0].severity;
        assert_eq!(found(&[status, overlay]), Severity::Fault);
        assert_eq!(found(&[status]), Severity::Skipped);
        assert_eq!(found(&[overlay]), Severity::Skipped, "/proc is not readable");
    }

    #[test]
    fn few_descriptors_are_reported_for_the_container_and_for_the_node() {
        assert_eq!(of_limit(1 << 20).severity, Severity::Fine);
        assert_eq!(of_limit(1024).severity, Severity::Warning);
        let (_dir, full) = imitated(&[("proc/sys/fs/file-nr", "95000\t0\t100000\n")]);
        assert_eq!(descriptors(&full)[0].severity, Severity::Warning);
        let (_dir, free) = imitated(&[("proc/sys/fs/file-nr", "2000\t0\t9223372036854775807\n")]);
        assert_eq!(descriptors(&free), [], "the limit of a shell is not the driver's");
    }
}
