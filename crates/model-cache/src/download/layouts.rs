//! The part sizes that a multipart object may have had, which Object Storage does not record.

const MIB: u64 = 1 << 20;
const MB: u64 = 1_000_000;

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
}
