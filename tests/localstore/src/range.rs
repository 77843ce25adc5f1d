//! The one form of Range that Object Storage serves: a single range of bytes.

use crate::error::{ApiError, ApiResult};

/// A Range header before the object's size is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RangeHeader {
    /// `bytes=a-b`
    Between(u64, u64),
    /// `bytes=a-`
    From(u64),
    /// `bytes=-n`
    Last(u64),
}

/// Bytes `start..end` of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteRange {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl ByteRange {
    pub(crate) fn len(self) -> u64 {
        self.end - self.start
    }

    /// The value of `Content-Range`.
    pub(crate) fn content_range(self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.start, self.end.saturating_sub(1))
    }
}

impl RangeHeader {
    /// `None` for forms that servers must ignore (another unit, nonsense).
    pub(crate) fn parse(value: &str) -> Option<Self> {
        let (first, last) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
        match (first, last) {
            ("", last) => last.parse().ok().map(Self::Last),
            (first, "") => first.parse().ok().map(Self::From),
            (first, last) => {
                let (first, last) = (first.parse().ok()?, last.parse().ok()?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// Clamps the end; refuses a start at or past the end with 416.
    pub(crate) fn resolve(self, size: u64) -> ApiResult<ByteRange> {
        let (start, end) = match self {
            Self::Between(first, last) => (first, last.saturating_add(1).min(size)),
            Self::From(first) => (first, size),
            Self::Last(0) => return Err(ApiError::invalid_range(size)),
            Self::Last(count) => (size.saturating_sub(count), size),
        };
        if start >= size {
            Err(ApiError::invalid_range(size))
        } else {
            Ok(ByteRange { start, end })
        }
    }

    /// Whether the byte at `offset` may be in the answer. A suffix may reach anything.
    pub(crate) fn may_contain(self, offset: u64) -> bool {
        match self {
            Self::Between(first, last) => (first..=last).contains(&offset),
            Self::From(first) => offset >= first,
            Self::Last(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(header: &str, size: u64) -> Option<(u64, u64)> {
        let range = RangeHeader::parse(header).expect(header).resolve(size).ok()?;
        Some((range.start, range.end))
    }

    #[test]
    fn ranges_are_clamped_at_the_end_and_refused_beyond_it() {
        for (header, size, expected) in [
            ("bytes=0-0", 10, Some((0, 1))),
            ("bytes=9-9", 10, Some((9, 10))),
            ("bytes=5-100", 10, Some((5, 10))),
            ("bytes=3-", 10, Some((3, 10))),
            ("bytes=-4", 10, Some((6, 10))),
            ("bytes=-40", 10, Some((0, 10))),
            ("bytes=10-", 10, None),
            ("bytes=10-20", 10, None),
            ("bytes=-0", 10, None),
            ("bytes=0-0", 0, None),
            ("bytes=-1", 0, None),
        ] {
            assert_eq!(resolve(header, size), expected, "{header} of {size}");
        }
    }

    #[test]
    fn nonsense_is_no_range() {
        for header in ["bytes=5-3", "bytes=a-b", "items=0-1", "bytes=", "bytes=0-1,3-4"] {
            assert_eq!(RangeHeader::parse(header), None, "{header}");
        }
    }
}
