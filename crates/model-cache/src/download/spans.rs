//! Which bytes of a file are present, and their checksums.

use std::collections::BTreeMap;
use std::ops::Range;

use super::combine::crc32c_of_both;

/// A run of bytes that was written, with its CRC-32C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Offset of the first byte.
    pub start: u64,
    /// Length in bytes, more than zero.
    pub len: u64,
    /// CRC-32C of the bytes.
    pub crc32c: u32,
}

impl Span {
    /// The offset behind the last byte.
    pub(super) fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// Spans without overlap; neighbours are merged, so the memory they need is
/// bounded by the number of gaps and not by the size of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Spans {
    by_start: BTreeMap<u64, Span>,
    bytes: u64,
}

impl Spans {
    /// Adds a span; `false`, and nothing changes, when it is empty or overlaps another.
    pub(super) fn insert(&mut self, span: Span) -> bool {
        let Some(end) = span.start.checked_add(span.len) else { return false };
        let before = self.by_start.range(..end).next_back().map(|(_, s)| *s);
        if span.len == 0 || before.is_some_and(|b| b.end() > span.start) {
            return false;
        }
        self.bytes += span.len;
        let mut merged = span;
        if let Some(before) = before.filter(|b| b.end() == span.start) {
            self.by_start.remove(&before.start);
            merged = join(before, merged);
        }
        if let Some(after) = self.by_start.remove(&end) {
            merged = join(merged, after);
        }
        self.by_start.insert(merged.start, merged);
        true
    }

    /// Sum of the lengths.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether every byte of the range is present.
    pub(super) fn covers(&self, range: &Range<u64>) -> bool {
        self.end_from(range.start) >= range.end
    }

    /// Where the bytes that are present from `at` on end; `at` itself when that byte is missing.
    fn end_from(&self, at: u64) -> u64 {
        let before = self.by_start.range(..=at).next_back();
        before.map_or(at, |(_, span)| span.end().max(at))
    }

    /// The missing parts of a file of `size` bytes, in ascending order, in
    /// ranges that do not cross a multiple of `range_size`.
    pub(super) fn missing(&self, size: u64, range_size: u64) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        let mut at = 0;
        let ends = self.by_start.values().map(|s| (s.start, s.end())).chain([(size, size)]);
        for (start, end) in ends {
            while at < start.min(size) {
                let grid = (at / range_size + 1).saturating_mul(range_size);
                let stop = grid.min(start).min(size);
                ranges.push(at..stop);
                at = stop;
            }
            at = at.max(end);
        }
        ranges
    }

    /// CRC-32C of the whole file, when all of its `size` bytes are present.
    pub(super) fn whole(&self, size: u64) -> Option<u32> {
        if size == 0 {
            return Some(0);
        }
        let (_, only) = self.by_start.first_key_value()?;
        (only.start == 0 && only.len == size && self.by_start.len() == 1).then_some(only.crc32c)
    }
}

fn join(left: Span, right: Span) -> Span {
    Span {
        start: left.start,
        len: left.len + right.len,
        crc32c: crc32c_of_both(left.crc32c, right.crc32c, right.len),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(n: u64) -> usize {
        usize::try_from(n).unwrap()
    }

    fn span(content: &[u8], range: Range<usize>) -> Span {
        Span {
            start: range.start as u64,
            len: range.len() as u64,
            crc32c: crc32c::crc32c(&content[range]),
        }
    }

    #[test]
    fn the_planned_ranges_stop_at_the_grid_and_at_present_bytes() {
        let mut spans = Spans::default();
        assert_eq!(spans.missing(0, 4), []);
        assert_eq!(spans.missing(1, 4), vec![Range { start: 0, end: 1 }]);
        assert_eq!(spans.missing(9, 4), [0..4, 4..8, 8..9]);
        assert!(spans.insert(Span { start: 2, len: 3, crc32c: 0 }));
        assert_eq!(spans.missing(9, 4), [0..2, 5..8, 8..9]);
        assert!(spans.insert(Span { start: 8, len: 1, crc32c: 0 }));
        assert_eq!(spans.missing(9, 4), [0..2, 5..8]);
    }

    #[test]
    fn overlapping_and_empty_spans_are_refused() {
        let mut spans = Spans::default();
        assert!(spans.insert(Span { start: 10, len: 10, crc32c: 0 }));
        for (start, len) in [(10, 10), (5, 6), (19, 1), (0, 100), (12, 2), (30, 0), (u64::MAX, 2)] {
            assert!(!spans.insert(Span { start, len, crc32c: 0 }), "{start}+{len}");
        }
        assert_eq!(spans.bytes(), 10);
    }

    proptest! {
        #![proptest_config(seeded::cases(256))]

        #[test]
        fn any_order_of_any_cut_gives_the_crc_of_the_whole(
            content in proptest::collection::vec(any::<u8>(), 1..400),
            cuts in proptest::collection::btree_set(1usize..400, 0..20),
            seed in any::<u64>(),
        ) {
            let mut edges: Vec<usize> =
                cuts.into_iter().filter(|c| *c < content.len()).collect();
            edges.insert(0, 0);
            edges.push(content.len());
            let mut parts: Vec<_> = edges.windows(2).map(|w| span(&content, w[0]..w[1])).collect();
            let mut state = seed;
            for i in (1..parts.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                parts.swap(i, index(state >> 33) % (i + 1));
            }
            let size = content.len() as u64;
            let mut spans = Spans::default();
            for part in parts {
                prop_assert_eq!(spans.whole(size), None);
                prop_assert!(spans.insert(part));
                prop_assert!(spans.covers(&(part.start..part.end())));
            }
            prop_assert_eq!(spans.whole(size), Some(crc32c::crc32c(&content)));
            prop_assert!(spans.missing(size, 7).is_empty());
        }

        #[test]
        fn what_is_missing_and_what_is_there_make_the_file(
            size in 0u64..200, range_size in 1u64..50,
            tries in proptest::collection::vec((0u64..200, 1u64..40), 0..12),
        ) {
            let mut spans = Spans::default();
            let mut naive = vec![false; 300];
            for (start, len) in tries {
                let cells = index(start)..index(start + len);
                let free = naive[cells.clone()].iter().all(|there| !there);
                prop_assert_eq!(spans.insert(Span { start, len, crc32c: 0 }), free);
                if free {
                    naive[cells].fill(true);
                }
            }
            let mut missing = vec![false; 300];
            for range in spans.missing(size, range_size) {
                prop_assert!(!range.is_empty() && range.end - range.start <= range_size);
                prop_assert_eq!(range.start / range_size, (range.end - 1) / range_size);
                missing[index(range.start)..index(range.end)].fill(true);
            }
            for at in 0..index(size) {
                prop_assert_eq!(missing[at], !naive[at]);
            }
        }
    }
}
