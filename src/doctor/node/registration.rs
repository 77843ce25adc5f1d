//! Whether kubelet knows the driver, and which driver answers at its socket.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::system::age;
use super::{CheckId, Finding, NodeView};
use crate::admin::DriverStatus;
use crate::csi;
use crate::error::ErrorKind;
use crate::model::duration_text;

/// The registrar asks once a second at first, and kubelet looks at once.
const REGISTERED_WITHIN: Duration = Duration::from_secs(60);

/// Where the chart has the socket in the driver's container.
const IN_CONTAINER: &str = "/csi/csi.sock";

/// Looks at the sockets of the driver and of its registrar, and at what `status` says.
pub(super) async fn examine(view: &NodeView, status: Option<&DriverStatus>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let socket = socket(view);
    match &socket {
        Some(socket) => findings.extend(of_socket(view, socket).await),
        // Without any driver, its own finding says enough.
        None => findings.extend(status.is_some().then(|| {
            let registry = view.kubelet_dir.join("plugins").join(&view.driver_name);
            Finding::warning(
                CheckId::Registration,
                format!(
                    "no socket of {} at {IN_CONTAINER} nor in {}",
                    view.driver_name,
                    registry.display()
                ),
                "name it with --csi-endpoint; kubelet finds it by --kubelet-registration-path of \
                 the container node-driver-registrar",
            )
        })),
    }
    findings.extend(of_registrar(view, socket.is_some()));
    findings.extend(status.and_then(|status| of_calls(view, status, SystemTime::now())));
    if findings.is_empty() && socket.is_some() {
        let called = status.is_some_and(|status| status.kubelet_called.is_some());
        let called = if called { ", and kubelet calls it" } else { "" };
        let text = format!("{} answers at its socket{called}", view.driver_name);
        findings.push(Finding::fine(CheckId::Registration, text));
    }
    findings
}

/// The socket that kubelet uses: the given one, or one that exists where the chart has it.
fn socket(view: &NodeView) -> Option<PathBuf> {
    if let Some(given) = &view.csi_socket {
        return Some(given.clone());
    }
    let on_node = view.kubelet_dir.join("plugins").join(&view.driver_name).join("csi.sock");
    [PathBuf::from(IN_CONTAINER), on_node].into_iter().find(|path| path.exists())
}

async fn of_socket(view: &NodeView, socket: &Path) -> Option<Finding> {
    const FIX: &str = "`kubectl logs POD -c driver` of the node plugin's pod says why; a restart \
                       of the pod replaces a socket without a server";
    let (expected, shown) = (&view.driver_name, socket.display());
    match csi::plugin_name(socket).await {
        Ok(name) if name == *expected => None,
        Ok(name) => Some(Finding::fault(
            CheckId::Registration,
            format!("at {shown} answers the driver {name}, and not {expected}"),
            "give each driver a name and a directory of its own (driverName of the chart), or name \
             this one with --driver-name",
        )),
        Err(error) if error.kind() == ErrorKind::Denied => {
            let why = format!("{error}: run doctor with sudo, or in the driver's container");
            Some(Finding::skipped(CheckId::Registration, why))
        }
        Err(error) => {
            let fault = Finding::fault(CheckId::Registration, error.message(), FIX);
            Some(fault.meaning(error.kind()))
        }
    }
}

/// On the node itself, the socket with which the registrar announces the driver to kubelet.
fn of_registrar(view: &NodeView, has_driver: bool) -> Option<Finding> {
    let registry = view.kubelet_dir.join("plugins_registry");
    let socket = registry.join(format!("{}-reg.sock", view.driver_name));
    (has_driver && registry.is_dir() && !socket.exists()).then(|| {
        Finding::fault(
            CheckId::Registration,
            format!("{} does not exist: kubelet does not know the driver", socket.display()),
            "`kubectl logs POD -c node-driver-registrar` of the node plugin's pod says why; \
             node.kubeletPath of the chart must be kubelet's --root-dir",
        )
    })
}

fn of_calls(view: &NodeView, status: &DriverStatus, now: SystemTime) -> Option<Finding> {
    let since = age(status.started, now);
    // kubelet does not ask again after a restart of the driver's container alone.
    (status.kubelet_called.is_none() && since > REGISTERED_WITHIN).then(|| {
        Finding::warning(
            CheckId::Registration,
            format!(
                "kubelet has not called the driver since it started {} ago",
                duration_text(since)
            ),
            format!(
                "`kubectl get csinode NODE -o jsonpath='{{.spec.drivers[*].name}}'` must show \
                 {}; if it does, no pod of this node uses a model yet",
                view.driver_name
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::view;
    use super::*;
    use crate::doctor::Severity;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_driver_that_kubelet_does_not_call_is_a_warning_after_a_minute() {
        let silent = DriverStatus { started: 1000, ..DriverStatus::default() };
        assert_eq!(of_calls(&view(), &silent, at(1030)), None);
        let found = of_calls(&view(), &silent, at(1300)).unwrap();
        assert_eq!(found.severity, Severity::Warning);
        assert!(found.what.contains("5m00s ago"), "{}", found.what);
        let called = DriverStatus { kubelet_called: Some(1001), ..silent };
        assert_eq!(of_calls(&view(), &called, at(1300)), None);
    }

    #[test]
    fn a_registry_without_the_drivers_socket_is_a_fault() {
        let dir = tempfile::tempdir().unwrap();
        let registry = dir.path().join("plugins_registry");
        std::fs::create_dir(&registry).unwrap();
        let view = NodeView { kubelet_dir: dir.path().to_owned(), ..view() };
        assert_eq!(of_registrar(&view, false), None, "no driver yet");
        let found = of_registrar(&view, true).unwrap();
        assert_eq!(found.severity, Severity::Fault);
        std::fs::write(registry.join("oci-model-csi.dev-reg.sock"), "").unwrap();
        assert_eq!(of_registrar(&view, true), None);
    }
}
