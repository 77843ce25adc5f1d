//! The one error of the library: a meaning, and a sentence for people.
//!
//! A reader can write the gRPC mapping from the names of the meanings alone;
//! `csi::status` does, and nothing else knows gRPC codes.

use std::fmt;

/// What went wrong, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ErrorKind {
    /// Work goes on; ask again (a download, a slot, another call on the same target).
    InProgress,
    /// A service that is needed cannot be reached or is not ready; ask again.
    Unavailable,
    /// Not enough bytes or inodes.
    NoSpace,
    /// The request itself is wrong.
    Invalid,
    /// The bucket, the prefix, the volume or the cached revision is not there, or may not be seen.
    NotFound,
    /// Credentials were refused (401).
    Unauthenticated,
    /// Credentials are good, and the answer is no (403, or our policy).
    Denied,
    /// The model cannot be used as it is: unsafe names, archived, revision mismatch, ever changing.
    Precondition,
    /// The object is no longer the version that was listed: resolve again.
    Changed,
    /// Another volume or request has this name or target.
    Conflict,
    /// The capacity limit is below the model's size.
    OutOfRange,
    /// Bytes failed their checksum again and again.
    Corrupt,
    /// A bug of ours, or a kernel that refuses what it should not.
    Internal,
}

/// An error that is told to people: what was attempted, on what, how often, what to do next.
///
/// Cheap to clone, since every waiter of a download gets the same cause.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: Box<str>,
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this meaning.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into().into_boxed_str() }
    }

    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// A bug of ours, or a kernel that refuses what it should not.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// An input/output error on something local: out of space is told apart.
    pub fn io(attempted: impl fmt::Display, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::NoSpace,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, format!("{attempted}: {error}"))
    }

    /// The meaning.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same meaning with `context: ` before the sentence.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        Self::new(self.kind, format!("{context}: {}", self.message))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_full_quota_are_told_apart_from_other_failures() {
        let kind = |errno: nix::errno::Errno| Error::io("writing", &errno.into()).kind();
        assert_eq!(kind(nix::errno::Errno::ENOSPC), ErrorKind::NoSpace);
        assert_eq!(kind(nix::errno::Errno::EDQUOT), ErrorKind::NoSpace);
        assert_eq!(kind(nix::errno::Errno::EIO), ErrorKind::Internal);
    }
}
