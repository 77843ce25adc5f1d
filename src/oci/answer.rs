//! What Object Storage answers, read into types.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderMap;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectSummary {
    /// The full name.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// Opaque and unquoted.
    pub etag: String,
    /// Base64 of the MD5; of the parts' MD5s and `-N` behind it for a multipart object.
    pub md5: Option<String>,
    /// RFC 3339.
    pub time_modified: Option<String>,
    /// `Standard`, `InfrequentAccess` or `Archive`.
    pub storage_tier: Option<String>,
    /// `Archived`, `Restoring` or `Restored`; only in the archive tier.
    pub archival_state: Option<String>,
}

/// The objects under a prefix, in byte order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// At most as many as were asked for.
    pub objects: Vec<ObjectSummary>,
    /// Whether there are more.
    pub truncated: bool,
}

/// The MD5 of a multipart object: over the parts' binary MD5s in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultipartMd5 {
    /// The outer digest.
    pub digest: [u8; 16],
    /// How many parts, where the value has the suffix `-N`.
    pub parts: Option<u32>,
}

impl MultipartMd5 {
    /// Base64 of 16 bytes, with or without `-N`.
    pub fn parse(text: &str) -> Option<Self> {
        let (digest, parts) = match text.trim().rsplit_once('-') {
            Some((digest, parts)) => (digest, Some(parts.parse().ok()?)),
            None => (text.trim(), None),
        };
        Some(Self { digest: parse_digest(digest)?, parts })
    }
}

/// What the head of an answer says of one object.
///
/// The service sends checksums with HEAD and with whole objects, never with ranges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectHead {
    /// Of the whole object, in bytes.
    pub size: u64,
    /// Opaque and unquoted.
    pub etag: String,
    /// MD5 of the bytes; single-part objects only.
    pub content_md5: Option<[u8; 16]>,
    /// Multipart objects only.
    pub multipart_md5: Option<MultipartMd5>,
    /// CRC-32C of the bytes, also of multipart objects.
    pub crc32c: Option<u32>,
    /// MD5 of the bytes as the uploader recorded it (`opc-meta-md5chksum`, rclone).
    pub recorded_md5: Option<[u8; 16]>,
    /// `Standard`, `InfrequentAccess` or `Archive`.
    pub storage_tier: Option<String>,
    /// `Archived`, `Restoring` or `Restored`; only in the archive tier.
    pub archival_state: Option<String>,
}

impl ObjectHead {
    /// Of a HEAD or a whole GET, whose length is the object's.
    pub(crate) fn whole(headers: &HeaderMap, size: u64) -> Self {
        let crc32c = text(headers, "opc-content-crc32c")
            .and_then(|text| BASE64.decode(text).ok())
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_be_bytes);
        Self {
            content_md5: text(headers, "content-md5").and_then(parse_digest),
            multipart_md5: text(headers, "opc-multipart-md5").and_then(MultipartMd5::parse),
            crc32c,
            recorded_md5: text(headers, "opc-meta-md5chksum").and_then(parse_digest),
            ..Self::part(headers, size)
        }
    }

    /// Of a range, which has no checksums: those of the whole may not be taken for the part's.
    pub(crate) fn part(headers: &HeaderMap, size: u64) -> Self {
        Self {
            size,
            etag: text(headers, "etag").map(unquoted).unwrap_or_default().to_owned(),
            storage_tier: text(headers, "storage-tier").map(str::to_owned),
            archival_state: text(headers, "archival-state").map(str::to_owned),
            ..Self::default()
        }
    }
}

/// A header's value that is text and not blank.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim).filter(|text| !text.is_empty())
}

/// `content-length`.
pub(crate) fn length(headers: &HeaderMap) -> Option<u64> {
    text(headers, "content-length")?.parse().ok()
}

/// The range and the whole size of `content-range: bytes a-b/total`.
pub(crate) fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let (range, total) =
        text(headers, "content-range")?.strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total: u64 = total.parse().ok()?;
    (first <= last && last < total).then(|| (first..last + 1, total))
}

/// `retry-after`, in seconds or as a date.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = text(headers, "retry-after")?;
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    // A date that has passed asks for nothing.
    Some(httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default())
}

/// ETags are unquoted in this API; a quoted one means the same.
pub(crate) fn unquoted(etag: &str) -> &str {
    etag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(etag)
}

fn parse_digest(text: &str) -> Option<[u8; 16]> {
    BASE64.decode(text).ok()?.try_into().ok()
}

/// The body of an error.
#[derive(Deserialize, Default)]
pub(crate) struct ErrorBody {
    #[serde(default)]
    pub(crate) code: Option<String>,
    #[serde(default)]
    pub(crate) message: Option<String>,
}

/// One page of a listing as it comes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page {
    #[serde(default)]
    pub(crate) objects: Option<PageObjects>,
    #[serde(default)]
    pub(crate) next_start_with: Option<String>,
}

/// The service's own limit on a page of a listing.
pub(crate) const PAGE_LIMIT: usize = 1000;

/// The objects of a page. The smallest takes three bytes of the answer and two
/// hundred of memory, so that more than a page may have are not read at all.
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

/// Fields that were asked for may still be null or absent.
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
    /// With the fields that nothing can be done without, or the name of the one that is missing.
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
    fn a_whole_answer_gives_its_checksums_and_a_range_none() {
        let headers = headers(&[
            ("etag", "\"e-1\""),
            ("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg=="),
            ("opc-multipart-md5", "1B2M2Y8AsgTpgAmY7PhCfg==-3"),
            ("opc-content-crc32c", "4waSgw=="),
            ("storage-tier", "Standard"),
        ]);
        let whole = ObjectHead::whole(&headers, 9);
        assert_eq!(whole.etag, "e-1");
        assert_eq!(whole.crc32c, Some(0xE306_9283));
        assert_eq!(whole.content_md5.map(|md5| md5[0]), Some(0xd4));
        assert_eq!(whole.multipart_md5.unwrap().parts, Some(3));
        let part = ObjectHead::part(&headers, 9);
        assert_eq!((part.crc32c, part.content_md5, part.multipart_md5), (None, None, None));
        assert_eq!((part.size, part.storage_tier.as_deref()), (9, Some("Standard")));
    }

    #[test]
    fn multipart_digests_are_read_with_and_without_the_number_of_parts() {
        let plain = MultipartMd5::parse("1B2M2Y8AsgTpgAmY7PhCfg==").unwrap();
        assert_eq!(plain.parts, None);
        assert!(MultipartMd5::parse("1B2M2Y8AsgTpgAmY7PhCfg==-x").is_none());
        assert!(MultipartMd5::parse("short").is_none());
    }

    #[test]
    fn a_content_range_is_read_or_refused() {
        let read = |value| content_range(&headers(&[("content-range", value)]));
        assert_eq!(read("bytes 0-9/10"), Some((0..10, 10)));
        assert_eq!(read("bytes 5-5/18446744073709551615"), Some((5..6, u64::MAX)));
        for bad in ["bytes 0-10/10", "bytes 3-2/10", "bytes */10", "bytes 0-9/*", "0-9/10"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let read = |value: &str| retry_after(&headers(&[("retry-after", value)]), now);
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        let later = httpdate::fmt_http_date(now + Duration::from_secs(90));
        assert_eq!(read(&later), Some(Duration::from_secs(90)));
        assert_eq!(read("Fri, 05 Jan 1990 21:31:40 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
    }

    #[test]
    fn a_page_of_more_objects_than_the_service_gives_is_not_read() {
        let page = |objects: usize| {
            format!(r#"{{"objects":[{}]}}"#, vec!["{\"name\":\"a\"}"; objects].join(","))
        };
        let read = |objects| serde_json::from_str::<Page>(&page(objects));
        assert_eq!(read(PAGE_LIMIT).unwrap().objects.unwrap().0.len(), PAGE_LIMIT);
        let error = read(PAGE_LIMIT + 1).err().expect("was taken");
        assert!(error.to_string().contains("more than 1000 objects"), "{error}");
    }

    #[test]
    fn null_and_absent_fields_are_the_same_and_a_missing_size_is_named() {
        let page: Page = serde_json::from_str(
            r#"{"objects":[{"name":"a","size":5000000000,"etag":"e","md5":null},{"name":"b"}],
                "prefixes":null,"nextStartWith":null}"#,
        )
        .unwrap();
        let mut objects = page.objects.unwrap().0.into_iter();
        assert_eq!(objects.next().unwrap().complete().unwrap().size, 5_000_000_000);
        let error = objects.next().unwrap().complete().unwrap_err();
        assert!(error.contains("\"b\"") && error.contains("size"), "{error}");
    }
}
