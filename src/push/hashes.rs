//! Checksums of ranges of a file, many side by side.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::md5_lanes::{Lanes, Md5Stream, Piece};

/// Bytes of one read of each lane. 16 of them fit into the second-level cache of a core.
const PIECE: u64 = 64 << 10;

/// The checksums of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RangeDigest {
    pub(super) md5: [u8; 16],
    pub(super) crc32c: u32,
}

/// Computes the checksums of these ranges, in their order. Blocks.
///
/// # Errors
/// Those of reading; `UnexpectedEof` when the file is shorter.
pub(super) fn digests(file: &File, ranges: &[Range<u64>]) -> io::Result<Vec<RangeDigest>> {
    let lanes = Lanes::detect();
    let mut found = Vec::with_capacity(ranges.len());
    for group in ranges.chunks(lanes.count().max(1)) {
        let mut streams: Vec<RangeStream> = group.iter().cloned().map(RangeStream::new).collect();
        while streams.iter().any(|stream| !stream.left.is_empty()) {
            for stream in &mut streams {
                stream.read(file)?;
            }
            let pieces = streams.iter_mut().filter(|stream| !stream.piece.is_empty());
            let mut pieces: Vec<Piece<'_>> =
                pieces.map(|stream| Piece::new(&mut stream.md5, &stream.piece)).collect();
            lanes.update(&mut pieces);
        }
        let digest =
            |stream: RangeStream| RangeDigest { md5: stream.md5.finish(), crc32c: stream.crc32c };
        found.extend(streams.into_iter().map(digest));
    }
    Ok(found)
}

/// The digest of a multipart object: over the MD5s of its parts.
pub(super) fn md5_of_parts(parts: impl IntoIterator<Item = [u8; 16]>) -> [u8; 16] {
    let mut outer = Md5Stream::new();
    for md5 in parts {
        outer.update(&md5);
    }
    outer.finish()
}

/// The CRC-32C of bytes whose ranges follow each other, from those of the ranges.
pub(super) fn crc32c_of_parts<'a>(parts: impl IntoIterator<Item = (u32, &'a Range<u64>)>) -> u32 {
    parts.into_iter().fold(0, |whole, (crc32c, range)| {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        crc32c::crc32c_combine(whole, crc32c, length)
    })
}

struct RangeStream {
    left: Range<u64>,
    piece: Vec<u8>,
    md5: Md5Stream,
    crc32c: u32,
}

impl RangeStream {
    fn new(range: Range<u64>) -> Self {
        Self { left: range, piece: Vec::new(), md5: Md5Stream::new(), crc32c: 0 }
    }

    /// Reads the next piece; none at the end.
    fn read(&mut self, file: &File) -> io::Result<()> {
        let length = (self.left.end - self.left.start).min(PIECE);
        self.piece.resize(usize::try_from(length).unwrap_or_default(), 0);
        file.read_exact_at(&mut self.piece, self.left.start)?;
        self.left.start += length;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &self.piece);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn ranges_of_any_lengths_have_the_checksums_of_their_bytes() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|n| n.wrapping_mul(n).to_le_bytes()[1]).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let ranges: Vec<Range<u64>> = (0..20).map(|n| n * 9000..n * n * 300 + n * 9000).collect();
        let found = digests(&file, &ranges).unwrap();
        for (range, digest) in ranges.iter().zip(&found) {
            let index = |at: u64| usize::try_from(at).unwrap();
            let part = &bytes[index(range.start)..index(range.end)];
            let mut md5 = Md5Stream::new();
            md5.update(part);
            let expected = RangeDigest { md5: md5.finish(), crc32c: crc32c::crc32c(part) };
            assert_eq!(*digest, expected, "{range:?}");
        }
        let beyond = digests(&file, &[0..1, 299_990..300_001]).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }
}
