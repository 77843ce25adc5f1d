//! PEM as it comes from consoles, openssl, Windows and the metadata service.
//!
//! Text outside the markers is ignored: the console appends a line
//! `OCI_API_KEY`, and people paste comments. RFC 7468 for the markers,
//! RFC 1421 for the headers of keys that openssl encrypted in its old way.
//! Files that were joined keep the byte order marks of each, and a file without
//! a final line end puts the next one's first marker behind its last.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

/// Room for the text of a key, so that no part of it stays behind in memory when more is added.
const ROOM: usize = 16 * 1024;

/// The text between `-----BEGIN LABEL-----` and `-----END LABEL-----`.
pub struct Block<'a> {
    /// What the block holds, such as `PRIVATE KEY`.
    pub label: &'a str,
    /// The line of its first marker, from 1 on.
    pub line: usize,
    /// `Name: value` lines before the base64.
    pub headers: Vec<(&'a str, &'a str)>,
    /// The base64 without line ends; wiped from memory when it is dropped, since it may be a key.
    pub base64: Zeroizing<String>,
}

impl Block<'_> {
    /// Decodes the bytes, or says why that fails.
    pub fn der(&self) -> Result<Vec<u8>, String> {
        BASE64
            .decode(self.base64.as_str())
            .map_err(|_| format!("the text between the {} markers is not base64", self.label))
    }

    /// The value of a header, such as `DEK-Info`.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }
}

/// All complete blocks, in order; incomplete ones are ignored.
pub fn blocks(text: &str) -> Vec<Block<'_>> {
    scan(text).0
}

/// All blocks, in order.
///
/// # Errors
/// The first one that is incomplete, with its line.
pub fn all_blocks(text: &str) -> Result<Vec<Block<'_>>, String> {
    match scan(text) {
        (blocks, None) => Ok(blocks),
        (_, Some(problem)) => Err(problem),
    }
}

/// The complete blocks, and the error of the first incomplete one.
fn scan(text: &str) -> (Vec<Block<'_>>, Option<String>) {
    let (mut blocks, mut problem) = (Vec::new(), None);
    let mut open: Option<Block<'_>> = None;
    let endless = |block: &Block<'_>| {
        format!("the {} that begins in line {} has no end marker", block.label, block.line)
    };
    for (number, line) in lines(text) {
        if let Some(label) = marker(line, "-----BEGIN ") {
            let before = open.take();
            problem = problem.or_else(|| before.as_ref().map(endless));
            let base64 = Zeroizing::new(String::with_capacity(ROOM.min(text.len())));
            open = Some(Block { label, line: number, headers: Vec::new(), base64 });
        } else if let Some(label) = marker(line, "-----END ") {
            match open.take() {
                Some(block) if block.label == label => blocks.push(block),
                Some(block) => problem = problem.or_else(|| Some(endless(&block))),
                None => {
                    let text = format!("the end marker of {label} in line {number} has no begin");
                    problem = problem.or(Some(text));
                }
            }
        } else if let Some(block) = &mut open {
            match line.split_once(':') {
                Some((name, value)) => block.headers.push((name.trim(), value.trim())),
                None => block.base64.push_str(line),
            }
        }
    }
    let last = open.as_ref().map(endless);
    (blocks, problem.or(last))
}

/// Lines without invisible characters at their ends, each with its number; two
/// markers on one line become two lines.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    const JOINED: &str = "----------BEGIN ";
    text.lines().enumerate().flat_map(|(index, line)| {
        let line = line.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
        let (first, second) = match line.find(JOINED) {
            Some(at) => line.split_at(at + 5),
            None => (line, ""),
        };
        [first, second]
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(move |part| (index + 1, part))
    })
}

fn marker<'a>(line: &'a str, begin: &str) -> Option<&'a str> {
    line.strip_prefix(begin)?.strip_suffix("-----")
}

/// Encodes bytes as PEM.
pub fn encode(label: &str, der: &[u8]) -> String {
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
    fn encoded_text_is_decoded_again() {
        let der: Vec<u8> = (0..200).collect();
        let text = encode("X Y", &der);
        let found = blocks(&text);
        assert_eq!((found[0].label, found[0].der().unwrap()), ("X Y", der));
        assert!(text.lines().all(|line| line.len() <= 64));
    }

    #[test]
    fn blocks_of_windows_tools_and_joined_files_are_read() {
        let joined = "\u{feff}-----BEGIN A-----\r\nYQ==\r\n-----END A----------BEGIN B-----\n\u{feff}Yg==\n\
                      -----END B-----\n\u{feff}-----BEGIN C-----\nYw==\n-----END C-----";
        let found = all_blocks(joined).unwrap();
        let read: Vec<_> = found.iter().map(|b| (b.label, b.line, b.der().unwrap())).collect();
        let bytes = |text: &str| text.as_bytes().to_vec();
        assert_eq!(read, [("A", 1, bytes("a")), ("B", 3, bytes("b")), ("C", 6, bytes("c"))]);
    }

    #[test]
    fn an_incomplete_block_is_named_with_its_line() {
        for (text, said) in [
            ("x\n-----BEGIN A-----\nYQ==\n", "the A that begins in line 2 has no end marker"),
            (
                "-----BEGIN A-----\nYQ==\n-----BEGIN A-----\nYQ==\n-----END A-----\n",
                "the A that begins in line 1 has no end marker",
            ),
            ("-----BEGIN A-----\n-----END B-----\n", "the A that begins in line 1"),
            ("\n-----END B-----\n", "the end marker of B in line 2 has no begin"),
        ] {
            let error = all_blocks(text).err().unwrap();
            assert!(error.contains(said), "{error}");
        }
        assert!(all_blocks("no markers\n").unwrap().is_empty());
    }
}
