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

use super::target::Target;

/// Bytes hashed at once on a blocking thread.
const STEP: u64 = 8 << 20;
const BUFFER: usize = 256 * 1024;
const MIB: u64 = 1 << 20;

/// Part sizes that uploaders use, in MiB; the oci CLI's first.
const USUAL_PART_MIB: &[u64] = &[128, 64, 50, 32, 20, 16, 10, 8, 5];

/// Part sizes that an object uploaded in several parts may have had.
///
/// Object Storage gives the number of parts but not their size
/// (`opc-multipart-md5`: base64 of the MD5 of the parts' MD5s, `-` and the
/// number of parts).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MultipartLayouts(Vec<u64>);

impl MultipartLayouts {
    /// The part sizes that fit, the most likely first.
    pub(super) fn of(size: u64, parts: Option<u32>) -> Self {
        let mut sizes: Vec<u64> = USUAL_PART_MIB.iter().map(|mib| mib * MIB).collect();
        if let Some(parts) = parts.filter(|parts| *parts > 0) {
            let parts = u64::from(parts);
            sizes.push(size.div_ceil(parts).div_ceil(MIB).max(1) * MIB);
            sizes.retain(|part| size.max(1).div_ceil(*part) == parts);
        }
        let mut seen = std::collections::HashSet::new();
        sizes.retain(|size| seen.insert(*size));
        Self(sizes)
    }

    /// The part sizes in bytes.
    pub(super) fn part_sizes(&self) -> &[u64] {
        &self.0
    }
}

/// MD5 of the whole file, computed as its bytes arrive, in order.
pub(super) async fn of_whole(target: Arc<Target>) -> io::Result<[u8; 16]> {
    let size = target.size();
    of_range(&target, 0..size).await
}

/// MD5 of the parts' MD5s. Parts are hashed side by side.
pub(super) async fn of_parts(target: Arc<Target>, part_size: u64) -> io::Result<[u8; 16]> {
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

async fn of_range(target: &Target, range: Range<u64>) -> io::Result<[u8; 16]> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(sizes: &[u64]) -> Vec<u64> {
        sizes.iter().map(|s| s * MIB).collect()
    }

    #[test]
    fn only_part_sizes_that_give_the_number_of_parts_are_tried() {
        let layouts = MultipartLayouts::of(300 * MIB, Some(3));
        assert_eq!(layouts.part_sizes(), mib(&[128, 100]));
        let layouts = MultipartLayouts::of(128 * MIB * 2 + 1, Some(3));
        assert_eq!(layouts.part_sizes()[0], 128 * MIB);
        let layouts = MultipartLayouts::of(7 * MIB, Some(1));
        assert_eq!(layouts.part_sizes()[0], 128 * MIB);
        assert!(MultipartLayouts::of(0, Some(1)).part_sizes().contains(&(128 * MIB)));
        assert!(MultipartLayouts::of(10, Some(3)).part_sizes().is_empty());
    }

    #[test]
    fn without_a_number_of_parts_the_usual_sizes_are_tried() {
        assert_eq!(MultipartLayouts::of(MIB, None).part_sizes(), mib(USUAL_PART_MIB));
    }
}
