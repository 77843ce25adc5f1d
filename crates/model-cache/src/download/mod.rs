//! The download engine: one object of Object Storage into one file, verified
//! and resumable. It knows a source and a file, but no cache and no CSI.
//!
//! ```text
//! size ──▶ spans (what is missing?) ──▶ ranges ──▶ workers: signed GET, If-Match
//!                 ▲                                   │ chunk ──▶ pwrite, CRC-32C
//!                 └──────── journal ◀── span ◀────────┘
//!                                          │
//!          checksum of the object ◀── verify: combine the CRCs, or MD5 behind the writers
//! ```
//!
//! Each range stays on one worker from socket to disk; a worker holds one
//! chunk at a time, so memory is bounded by `concurrency` × chunk, whatever
//! the size of the object. The limiter decides how many requests run at once and whose
//! range is next, and the rate limiter how fast all of them together may be. Workers run on their own runtime,
//! since a write may block on the disk, and an RPC must never wait for that.

mod combine;
mod concurrency;
mod content;
mod engine;
mod expected;
mod fair_share;
mod flow;
mod give_back;
mod growth;
mod hashing;
mod journal;
mod layouts;
mod limiter;
mod md5;
mod pace;
mod plan;
mod progress;
mod proof;
mod range;
mod spans;
mod target;

pub use combine::crc32c_of_both;
pub use concurrency::Concurrency;
pub use content::crc32c_of_file;
pub use engine::{Engine, EngineOptions, ObjectVersion, Staging, Verify};
pub use fair_share::{FairShare, Interest, OwnWork};
pub use growth::{ConcurrencyGrowth, TransferTotals};
pub(crate) use limiter::{Origin, PATIENCE};
pub use progress::ObjectProgress;

use serde::{Deserialize, Serialize};

/// How a finished download was proved to match the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// `opc-content-crc32c` of the whole object.
    Crc32c,
    /// `content-md5` of an object that was uploaded in one part.
    Md5,
    /// `opc-multipart-md5`, with the part size that fits.
    MultipartMd5,
    /// The object has no bytes.
    Empty,
    /// No checksum could be compared: only size and `ETag` match.
    SizeAndEtag,
    /// Likewise, since the sizes of the object's parts are unknown, and without
    /// them its `opc-multipart-md5` proves nothing.
    UnknownLayout,
}

impl Check {
    /// All checks.
    pub const ALL: [Self; 6] = [
        Self::Crc32c,
        Self::Md5,
        Self::MultipartMd5,
        Self::Empty,
        Self::SizeAndEtag,
        Self::UnknownLayout,
    ];

    /// The value of the metric label `check`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Crc32c => "crc32c",
            Self::Md5 => "md5",
            Self::MultipartMd5 => "multipart_md5",
            Self::Empty => "empty",
            Self::SizeAndEtag => "size_etag",
            Self::UnknownLayout => "unknown_layout",
        }
    }
}

/// What is known about a finished download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// CRC-32C of the whole content, computed while it was written.
    pub crc32c: u32,
    /// The check that proved it.
    pub check: Check,
}
