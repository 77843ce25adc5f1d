//! Access to a volume: a read-only directory, on any number of nodes.

use std::collections::BTreeSet;

use super::proto::VolumeCapability;
use super::proto::volume_capability::{AccessType, access_mode::Mode};
use crate::error::{Error, Result};
use crate::mount::BindOptions;

/// Mount flags that an administrator may set (`mountOptions`). The first three
/// apply to every volume.
const FLAGS: [&str; 5] = ["ro", "nosuid", "nodev", "noexec", "noatime"];

/// A capability that this driver supports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Capability {
    /// The mount flags, without duplicates.
    pub(super) flags: BTreeSet<&'static str>,
}

impl Capability {
    /// The options beyond those that every mount has.
    pub(super) fn options(&self) -> BindOptions {
        BindOptions {
            noexec: self.flags.contains("noexec"),
            noatime: self.flags.contains("noatime"),
        }
    }
}

/// Parses one capability. Ignores `fs_type`, since nothing is formatted.
///
/// # Errors
/// `Invalid` for a capability that this driver does not support.
pub(super) fn parse(capability: Option<&VolumeCapability>) -> Result<Capability> {
    let Some(capability) = capability else {
        return Err(Error::invalid("volume_capability is missing"));
    };
    let mount = match &capability.access_type {
        Some(AccessType::Mount(mount)) => mount,
        Some(AccessType::Block(_)) => {
            return Err(Error::invalid(
                "a model is a directory of files, not a block device: use volumeMode: Filesystem",
            ));
        }
        None => return Err(Error::invalid("volume_capability has no access_type; use mount")),
    };
    let mode = capability.access_mode.map(|mode| mode.mode);
    match mode.map(Mode::try_from) {
        Some(Ok(
            Mode::SingleNodeWriter | Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly,
        )) => {}
        Some(Ok(Mode::Unknown)) | None => {
            return Err(Error::invalid("volume_capability has no access_mode"));
        }
        Some(Ok(other)) => return Err(wrong_mode(other.as_str_name())),
        Some(Err(unknown)) => return Err(wrong_mode(&unknown.0.to_string())),
    }
    if !mount.volume_mount_group.is_empty() {
        return Err(Error::invalid(
            "volume_mount_group is not supported: every user of the pod can read the files",
        ));
    }
    let mut flags = BTreeSet::new();
    for flag in &mount.mount_flags {
        let Some(known) = FLAGS.iter().find(|known| *known == flag) else {
            let shown: String = flag.chars().take(100).collect();
            return Err(Error::invalid(format!(
                "mount option {shown:?} is invalid: expected one of {}; correct mountOptions of \
                 the StorageClass or PersistentVolume",
                FLAGS.join(", ")
            )));
        };
        flags.insert(*known);
    }
    Ok(Capability { flags })
}

/// The mount flags of a capability that is not validated yet, without duplicates.
pub(super) fn flags_as_written(capability: Option<&VolumeCapability>) -> BTreeSet<&str> {
    match capability.and_then(|capability| capability.access_type.as_ref()) {
        Some(AccessType::Mount(mount)) => mount.mount_flags.iter().map(String::as_str).collect(),
        _ => BTreeSet::new(),
    }
}

/// Checks that all of these capabilities are supported.
pub(super) fn check_all(capabilities: &[VolumeCapability]) -> Result<()> {
    capabilities.iter().try_for_each(|capability| parse(Some(capability)).map(drop))
}

fn wrong_mode(mode: &str) -> Error {
    Error::invalid(format!(
        "access mode {mode} is not supported: a model is read-only; use ReadOnlyMany \
         (MULTI_NODE_READER_ONLY) or ReadWriteOnce (SINGLE_NODE_WRITER)"
    ))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::proto::volume_capability::{AccessMode, BlockVolume, MountVolume};
    use super::*;
    use crate::error::ErrorKind;

    pub(in crate::csi) fn mount_capability(mode: Mode, flags: &[&str]) -> VolumeCapability {
        let mount = MountVolume {
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..MountVolume::default()
        };
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(mount)),
        }
    }

    #[track_caller]
    fn refused(capability: &VolumeCapability) -> String {
        let error = parse(Some(capability)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert_eq!(check_all(std::slice::from_ref(capability)).unwrap_err(), error);
        error.message().to_owned()
    }

    #[test]
    fn reader_modes_and_the_single_writer_mode_of_kubelet_are_accepted() {
        for mode in [Mode::SingleNodeWriter, Mode::SingleNodeReaderOnly, Mode::MultiNodeReaderOnly]
        {
            let mut capability = mount_capability(mode, &[]);
            assert_eq!(parse(Some(&capability)).unwrap(), Capability::default());
            let Some(AccessType::Mount(mount)) = &mut capability.access_type else { panic!() };
            mount.fs_type = "ext4".to_owned();
            assert_eq!(parse(Some(&capability)).unwrap(), Capability::default());
        }
    }

    #[test]
    fn writers_on_many_nodes_and_unknown_modes_are_refused() {
        for mode in [
            Mode::MultiNodeSingleWriter,
            Mode::MultiNodeMultiWriter,
            Mode::SingleNodeSingleWriter,
            Mode::SingleNodeMultiWriter,
        ] {
            let message = refused(&mount_capability(mode, &[]));
            assert!(message.contains(mode.as_str_name()), "{message}");
        }
        assert!(refused(&mount_capability(Mode::Unknown, &[])).contains("no access_mode"));
        let mut capability = mount_capability(Mode::SingleNodeWriter, &[]);
        capability.access_mode = Some(AccessMode { mode: 99 });
        assert!(refused(&capability).contains("99"));
        capability.access_mode = None;
        assert!(refused(&capability).contains("no access_mode"));
    }

    #[test]
    fn block_devices_missing_types_and_groups_are_refused() {
        let mut capability = mount_capability(Mode::SingleNodeWriter, &[]);
        capability.access_type = Some(AccessType::Block(BlockVolume {}));
        assert!(refused(&capability).contains("Filesystem"));
        capability.access_type = None;
        assert!(refused(&capability).contains("access_type"));
        let group = MountVolume { volume_mount_group: "1000".to_owned(), ..Default::default() };
        capability.access_type = Some(AccessType::Mount(group));
        assert!(refused(&capability).contains("volume_mount_group"));
        assert_eq!(parse(None).unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn only_the_five_allowed_mount_flags_are_accepted() {
        let all = mount_capability(Mode::SingleNodeWriter, &FLAGS);
        let capability = parse(Some(&all)).unwrap();
        assert_eq!(capability.options(), BindOptions { noexec: true, noatime: true });
        let two = mount_capability(Mode::SingleNodeWriter, &["noexec", "ro", "noexec"]);
        let capability = parse(Some(&two)).unwrap();
        assert_eq!(capability.options(), BindOptions { noexec: true, noatime: false });
        assert_eq!(capability.flags.len(), 2);
        for bad in ["rw", "exec", "ro,noexec", "", "RO", "bind"] {
            let message = refused(&mount_capability(Mode::SingleNodeWriter, &["ro", bad]));
            assert!(message.contains("ro, nosuid, nodev, noexec, noatime"), "{message}");
        }
    }
}
