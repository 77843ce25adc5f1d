//! Flaws that the beginning of a file shows, where its form has no header to parse.

use std::io::Read;

/// The flaw of a Git LFS pointer.
pub(super) const POINTER: &str = "it is a Git LFS pointer instead of the file itself (`git lfs \
                           pull` before the upload)";

/// The beginning of a pointer, and its greatest length (Git LFS
/// specification, "The Pointer").
const POINTER_START: &[u8] = b"version https://git-lfs.github.com/spec/";
const POINTER_MOST: u64 = 1024;

/// The beginning of a GGUF file, and the size of its fixed fields (GGUF
/// specification, `gguf_header_t`).
const GGUF_START: &[u8] = b"GGUF";
const GGUF_HEADER: u64 = 24;

/// Checks the beginning of a GGUF file; returns its flaw, if there is one.
///
/// # Errors
/// When `file` cannot be read.
pub(super) fn check_gguf(file: impl Read, size: u64) -> std::io::Result<Option<String>> {
    let start = start(file)?;
    Ok(match () {
        () if start.is_empty() => Some("it is empty".to_owned()),
        () if start.starts_with(POINTER_START) => Some(POINTER.to_owned()),
        () if !start.starts_with(GGUF_START) => {
            Some("it does not begin as a GGUF file does".to_owned())
        }
        () if size < GGUF_HEADER => Some(format!(
            "it has {size} bytes, and its header takes {GGUF_HEADER}: it was cut short"
        )),
        () => None,
    })
}

/// Whether a file of this size can be a pointer, or is empty: the only flaws of a
/// `.bin` file that are checked.
pub(super) fn can_be_pointer(size: u64) -> bool {
    size <= POINTER_MOST
}

/// Checks that a `.bin` file is more than a pointer; as [`check_gguf`].
///
/// # Errors
/// When `file` cannot be read.
pub(super) fn check_bin(file: impl Read) -> std::io::Result<Option<String>> {
    let start = start(file)?;
    Ok(match () {
        () if start.is_empty() => Some("it is empty".to_owned()),
        () if start.starts_with(POINTER_START) => Some(POINTER.to_owned()),
        () => None,
    })
}

fn start(file: impl Read) -> std::io::Result<Vec<u8>> {
    let mut start = Vec::new();
    file.take(POINTER_START.len() as u64).read_to_end(&mut start)?;
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_and_truncated_files_are_reported() {
        let pointer = &b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"[..];
        let gguf = |bytes: &[u8]| check_gguf(bytes, bytes.len() as u64).unwrap();
        assert_eq!(gguf(b"GGUF\x03\0\0\0 and so on, 24 bytes at least"), None);
        assert_eq!(gguf(pointer), Some(POINTER.to_owned()));
        for (bytes, why) in [(&b""[..], "empty"), (b"GGUF\x03", "cut short"), (b"ggml", "begin")] {
            assert!(gguf(bytes).unwrap().contains(why), "{bytes:?}");
        }
        assert_eq!(check_bin(pointer).unwrap(), Some(POINTER.to_owned()));
        assert!(can_be_pointer(pointer.len() as u64) && can_be_pointer(0));
        assert!(check_bin(&b""[..]).unwrap().is_some());
        assert_eq!(check_bin(&b"PK\x03\x04"[..]).unwrap(), None);
    }
}
