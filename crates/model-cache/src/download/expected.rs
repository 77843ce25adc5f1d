//! Selects the checksum that proves an object's bytes, from its headers, the
//! listing, and the administrator's `verify`.

use super::layouts::MultipartLayouts;
use super::{Check, Verify};
use crate::source::{ListedMd5, ObjectHead};

/// Objects over this size are not read for their MD5 under `verify: cheap`.
const CHEAP_MD5_BYTES: u64 = 1 << 30;

/// What the object says about its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Crc32c(u32),
    Md5([u8; 16]),
    Multipart { digest: [u8; 16], layouts: MultipartLayouts },
    Nothing,
}

impl Expected {
    /// The strongest checksum that `verify` allows. The listing's MD5 is used
    /// where the headers have no checksum.
    ///
    /// # Errors
    /// When the listing's MD5 would be used and is not a checksum.
    pub(super) fn of(
        head: &ObjectHead,
        listed_md5: Option<&str>,
        size: u64,
        verify: Verify,
    ) -> Result<Self, String> {
        if let Some(crc32c) = head.crc32c {
            return Ok(Self::Crc32c(crc32c));
        }
        if verify == Verify::Cheap && size > CHEAP_MD5_BYTES {
            return Ok(Self::Nothing);
        }
        let md5 = match (head.content_md5, head.multipart_md5, listed_md5) {
            (Some(md5), _, _) => Some(ListedMd5::Whole(md5)),
            (None, Some(multipart), _) => Some(ListedMd5::Parts(multipart)),
            (None, None, Some(listed)) => {
                Some(ListedMd5::parse(listed).ok_or_else(|| listed.to_owned())?)
            }
            (None, None, None) => None,
        };
        Ok(match md5 {
            Some(ListedMd5::Whole(md5)) => Self::Md5(md5),
            Some(ListedMd5::Parts(multipart)) => {
                let layouts = MultipartLayouts::of(size, multipart.parts);
                Self::Multipart { digest: multipart.digest, layouts }
            }
            None => Self::Nothing,
        })
    }

    /// Why no download can be proved to be the object; `None` where that is
    /// possible, or may be.
    pub(super) fn unprovable(&self) -> Option<String> {
        match self {
            Self::Nothing => Some("the object carries no checksum".to_owned()),
            Self::Multipart { layouts, .. } if layouts.part_sizes().is_empty() => {
                layouts.unknown().map(str::to_owned)
            }
            _ => None,
        }
    }

    /// The most likely size of the object's parts, where its checksum is that of parts.
    pub(super) fn part_size(&self) -> Option<u64> {
        match self {
            Self::Multipart { layouts, .. } => layouts.part_sizes().first().copied(),
            _ => None,
        }
    }

    /// The check that content with this CRC-32C, and this MD5 of the expected
    /// kind, passes; for several parts the MD5 is that of the first layout.
    pub(super) fn passes(&self, crc32c: u32, md5: Option<[u8; 16]>) -> Option<Check> {
        match self {
            Self::Crc32c(expected) => (*expected == crc32c).then_some(Check::Crc32c),
            Self::Md5(expected) => (md5 == Some(*expected)).then_some(Check::Md5),
            Self::Multipart { digest, .. } => (md5 == Some(*digest)).then_some(Check::MultipartMd5),
            Self::Nothing => Some(Check::SizeAndEtag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::MultipartMd5;

    const SMALL: u64 = CHEAP_MD5_BYTES;
    const LARGE: u64 = CHEAP_MD5_BYTES + 1;
    const LISTED: &str = "1B2M2Y8AsgTpgAmY7PhCfg==";

    fn head() -> ObjectHead {
        ObjectHead { etag: "e".into(), ..ObjectHead::default() }
    }

    /// The kind of checksum that is compared, in one word.
    fn kind(head: &ObjectHead, listed: Option<&str>, size: u64, verify: Verify) -> &'static str {
        match Expected::of(head, listed, size, verify) {
            Ok(Expected::Crc32c(_)) => "crc32c",
            Ok(Expected::Md5(_)) => "md5",
            Ok(Expected::Multipart { .. }) => "parts",
            Ok(Expected::Nothing) => "nothing",
            Err(_) => "unusable",
        }
    }

    #[test]
    fn the_strongest_checksum_is_compared_and_the_listings_where_there_is_no_other() {
        let parts = Some(MultipartMd5 { digest: [2; 16], parts: Some(3) });
        let (crc32c, md5) = (Some(1), Some([1; 16]));
        let listed_parts = format!("{LISTED}-3");
        for (head, listed, expected) in [
            (ObjectHead { crc32c, content_md5: md5, ..head() }, Some(LISTED), "crc32c"),
            (ObjectHead { crc32c, multipart_md5: parts, ..head() }, None, "crc32c"),
            (ObjectHead { content_md5: md5, ..head() }, Some("junk"), "md5"),
            (ObjectHead { multipart_md5: parts, ..head() }, Some(LISTED), "parts"),
            (head(), Some(LISTED), "md5"),
            (head(), Some(listed_parts.as_str()), "parts"),
            (head(), Some("junk"), "unusable"),
            (head(), None, "nothing"),
        ] {
            for verify in [Verify::Always, Verify::Strict] {
                assert_eq!(kind(&head, listed, LARGE, verify), expected, "{head:?} {listed:?}");
            }
        }
    }

    #[test]
    fn cheap_leaves_out_the_md5_of_objects_over_one_gib_and_nothing_else() {
        let parts = Some(MultipartMd5 { digest: [2; 16], parts: Some(9) });
        let (crc32c, content_md5) = (Some(1), Some([1; 16]));
        for (head, small, large) in [
            (ObjectHead { content_md5, crc32c, ..head() }, "crc32c", "crc32c"),
            (ObjectHead { content_md5, ..head() }, "md5", "nothing"),
            (ObjectHead { multipart_md5: parts, ..head() }, "parts", "nothing"),
            (head(), "md5", "nothing"),
        ] {
            assert_eq!(kind(&head, Some(LISTED), SMALL, Verify::Cheap), small, "{head:?}");
            assert_eq!(kind(&head, Some(LISTED), LARGE, Verify::Cheap), large, "{head:?}");
        }
    }

    #[test]
    fn an_unprovable_object_is_known_before_it_is_downloaded() {
        assert!(Expected::Nothing.unprovable().unwrap().contains("no checksum"));
        assert_eq!(Expected::Crc32c(1).unprovable(), None);
        let of_parts = |size, parts| {
            let layouts = MultipartLayouts::of(size, Some(parts));
            Expected::Multipart { digest: [0; 16], layouts }.unprovable()
        };
        assert_eq!(of_parts(3 << 30, 24), None, "128 MiB each");
        let why = of_parts((40 << 30) + 1, 2).unwrap();
        assert!(why.contains("2 parts"), "{why}");
    }
}
