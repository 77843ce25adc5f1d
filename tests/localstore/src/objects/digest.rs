//! Checksums in the forms of Object Storage.

use aws_lc_rs::digest::{Context, SHA256, SHA384};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ApiResult};

/// An additional checksum, chosen at upload by `opc-checksum-algorithm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Crc32c,
    Sha256,
    Sha384,
}

impl Algorithm {
    /// An empty value is none: rclone sends the header empty.
    pub(crate) fn parse(value: Option<&str>) -> ApiResult<Option<Self>> {
        match value.map(str::trim) {
            None | Some("") => Ok(None),
            Some(name) if name.eq_ignore_ascii_case("CRC32C") => Ok(Some(Self::Crc32c)),
            Some(name) if name.eq_ignore_ascii_case("SHA256") => Ok(Some(Self::Sha256)),
            Some(name) if name.eq_ignore_ascii_case("SHA384") => Ok(Some(Self::Sha384)),
            Some(other) => Err(ApiError::invalid_parameter(format!(
                "opc-checksum-algorithm is '{other}'; CRC32C, SHA256 and SHA384 are known"
            ))),
        }
    }

    /// The header that carries the value of the whole object or part.
    pub(crate) fn content_header(self) -> &'static str {
        match self {
            Self::Crc32c => "opc-content-crc32c",
            Self::Sha256 => "opc-content-sha256",
            Self::Sha384 => "opc-content-sha384",
        }
    }

    /// The error code when that header does not match the bytes.
    pub(crate) fn mismatch_code(self) -> &'static str {
        match self {
            Self::Crc32c => "UnmatchedContentCRC32C",
            Self::Sha256 => "UnmatchedContentSHA256",
            Self::Sha384 => "UnmatchedContentSHA384",
        }
    }

    fn sha_context(self) -> Option<Context> {
        match self {
            Self::Crc32c => None,
            Self::Sha256 => Some(Context::new(&SHA256)),
            Self::Sha384 => Some(Context::new(&SHA384)),
        }
    }
}

/// Digests bytes as they pass: always MD5, and the chosen algorithm.
pub(crate) struct Hasher {
    md5: Md5,
    crc32c: u32,
    sha: Option<Context>,
    algorithm: Option<Algorithm>,
    len: u64,
}

/// What a [`Hasher`] found; of a whole object or of one part.
#[derive(Debug, Clone)]
pub(crate) struct Digests {
    pub(crate) md5: [u8; 16],
    pub(crate) len: u64,
    pub(crate) algorithm: Option<Algorithm>,
    crc32c: u32,
    sha: Vec<u8>,
}

impl Hasher {
    pub(crate) fn new(algorithm: Option<Algorithm>) -> Self {
        let sha = algorithm.and_then(Algorithm::sha_context);
        Self { md5: Md5::new(), crc32c: 0, sha, algorithm, len: 0 }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        if self.algorithm == Some(Algorithm::Crc32c) {
            self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        }
        if let Some(sha) = &mut self.sha {
            sha.update(bytes);
        }
        self.len += bytes.len() as u64;
    }

    pub(crate) fn finish(self) -> Digests {
        Digests {
            md5: self.md5.finalize().into(),
            len: self.len,
            algorithm: self.algorithm,
            crc32c: self.crc32c,
            sha: self.sha.map(|sha| sha.finish().as_ref().to_vec()).unwrap_or_default(),
        }
    }
}

impl Digests {
    pub(crate) fn md5_base64(&self) -> String {
        BASE64.encode(self.md5)
    }

    /// The value of the chosen algorithm, as its header carries it.
    pub(crate) fn additional(&self) -> Option<(Algorithm, String)> {
        let algorithm = self.algorithm?;
        let value = match algorithm {
            Algorithm::Crc32c => BASE64.encode(self.crc32c.to_be_bytes()),
            Algorithm::Sha256 | Algorithm::Sha384 => BASE64.encode(&self.sha),
        };
        Some((algorithm, value))
    }
}

/// The checksums that an object carries on HEAD, on a whole GET and in listings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Checksums {
    /// `content-md5`, of objects uploaded in one piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) md5: Option<String>,
    /// `opc-multipart-md5`, with its `-N`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) multipart_md5: Option<String>,
    /// The chosen algorithm's header and value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) additional: Option<(String, String)>,
}

impl Checksums {
    pub(crate) fn of_whole(digests: &Digests) -> Self {
        Self {
            md5: Some(digests.md5_base64()),
            multipart_md5: None,
            additional: digests
                .additional()
                .map(|(algorithm, value)| (algorithm.content_header().to_owned(), value)),
        }
    }

    /// `parts` in ascending order of their part numbers.
    ///
    /// CRC-32C is that of the whole object, combined from the parts'; the SHAs
    /// are, like the MD5, digests of the parts' digests.
    pub(crate) fn of_parts<'a>(parts: impl IntoIterator<Item = &'a Digests>) -> Self {
        let mut md5 = Md5::new();
        let mut crc32c = 0;
        let mut algorithm = None;
        let mut sha: Option<Context> = None;
        let mut count = 0_u32;
        for part in parts {
            md5.update(part.md5);
            algorithm = part.algorithm;
            match part.algorithm {
                Some(Algorithm::Crc32c) => {
                    let len = usize::try_from(part.len).expect("this server runs on 64 bits");
                    crc32c = crc32c::crc32c_combine(crc32c, part.crc32c, len);
                }
                Some(chosen) => {
                    if sha.is_none() {
                        sha = chosen.sha_context();
                    }
                    if let Some(sha) = &mut sha {
                        sha.update(&part.sha);
                    }
                }
                None => {}
            }
            count += 1;
        }
        let additional = algorithm.map(|algorithm| {
            let value = match sha {
                Some(sha) => format!("{}-{count}", BASE64.encode(sha.finish().as_ref())),
                None => BASE64.encode(crc32c.to_be_bytes()),
            };
            let header = match algorithm {
                Algorithm::Crc32c => "opc-content-crc32c",
                Algorithm::Sha256 => "opc-multipart-sha256",
                Algorithm::Sha384 => "opc-multipart-sha384",
            };
            (header.to_owned(), value)
        });
        Self {
            md5: None,
            multipart_md5: Some(format!("{}-{count}", BASE64.encode(md5.finalize()))),
            additional,
        }
    }

    /// The `md5` of a listing: of either form.
    pub(crate) fn listed_md5(&self) -> Option<&str> {
        self.md5.as_deref().or(self.multipart_md5.as_deref())
    }

    /// Response headers of HEAD and of a whole GET. A 206 carries none.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let md5 = self.md5.as_deref().map(|value| ("content-md5", value));
        let multipart = self.multipart_md5.as_deref().map(|value| ("opc-multipart-md5", value));
        let additional = self.additional.as_ref().map(|(name, value)| (&**name, &**value));
        [md5, multipart, additional].into_iter().flatten()
    }
}

/// A name of a fixed length and alphabet for a text of any.
pub(crate) fn sha256_hex(text: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&SHA256, text).as_ref(), "")
}

/// Lower-case hex, with `separator` between the bytes.
pub(crate) fn hex(bytes: &[u8], separator: &str) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(bytes: &[u8], algorithm: Option<Algorithm>) -> Digests {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    #[test]
    fn checksums_have_the_published_values() {
        let whole = Checksums::of_whole(&digests(b"123456789", Some(Algorithm::Crc32c)));
        assert_eq!(
            whole.additional,
            Some(("opc-content-crc32c".to_owned(), "4waSgw==".to_owned())),
            "the check value of CRC-32C"
        );
        let empty = Checksums::of_whole(&digests(b"", None));
        assert_eq!(empty.md5.as_deref(), Some("1B2M2Y8AsgTpgAmY7PhCfg=="));
    }

    #[test]
    fn crc32c_of_parts_is_that_of_the_whole() {
        let parts =
            [&b"1234"[..], b"", b"56789"].map(|part| digests(part, Some(Algorithm::Crc32c)));
        let combined = Checksums::of_parts(&parts);
        assert_eq!(combined.additional.unwrap().1, "4waSgw==");
    }

    #[test]
    fn a_multipart_md5_is_the_md5_of_md5s_and_the_count() {
        let parts = [&b"a"[..], b"b"].map(|part| digests(part, None));
        let concatenated = [parts[0].md5, parts[1].md5].concat();
        let expected = digests(&concatenated, None).md5_base64() + "-2";
        let combined = Checksums::of_parts(&parts);
        assert_eq!(combined.listed_md5(), Some(expected.as_str()));
        assert_eq!(combined.md5, None);
    }

    #[test]
    fn an_empty_algorithm_is_none_and_an_unknown_one_is_refused() {
        assert_eq!(Algorithm::parse(Some("")).unwrap(), None);
        assert_eq!(Algorithm::parse(Some("crc32c")).unwrap(), Some(Algorithm::Crc32c));
        assert_eq!(Algorithm::parse(Some("CRC64")).unwrap_err().code, "InvalidParameter");
    }
}
