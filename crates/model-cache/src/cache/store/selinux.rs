//! The SELinux label of the cache.
//!
//! Every pod has its own label, but a file has only one. Files for all pods of a node
//! need the label that all pods may read: `container_file_t` at the level `s0`
//! without categories. It is set once, on the empty directory; files created below
//! inherit it. No pod ever changes it.

use std::io;
use std::path::{Path, PathBuf};

use super::sys;

/// The type that every container may read.
const TYPE: &str = "container_file_t";

/// The level that every container dominates.
const LEVEL: &str = "s0";

/// The kernel files that show whether SELinux is on.
#[derive(Debug, Clone)]
pub(in crate::cache) struct Kernel {
    /// The mount point of `selinuxfs`. In a container it is usually not mounted.
    selinuxfs: PathBuf,
    /// The list of the kernel's file systems, with `selinuxfs` where SELinux is on.
    filesystems: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

/// The SELinux label of a directory, on a kernel with SELinux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelinuxLabel {
    /// Whether SELinux enforces; `None` where that cannot be seen, as in a container.
    pub enforcing: Option<bool>,
    /// The label; `None` if there is none.
    pub label: Option<String>,
    /// Whether all pods may read files with this label.
    pub for_all_pods: bool,
}

/// Reads the label of a directory; `None` where SELinux is off. The kernel's own files are
/// below `system`, which is `/` unless a test imitates them.
///
/// # Errors
/// When the kernel refuses to read the label.
pub fn label_of(system: &Path, directory: &Path) -> io::Result<Option<SelinuxLabel>> {
    let kernel = Kernel::below(system);
    if !kernel.has_selinux() {
        return Ok(None);
    }
    let label = sys::label(directory)?;
    let for_all_pods = decide(true, label.as_deref()) == RelabelDecision::Nothing;
    let mode = std::fs::read_to_string(kernel.selinuxfs.join("enforce")).ok();
    let enforcing = mode.map(|mode| mode.trim() == "1");
    Ok(Some(SelinuxLabel { enforcing, label, for_all_pods }))
}

impl Kernel {
    fn below(system: &Path) -> Self {
        Self {
            selinuxfs: system.join("sys/fs/selinux"),
            filesystems: system.join("proc/filesystems"),
        }
    }

    /// Whether SELinux is on, enforcing or permissive: files have labels in both modes.
    fn has_selinux(&self) -> bool {
        let known = std::fs::read_to_string(&self.filesystems).unwrap_or_default();
        self.selinuxfs.join("enforce").exists()
            || known.lines().any(|line| line.split_whitespace().last() == Some("selinuxfs"))
    }
}

/// What to do about a label.
#[derive(Debug, PartialEq, Eq)]
enum RelabelDecision {
    /// SELinux is off, or the label is right.
    Nothing,
    /// Set this label.
    Set(String),
}

/// Decides whether to relabel. User and role are kept: only type and level decide who
/// may read.
fn decide(has_selinux: bool, label: Option<&str>) -> RelabelDecision {
    if !has_selinux {
        return RelabelDecision::Nothing;
    }
    let mut parts = label.unwrap_or_default().splitn(4, ':');
    let (user, role) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if (parts.next(), parts.next()) == (Some(TYPE), Some(LEVEL)) {
        return RelabelDecision::Nothing;
    }
    let or = |found: &str, default: &str| match found {
        "" => default.to_owned(),
        found => found.to_owned(),
    };
    let (user, role) = (or(user, "system_u"), or(role, "object_r"));
    RelabelDecision::Set(format!("{user}:{role}:{TYPE}:{LEVEL}"))
}

/// Labels the cache and its `directories` where SELinux is on. A failure is only
/// logged: where the kernel does not enforce, the label is not needed.
pub(in crate::cache) fn label(kernel: &Kernel, root: &Path, directories: &[PathBuf], is_new: bool) {
    if !kernel.has_selinux() {
        return;
    }
    let dir = root.display();
    let found = match sys::label(root) {
        Ok(found) => found,
        Err(error) => return warn(root, "reading its label failed", &error),
    };
    let RelabelDecision::Set(wanted) = decide(true, found.as_deref()) else { return };
    for place in std::iter::once(root).chain(directories.iter().map(PathBuf::as_path)) {
        if let Err(error) = sys::set_label(place, &wanted) {
            return warn(place, &format!("setting the label {wanted} failed"), &error);
        }
    }
    let before = found.unwrap_or_else(|| "none".to_owned());
    tracing::info!(%dir, before, label = wanted, "the SELinux label of the cache was set");
    if !is_new {
        tracing::warn!(
            "existing files of the cache keep their label, and pods may not be allowed to read \
             them: `chcon -R -t {TYPE} -l {LEVEL} {dir}` on the node relabels them"
        );
    }
}

fn warn(place: &Path, what: &str, error: &io::Error) {
    tracing::warn!(
        place = %place.display(),
        %error,
        "SELinux is on, and the cache lacks the label that pods may read: {what}; see \
         docs/selinux.md"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_type_and_level_decide_and_user_and_role_stay() {
        let set = |label: &str| RelabelDecision::Set(label.to_owned());
        let good = "system_u:object_r:container_file_t:s0";
        for (has_selinux, label, decision) in [
            (false, Some("system_u:object_r:var_lib_t:s0"), RelabelDecision::Nothing),
            (false, None, RelabelDecision::Nothing),
            (true, Some(good), RelabelDecision::Nothing),
            (true, Some("unconfined_u:object_r:container_file_t:s0"), RelabelDecision::Nothing),
            (true, Some("system_u:object_r:var_lib_t:s0"), set(good)),
            (
                true,
                Some("unconfined_u:object_r:var_lib_t:s0"),
                set("unconfined_u:object_r:container_file_t:s0"),
            ),
            // One pod's own, as a runtime would have it.
            (true, Some("system_u:object_r:container_file_t:s0:c1,c2"), set(good)),
            (true, Some("system_u:object_r:unlabeled_t"), set(good)),
            (true, Some(""), set(good)),
            (true, None, set(good)),
        ] {
            assert_eq!(decide(has_selinux, label), decision, "{label:?}");
        }
    }

    fn kernel(dir: &Path, enforce: bool, filesystems: &str) -> Kernel {
        let kernel =
            Kernel { selinuxfs: dir.join("selinux"), filesystems: dir.join("filesystems") };
        std::fs::create_dir_all(&kernel.selinuxfs).unwrap();
        std::fs::write(&kernel.filesystems, filesystems).unwrap();
        if enforce {
            std::fs::write(kernel.selinuxfs.join("enforce"), "0").unwrap();
        }
        kernel
    }

    #[test]
    fn selinux_is_seen_on_a_node_and_from_inside_a_container() {
        let plain = "nodev\tsysfs\nnodev\ttmpfs\n\text4\n";
        for (enforce, filesystems, expected) in [
            (false, plain.to_owned(), false),
            (true, plain.to_owned(), true),
            // In a container nothing is mounted at /sys/fs/selinux.
            (false, format!("{plain}nodev\tselinuxfs\n"), true),
        ] {
            let dir = tempfile::tempdir().unwrap();
            assert_eq!(kernel(dir.path(), enforce, &filesystems).has_selinux(), expected);
        }
    }

    #[test]
    fn a_cache_is_labelled_where_selinux_is_on_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, inside) = (dir.path().join("cache"), dir.path().join("cache/blobs"));
        std::fs::create_dir_all(&inside).unwrap();
        label(&kernel(dir.path(), false, ""), &cache, std::slice::from_ref(&inside), true);
        assert_eq!(sys::label(&cache).unwrap(), None);

        // A kernel without SELinux keeps such an attribute like any other, for root.
        let probe = sys::set_label(dir.path(), "probe");
        label(&kernel(dir.path(), true, ""), &cache, std::slice::from_ref(&inside), true);
        if let Err(error) = probe {
            // Not root, or a file system without such attributes: there is no more to check.
            use nix::libc::{EOPNOTSUPP, EPERM};
            assert!(matches!(error.raw_os_error(), Some(EPERM | EOPNOTSUPP)), "{error}");
            return;
        }
        let expected = Some("system_u:object_r:container_file_t:s0".to_owned());
        assert_eq!(sys::label(&cache).unwrap(), expected);
        assert_eq!(sys::label(&inside).unwrap(), expected);
        assert_eq!(sys::label(dir.path()).unwrap(), Some("probe".to_owned()), "nothing else");
    }
}
