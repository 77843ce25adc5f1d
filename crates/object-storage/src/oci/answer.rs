//! Parses the answers of Object Storage.

use std::fmt;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderMap;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::http_error::header_text;
use crate::source::{MultipartMd5, ObjectHead, ObjectSummary, parse_md5};
use crate::text::excerpt;

/// Parses the headers of a HEAD or a whole GET, whose length is the object's.
///
/// # Errors
/// Names the checksum that cannot be parsed. The object does have a checksum, so
/// this answer cannot be used.
pub(crate) fn whole_head(headers: &HeaderMap, size: Option<u64>) -> Result<ObjectHead, String> {
    let read_crc32c = |text: &str| {
        let bytes: [u8; 4] = BASE64.decode(text).ok()?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    };
    Ok(ObjectHead {
        content_md5: checksum(headers, "content-md5", parse_md5)?,
        multipart_md5: checksum(headers, "opc-multipart-md5", MultipartMd5::parse)?,
        crc32c: checksum(headers, "opc-content-crc32c", read_crc32c)?,
        // Written by the uploader, so it may be anything.
        recorded_md5: header_text(headers, "opc-meta-md5chksum").and_then(parse_md5),
        ..part_head(headers, size)
    })
}

/// Parses the headers of a range. It has no checksums: those of the whole object are not the part's.
pub(crate) fn part_head(headers: &HeaderMap, size: Option<u64>) -> ObjectHead {
    ObjectHead {
        size,
        etag: header_text(headers, "etag").map(opaque).unwrap_or_default().to_owned(),
        storage_tier: header_text(headers, "storage-tier").map(str::to_owned),
        archival_state: header_text(headers, "archival-state").map(str::to_owned),
        ..ObjectHead::default()
    }
}

/// Parses a checksum; `None` where the header is absent or blank.
fn checksum<T: PartialEq>(
    headers: &HeaderMap,
    name: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, String> {
    let mut found = None;
    for value in headers.get_all(name) {
        let text = String::from_utf8_lossy(value.as_bytes());
        if text.trim().is_empty() {
            continue;
        }
        let unusable = || format!("its {name} {:?} is not a checksum", excerpt(&text, 60));
        let one = read(text.trim()).ok_or_else(unusable)?;
        if found.as_ref().is_some_and(|other| *other != one) {
            return Err(format!("it has two different values of {name}"));
        }
        found = Some(one);
    }
    Ok(found)
}

/// `content-length`.
pub(crate) fn length(headers: &HeaderMap) -> Option<u64> {
    header_text(headers, "content-length")?.parse().ok()
}

/// Parses the range and the whole size of `content-range: bytes a-b/total`; a proxy
/// that does not know the size writes `*`.
pub(crate) fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, Option<u64>)> {
    let (unit, rest) = header_text(headers, "content-range")?.split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let end = last.checked_add(1)?;
    let total: Option<u64> = if total == "*" { None } else { Some(total.parse().ok()?) };
    let possible = first <= last && total.is_none_or(|total| last < total);
    (unit.eq_ignore_ascii_case("bytes") && possible).then_some((first..end, total))
}

/// Normalizes an ETag. They are unquoted in this API; a quoted one means the same, and so does
/// one that a proxy marked as weak: checksums and lengths prove the bytes.
pub(crate) fn opaque(etag: &str) -> &str {
    let etag = etag.strip_prefix("W/").filter(|rest| rest.starts_with('"')).unwrap_or(etag);
    etag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(etag)
}

/// One page of a listing as it arrives.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawPage {
    /// Null or a list; an answer without it is not a listing, JSON or not.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(crate) objects: Option<PageObjects>,
    /// Names up to the delimiter, where one was requested.
    #[serde(default)]
    pub(crate) prefixes: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) next_start_with: Option<String>,
}

/// The service's own limit on a page of a listing.
pub(crate) const PAGE_LIMIT: usize = 1000;

/// The objects of a page. The smallest takes three bytes of the answer and two
/// hundred of memory, so reading stops at the limit of a page.
pub(crate) struct PageObjects(pub(crate) Vec<PageObject>);

impl<'de> Deserialize<'de> for PageObjects {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = PageObjects;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {PAGE_LIMIT} objects")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
                let mut objects = Vec::new();
                while let Some(object) = all.next_element()? {
                    if objects.len() == PAGE_LIMIT {
                        let what = format!("a page has more than {PAGE_LIMIT} objects");
                        return Err(de::Error::custom(what));
                    }
                    objects.push(object);
                }
                Ok(PageObjects(objects))
            }
        }
        input.deserialize_seq(Each)
    }
}

/// Requested fields may still be null or absent.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PageObject {
    name: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    etag: Option<String>,
    #[serde(default)]
    md5: Option<String>,
    #[serde(default)]
    time_modified: Option<String>,
    #[serde(default)]
    storage_tier: Option<String>,
    #[serde(default)]
    archival_state: Option<String>,
}

impl PageObject {
    /// Returns the object if it has the required fields, else the name of the missing one.
    pub(crate) fn complete(self) -> Result<ObjectSummary, String> {
        let missing = |field: &str| format!("the object {:?} is listed without {field}", self.name);
        let size = self.size.ok_or_else(|| missing("its size"))?;
        let etag = self.etag.clone().ok_or_else(|| missing("its etag"))?;
        Ok(ObjectSummary {
            name: self.name,
            size,
            etag,
            md5: self.md5.filter(|md5| !md5.is_empty()),
            time_modified: self.time_modified,
            storage_tier: self.storage_tier,
            archival_state: self.archival_state,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_whole_answer_has_its_checksums_and_a_range_none() {
        let headers = headers(&[
            ("etag", "\"e-1\""),
            ("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg=="),
            ("opc-multipart-md5", "1B2M2Y8AsgTpgAmY7PhCfg==-3"),
            ("opc-content-crc32c", "4waSgw=="),
            ("storage-tier", "Standard"),
        ]);
        let whole = whole_head(&headers, Some(9)).unwrap();
        assert_eq!(whole.etag, "e-1");
        assert_eq!(whole.crc32c, Some(0xE306_9283));
        assert_eq!(whole.content_md5.map(|md5| md5[0]), Some(0xd4));
        assert_eq!(whole.multipart_md5.unwrap().parts, Some(3));
        let part = part_head(&headers, Some(9));
        assert_eq!((part.crc32c, part.content_md5, part.multipart_md5), (None, None, None));
        assert_eq!((part.size, part.storage_tier.as_deref()), (Some(9), Some("Standard")));
    }

    #[test]
    fn a_malformed_checksum_is_not_a_missing_one() {
        let md5 = "1B2M2Y8AsgTpgAmY7PhCfg==";
        for (name, value) in [
            ("opc-content-crc32c", "4waS"),
            ("opc-content-crc32c", "4waSgw==4waSgw=="),
            ("opc-content-crc32c", "e3069283"),
            ("content-md5", "not-base64"),
            ("content-md5", "4waSgw=="),
            ("opc-multipart-md5", "1B2M2Y8AsgTpgAmY7PhCfg==-x"),
            ("opc-multipart-md5", "1B2M2Y8AsgTpgAmY7PhCfg==-0"),
            ("opc-multipart-md5", "-3"),
        ] {
            let error = whole_head(&headers(&[(name, value)]), None).unwrap_err();
            assert!(error.contains(name) && error.contains("is not a checksum"), "{error}");
        }
        let mut two = headers(&[("content-md5", md5)]);
        two.append("content-md5", md5.parse().unwrap());
        assert!(whole_head(&two, None).unwrap().content_md5.is_some());
        two.append("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==".parse().unwrap());
        let error = whole_head(&two, None).unwrap_err();
        assert!(error.contains("two different values"), "{error}");
        let none = headers(&[("content-md5", " "), ("opc-meta-md5chksum", "whatever")]);
        let head = whole_head(&none, None).unwrap();
        assert_eq!((head.content_md5, head.recorded_md5), (None, None));
    }

    #[test]
    fn a_content_range_is_parsed_or_refused() {
        let read = |value| content_range(&headers(&[("content-range", value)]));
        assert_eq!(read("bytes 0-9/10"), Some((0..10, Some(10))));
        assert_eq!(read("bytes 5-5/18446744073709551615"), Some((5..6, Some(u64::MAX))));
        assert_eq!(read("Bytes 0-9/*"), Some((0..10, None)));
        for bad in [
            "bytes 0-10/10",
            "bytes 3-2/10",
            "bytes */10",
            "bytes 0-18446744073709551615/*",
            "0-9/10",
            "lines 0-9/10",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_etag_means_the_same_quoted_and_marked_as_weak() {
        for etag in ["e-1", "\"e-1\"", "W/\"e-1\""] {
            assert_eq!(opaque(etag), "e-1");
        }
        assert_eq!(opaque("W/e"), "W/e");
    }

    #[test]
    fn a_page_with_more_objects_than_the_limit_is_not_read() {
        let page = |objects: usize| {
            format!(r#"{{"objects":[{}]}}"#, vec!["{\"name\":\"a\"}"; objects].join(","))
        };
        let read = |objects| serde_json::from_str::<RawPage>(&page(objects));
        assert_eq!(read(PAGE_LIMIT).unwrap().objects.unwrap().0.len(), PAGE_LIMIT);
        let error = read(PAGE_LIMIT + 1).err().expect("was taken");
        assert!(error.to_string().contains("more than 1000 objects"), "{error}");
    }

    #[test]
    fn null_and_absent_fields_are_the_same_and_a_missing_size_is_named() {
        let page: RawPage = serde_json::from_str(
            r#"{"objects":[{"name":"a","size":5000000000,"etag":"e","md5":null},{"name":"b"}],
                "prefixes":null,"nextStartWith":null}"#,
        )
        .unwrap();
        let mut objects = page.objects.unwrap().0.into_iter();
        assert_eq!(objects.next().unwrap().complete().unwrap().size, 5_000_000_000);
        let error = objects.next().unwrap().complete().unwrap_err();
        assert!(error.contains("\"b\"") && error.contains("size"), "{error}");
        assert!(serde_json::from_str::<RawPage>("{\"objects\":null}").unwrap().objects.is_none());
    }

    #[test]
    fn json_that_is_not_a_listing_is_not_an_empty_one() {
        for page in ["{}", r#"{"code":"Login","message":"first"}"#, r#"{"prefixes":[]}"#, "[]"] {
            assert!(serde_json::from_str::<RawPage>(page).is_err(), "{page}");
        }
    }
}
