//! The journal of a download: which ranges of the staging file are written.
//!
//! A text file beside the data: a header line with the object version, then one
//! line per span, each with its own checksum. Lines are appended after the bytes
//! were handed to the kernel, and without a sync: the journal must survive the end
//! of the process, and the page cache does. After a crash of the machine neither
//! file nor journal is trusted anyway: a resumed download reads every span again
//! and compares its CRC.
//! span again and compares its CRC.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use super::content::crc32c_of_range;
use super::spans::{Span, Spans};

const FORMAT: &str = "oci-model-csi journal 1";

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    header: String,
}

impl Journal {
    /// Opens or creates the journal of this object version; returns the spans
    /// that an earlier download of the same version recorded, not yet checked.
    ///
    /// A journal of another version, or without a complete header, starts again.
    pub(super) fn open(path: &Path, size: u64, etag: &str) -> io::Result<(Self, Vec<Span>)> {
        let header = format!("{FORMAT} {size} {}", etag.escape_default());
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut journal = Self { file, header };
        let mut lines = BufReader::new(&journal.file).split(b'\n');
        let same = lines.next().transpose()?.is_some_and(|l| l == journal.header.as_bytes());
        if !same {
            journal.restart()?;
            return Ok((journal, Vec::new()));
        }
        let mut spans = Vec::new();
        for line in lines {
            // A torn last line fails its check; so does any other line that is not valid.
            if let Some(span) = parse(&line?).filter(|s| s.end() <= size) {
                spans.push(span);
            }
        }
        // A line that a crash cut short would swallow the next one.
        journal.file.write_all(b"\n")?;
        Ok((journal, spans))
    }

    /// Appends a span whose bytes have been written.
    pub(super) fn append(&mut self, span: Span) -> io::Result<()> {
        self.file.write_all(line(span).as_bytes())
    }

    /// Drops all entries: the next download starts from the first byte.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all(format!("{}\n", self.header).as_bytes())
    }
}

/// The spans that a journal lists, not checked; none without a journal.
pub(super) fn entries(path: &Path) -> io::Result<Spans> {
    let mut spans = Spans::default();
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(spans),
        other => other?,
    };
    for line in BufReader::new(file).split(b'\n') {
        if let Some(span) = parse(&line?) {
            spans.insert(span);
        }
    }
    Ok(spans)
}

/// Bytes between two reports of a read.
const REPORT_EVERY: u64 = 64 << 20;

/// Reads a whole file, and reports how far it is.
pub(crate) fn read(data: &File, size: u64, mut report: impl FnMut(u64)) -> io::Result<Spans> {
    let mut spans = Spans::default();
    let mut start = 0;
    while start < size {
        let end = start.saturating_add(REPORT_EVERY).min(size);
        let Some(crc32c) = crc32c_of_range(data, start..end)? else { break };
        spans.insert(Span { start, len: end - start, crc32c });
        report(end);
        start = end;
    }
    Ok(spans)
}

/// Reads the listed spans of the data again and keeps those whose CRC matches.
pub(crate) fn check(data: &File, entries: Vec<Span>) -> io::Result<Spans> {
    let mut spans = Spans::default();
    for span in entries {
        if crc32c_of_range(data, span.start..span.end())? == Some(span.crc32c) {
            spans.insert(span);
        }
    }
    Ok(spans)
}

fn line(span: Span) -> String {
    let text = format!("{} {} {:08x}", span.start, span.len, span.crc32c);
    format!("{text} {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

fn parse(line: &[u8]) -> Option<Span> {
    let line = std::str::from_utf8(line).ok()?;
    let (text, check) = line.rsplit_once(' ')?;
    if check.len() != 8 || u32::from_str_radix(check, 16).ok()? != crc32c::crc32c(text.as_bytes()) {
        return None;
    }
    let mut fields = text.split(' ');
    let start = fields.next()?.parse().ok()?;
    let len = fields.next()?.parse().ok()?;
    let crc32c = u32::from_str_radix(fields.next()?, 16).ok()?;
    fields.next().is_none().then_some(Span { start, len, crc32c })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &[u8] = b"the quick brown fox jumps over the lazy dog";

    fn span(start: usize, end: usize) -> Span {
        let crc32c = crc32c::crc32c(&CONTENT[start..end]);
        Span { start: start as u64, len: (end - start) as u64, crc32c }
    }

    fn size() -> u64 {
        CONTENT.len() as u64
    }

    #[test]
    fn only_the_same_version_finds_its_spans_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, spans) = Journal::open(&path, size(), "etag 1").unwrap();
        assert_eq!(spans, []);
        journal.append(span(0, 9)).unwrap();
        journal.append(span(20, 30)).unwrap();
        drop(journal);
        let (_, spans) = Journal::open(&path, size(), "etag 1").unwrap();
        assert_eq!(spans, [span(0, 9), span(20, 30)]);
        let (_, spans) = Journal::open(&path, size(), "etag 2").unwrap();
        assert_eq!(spans, [], "another version");
        let (_, spans) = Journal::open(&path, size(), "etag 1").unwrap();
        assert_eq!(spans, [], "it started again");
    }

    #[test]
    fn a_journal_cut_at_any_byte_gives_only_whole_entries_and_can_be_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path, size(), "e").unwrap();
        journal.append(span(0, 9)).unwrap();
        journal.append(span(9, 30)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, spans) = Journal::open(&path, size(), "e").unwrap();
            assert!(spans.iter().all(|s| [span(0, 9), span(9, 30)].contains(s)), "cut at {cut}");
            journal.append(span(30, 40)).unwrap();
            let (_, again) = Journal::open(&path, size(), "e").unwrap();
            assert_eq!(again.last(), Some(&span(30, 40)), "cut at {cut}");
            assert_eq!(again.len(), spans.len() + 1, "cut at {cut}");
        }
    }

    #[test]
    fn only_bytes_that_match_their_entry_are_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let mut torn = CONTENT.to_vec();
        torn[25] ^= 1;
        std::fs::write(&path, &torn[..40]).unwrap();
        let entries = vec![span(0, 9), span(20, 30), span(35, 43)];
        let spans = check(&File::open(&path).unwrap(), entries).unwrap();
        assert_eq!(spans.bytes(), 9);
        assert!(spans.covers(&(0..9)));
    }

    #[test]
    fn entries_beyond_the_object_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path, 10, "e").unwrap();
        journal.append(Span { start: 5, len: 6, crc32c: 0 }).unwrap();
        journal.append(Span { start: u64::MAX, len: 6, crc32c: 0 }).unwrap();
        assert_eq!(Journal::open(&path, 10, "e").unwrap().1, []);
    }
}
