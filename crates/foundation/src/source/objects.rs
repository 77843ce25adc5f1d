//! What a source says of objects: in listings, and object by object.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// One object of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectSummary {
    /// The full name.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Opaque and unquoted.
    pub etag: String,
    /// Base64 of the MD5; for a multipart object that of the parts' MD5s, followed by `-N`.
    pub md5: Option<String>,
    /// RFC 3339.
    pub time_modified: Option<String>,
    /// `Standard`, `InfrequentAccess` or `Archive`.
    pub storage_tier: Option<String>,
    /// `Archived`, `Restoring` or `Restored`; only in the archive tier.
    pub archival_state: Option<String>,
}

/// The MD5 of a multipart object: over the parts' binary MD5s in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultipartMd5 {
    /// The outer digest.
    pub digest: [u8; 16],
    /// The number of parts, where the value has the suffix `-N`.
    pub parts: Option<u32>,
}

impl MultipartMd5 {
    /// Parses base64 of 16 bytes, with or without `-N`.
    pub fn parse(text: &str) -> Option<Self> {
        let (digest, parts) = match text.trim().rsplit_once('-') {
            Some((digest, parts)) => (digest, Some(parts.parse().ok().filter(|parts| *parts > 0)?)),
            None => (text.trim(), None),
        };
        Some(Self { digest: parse_md5(digest)?, parts })
    }
}

/// The `md5` of a listing, which has the form of either header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListedMd5 {
    /// As `content-md5`.
    Whole([u8; 16]),
    /// As `opc-multipart-md5`, with its `-N`.
    Parts(MultipartMd5),
}

impl ListedMd5 {
    /// Parses base64 of 16 bytes; with `-N` it is the digest of N parts.
    pub fn parse(text: &str) -> Option<Self> {
        let md5 = MultipartMd5::parse(text)?;
        Some(if md5.parts.is_some() { Self::Parts(md5) } else { Self::Whole(md5.digest) })
    }
}

impl ObjectSummary {
    /// Whether it lies in the archive tier and cannot be read. A restored object can be read; one
    /// that is being restored cannot yet.
    pub fn is_archived(&self) -> bool {
        match self.archival_state.as_deref() {
            Some(state) => !state.eq_ignore_ascii_case("restored"),
            None => self.storage_tier.as_deref().is_some_and(|t| t.eq_ignore_ascii_case("archive")),
        }
    }
}

/// What a source says about one object.
///
/// The service sends checksums with HEAD and with whole objects, never with ranges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectHead {
    /// Size of the whole object in bytes, where the answer has it.
    pub size: Option<u64>,
    /// Opaque and unquoted; empty where the answer has none.
    pub etag: String,
    /// MD5 of the bytes; single-part objects only.
    pub content_md5: Option<[u8; 16]>,
    /// Multipart objects only.
    pub multipart_md5: Option<MultipartMd5>,
    /// CRC-32C of the bytes, for multipart objects too.
    pub crc32c: Option<u32>,
    /// MD5 of the bytes as the uploader recorded it (`opc-meta-md5chksum`, rclone).
    pub recorded_md5: Option<[u8; 16]>,
    /// `Standard`, `InfrequentAccess` or `Archive`.
    pub storage_tier: Option<String>,
    /// `Archived`, `Restoring` or `Restored`; only in the archive tier.
    pub archival_state: Option<String>,
}

/// Parses base64 of 16 bytes.
pub fn parse_md5(text: &str) -> Option<[u8; 16]> {
    BASE64.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multipart_digests_are_parsed_with_and_without_the_number_of_parts() {
        let plain = MultipartMd5::parse("1B2M2Y8AsgTpgAmY7PhCfg==").unwrap();
        assert_eq!(plain.parts, None);
        assert!(MultipartMd5::parse("1B2M2Y8AsgTpgAmY7PhCfg==-x").is_none());
        assert!(MultipartMd5::parse("short").is_none());
    }

    #[test]
    fn the_md5_of_a_listing_is_that_of_the_whole_or_of_its_parts() {
        let text = "1B2M2Y8AsgTpgAmY7PhCfg==";
        assert!(matches!(ListedMd5::parse(text), Some(ListedMd5::Whole(_))));
        let parts = ListedMd5::parse(&format!("{text}-7"));
        assert!(matches!(parts, Some(ListedMd5::Parts(MultipartMd5 { parts: Some(7), .. }))));
        assert_eq!(ListedMd5::parse("d41d8cd98f00b204e9800998ecf8427e"), None);
    }
}
