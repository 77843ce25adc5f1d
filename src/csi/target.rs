//! Confines target paths to kubelet's directory of pods.
//!
//! Every client of the socket is root already. This check keeps a mistake (another
//! kubelet directory, a link that a tool left) from mounting over the node. It is an
//! early answer, not a proof: the operations open the target again, by descriptor
//! ([`OpenTarget`]).

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::mount::{OpenTarget, TargetState};

/// PATH_MAX without its NUL.
const PATH_BYTES: usize = 4095;

/// NAME_MAX.
const NAME_BYTES: usize = 255;

/// A confined target path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ConfinedTarget {
    /// Absolute, normalized, below `<kubelet-dir>/pods/<uid>/`, without symbolic links.
    pub(super) path: PathBuf,
    /// The pod that the path belongs to.
    pub(super) pod_uid: String,
}

/// Confines a target path. Parts of it that do not exist are not checked: kubelet
/// creates the parent directory, and otherwise the mount fails with its own error.
///
/// A symbolic link in `kubelet_dir` itself is the administrator's choice and allowed.
/// Blocks.
///
/// # Errors
/// `Invalid` for every path that is not below a pod's directory of kubelet.
pub(super) fn confine(target: &str, kubelet_dir: &Path) -> Result<ConfinedTarget> {
    if target.is_empty() {
        return Err(Error::invalid("target_path is missing: set it to the volume's path"));
    }
    if target.len() > PATH_BYTES {
        return Err(Error::invalid(format!(
            "target_path is {} bytes long; the maximum is {PATH_BYTES}",
            target.len()
        )));
    }
    let refuse = |why: String| Err(Error::invalid(format!("target_path {target:?} {why}")));
    if target.chars().any(char::is_control) {
        return refuse("contains a control character".to_owned());
    }
    let Some(relative_to_root) = target.strip_prefix('/') else {
        return refuse("is not absolute".to_owned());
    };
    for component in relative_to_root.split('/') {
        match component {
            "" => return refuse("has an empty component: write it without '//'".to_owned()),
            "." | ".." => return refuse("has a '.' or '..' component".to_owned()),
            long if long.len() > NAME_BYTES => {
                return refuse(format!("has a component of more than {NAME_BYTES} bytes"));
            }
            _ => {}
        }
    }
    let pods = kubelet_dir.join("pods");
    let below: Option<Vec<&str>> = Path::new(target)
        .strip_prefix(&pods)
        .ok()
        .map(|below| below.iter().filter_map(|component| component.to_str()).collect());
    let Some([uid, _rest, ..]) = below.as_deref() else {
        return refuse(format!(
            "is not below a pod's directory {}/<uid>/; if kubelet has another root directory, set \
             --kubelet-dir to it",
            pods.display()
        ));
    };
    let pod_uid = (*uid).to_owned();
    let path = PathBuf::from(target);
    if let Some(place) = OpenTarget::open(kubelet_dir, &path)?
        && let TargetState::Other(kind @ "a symbolic link") = place.inspect()?
    {
        return Err(Error::invalid(format!(
            "{target} is {kind}; no part of a target below kubelet's directory of pods may be one"
        )));
    }
    Ok(ConfinedTarget { path, pod_uid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::fs;
    use std::os::unix::fs::symlink;

    const PLACE: &str = "volumes/kubernetes.io~csi/model/mount";

    #[track_caller]
    fn refused(target: &str, kubelet_dir: &Path) -> String {
        let error = confine(target, kubelet_dir).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        error.message().to_owned()
    }

    #[test]
    fn kubelets_target_path_is_accepted_and_names_the_pod() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods/uid-1").join(PLACE);
        let text = path.to_str().unwrap();
        let target = confine(text, dir.path()).unwrap();
        assert_eq!(target, ConfinedTarget { path: path.clone(), pod_uid: "uid-1".to_owned() });

        fs::create_dir_all(&path).unwrap();
        assert_eq!(confine(text, dir.path()).unwrap(), target);
        let with_slash = PathBuf::from(format!("{}/", dir.path().display()));
        assert_eq!(confine(text, &with_slash).unwrap(), target);
    }

    #[test]
    fn paths_that_are_not_normalized_are_refused() {
        let kubelet = Path::new("/var/lib/kubelet");
        for (bad, why) in [
            ("", "missing"),
            ("var/lib/kubelet/pods/u/mount", "not absolute"),
            ("/var/lib/kubelet/pods/u/../../../etc", "'..'"),
            ("/var/lib/kubelet/pods/u/./mount", "'.'"),
            ("/var/lib/kubelet/pods/u//mount", "empty component"),
            ("/var/lib/kubelet/pods/u/mount/", "empty component"),
            ("/var/lib/kubelet/pods/u/mo\0unt", "control character"),
            ("/var/lib/kubelet/pods/u/mo\nunt", "control character"),
        ] {
            assert!(refused(bad, kubelet).contains(why), "{bad:?}");
        }
        let long = format!("/var/lib/kubelet/pods/u/{}", "x".repeat(256));
        assert!(refused(&long, kubelet).contains("255 bytes"));
        let longer = format!("/var/lib/kubelet/pods/u{}", "/x".repeat(2048));
        assert!(refused(&longer, kubelet).contains("the maximum is 4095"));
    }

    #[test]
    fn paths_outside_kubelets_pods_are_refused_and_the_flag_is_named() {
        let kubelet = Path::new("/var/lib/kubelet");
        for outside in [
            "/",
            "/etc",
            "/var/lib/kubelet",
            "/var/lib/kubelet/pods",
            "/var/lib/kubelet/pods/u",
            "/var/lib/kubelet/podsuffix/u/mount",
            "/var/lib/kubelet/plugins/x/y",
            "/var/lib/other/pods/u/mount",
        ] {
            let message = refused(outside, kubelet);
            assert!(message.contains("--kubelet-dir") || outside == "/", "{message}");
        }
    }

    #[test]
    fn a_symbolic_link_in_any_part_below_the_kubelet_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        for linked in ["pods", "pods/u", "pods/u/volumes", "pods/u/volumes/mount"] {
            let kubelet = tempfile::tempdir().unwrap();
            let link = kubelet.path().join(linked);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(&elsewhere, &link).unwrap();
            let target = kubelet.path().join("pods/u/volumes/mount");
            let message = refused(target.to_str().unwrap(), kubelet.path());
            assert!(message.starts_with(link.to_str().unwrap()), "{message}");
        }
        let dangling = tempfile::tempdir().unwrap();
        fs::create_dir_all(dangling.path().join("pods/u")).unwrap();
        symlink("nowhere", dangling.path().join("pods/u/mount")).unwrap();
        refused(dangling.path().join("pods/u/mount").to_str().unwrap(), dangling.path());
    }

    #[test]
    fn a_kubelet_directory_that_is_a_link_is_the_administrators_choice() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        fs::create_dir_all(real.join("pods/u")).unwrap();
        let kubelet = dir.path().join("kubelet");
        symlink(&real, &kubelet).unwrap();
        confine(kubelet.join("pods/u/mount").to_str().unwrap(), &kubelet).unwrap();
    }

    #[test]
    fn a_file_on_the_way_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pods")).unwrap();
        fs::write(dir.path().join("pods/u"), "").unwrap();
        let target = dir.path().join("pods/u/mount");
        assert!(refused(target.to_str().unwrap(), dir.path()).contains("not a directory"));
    }
}
