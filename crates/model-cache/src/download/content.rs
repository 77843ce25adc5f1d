//! Reads content back for its CRC-32C.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes per read.
const BUFFER: usize = 256 * 1024;

/// CRC-32C of a file and its length in bytes. Blocks while it reads.
pub fn crc32c_of_file(path: &Path) -> io::Result<(u32, u64)> {
    let file = File::open(path)?;
    let (crc32c, end) = read(&file, 0..u64::MAX)?;
    Ok((crc32c, end))
}

/// CRC-32C of a range; `None` where the file ends before it.
pub(super) fn crc32c_of_range(file: &File, range: Range<u64>) -> io::Result<Option<u32>> {
    let (crc32c, end) = read(file, range.clone())?;
    Ok((end == range.end).then_some(crc32c))
}

/// The CRC of the part of a range that the file has, and where that part ends.
fn read(file: &File, range: Range<u64>) -> io::Result<(u32, u64)> {
    let mut buffer = vec![0; BUFFER];
    let (mut crc, mut at) = (0, range.start);
    while at < range.end {
        let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        match file.read_at(&mut buffer[..left.min(BUFFER)], at)? {
            0 => break,
            got => {
                crc = crc32c::crc32c_append(crc, &buffer[..got]);
                at += got as u64;
            }
        }
    }
    Ok((crc, at))
}
