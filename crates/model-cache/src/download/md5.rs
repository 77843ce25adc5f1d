//! MD5, where it is the only checksum an object has: computed behind the
//! writers, part by part, from what they just wrote.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::hashing::{HashService, STEP};
use super::target::DownloadTarget;
use crate::md5_lanes::{Lanes, Md5Stream, Piece};

/// Bytes of one read for all layouts: what one object holds in memory for it.
const BLOCK: u64 = 1 << 20;

/// Bytes that have arrived beyond a step where a stream lags behind the network.
const BEHIND: u64 = 3 * STEP;

/// Parts whose streams are open at once: more than are requested side by side, since the first
/// ranges of the next parts come before the last ones of those before.
const OPEN: usize = 32;

/// MD5 of the whole file, computed as its bytes arrive, in order.
pub(super) async fn of_whole(
    service: HashService,
    target: Arc<DownloadTarget>,
) -> io::Result<[u8; 16]> {
    let size = target.size();
    of_range(&service, &target, 0..size).await
}

/// MD5 of the parts' MD5s. Parts are hashed side by side.
pub(super) async fn of_parts(
    service: HashService,
    target: Arc<DownloadTarget>,
    part_size: u64,
) -> io::Result<[u8; 16]> {
    let size = target.size();
    let mut whole = Md5Stream::new();
    let mut running = VecDeque::new();
    for n in 0..size.div_ceil(part_size) {
        let range = n * part_size..((n + 1) * part_size).min(size);
        if running.len() == OPEN {
            whole.update(&next(&mut running).await?);
        }
        let (service, target) = (service.clone(), Arc::clone(&target));
        running.push_back(AbortOnDropHandle::new(tokio::spawn(async move {
            of_range(&service, &target, range).await
        })));
    }
    while !running.is_empty() {
        whole.update(&next(&mut running).await?);
    }
    Ok(whole.finish())
}

type Running = VecDeque<AbortOnDropHandle<io::Result<[u8; 16]>>>;

async fn next(running: &mut Running) -> io::Result<[u8; 16]> {
    match running.pop_front() {
        Some(part) => part.await.map_err(io::Error::other)?,
        None => Err(io::Error::other("no part is being hashed")),
    }
}

async fn of_range(
    service: &HashService,
    target: &DownloadTarget,
    range: Range<u64>,
) -> io::Result<[u8; 16]> {
    let mut stream = service.open();
    let mut at = range.start;
    while at < range.end {
        let step = at..(at + STEP).min(range.end);
        target.covered(step.clone()).await;
        at = step.end;
        let next = at..(at + BEHIND).min(range.end);
        let behind = next.is_empty() || target.is_covered(&next);
        stream.hash(target.file(), step, behind).await?;
    }
    Ok(stream.finish())
}

/// Whether one of the part sizes gives this digest: all of them are hashed in
/// one reading of the file, on half of the cores at most.
pub(super) async fn fits_one_of(
    lanes: Lanes,
    target: &DownloadTarget,
    part_sizes: &[u64],
    digest: [u8; 16],
) -> io::Result<bool> {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let per_group = part_sizes.len().div_ceil((cores / 2).max(1)).max(lanes.count());
    let mut groups: Vec<Vec<LayoutDigest>> = part_sizes
        .chunks(per_group)
        .map(|sizes| sizes.iter().map(|size| LayoutDigest::new(*size)).collect())
        .collect();
    let mut at = 0;
    while at < target.size() && !groups.is_empty() {
        let block = at..(at + BLOCK).min(target.size());
        at = block.end;
        let file = target.file();
        let bytes = tokio::task::spawn_blocking(move || read(&file, block));
        let bytes = Arc::new(bytes.await.map_err(io::Error::other)??);
        let hashing: Vec<_> = groups
            .into_iter()
            .map(|mut group| {
                let bytes = Arc::clone(&bytes);
                tokio::task::spawn_blocking(move || {
                    update_all(lanes, &mut group, &bytes);
                    group
                })
            })
            .collect();
        groups = Vec::new();
        for group in hashing {
            groups.push(group.await.map_err(io::Error::other)?);
        }
    }
    Ok(groups.into_iter().flatten().any(|layout| layout.finish() == digest))
}

fn read(file: &File, range: Range<u64>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

/// The digest of one part size, up to where the file was read.
struct LayoutDigest {
    part_size: u64,
    /// Bytes that the current part still lacks.
    left: u64,
    part: Md5Stream,
    parts: Md5Stream,
}

/// Adds bytes to all layouts, up to where a part of one of them ends, and so on.
fn update_all(lanes: Lanes, layouts: &mut [LayoutDigest], mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let left = layouts.iter().map(|layout| layout.left).min().unwrap_or(u64::MAX);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let (now, later) = bytes.split_at(len);
        let mut pieces: Vec<_> =
            layouts.iter_mut().map(|layout| Piece::new(&mut layout.part, now)).collect();
        lanes.update(&mut pieces);
        for layout in &mut *layouts {
            layout.advance(len as u64);
        }
        bytes = later;
    }
}

impl LayoutDigest {
    fn new(part_size: u64) -> Self {
        Self { part_size, left: part_size, part: Md5Stream::new(), parts: Md5Stream::new() }
    }

    fn advance(&mut self, bytes: u64) {
        self.left -= bytes;
        if self.left == 0 {
            self.end_part();
        }
    }

    fn end_part(&mut self) {
        self.parts.update(&std::mem::take(&mut self.part).finish());
        self.left = self.part_size;
    }

    fn finish(mut self) -> [u8; 16] {
        if self.left < self.part_size {
            self.end_part();
        }
        self.parts.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[tokio::test]
    async fn all_layouts_are_hashed_in_one_reading_and_give_what_each_gives_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..5 * MIB + 77).map(|n| u8::try_from(n % 251).unwrap()).collect();
        std::fs::write(&path, &bytes).unwrap();
        let size = bytes.len() as u64;
        let target = Arc::new(DownloadTarget::adopt(&path, size, Arc::default()).unwrap().unwrap());
        let all = [2 * MIB, 3 * MIB, MIB + 1, MIB, 700_000, size, 1000];
        for lanes in Lanes::available() {
            let service = HashService::new(lanes);
            for part_size in all {
                let digest = of_parts(service.clone(), Arc::clone(&target), part_size).await;
                let digest = digest.unwrap();
                let fits =
                    async |sizes: &[u64]| fits_one_of(lanes, &target, sizes, digest).await.unwrap();
                assert!(fits(&all).await, "{part_size}, {}", lanes.name());
                let others: Vec<u64> = all.into_iter().filter(|size| *size != part_size).collect();
                assert!(!fits(&others).await, "{part_size}, {}", lanes.name());
            }
            assert!(!fits_one_of(lanes, &target, &[], [0; 16]).await.unwrap());
        }
    }
}
