//! The kernel's list of mounts: `/proc/self/mountinfo`.
//!
//! The format is that of proc_pid_mountinfo(5). Names are bytes, not text: the
//! kernel writes space, tab, newline, backslash and `#` as three octal digits,
//! and every other byte as it is.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// The device number of a mounted file system, `major:minor`.
///
/// On btrfs this is not what `stat` says for files of a subvolume; compare
/// [`super::DirId`] with `stat`, and devices only among mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Device {
    /// The major number.
    pub major: u32,
    /// The minor number; 20 bits in today's kernels.
    pub minor: u32,
}

/// A comma-separated list of mount options, as the kernel wrote it, unescaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions(OsString);

impl MountOptions {
    /// Whether this exact option (`ro`, `nosuid`) is in the list.
    pub fn has(&self, option: &str) -> bool {
        self.0.as_bytes().split(|byte| *byte == b',').any(|one| one == option.as_bytes())
    }

    /// The whole list.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }
}

/// One mount: one line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Identifies the mount while it lives; the kernel reuses it afterwards.
    pub id: u64,
    /// The mount this one is mounted on.
    pub parent: u64,
    /// The file system's device number.
    pub device: Device,
    /// The directory or file of the file system that is the mount's root. It
    /// follows renames, and ends in `//deleted` when nothing names it any more.
    pub root: PathBuf,
    /// Where it is mounted, relative to this process's root directory.
    pub mount_point: PathBuf,
    /// Options of this mount (`ro`, `nosuid`, `noexec`, `relatime`).
    pub options: MountOptions,
    /// Optional fields (`shared:2`, `master:7`, `unbindable`).
    pub optional: Vec<OsString>,
    /// The file system type (`ext4`, `fuse.sshfs`).
    pub fs_type: OsString,
    /// The mount's source, as the file system reports it; may be empty.
    pub source: OsString,
    /// Options of the file system, shared by all its mounts.
    pub super_options: MountOptions,
}

/// All mounts that this process can see, in the kernel's order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountTable {
    entries: Vec<MountEntry>,
}

impl MountTable {
    /// Reads the mounts of this process's mount namespace.
    pub fn read() -> Result<Self> {
        let bytes = fs::read(MOUNTINFO)
            .map_err(|error| Error::io(format_args!("reading {MOUNTINFO}"), &error))?;
        Self::parse(&bytes)
    }

    /// Parses the content of a mountinfo file.
    ///
    /// # Errors
    /// Names the first line that is not of the documented form. A line that cannot
    /// be parsed is never skipped: it could be the mount that the caller needs.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let lines = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        if lines.is_empty() {
            return Ok(Self::default());
        }
        let mut entries = Vec::new();
        for (index, line) in lines.split(|byte| *byte == b'\n').enumerate() {
            entries.push(parse_line(line).ok_or_else(|| {
                Error::internal(format!(
                    "{MOUNTINFO} line {} is not a mount as proc_pid_mountinfo(5) describes it: {}",
                    index + 1,
                    String::from_utf8_lossy(line)
                ))
            })?);
        }
        Ok(Self { entries })
    }

    /// Every mount, in the kernel's order.
    pub fn entries(&self) -> &[MountEntry] {
        &self.entries
    }

    /// The mount with this id.
    pub fn by_id(&self, id: u64) -> Option<&MountEntry> {
        self.entries.iter().find(|entry| entry.id == id)
    }

    /// The mount that a lookup of `mount_point` reaches: the topmost of a stack.
    ///
    /// The path is compared as given, so it must be absolute and free of symbolic links.
    pub fn at(&self, mount_point: &Path) -> Option<&MountEntry> {
        let here: Vec<_> =
            self.entries.iter().filter(|entry| entry.mount_point == mount_point).collect();
        let covered = |entry: &MountEntry| {
            here.iter().any(|other| other.parent == entry.id && other.id != entry.id)
        };
        here.iter().rfind(|entry| !covered(entry)).or(here.last()).copied()
    }

    /// The mount that a path is on, by its name alone: the disk is not asked. The path must be
    /// absolute and free of symbolic links.
    pub fn around(&self, path: &Path) -> Option<&MountEntry> {
        path.ancestors().find_map(|ancestor| self.at(ancestor))
    }

    /// The mounts that show any part of this file system.
    pub fn on_device(&self, device: Device) -> impl Iterator<Item = &MountEntry> {
        self.entries.iter().filter(move |entry| entry.device == device)
    }
}

/// The line's fields are separated by exactly one space, and any of them may
/// be empty, so splitting on runs of blanks would shift what follows.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = parse_device(fields.next()?)?;
    let root = unescape(fields.next()?).into();
    let mount_point = unescape(fields.next()?).into();
    let options = MountOptions(unescape(fields.next()?));
    let mut optional = Vec::new();
    loop {
        match fields.next()? {
            b"-" => break,
            field => optional.push(unescape(field)),
        }
    }
    let fs_type = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    let super_options = MountOptions(unescape(fields.next()?));
    Some(MountEntry {
        id,
        parent,
        device,
        root,
        mount_point,
        options,
        optional,
        fs_type,
        source,
        super_options,
    })
}

fn parse_device(field: &[u8]) -> Option<Device> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Decodes the kernel's octal escapes; a backslash that starts none is itself.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'\\'
            && let [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] = after
        {
            plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            plain.push(byte);
            rest = after;
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: &[u8] = b"\
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
31 28 0:27 / /run rw,nosuid,nodev - tmpfs  rw,size=10%
40 28 254:0 /cache/models/a\\040b /pods/x\\011y\\012z\\134w rw,noatime shared:3 master:9 propagate_from:2 - ext4 /dev/vda rw
41 40 254:0 /cache/models/c /pods/x\\011y\\012z\\134w ro,nosuid,nodev - ext4 /dev/vda rw
42 28 0:50 / /mnt/o rw - overlay overlay rw,lowerdir=/a\\040b:/c,userxattr
";

    #[test]
    fn every_field_of_a_line_is_read() {
        let table = MountTable::parse(SAMPLE).unwrap();
        let entry = table.by_id(40).unwrap();
        assert_eq!(entry.parent, 28);
        assert_eq!(entry.device, Device { major: 254, minor: 0 });
        assert_eq!(entry.root, Path::new("/cache/models/a b"));
        assert_eq!(entry.mount_point, Path::new("/pods/x\ty\nz\\w"));
        assert!(entry.options.has("rw") && entry.options.has("noatime"));
        assert_eq!(entry.optional, ["shared:3", "master:9", "propagate_from:2"]);
        assert_eq!(entry.fs_type, "ext4");
        assert_eq!(entry.source, "/dev/vda");
        assert_eq!(entry.super_options.as_os_str(), "rw");
    }

    #[test]
    fn an_empty_source_does_not_shift_the_fields_after_it() {
        let table = MountTable::parse(SAMPLE).unwrap();
        let entry = table.at(Path::new("/run")).unwrap();
        assert_eq!(entry.source, "");
        assert!(entry.super_options.has("size=10%"));
    }

    #[test]
    fn an_option_is_matched_whole() {
        let table = MountTable::parse(SAMPLE).unwrap();
        let overlay = table.by_id(42).unwrap();
        assert!(overlay.super_options.has("lowerdir=/a b:/c"));
        assert!(!overlay.super_options.has("lowerdir"));
        assert!(!overlay.options.has("r"));
    }

    #[test]
    fn the_topmost_of_a_stack_is_found_whatever_the_order() {
        let stacked = Path::new("/pods/x\ty\nz\\w");
        assert_eq!(MountTable::parse(SAMPLE).unwrap().at(stacked).unwrap().id, 41);

        let mut lines: Vec<_> = SAMPLE.split_inclusive(|byte| *byte == b'\n').collect();
        lines.reverse();
        assert_eq!(MountTable::parse(&lines.concat()).unwrap().at(stacked).unwrap().id, 41);
    }

    #[test]
    fn mounts_are_found_by_device_and_root() {
        let table = MountTable::parse(SAMPLE).unwrap();
        let disk = Device { major: 254, minor: 0 };
        let shows = |root| table.on_device(disk).filter(move |entry| entry.root == Path::new(root));
        let ids = |root| shows(root).map(|entry| entry.id).collect::<Vec<_>>();
        assert_eq!(ids("/cache/models/c"), [41]);
        assert_eq!(ids("/cache/models"), [0; 0]);
        assert_eq!(table.on_device(disk).count(), 3);
    }

    #[test]
    fn a_line_that_cannot_be_parsed_is_an_error_that_quotes_it() {
        let cut = b"28 1 254:0 / / rw - ext4 /dev/vda rw\n29 28 0:5 / /proc rw,nosuid\n";
        let error = MountTable::parse(cut).unwrap_err();
        assert!(error.message().contains("line 2"), "{error}");
        assert!(error.message().contains("29 28 0:5 / /proc"), "{error}");
    }

    #[test]
    fn the_running_kernels_table_is_parsed() {
        let table = MountTable::read().unwrap();
        assert!(table.at(Path::new("/proc")).is_some());
        assert_eq!(table.at(Path::new("/proc")).unwrap().fs_type, "proc");
    }

    /// As the kernel's `mangle` does it.
    fn escape(name: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for &byte in name {
            if b" \t\n\\#".contains(&byte) {
                out.extend(format!("\\{byte:03o}").into_bytes());
            } else {
                out.push(byte);
            }
        }
        out
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            2 => 1u8..=255,
            1 => prop::sample::select(b" \t\n\\#0127-,".to_vec()),
        ];
        prop::collection::vec(byte, 0..40)
    }

    proptest! {
        #![proptest_config(seeded::cases(256))]

        #[test]
        fn any_name_survives_the_kernels_escaping(
            root in name(),
            mount_point in name(),
            source in name(),
            optional in prop::collection::vec("[a-z]{1,8}:[0-9]{1,4}", 0..4),
        ) {
            let mut line = b"7 1 8:1 ".to_vec();
            line.extend(escape(&root));
            line.push(b' ');
            line.extend(escape(&mount_point));
            line.extend(b" ro ");
            for field in &optional {
                line.extend(field.as_bytes());
                line.push(b' ');
            }
            line.extend(b"- ext4 ");
            line.extend(escape(&source));
            line.extend(b" rw\n");

            let table = MountTable::parse(&line).unwrap();
            let entry = table.by_id(7).unwrap();
            prop_assert_eq!(entry.root.as_os_str().as_bytes(), &root[..]);
            prop_assert_eq!(entry.mount_point.as_os_str().as_bytes(), &mount_point[..]);
            prop_assert_eq!(entry.source.as_bytes(), &source[..]);
            prop_assert_eq!(entry.optional.len(), optional.len());
        }

        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = MountTable::parse(&bytes);
        }
    }
}
