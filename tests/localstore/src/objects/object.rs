//! One object: its name, its attributes, and where its bytes are.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::content::Content;
use super::digest::{Checksums, Hasher};
use crate::clock;
use crate::error::{ApiError, ApiResult};

/// Where an object is kept; archived objects must be restored before they are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorageTier {
    /// Read at once.
    #[default]
    Standard,
    /// Read at once, at another price.
    InfrequentAccess,
    /// Not readable until restored: 409 NotRestored.
    Archive,
}

impl StorageTier {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "Standard",
            Self::InfrequentAccess => "InfrequentAccess",
            Self::Archive => "Archive",
        }
    }

    pub(crate) fn parse(value: Option<&str>) -> ApiResult<Self> {
        match value {
            None | Some("" | "Standard") => Ok(Self::Standard),
            Some("InfrequentAccess") => Ok(Self::InfrequentAccess),
            Some("Archive") => Ok(Self::Archive),
            Some(other) => Err(ApiError::invalid_parameter(format!(
                "The storage tier is '{other}'; Standard, InfrequentAccess and Archive are known"
            ))),
        }
    }
}

/// The headers and metadata of an upload, which readers get back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Described {
    pub(crate) content_type: String,
    /// `content-language`, `content-encoding`, `content-disposition`, `cache-control`.
    pub(crate) headers: BTreeMap<String, String>,
    /// User metadata; the keys without `opc-meta-`.
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) tier: StorageTier,
}

impl Described {
    pub(crate) const HEADERS: [&str; 4] =
        ["content-language", "content-encoding", "content-disposition", "cache-control"];
    pub(crate) const DEFAULT_TYPE: &str = "application/octet-stream";
    pub(crate) const METADATA_PREFIX: &str = "opc-meta-";
}

/// All of an object but its bytes; what its side file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) etag: String,
    pub(crate) version_id: String,
    pub(crate) created_millis: u64,
    pub(crate) modified_millis: u64,
    #[serde(flatten)]
    pub(crate) described: Described,
    /// An archived object that was restored is readable.
    #[serde(default)]
    pub(crate) restored: bool,
    /// No header has the checksums.
    #[serde(default)]
    pub(crate) listed_only: bool,
    pub(crate) checksums: Checksums,
}

impl Meta {
    /// A new version, as of now.
    pub(crate) fn new(name: &str, size: u64, described: Described, checksums: Checksums) -> Self {
        let now = clock::unix_millis(SystemTime::now());
        Self {
            name: name.to_owned(),
            size,
            etag: uuid::Uuid::new_v4().to_string(),
            version_id: uuid::Uuid::new_v4().to_string(),
            created_millis: now,
            modified_millis: now,
            described,
            restored: false,
            listed_only: false,
            checksums,
        }
    }

    pub(crate) fn modified(&self) -> SystemTime {
        clock::from_unix_millis(self.modified_millis)
    }

    /// `Archived` or `Restored`; none for the tiers that are read at once.
    pub(crate) fn archival_state(&self) -> Option<&'static str> {
        (self.described.tier == StorageTier::Archive).then_some(if self.restored {
            "Restored"
        } else {
            "Archived"
        })
    }
}

/// One version of an object. It is immutable: an overwrite creates another.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) meta: Meta,
    pub(crate) content: Content,
    /// A plain file's MD5 is computed when first needed.
    plain_md5: OnceLock<Option<String>>,
}

impl Object {
    pub(crate) fn new(meta: Meta, content: Content) -> Self {
        Self { meta, content, plain_md5: OnceLock::new() }
    }

    /// Whether [`Object::checksums`] has to read the whole file first.
    pub(crate) fn checksums_are_slow(&self) -> bool {
        matches!(self.content, Content::Plain { .. }) && self.plain_md5.get().is_none()
    }

    /// The checksums; blocks while a plain file's are computed.
    pub(crate) fn checksums(&self) -> Checksums {
        if !matches!(self.content, Content::Plain { .. }) {
            return self.meta.checksums.clone();
        }
        let md5 = self.plain_md5.get_or_init(|| {
            self.digest()
                .inspect_err(|error| {
                    tracing::warn!(object = %self.meta.name, %error, "no MD5 of a plain file");
                })
                .ok()
        });
        Checksums { md5: md5.clone(), ..Checksums::default() }
    }

    fn digest(&self) -> std::io::Result<String> {
        let mut hasher = Hasher::new(None);
        read_all(&self.content, self.meta.size, |bytes| hasher.update(bytes))?;
        Ok(hasher.finish().md5_base64())
    }
}

/// Hands all bytes of `content` to `sink`, in pieces.
pub(crate) fn read_all(
    content: &Content,
    size: u64,
    mut sink: impl FnMut(&[u8]),
) -> std::io::Result<()> {
    let mut reader = content.reader()?;
    let mut buffer = vec![0; 256 * 1024];
    let mut offset = 0;
    while offset < size {
        let want =
            usize::try_from(size - offset).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        reader.read_exact_at(offset, &mut buffer[..want])?;
        sink(&buffer[..want]);
        offset += want as u64;
    }
    Ok(())
}
