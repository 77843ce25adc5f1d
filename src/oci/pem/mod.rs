//! PEM as it comes from consoles, openssl and the metadata service.
//!
//! Text outside the markers is ignored: the console appends a line
//! `OCI_API_KEY`, and people paste comments. RFC 7468 for the markers,
//! RFC 1421 for the headers of keys that openssl encrypted in its old way.

pub(crate) mod legacy;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// What stands between `-----BEGIN LABEL-----` and `-----END LABEL-----`.
pub(crate) struct Block<'a> {
    pub(crate) label: &'a str,
    /// `Name: value` lines before the base64.
    pub(crate) headers: Vec<(&'a str, &'a str)>,
    /// The base64 without line ends.
    pub(crate) base64: String,
}

impl Block<'_> {
    /// The bytes, or why there are none.
    pub(crate) fn der(&self) -> Result<Vec<u8>, String> {
        BASE64
            .decode(&self.base64)
            .map_err(|_| format!("the text between the {} markers is not base64", self.label))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }
}

/// All complete blocks, in order.
pub(crate) fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block<'_>> = None;
    for line in text.lines().map(str::trim) {
        if let Some(label) = marker(line, "-----BEGIN ") {
            open = Some(Block { label, headers: Vec::new(), base64: String::new() });
        } else if let Some(label) = marker(line, "-----END ") {
            blocks.extend(open.take().filter(|block| block.label == label));
        } else if let Some(block) = &mut open {
            match line.split_once(':') {
                Some((name, value)) => block.headers.push((name.trim(), value.trim())),
                None => block.base64.push_str(line),
            }
        }
    }
    blocks
}

fn marker<'a>(line: &'a str, begin: &str) -> Option<&'a str> {
    line.strip_prefix(begin)?.strip_suffix("-----")
}

/// The PEM text of these bytes.
#[cfg(any(test, feature = "oci-rust-sdk"))]
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let base64 = BASE64.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for start in (0..base64.len()).step_by(64) {
        text.push_str(&base64[start..base64.len().min(start + 64)]);
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_outside_the_markers_and_blocks_without_an_end_are_ignored() {
        let text = "hello\n-----BEGIN A-----\nYQ==\n-----END A-----\nOCI_API_KEY\n\
                    -----BEGIN B-----\nYg==\n";
        let found = blocks(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].label, found[0].der().unwrap()), ("A", b"a".to_vec()));
    }

    #[test]
    fn what_is_encoded_is_read_again() {
        let der: Vec<u8> = (0..200).collect();
        let text = encode("X Y", &der);
        let found = blocks(&text);
        assert_eq!((found[0].label, found[0].der().unwrap()), ("X Y", der));
        assert!(text.lines().all(|line| line.len() <= 64));
    }
}
