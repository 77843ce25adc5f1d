//! Content that is computed instead of stored: deterministic by its seed, so
//! that a test can say what any range of a large object must be.

use std::ops::Range;

const PAGE: usize = 4096;
/// Pages before the pattern repeats, apart from the stamp that makes each page its own.
const PAGES: usize = 16;
const STAMP: usize = 8;

/// The bytes of one seed. Pages repeat a random pattern and begin with a stamp
/// of their number, so filling costs little more than a copy, and a misplaced
/// page is noticed.
#[derive(Debug)]
pub(crate) struct Synthetic {
    seed: u64,
    pattern: Vec<u8>,
}

impl Synthetic {
    pub(crate) fn new(seed: u64) -> Self {
        let words = (PAGE * PAGES / STAMP) as u64;
        let pattern = (0..words).flat_map(|word| mix(seed ^ mix(word)).to_le_bytes()).collect();
        Self { seed, pattern }
    }

    /// Fills `buffer` with the bytes from `offset` on.
    pub(crate) fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let page_size = PAGE as u64;
        let mut page = offset / page_size;
        let mut skip = usize::try_from(offset % page_size).expect("less than a page");
        let mut rest = buffer;
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(rest.len().min(PAGE - skip));
            let slot = usize::try_from(page % PAGES as u64).expect("less than the pages") * PAGE;
            now.copy_from_slice(&self.pattern[slot + skip..slot + skip + now.len()]);
            let stamp = mix(self.seed.wrapping_add(mix(page))).to_le_bytes();
            if let Some(stamp) = stamp.get(skip..) {
                let len = stamp.len().min(now.len());
                now[..len].copy_from_slice(&stamp[..len]);
            }
            page += 1;
            skip = 0;
            rest = later;
        }
    }
}

/// The bytes `range` of the synthetic object with this seed.
pub fn synthetic_bytes(seed: u64, range: Range<u64>) -> Vec<u8> {
    let len = usize::try_from(range.end.saturating_sub(range.start)).expect("fits in memory");
    let mut bytes = vec![0; len];
    Synthetic::new(seed).fill(range.start, &mut bytes);
    bytes
}

/// The finalizer of SplitMix64: every bit of the input reaches every bit of the output.
fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_that_part_of_the_whole() {
        let whole = synthetic_bytes(7, 0..20_000);
        for (start, end) in [(0, 0), (0, 1), (3, 9), (4090, 4100), (4096, 8192), (4099, 19_999)] {
            let bounds = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
            assert_eq!(synthetic_bytes(7, start..end), whole[bounds], "{start}..{end}");
        }
    }

    #[test]
    fn seeds_and_pages_differ() {
        assert_ne!(synthetic_bytes(1, 0..64), synthetic_bytes(2, 0..64));
        let repeat = (PAGE * PAGES) as u64;
        assert_ne!(synthetic_bytes(1, 0..64), synthetic_bytes(1, repeat..repeat + 64));
    }
}
