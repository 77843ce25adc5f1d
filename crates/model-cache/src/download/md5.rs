//! MD5, where it is the only checksum an object has: computed behind the
//! writers, part by part, from what they just wrote.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use md5::{Digest, Md5};
use tokio_util::task::AbortOnDropHandle;

use super::target::DownloadTarget;

/// Bytes hashed at once on a blocking thread.
const STEP: u64 = 8 << 20;
const BUFFER: usize = 256 * 1024;
const MIB: u64 = 1 << 20;
const MB: u64 = 1_000_000;

/// Bytes of one read for all layouts: what one object holds in memory for it.
const BLOCK: u64 = MIB;

/// Part sizes that uploaders use, the oci CLI's first.
const USUAL_PARTS: &[u64] = &[128, 64, 256, 100, 50, 32, 512, 1024, 16, 20, 25, 200, 8, 10, 5];

/// The most layouts that are tried: with more, a match proves little, and the
/// search costs a core for hours.
const MAX_LAYOUTS: usize = 64;

/// Part sizes that an object uploaded in several parts may have had.
///
/// Object Storage gives the number of parts but not their size
/// (`opc-multipart-md5`: base64 of the MD5 of the parts' MD5s, `-` and the
/// number of parts).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MultipartLayouts {
    part_sizes: Vec<u64>,
    /// Why the right one may be missing.
    unknown: Option<String>,
}

impl MultipartLayouts {
    /// The part sizes that fit, the most likely first: usual ones, binary and
    /// decimal, then every whole MiB that gives this number of parts.
    pub(super) fn of(size: u64, parts: Option<u32>) -> Self {
        let usual =
            [MIB, MB].into_iter().flat_map(|unit| USUAL_PARTS.iter().map(move |n| n * unit));
        let Some(parts) = parts.map(u64::from) else {
            let why = "the number of its parts is not given".to_owned();
            return Self { part_sizes: usual.collect(), unknown: Some(why) };
        };
        if parts <= 1 {
            // The same digest whatever the size of that part.
            return Self { part_sizes: vec![size.max(1)], unknown: None };
        }
        let usual: Vec<u64> = usual.filter(|part| size.div_ceil(*part) == parts).collect();
        let least = size.div_ceil(parts).div_ceil(MIB).max(1);
        let most = size.saturating_sub(1) / (parts - 1) / MIB;
        let fitting =
            |mib: &u64| size.div_ceil(mib * MIB) == parts && !usual.contains(&(mib * MIB));
        // One more than the limit shows that there are more.
        let others = (least..=most).filter(fitting).take(MAX_LAYOUTS + 1);
        let others: Vec<u64> = others.map(|mib| mib * MIB).collect();
        if usual.len() + others.len() > MAX_LAYOUTS {
            let why = format!("its {parts} parts may have more than {MAX_LAYOUTS} sizes");
            return Self { part_sizes: usual, unknown: Some(why) };
        }
        let part_sizes = [usual, others].concat();
        let unusual = || format!("no size of parts that uploaders use gives {parts} of them");
        let unknown = part_sizes.is_empty().then(unusual);
        Self { part_sizes, unknown }
    }

    /// The part sizes in bytes.
    pub(super) fn part_sizes(&self) -> &[u64] {
        &self.part_sizes
    }

    /// Why a digest that none of them gives proves nothing about the bytes; `None`
    /// where all sizes that an uploader may have chosen are listed.
    pub(super) fn unknown(&self) -> Option<&str> {
        self.unknown.as_deref()
    }
}

/// MD5 of the whole file, computed as its bytes arrive, in order.
pub(super) async fn of_whole(target: Arc<DownloadTarget>) -> io::Result<[u8; 16]> {
    let size = target.size();
    of_range(&target, 0..size).await
}

/// MD5 of the parts' MD5s. Parts are hashed side by side.
pub(super) async fn of_parts(target: Arc<DownloadTarget>, part_size: u64) -> io::Result<[u8; 16]> {
    let size = target.size();
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let mut whole = Md5::new();
    let mut running = VecDeque::new();
    for n in 0..size.div_ceil(part_size) {
        let range = n * part_size..((n + 1) * part_size).min(size);
        if running.len() == cores {
            whole.update(next(&mut running).await?);
        }
        // In the order in which they are downloaded: a part that waits for
        // bytes that come last would keep a core from all the others.
        let target = Arc::clone(&target);
        running.push_back(AbortOnDropHandle::new(tokio::spawn(async move {
            of_range(&target, range).await
        })));
    }
    while !running.is_empty() {
        whole.update(next(&mut running).await?);
    }
    Ok(whole.finalize().into())
}

type Running = VecDeque<AbortOnDropHandle<io::Result<[u8; 16]>>>;

async fn next(running: &mut Running) -> io::Result<[u8; 16]> {
    match running.pop_front() {
        Some(part) => part.await.map_err(io::Error::other)?,
        None => Err(io::Error::other("no part is being hashed")),
    }
}

async fn of_range(target: &DownloadTarget, range: Range<u64>) -> io::Result<[u8; 16]> {
    let mut hasher = Md5::new();
    let mut at = range.start;
    while at < range.end {
        let step = at..(at + STEP).min(range.end);
        target.covered(step.clone()).await;
        at = step.end;
        let file = target.file();
        hasher = tokio::task::spawn_blocking(move || hash(&file, step, hasher))
            .await
            .map_err(io::Error::other)??;
    }
    Ok(hasher.finalize().into())
}

fn hash(file: &File, range: Range<u64>, mut hasher: Md5) -> io::Result<Md5> {
    let mut buffer = vec![0; BUFFER];
    let mut at = range.start;
    while at < range.end {
        let want = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(BUFFER);
        file.read_exact_at(&mut buffer[..want], at)?;
        hasher.update(&buffer[..want]);
        at += want as u64;
    }
    Ok(hasher)
}

/// Whether one of the part sizes gives this digest: all of them are hashed in
/// one reading of the file, on half of the cores at most.
pub(super) async fn fits_one_of(
    target: &DownloadTarget,
    part_sizes: &[u64],
    digest: [u8; 16],
) -> io::Result<bool> {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let per_group = part_sizes.len().div_ceil((cores / 2).max(1)).max(1);
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
                    for layout in &mut group {
                        layout.update(&bytes);
                    }
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
    part: Md5,
    parts: Md5,
}

impl LayoutDigest {
    fn new(part_size: u64) -> Self {
        Self { part_size, left: part_size, part: Md5::new(), parts: Md5::new() }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            self.part.update(&bytes[..len]);
            bytes = &bytes[len..];
            self.left -= len as u64;
            if self.left == 0 {
                self.parts.update(self.part.finalize_reset());
                self.left = self.part_size;
            }
        }
    }

    fn finish(mut self) -> [u8; 16] {
        if self.left < self.part_size {
            self.parts.update(self.part.finalize());
        }
        self.parts.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(size: u64, parts: u32) -> Vec<u64> {
        let layouts = MultipartLayouts::of(size, Some(parts));
        assert_eq!(layouts.unknown(), None, "{parts} parts of {size}");
        layouts.part_sizes
    }

    #[test]
    fn only_part_sizes_that_give_the_number_of_parts_are_tried_and_the_usual_ones_first() {
        let three = sizes(300 * MIB, 3);
        assert_eq!(three[..2], [128 * MIB, 100 * MIB]);
        assert_eq!(three[2], 128 * MB);
        assert!(three[3..].iter().all(|part| part % MIB == 0), "{three:?}");
        assert!(three.iter().all(|part| (300 * MIB).div_ceil(*part) == 3));
        assert_eq!(three.len(), 51, "each whole MiB from 100 to 149 besides");
        assert_eq!(sizes(128 * MIB * 2 + 1, 3)[0], 128 * MIB);
        assert_eq!(sizes(7 * MIB, 1), [7 * MIB], "one part is the whole");
        assert_eq!(sizes(0, 1), [1]);
    }

    #[test]
    fn what_uploaders_choose_is_among_the_sizes_that_are_tried() {
        for (size, parts, part) in [
            (20 * MIB, 3, 8 * MIB),
            (20 * MIB + 5, 3, 9 * MIB),
            (250 * MIB, 3, 100 * MIB),
            (300 * MIB, 2, 256 * MIB),
            (1100 * MIB, 3, 512 * MIB),
            (2 * MIB * 1024 + 1, 3, 1024 * MIB),
            (70 * MB, 7, 10 * MB),
            (300 * MB, 3, 100 * MB),
            (70 << 30, 560, 128 * MIB),
            (70 << 30, 6517, 11 * MIB),
        ] {
            let found = MultipartLayouts::of(size, Some(parts));
            assert!(found.part_sizes().contains(&part), "{size} in {parts} parts of {part}");
            assert!(found.part_sizes().len() <= MAX_LAYOUTS);
        }
    }

    #[test]
    fn a_layout_is_unknown_where_too_many_are_possible_or_the_number_of_parts_is_not_given() {
        let none = MultipartLayouts::of(MIB, None);
        assert!(none.unknown().unwrap().contains("number of its parts"), "{none:?}");
        assert_eq!(none.part_sizes()[0], 128 * MIB);
        for (size, parts) in [(400 * MIB, 2), (u64::MAX, 2), (u64::MAX, 1 << 10)] {
            let many = MultipartLayouts::of(size, Some(parts));
            assert!(many.unknown().unwrap().contains("more than 64 sizes"), "{many:?}");
        }
        assert_eq!(MultipartLayouts::of(400 * MIB, Some(2)).part_sizes()[0], 256 * MIB);
        for (size, parts) in [(10, 3), (0, 3), (500_000, 5), (u64::MAX, u32::MAX)] {
            let small = MultipartLayouts::of(size, Some(parts));
            assert!(small.part_sizes().is_empty(), "{small:?}");
            assert!(small.unknown().unwrap().contains("that uploaders use"), "{small:?}");
        }
    }

    #[tokio::test]
    async fn all_layouts_are_hashed_in_one_reading_and_give_what_each_gives_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..5 * MIB + 77).map(|n| u8::try_from(n % 251).unwrap()).collect();
        std::fs::write(&path, &bytes).unwrap();
        let size = bytes.len() as u64;
        let target = Arc::new(DownloadTarget::adopt(&path, size, Arc::default()).unwrap().unwrap());
        let all = [2 * MIB, 3 * MIB, MIB + 1, MIB, 700_000, size, 1000];
        for part_size in all {
            let digest = of_parts(Arc::clone(&target), part_size).await.unwrap();
            assert!(fits_one_of(&target, &all, digest).await.unwrap(), "{part_size}");
            let others: Vec<u64> = all.into_iter().filter(|size| *size != part_size).collect();
            assert!(!fits_one_of(&target, &others, digest).await.unwrap(), "{part_size}");
        }
        assert!(!fits_one_of(&target, &[], [0; 16]).await.unwrap());
    }
}
