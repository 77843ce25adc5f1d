//! Reads cached models ahead into the page cache, before their pods open them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::store::layout::names::ModelFile;
use crate::budget::memory_limit_of_group;
use crate::error::{Error, Result};
use crate::model::Manifest;

/// Bytes of one read. The kernel reads ahead behind it.
const READ: usize = 1 << 20;

/// The share of the memory that stays available to others: one part of so many.
const RESERVE: u64 = 8;

/// What has been read ahead of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Warmed {
    /// Bytes that were read, from the disk or the page cache.
    pub bytes: u64,
    /// Whether these are all bytes of the model.
    pub complete: bool,
}

/// Reads the files of the model with this tree, in the order of their paths, which is that of the
/// shards in an index. Ends early where memory gets short, when the model is evicted, or when
/// `stop` says so. Blocks.
///
/// # Errors
/// `Internal` when the manifest or a file cannot be read.
pub fn warm(tree: &Path, stop: impl Fn() -> bool) -> Result<Warmed> {
    let Some(directory) = tree.parent() else { return Ok(Warmed::default()) };
    let failed = |error: io::Error| {
        Error::io(format!("reading {} ahead into the page cache", tree.display()), &error)
    };
    let manifest = match File::open(ModelFile::Manifest.of(directory)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Warmed::default()),
        opened => opened.map_err(failed)?,
    };
    let mut warmed = Warmed { bytes: 0, complete: true };
    let (mut room, mut buffer, mut result) = (room(), vec![0; READ], Ok(()));
    Manifest::each_file(manifest, |file| {
        if !warmed.complete || result.is_err() {
            return;
        }
        let may = |bytes: u64| {
            room = room.saturating_sub(bytes);
            room > 0 && is_available() && !stop()
        };
        let read = File::open(tree.join(&file.path))
            .and_then(|opened| read_whole(&opened, file.size, &mut buffer, may));
        match read {
            Ok(bytes) => {
                warmed.bytes += bytes;
                warmed.complete = bytes == file.size;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => warmed.complete = false,
            Err(error) => result = Err(failed(error)),
        }
    })?;
    result.map(|()| warmed)
}

/// Reads a file, and returns how far it came. Before each read it asks whether to continue.
fn read_whole(
    file: &File,
    size: u64,
    buffer: &mut [u8],
    mut may: impl FnMut(u64) -> bool,
) -> io::Result<u64> {
    let mut at = 0;
    while at < size && may((size - at).min(buffer.len() as u64)) {
        match file.read_at(buffer, at)? {
            0 => break,
            read => at += read as u64,
        }
    }
    Ok(at)
}

/// How many bytes may be read ahead: what the machine has available, and what the control group
/// may hold, less the reserve. More would replace what was read first.
fn room() -> u64 {
    let of_machine =
        Memory::now().map_or(0, |memory| memory.available.saturating_sub(memory.total / RESERVE));
    let of_group = memory_limit_of_group().map_or(u64::MAX, |limit| limit - limit / RESERVE);
    of_machine.min(of_group)
}

/// Whether memory is still available, whatever else happened meanwhile.
fn is_available() -> bool {
    Memory::now().is_some_and(|memory| memory.available > memory.total / RESERVE)
}

/// The machine's memory in bytes. What is in the page cache and unchanged is available.
struct Memory {
    total: u64,
    available: u64,
}

impl Memory {
    /// `None` where the kernel does not report it.
    fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let of = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
            kib.checked_mul(1024)
        };
        Some(Self { total: of("MemTotal:")?, available: of("MemAvailable:")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_memory_is_read_from_meminfo() {
        let text = "MemTotal:       24689920 kB\nMemFree:  1 kB\nMemAvailable:   16000000 kB\n";
        let memory = Memory::parse(text).unwrap();
        assert_eq!((memory.total, memory.available), (24_689_920 << 10, 16_000_000 << 10));
        for bad in ["", "MemTotal: 1 kB\n", "MemTotal: 1 kB\nMemAvailable: x kB\n"] {
            assert!(Memory::parse(bad).is_none(), "{bad:?}");
        }
        assert!(Memory::now().unwrap().total > 0);
    }

    #[test]
    fn a_file_is_read_until_memory_is_short() {
        let file = tempfile::tempfile().unwrap();
        let size = 3 * READ as u64 + 5;
        file.set_len(size).unwrap();
        let mut buffer = vec![0; READ];
        assert_eq!(read_whole(&file, size, &mut buffer, |_| true).unwrap(), size);
        let mut left = 3;
        let some = read_whole(&file, size, &mut buffer, |bytes| {
            assert_eq!(bytes, READ as u64);
            left -= 1;
            left > 0
        });
        assert_eq!(some.unwrap(), 2 * READ as u64);
        let empty = tempfile::tempfile().unwrap();
        assert_eq!(
            read_whole(&empty, size, &mut buffer, |_| true).unwrap(),
            0,
            "it is shorter than was said"
        );
    }
}
