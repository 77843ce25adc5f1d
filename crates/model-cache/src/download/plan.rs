//! What is left to request of one object, and how much the next request takes.

use std::collections::VecDeque;
use std::ops::Range;

/// How many parts a range may be divided into at the end of a download.
const SPLIT: u64 = 4;

/// Divided ranges are multiples of this, in bytes.
const LEAST: u64 = 1 << 20;

/// Parts that are requested side by side: as many as there are lanes to hash them.
const SIDE_BY_SIDE: usize = 16;

/// The ranges of one object that are not requested yet.
///
/// Parts whose MD5s are needed are requested side by side, each from its beginning to its end:
/// then their bytes arrive in the order in which they are hashed, and in as many streams as
/// there are lanes.
#[derive(Debug)]
pub(super) struct RangePlan {
    /// Of each part in turn; one part is the whole object where its order does not matter.
    parts: Vec<PartPlan>,
    /// All parts before this one are done.
    first: usize,
    part_size: u64,
    left: u64,
    range_size: u64,
}

#[derive(Debug, Default)]
struct PartPlan {
    ranges: VecDeque<Range<u64>>,
    /// Requests that run.
    running: usize,
}

impl PartPlan {
    fn is_done(&self) -> bool {
        self.running == 0 && self.ranges.is_empty()
    }
}

/// What decides how much the next request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestSize {
    /// Ranges of the configured size in one request; more than one at high throughput.
    pub(super) ranges: u64,
    /// The requests among which the rest of the object is divided: as many as may run at once, or
    /// soon. `None` while other objects have requests for the free connections.
    pub(super) share: Option<usize>,
}

impl RangePlan {
    /// The plan for these ranges of an object, in ascending order. `part_size`: of the parts that
    /// are hashed, each in order.
    pub(super) fn new(ranges: Vec<Range<u64>>, range_size: u64, part_size: Option<u64>) -> Self {
        // A range with whole parts in it has no order.
        let part_size = part_size.filter(|size| *size > range_size).unwrap_or(u64::MAX);
        let left = ranges.iter().map(|range| range.end - range.start).sum();
        let mut plan = Self { parts: Vec::new(), first: 0, part_size, left, range_size };
        for range in ranges {
            // A range that begins in one part and ends in the next counts for the first.
            let part = usize::try_from(range.start / part_size).unwrap_or(usize::MAX);
            if plan.parts.len() <= part {
                plan.parts.resize_with(part + 1, PartPlan::default);
            }
            plan.parts[part].ranges.push_back(range);
        }
        plan
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// How many requests at once have parts of their own; `None` where the order of bytes does
    /// not matter.
    pub(super) fn streams(&self) -> Option<usize> {
        let open = self.parts[self.first..].iter().filter(|part| !part.is_done());
        (self.part_size != u64::MAX).then(|| open.take(SIDE_BY_SIDE).count())
    }

    /// Takes the next range, with the number of its part for [`ended`](Self::ended). Adjacent
    /// ranges become one, up to the size that is asked for. The last ranges are divided, so that
    /// all connections end together.
    pub(super) fn take(&mut self, size: RequestSize) -> Option<(usize, Range<u64>)> {
        let parts = self.parts.iter_mut().enumerate().skip(self.first);
        let open = parts.filter(|(_, part)| !part.ranges.is_empty()).take(SIDE_BY_SIDE);
        let (number, part) = open.min_by_key(|(_, part)| part.running)?;
        let mut next = part.ranges.pop_front()?;
        part.running += 1;
        let largest = self.range_size.saturating_mul(size.ranges.max(1));
        while let Some(after) = part.ranges.front()
            && after.start == next.end
            && after.end - next.start <= largest
        {
            next.end = after.end;
            part.ranges.pop_front();
        }
        if let Some(share) = size.share {
            let share = u64::try_from(share.max(1)).unwrap_or(u64::MAX);
            let least = (self.range_size / SPLIT).max(LEAST);
            let piece = self.left.div_ceil(share).next_multiple_of(LEAST).max(least);
            if next.end - next.start > piece {
                part.ranges.push_front(next.start + piece..next.end);
                next.end = next.start + piece;
            }
        }
        self.left -= next.end - next.start;
        Some((number, next))
    }

    /// Records that a request for a range of this part has ended.
    pub(super) fn ended(&mut self, part: usize) {
        if let Some(part) = self.parts.get_mut(part) {
            part.running -= 1;
        }
        // Objects may have many thousand parts: those that are done are not looked at again.
        while self.parts.get(self.first).is_some_and(PartPlan::is_done) {
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const PLAIN: RequestSize = RequestSize { ranges: 1, share: None };

    fn plan(size: u64) -> RangePlan {
        let starts = (0..size.div_ceil(16)).map(|n| n * 16);
        let ranges = starts.map(|start| start * MIB..(start + 16).min(size) * MIB);
        RangePlan::new(ranges.collect(), 16 * MIB, None)
    }

    fn sizes(plan: &mut RangePlan, size: RequestSize) -> Vec<u64> {
        std::iter::from_fn(|| plan.take(size)).map(|(_, one)| (one.end - one.start) / MIB).collect()
    }

    #[test]
    fn while_others_wait_a_request_takes_the_configured_size() {
        assert_eq!(sizes(&mut plan(40), PLAIN), [16, 16, 8]);
    }

    #[test]
    fn at_high_throughput_a_request_takes_several_adjacent_ranges() {
        let size = RequestSize { ranges: 3, share: None };
        assert_eq!(sizes(&mut plan(112), size), [48, 48, 16]);
        let apart = vec![0..16 * MIB, 32 * MIB..48 * MIB];
        let mut apart = RangePlan::new(apart, 16 * MIB, None);
        assert_eq!(sizes(&mut apart, size), [16, 16], "only where they are adjacent");
    }

    #[test]
    fn the_rest_is_divided_among_all_connections() {
        let alone = RequestSize { ranges: 1, share: Some(16) };
        assert_eq!(sizes(&mut plan(64), alone), [4; 16]);
        let long = sizes(&mut plan(1024), alone);
        assert!(long[..40].iter().all(|size| *size == 16), "{long:?}");
        assert!(long[long.len() - 8..].iter().all(|size| *size <= 4), "{long:?}");
        assert_eq!(long.iter().sum::<u64>(), 1024);
        assert_eq!(sizes(&mut plan(2), alone), [2], "a small rest is one request");
    }

    #[test]
    fn parts_are_requested_side_by_side_and_each_in_its_order() {
        let ranges: Vec<Range<u64>> = (0..40).map(|n| n * MIB..(n + 1) * MIB).collect();
        // Twenty parts of two ranges.
        let mut plan = RangePlan::new(ranges, MIB, Some(2 * MIB));
        assert_eq!(plan.streams(), Some(16));
        let start = |plan: &mut RangePlan| plan.take(PLAIN).unwrap().1.start / MIB;
        let first: Vec<u64> = (0..16).map(|_| start(&mut plan)).collect();
        assert_eq!(first, (0..16).map(|part| part * 2).collect::<Vec<_>>());
        plan.ended(5);
        assert_eq!(start(&mut plan), 11, "the part whose request has ended continues");
        assert_eq!(start(&mut plan), 32, "and the next part follows one that has no more ranges");
        assert_eq!(start(&mut plan), 1, "more than one request of a part where all have one");
        while plan.take(PLAIN).is_some() {}
        assert!(plan.is_empty());
        assert_eq!(RangePlan::new(Vec::new(), MIB, Some(2 * MIB)).streams(), Some(0));
        assert_eq!(RangePlan::new(Vec::new(), MIB, Some(MIB)).streams(), None, "in any order");
    }

    #[test]
    fn parts_that_are_done_are_not_looked_at_again() {
        let count = 200_000;
        let ranges: Vec<Range<u64>> = (0..count).map(|n| n * 16..(n + 1) * 16).collect();
        let mut plan = RangePlan::new(ranges, 8, Some(16));
        let mut running = VecDeque::new();
        for _ in 0..count {
            running.push_back(plan.take(PLAIN).unwrap().0);
            if running.len() > 256 {
                plan.ended(running.pop_front().unwrap());
            }
            assert_eq!(plan.first, running[0]);
        }
        assert!(plan.is_empty());
    }

    proptest! {
        #![proptest_config(seeded::cases(256))]

        #[test]
        fn each_byte_is_taken_once_whatever_the_sizes(
            size in 1_u64..400,
            part_size in proptest::option::of(MIB..100 * MIB),
            requests in proptest::collection::vec(
                (0_u64..6, proptest::option::of(0_usize..40), proptest::bool::ANY),
                1..50,
            ),
        ) {
            let ranges = (0..size.div_ceil(16)).map(|n| n * 16 * MIB..((n + 1) * 16).min(size) * MIB);
            let mut plan = RangePlan::new(ranges.collect(), 16 * MIB, part_size);
            let mut taken: Vec<Range<u64>> = Vec::new();
            for (ranges, share, ends) in requests.into_iter().cycle() {
                let Some((part, range)) = plan.take(RequestSize { ranges, share }) else { break };
                taken.push(range);
                if ends {
                    plan.ended(part);
                }
            }
            prop_assert!(plan.is_empty());
            taken.sort_by_key(|range| range.start);
            let mut at = 0;
            for range in taken {
                prop_assert!(range.start == at && range.end > at);
                at = range.end;
            }
            prop_assert_eq!(at, size * MIB);
        }
    }
}
