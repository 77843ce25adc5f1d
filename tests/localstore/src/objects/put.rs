//! Objects put by the Rust API, without a request.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::content::{Content, DataFile};
use super::digest::{Algorithm, Checksums, Hasher};
use super::object::{Described, Meta, Object, StorageTier, read_all};
use super::{Bucket, Precondition};
use crate::error::ApiResult;

/// Where the bytes of a new object come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A copy of this file.
    File(PathBuf),
    /// Pseudo-random bytes that take no space: [`synthetic_bytes`](crate::synthetic_bytes) of the seed.
    Synthetic {
        /// Bytes.
        size: u64,
        /// Same seed, same bytes.
        seed: u64,
    },
}

impl<T: AsRef<[u8]>> From<T> for Source {
    fn from(bytes: T) -> Self {
        Self::Bytes(bytes.as_ref().to_vec())
    }
}

/// How a new object is stored; the default is one plain PutObject.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// As if uploaded with `opc-checksum-algorithm: CRC32C`.
    pub crc32c: bool,
    /// As if uploaded in parts of this many bytes: `opc-multipart-md5` with `-N`
    /// instead of `content-md5`.
    pub part_size: Option<u64>,
    /// Carries its MD5 in listings only, as if a proxy kept the headers back.
    pub listed_only: bool,
    /// Carries no checksum at all; spares the reading of large synthetic objects.
    pub no_checksums: bool,
    /// Archived objects answer 409 NotRestored.
    pub tier: StorageTier,
    /// `application/octet-stream` unless given.
    pub content_type: Option<String>,
    /// User metadata, keys without `opc-meta-`.
    pub metadata: BTreeMap<String, String>,
}

/// Stores `source` in `bucket`, and returns its ETag.
pub(crate) fn put(
    bucket: &Bucket,
    name: &str,
    source: &Source,
    options: PutOptions,
) -> ApiResult<String> {
    let (content, size) = materialize(bucket, source)?;
    let checksums = if options.no_checksums {
        Checksums::default()
    } else {
        checksums(&content, size, &options)?
    };
    let described = Described {
        content_type: options.content_type.unwrap_or_else(|| Described::DEFAULT_TYPE.to_owned()),
        headers: BTreeMap::new(),
        metadata: options.metadata,
        tier: options.tier,
    };
    let mut meta = Meta::new(name, size, described, checksums);
    meta.listed_only = options.listed_only;
    let object = bucket.commit(Object::new(meta, content), &Precondition::default())?;
    Ok(object.meta.etag.clone())
}

fn materialize(bucket: &Bucket, source: &Source) -> ApiResult<(Content, u64)> {
    let (path, len) = match source {
        Source::Synthetic { size, seed } => return Ok((Content::Synthetic { seed: *seed }, *size)),
        Source::Bytes(bytes) => {
            let path = bucket.side.new_data_path()?;
            std::fs::File::create(&path)?.write_all(bytes)?;
            (path, bytes.len() as u64)
        }
        Source::File(file) => {
            let path = bucket.side.new_data_path()?;
            let len = std::fs::copy(file, &path)?;
            (path, len)
        }
    };
    Ok((Content::Files(vec![Arc::new(DataFile::new(path, len))]), len))
}

fn checksums(content: &Content, size: u64, options: &PutOptions) -> ApiResult<Checksums> {
    let algorithm = options.crc32c.then_some(Algorithm::Crc32c);
    let part_size = options.part_size.map_or(u64::MAX, |size| size.max(1));
    let mut parts = Vec::new();
    let mut hasher = Hasher::new(algorithm);
    let mut room = part_size;
    read_all(content, size, |mut bytes| {
        while !bytes.is_empty() {
            let now = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
            hasher.update(&bytes[..now]);
            bytes = &bytes[now..];
            room -= now as u64;
            if room == 0 {
                parts.push(std::mem::replace(&mut hasher, Hasher::new(algorithm)).finish());
                room = part_size;
            }
        }
    })?;
    let last = hasher.finish();
    if last.len > 0 || parts.is_empty() {
        parts.push(last);
    }
    Ok(match options.part_size {
        Some(_) => Checksums::of_parts(&parts),
        None => Checksums::of_whole(&parts[0]),
    })
}
