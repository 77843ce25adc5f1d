//! Checks whether a loader could open a `.safetensors` file, by its header alone.
//!
//! The format: eight bytes that hold the length of the header (little-endian),
//! the header as JSON, then the tensors' bytes. Each tensor's `data_offsets`
//! count from the header's end; together they cover the rest of the file, one
//! after the other; each has as many bytes as its type and shape take
//! (`weights/tensors.rs`). What a loader refuses is refused here for the same
//! reasons, minutes earlier. An index (`*.safetensors.index.json`) says in its
//! `weight_map` which file holds which tensor.
//!
//! Headers come from untrusted sources, so the memory for one is limited whatever
//! it contains (some 20 MB at worst): it is read as a stream, adjacent tensors are
//! merged, and a header with longer strings or more pieces than any writer produces
//! is left to the loader, unchecked.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufReader, Read};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::tensors::Tensors;
use crate::model::size_text;
use crate::text::shown;

/// The bytes before the header.
const PREFIX: u64 = 8;

/// The longest header that loaders read (`MAX_HEADER_SIZE` of the safetensors crate).
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// The longest index that is read; real ones have a few MB.
pub(super) const MAX_INDEX: u64 = 16 << 20;

/// The longest string in a header or an index that is read, in bytes: names are
/// short, but a trainer's metadata can have a megabyte.
const MAX_STRING: usize = 4 << 20;

/// The most files that one index may name: more than a model has.
const MAX_SHARDS: usize = 100_000;

/// The longest name of an object, in bytes.
const NAME_MAX: usize = 1024;

/// The beginning of a Git LFS pointer, which a repository has instead of a file that was not fetched.
const LFS_POINTER: &[u8; 8] = b"version ";

/// Reads the header of a file of tensors that is `size` bytes long. Returns the flaw for
/// which no loader accepts it, if there is one.
///
/// # Errors
/// When `file` cannot be read. A file that ends early is a flaw instead.
pub fn check_header(mut file: impl Read, size: u64) -> io::Result<Option<String>> {
    if size < PREFIX {
        return Ok(Some(match size {
            0 => "it is empty".to_owned(),
            _ => format!("it has {size} bytes, and the length of its header alone takes {PREFIX}"),
        }));
    }
    let mut prefix = [0; 8];
    match file.read_exact(&mut prefix) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Some(ended(size))),
        other => other?,
    }
    if &prefix == LFS_POINTER {
        return Ok(Some(super::contents::POINTER.to_owned()));
    }
    let header = u64::from_le_bytes(prefix);
    let rest = size - PREFIX;
    if header > MAX_HEADER {
        return Ok(Some(format!(
            "its header would have {header} bytes, and loaders take {MAX_HEADER}: it is no \
             safetensors file, or its beginning is damaged"
        )));
    }
    if header > rest {
        return Ok(Some(format!(
            "its header has {header} bytes, and only {rest} follow: it was cut short"
        )));
    }
    match serde_json::from_reader::<_, Tensors>(buffered(file.take(header))) {
        Ok(Tensors(Some(pieces))) => Ok(flaw_of_pieces(pieces, rest - header)),
        Ok(Tensors(None)) => Ok(None),
        Err(e) if e.is_io() => unless_too_long(e.into()).map(|()| None),
        Err(e) => Ok(Some(format!("its header is not what it should be: {}", said(&e)))),
    }
}

/// The content of a file whose name is that of an index.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum IndexContent {
    /// The files that it names.
    Shards(BTreeSet<String>),
    /// JSON without a `weight_map`: it is not an index of this kind.
    Other,
    /// No loader accepts it.
    Flawed(String),
}

/// Reads an index.
///
/// # Errors
/// When `file` cannot be read.
pub(super) fn shards(file: impl Read) -> io::Result<IndexContent> {
    match serde_json::from_reader::<_, Index>(buffered(file.take(MAX_INDEX))) {
        Ok(index) => Ok(index.0.map_or(IndexContent::Other, IndexContent::Shards)),
        Err(e) if e.is_io() => unless_too_long(e.into()).map(|()| IndexContent::Other),
        Err(e) => {
            Ok(IndexContent::Flawed(format!("it is not what an index should be: {}", said(&e))))
        }
    }
}

/// Bytes of JSON, up to the first string that is too long to be held in memory.
struct ShortStrings<R> {
    json: R,
    /// Bytes of the string that is being read; `None` between strings.
    string: Option<usize>,
    escaped: bool,
}

/// Why [`ShortStrings`] stopped.
#[derive(Debug)]
struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It never leaves this file.
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for TooLong {}

fn buffered(json: impl Read) -> impl Read {
    BufReader::new(ShortStrings { json, string: None, escaped: false })
}

/// Returns `Ok` when the only error is that a string is too long to be read here.
fn unless_too_long(error: io::Error) -> io::Result<()> {
    match error.get_ref() {
        Some(inner) if inner.is::<TooLong>() => Ok(()),
        _ => Err(error),
    }
}

impl<R: Read> Read for ShortStrings<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.json.read(buffer)?;
        for byte in &buffer[..count] {
            self.string = match (self.string, byte) {
                (None, b'"') => Some(0),
                (Some(_), b'"') if !self.escaped => None,
                (Some(MAX_STRING), _) => return Err(io::Error::other(TooLong)),
                (string, _) => string.map(|length| length + 1),
            };
            self.escaped = *byte == b'\\' && self.string.is_some() && !self.escaped;
        }
        Ok(count)
    }
}

/// The path of a file that an index names, relative to the same root as the
/// index. `None` when that is outside of the root.
pub(super) fn shard_path(index: &str, shard: &str) -> Option<String> {
    let directory = index.rsplit_once('/').map_or("", |(directory, _)| directory);
    let mut segments: Vec<&str> = Vec::new();
    for segment in directory.split('/').chain(shard.split('/')) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()?),
            name => segments.push(name),
        }
    }
    (!shard.starts_with('/')).then(|| segments.join("/"))
}

fn ended(size: u64) -> String {
    format!("it ended before the {size} bytes that it should have")
}

/// A parser's message, which may quote the file.
fn said(error: &serde_json::Error) -> String {
    shown(&error.to_string(), 120)
}

/// Checks that the tensors follow each other from 0 to the end.
fn flaw_of_pieces(mut places: Vec<(u64, u64)>, data: u64) -> Option<String> {
    places.sort_unstable();
    let mut at = 0;
    for (start, end) in places {
        if start != at || end < start {
            return Some(format!(
                "its header is not consistent: a tensor has the bytes {start} to {end} where one \
                 from {at} on should be"
            ));
        }
        at = end;
    }
    let (has, needs) = (size_text(data), size_text(at));
    match at {
        end if end > data => Some(format!(
            "its header lists {needs} ({at} bytes) of tensors, and the file has {has} ({data} \
             bytes): it was cut short"
        )),
        end if end < data => Some(format!(
            "its header lists {needs} ({at} bytes) of tensors, and the file has {has} ({data} \
             bytes): it is longer than it should be"
        )),
        _ => None,
    }
}

/// The files of an index, each once.
struct Index(Option<BTreeSet<String>>);

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Whole {
            weight_map: Option<Files>,
        }
        let whole = Whole::deserialize(input)?;
        Ok(Self(whole.weight_map.map(|files| files.0)))
    }
}

struct Files(BTreeSet<String>);

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_map(FilesVisitor).map(Self)
    }
}

struct FilesVisitor;

impl<'de> Visitor<'de> for FilesVisitor {
    type Value = BTreeSet<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that says which file holds which tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut files = BTreeSet::new();
        while let Some((IgnoredAny, file)) = map.next_entry::<IgnoredAny, String>()? {
            if file.len() > NAME_MAX {
                let (name, len) = (shown(&file, 40), file.len());
                let text = format!("{name} has {len} bytes, and no object's name has so many");
                return Err(serde::de::Error::custom(text));
            }
            files.insert(file);
            if files.len() > MAX_SHARDS {
                let text = format!("it names more than {MAX_SHARDS} files");
                return Err(serde::de::Error::custom(text));
            }
        }
        Ok(files)
    }
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
