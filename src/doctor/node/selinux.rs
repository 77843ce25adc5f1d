//! Whether pods may read the cache where SELinux is on.

use super::system::LocalSystem;
use super::{CheckId, Finding, NodeView};
use crate::cache::{SelinuxLabel, selinux_label_of};

pub(super) fn examine(view: &NodeView, system: &LocalSystem) -> Vec<Finding> {
    let dir = view.cache_dir.display();
    if !view.cache_dir.is_dir() {
        // The driver labels the directory that it creates.
        return Vec::new();
    }
    match selinux_label_of(system.root(), &view.cache_dir) {
        Ok(None) => vec![Finding::fine(CheckId::Selinux, "SELinux is off")],
        Ok(Some(found)) => vec![of_label(&dir.to_string(), &found)],
        Err(error) => {
            let why = format!("the SELinux label of {dir} cannot be read: {error}");
            vec![Finding::skipped(CheckId::Selinux, why)]
        }
    }
}

fn of_label(dir: &str, found: &SelinuxLabel) -> Finding {
    let label = found.label.as_deref().unwrap_or("none");
    let mode = match found.enforcing {
        Some(true) => "SELinux enforces",
        Some(false) => "SELinux is permissive",
        None => "SELinux is on",
    };
    if found.for_all_pods {
        let text = format!("{mode}, and pods may read {dir} (label {label})");
        return Finding::fine(CheckId::Selinux, text);
    }
    let what = format!("{mode}, and the label of {dir} is {label}: pods may not read models in it");
    let fix = format!(
        "`semanage fcontext -a -t container_file_t '{dir}(/.*)?'` and `chcon -R -t \
         container_file_t -l s0 {dir}` on the node; a driver that starts labels an empty directory \
         itself (docs/selinux.md)"
    );
    match found.enforcing {
        Some(true) => Finding::fault(CheckId::Selinux, what, fix),
        _ => Finding::warning(CheckId::Selinux, what, fix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn a_wrong_label_is_a_fault_where_selinux_enforces() {
        for (enforcing, for_all_pods, expected) in [
            (Some(true), true, Severity::Fine),
            (Some(true), false, Severity::Fault),
            (Some(false), false, Severity::Warning),
            (None, false, Severity::Warning),
        ] {
            let label = Some("system_u:object_r:var_lib_t:s0".to_owned());
            let found = of_label("/mnt/models", &SelinuxLabel { enforcing, label, for_all_pods });
            assert_eq!(found.severity, expected);
            assert!(found.what.contains("var_lib_t"), "{}", found.what);
        }
    }
}
