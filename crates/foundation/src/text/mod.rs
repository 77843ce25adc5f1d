//! Text files as editors of any system save them: UTF-8, with or without a byte
//! order mark. Line ends and a missing last one are left to the formats, which
//! all take both. [`pem`] is the one format that several modules read.

pub mod pem;
mod shown;

use std::path::Path;

pub use shown::{excerpt, shown};

/// The byte order mark that Windows' editors put before UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Decodes text and removes a byte order mark.
///
/// # Errors
/// For UTF-16, which PowerShell's `>` and Notepad's "Unicode" write, and for bytes
/// that are not UTF-8, with the line. The bytes are not quoted: they may be a secret.
pub fn decode(bytes: Vec<u8>) -> Result<String, String> {
    let has_nul = bytes.iter().take(64).any(|byte| *byte == 0);
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") || has_nul {
        return Err("it is UTF-16 or binary, not text; save it as UTF-8".to_owned());
    }
    let plain = match bytes.strip_prefix(MARK) {
        Some(rest) => rest.to_vec(),
        None => bytes,
    };
    String::from_utf8(plain).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.split(|byte| *byte == b'\n').count();
        format!("line {line} is not UTF-8; save it as UTF-8")
    })
}

/// Reads a text file. Blocks.
///
/// # Errors
/// The system's reason, or that of [`decode`]; without the path.
pub fn read(path: &Path) -> Result<String, String> {
    std::fs::read(path).map_err(|error| error.to_string()).and_then(decode)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, mark: &[u8]) -> Vec<u8> {
        let units = text.encode_utf16().flat_map(u16::to_le_bytes);
        mark.iter().copied().chain(units).collect()
    }

    #[test]
    fn a_byte_order_mark_is_removed_and_line_ends_stay() {
        assert_eq!(decode(b"\xef\xbb\xbfa\r\nb".to_vec()).unwrap(), "a\r\nb");
        assert_eq!(decode("ä\n".into()).unwrap(), "ä\n");
        assert_eq!(decode(Vec::new()).unwrap(), "");
    }

    #[test]
    fn other_encodings_are_refused_with_a_remedy_and_not_quoted() {
        for bytes in [utf16("key", b"\xff\xfe"), utf16("key", b""), b"\xfe\xff\0k".to_vec()] {
            let error = decode(bytes).unwrap_err();
            assert!(error.contains("UTF-16") && error.contains("save it as UTF-8"), "{error}");
        }
        let error = decode(b"a\nsecret \xe4\n".to_vec()).unwrap_err();
        assert_eq!(error, "line 2 is not UTF-8; save it as UTF-8");
    }
}
