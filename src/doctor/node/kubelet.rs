//! kubelet's directory, and whether mounts made below it reach pods.

use std::fs;
use std::io;
use std::path::Path;

use super::system::LocalSystem;
use super::{CheckId, Finding, NodeView};
use crate::mount;
use crate::mount::mountinfo::{MountEntry, MountTable};

/// Where distributions have kubelet's directory.
const USUAL: [&str; 3] =
    ["var/lib/kubelet", "var/lib/k0s/kubelet", "var/snap/microk8s/common/var/lib/kubelet"];

/// Looks at kubelet's directory; a machine without one gets one finding that says so.
pub(super) fn directory(view: &NodeView, system: &LocalSystem) -> Vec<Finding> {
    let kubelet = view.kubelet_dir.display();
    if !view.has_kubelet() {
        return vec![absent(view, system)];
    }
    let fault = |what: String, fix: String| vec![Finding::fault(CheckId::Kubelet, what, fix)];
    let pods = view.kubelet_dir.join("pods");
    match fs::read_dir(&pods) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let why = format!("{kubelet} may be read by root alone: run doctor with sudo");
            return vec![Finding::skipped(CheckId::Kubelet, why)];
        }
        Err(e) => {
            return fault(
                format!("{kubelet} has no pods ({e}): it is not kubelet's, or kubelet never ran"),
                "`ps -C kubelet -o args=` on the node shows --root-dir; set node.kubeletPath of the \
                 chart to it, and wait until kubelet runs"
                    .to_owned(),
            );
        }
    }
    // The driver's container has only the pods.
    if !system.is_container() && !view.kubelet_dir.join("plugins_registry").is_dir() {
        let what = format!("{kubelet} has pods and no plugins_registry: no kubelet looks there");
        return fault(
            what,
            "`ps -C kubelet -o args=` on the node shows --root-dir; set node.kubeletPath to it"
                .to_owned(),
        );
    }
    vec![Finding::fine(CheckId::Kubelet, format!("{kubelet} is kubelet's directory"))]
}

fn absent(view: &NodeView, system: &LocalSystem) -> Finding {
    let kubelet = view.kubelet_dir.display();
    let elsewhere = USUAL.iter().find(|path| {
        let found = system.path(path);
        found != view.kubelet_dir && found.join("pods").is_dir()
    });
    if let Some(path) = elsewhere {
        return Finding::fault(
            CheckId::Kubelet,
            format!("{kubelet} does not exist, and kubelet's directory is /{path}"),
            format!("set node.kubeletPath of the chart (--kubelet-dir) to /{path}"),
        );
    }
    let is_pod = system.path("var/run/secrets/kubernetes.io").exists();
    if is_pod && system.is_container() {
        return Finding::skipped(
            CheckId::Kubelet,
            format!(
                "{kubelet} is not in this container: run doctor in the container `driver` of a \
                     node plugin's pod to see its node"
            ),
        );
    }
    Finding::skipped(
        CheckId::Kubelet,
        format!(
            "{kubelet} does not exist: this is no Kubernetes node, so nothing of one is checked"
        ),
    )
}

/// Whether mounts below kubelet's pods reach kubelet and the pods.
pub(super) fn propagation(view: &NodeView, system: &LocalSystem) -> Vec<Finding> {
    let pods = view.kubelet_dir.join("pods");
    if !pods.is_dir() {
        return Vec::new();
    }
    match &system.mounts {
        Ok(table) => vec![of_table(table, &mount::spelled(&pods), system.is_container())],
        Err(error) => vec![Finding::skipped(CheckId::Propagation, error.message())],
    }
}

fn of_table(table: &MountTable, pods: &Path, is_container: bool) -> Finding {
    let shown = pods.display();
    let Some(mount) = table.around(pods) else {
        return Finding::skipped(CheckId::Propagation, format!("no mount is known for {shown}"));
    };
    let at = mount.mount_point.display();
    let has = |field: &str| has_field(mount, field);
    if is_container && mount.mount_point == Path::new("/") {
        return Finding::fault(
            CheckId::Propagation,
            format!("{shown} is a directory of this container and not the node's"),
            "mount the node's directory as a hostPath at the same path, with mountPropagation: \
             Bidirectional, as the chart does",
        );
    }
    if has("shared:") {
        let text = format!("mounts below {shown} reach kubelet and pods ({at} is shared)");
        return Finding::fine(CheckId::Propagation, text);
    }
    let kind = if has("master:") { "receives mounts and passes none on" } else { "is private" };
    let what = format!(
        "the mount {at} {kind}: what the driver mounts below {shown} never reaches the pods, which \
         start with empty directories"
    );
    if is_container {
        return Finding::fault(
            CheckId::Propagation,
            what,
            "set mountPropagation: Bidirectional in the driver's volumeMounts of kubelet's pods, \
             in a privileged container, as the chart does",
        );
    }
    let fix = format!("`mount --make-rshared {at}`, now and at each boot before kubelet starts");
    Finding::fault(CheckId::Propagation, what, fix)
}

fn has_field(mount: &MountEntry, field: &str) -> bool {
    mount.optional.iter().any(|one| one.to_string_lossy().starts_with(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    const PODS: &str = "/var/lib/kubelet/pods";

    fn found(mounts: &str, is_container: bool) -> Finding {
        let table = MountTable::parse(mounts.as_bytes()).unwrap();
        of_table(&table, Path::new(PODS), is_container)
    }

    #[test]
    fn shared_mounts_are_fine_on_the_node_and_in_the_container() {
        let node = "20 1 8:3 / / rw shared:1 - xfs /dev/sda3 rw\n";
        assert_eq!(found(node, false).severity, Severity::Fine);
        let own = "20 1 8:3 / / rw - xfs /dev/sda3 rw\n\
                   21 20 8:4 / /var/lib/kubelet rw shared:7 - xfs /dev/sdb rw\n";
        assert_eq!(found(own, false).severity, Severity::Fine);
        let container = "20 1 0:40 / / ro - overlay overlay rw\n\
                         21 20 8:3 /var/lib/kubelet/pods /var/lib/kubelet/pods rw shared:1 - xfs /dev/sda3 rw\n";
        assert_eq!(found(container, true).severity, Severity::Fine);
    }

    #[test]
    fn a_private_or_slave_mount_is_a_fault_with_the_fix_of_its_side() {
        let line = |fields: &str| {
            format!(
                "20 1 0:40 / / ro - overlay overlay rw\n\
                 21 20 8:3 /var/lib/kubelet/pods {PODS} rw {fields}- xfs /dev/sda3 rw\n"
            )
        };
        for (fields, kind) in [("", "is private"), ("master:1 ", "passes none on")] {
            let found = found(&line(fields), true);
            assert_eq!(found.severity, Severity::Fault);
            assert!(found.what.contains(kind), "{}", found.what);
            assert!(found.fix.unwrap().contains("mountPropagation: Bidirectional"));
        }
        let host = found("20 1 8:3 / / rw - xfs /dev/sda3 rw\n", false);
        assert!(host.fix.unwrap().contains("`mount --make-rshared /`"));
    }

    #[test]
    fn a_directory_that_is_only_the_containers_is_a_fault() {
        let found = found("20 1 0:40 / / rw - overlay overlay rw\n", true);
        assert_eq!(found.severity, Severity::Fault);
        assert!(found.what.contains("not the node's"), "{}", found.what);
    }
}
