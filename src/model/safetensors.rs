//! Checks whether a loader could open a `.safetensors` file, by its header alone.
//!
//! The format: eight bytes that hold the length of the header (little-endian),
//! the header as JSON, then the tensors' bytes. Each tensor's `data_offsets`
//! count from the header's end; together they cover the rest of the file, one
//! after the other. What a loader refuses is refused here for the same
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

use super::{shown, size_text};

/// The bytes before the header.
const PREFIX: u64 = 8;

/// The longest header that loaders read (`MAX_HEADER_SIZE` of the safetensors crate).
pub const MAX_HEADER: u64 = 100_000_000;

/// The longest index that is read; real ones have a few MB.
pub const MAX_INDEX: u64 = 16 << 20;

/// The longest string in a header or an index that is read, in bytes: names are
/// short, but a trainer's metadata can have a megabyte.
const MAX_STRING: usize = 4 << 20;

/// Pieces of a file that are remembered because the tensors of a header are not
/// in the order of their bytes; the largest models have some 100,000 tensors.
const MAX_PIECES: usize = 500_000;

/// The most files that one index may name: more than a model has.
const MAX_SHARDS: usize = 100_000;

/// The longest name of an object, in bytes.
const NAME_MAX: usize = 1024;

/// The beginning of a Git LFS pointer, which a repository has instead of a file that was not fetched.
const LFS_POINTER: &[u8; 8] = b"version ";

/// Reads the header of a file of tensors that is `size` bytes long; `Ok(Err)`
/// says in words for people why no loader accepts it.
///
/// # Errors
/// When `file` cannot be read. A file that ends early is a flaw instead.
pub fn check(mut file: impl Read, size: u64) -> io::Result<Result<(), String>> {
    if size < PREFIX {
        return Ok(Err(match size {
            0 => "it is empty".to_owned(),
            _ => format!("it has {size} bytes, and the length of its header alone takes {PREFIX}"),
        }));
    }
    let mut prefix = [0; 8];
    match file.read_exact(&mut prefix) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Err(ended(size))),
        other => other?,
    }
    if &prefix == LFS_POINTER {
        return Ok(Err(super::weights::POINTER.to_owned()));
    }
    let header = u64::from_le_bytes(prefix);
    let rest = size - PREFIX;
    if header > MAX_HEADER {
        return Ok(Err(format!(
            "its header would have {header} bytes, and loaders take {MAX_HEADER}: it is no \
             safetensors file, or its beginning is damaged"
        )));
    }
    if header > rest {
        return Ok(Err(format!(
            "its header has {header} bytes, and only {rest} follow: it was cut short"
        )));
    }
    match serde_json::from_reader::<_, Tensors>(buffered(file.take(header))) {
        Ok(Tensors(Some(pieces))) => Ok(covers(pieces, rest - header)),
        Ok(Tensors(None)) => Ok(Ok(())),
        Err(e) if e.is_io() => unless_too_long(e.into()).map(Ok),
        Err(e) => Ok(Err(format!("its header is not what it should be: {}", said(&e)))),
    }
}

/// The files that an index names, or in words for people why it is not an index.
/// `None`: this JSON has no `weight_map`, so it is not an index of this kind.
///
/// # Errors
/// When `file` cannot be read.
pub fn shards(file: impl Read) -> io::Result<Result<Option<BTreeSet<String>>, String>> {
    match serde_json::from_reader::<_, Index>(buffered(file.take(MAX_INDEX))) {
        Ok(index) => Ok(Ok(index.0)),
        Err(e) if e.is_io() => unless_too_long(e.into()).map(|()| Ok(None)),
        Err(e) => Ok(Err(format!("it is not what an index should be: {}", said(&e)))),
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
pub fn shard_path(index: &str, shard: &str) -> Option<String> {
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
fn covers(mut places: Vec<(u64, u64)>, data: u64) -> Result<(), String> {
    places.sort_unstable();
    let mut at = 0;
    for (start, end) in places {
        if start != at || end < start {
            return Err(format!(
                "its header is not consistent: a tensor has the bytes {start} to {end} where one \
                 from {at} on should be"
            ));
        }
        at = end;
    }
    let (has, needs) = (size_text(data), size_text(at));
    match at {
        end if end > data => Err(format!(
            "its header lists {needs} ({at} bytes) of tensors, and the file has {has} ({data} \
             bytes): it was cut short"
        )),
        end if end < data => Err(format!(
            "its header lists {needs} ({at} bytes) of tensors, and the file has {has} ({data} \
             bytes): it is longer than it should be"
        )),
        _ => Ok(()),
    }
}

/// The pieces of a file that the tensors of a header cover, adjacent ones merged;
/// `None` when they are too many.
struct Tensors(Option<Vec<(u64, u64)>>);

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_map(TensorsVisitor).map(Self)
    }
}

struct TensorsVisitor;

impl<'de> Visitor<'de> for TensorsVisitor {
    type Value = Option<Vec<(u64, u64)>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with an entry for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        #[derive(serde::Deserialize)]
        struct Tensor {
            data_offsets: (u64, u64),
        }
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        let mut too_many = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let (start, end) = map.next_value::<Tensor>()?.data_offsets;
            if start == end {
                // It has no bytes, and may lie between two that were merged.
                continue;
            }
            let count = pieces.len();
            match pieces.last_mut() {
                Some((_, last)) if *last == start && start <= end => *last = end,
                Some((first, _)) if *first == end && start <= end => *first = start,
                _ if count < MAX_PIECES => pieces.push((start, end)),
                _ => too_many = true,
            }
        }
        Ok((!too_many).then_some(pieces))
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file of tensors of these sizes.
    fn file(tensors: &[u64]) -> Vec<u8> {
        let mut at = 0;
        let mut entries = vec![r#""__metadata__":{"format":"pt"}"#.to_owned()];
        for (number, size) in tensors.iter().enumerate() {
            let end = at + size;
            entries.push(format!(
                r#""t{number}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{at},{end}]}}"#
            ));
            at = end;
        }
        // The order of the entries is not that of the bytes.
        entries.reverse();
        with_header(&format!("{{{}}}   ", entries.join(",")), at)
    }

    fn with_header(header: &str, data: u64) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + usize::try_from(data).unwrap(), 7);
        bytes
    }

    fn checked(bytes: &[u8]) -> Result<(), String> {
        check(bytes, bytes.len() as u64).unwrap()
    }

    #[test]
    fn what_a_loader_accepts_is_accepted() {
        for tensors in [&[][..], &[0], &[16], &[5, 0, 0, 7, 1]] {
            assert_eq!(checked(&file(tensors)), Ok(()), "{tensors:?}");
        }
        assert_eq!(checked(&with_header("{}", 0)), Ok(()));
    }

    #[test]
    fn each_flaw_is_named() {
        let good = file(&[100, 50]);
        let longer = [&good[..], b"x"].concat();
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
        let entry = |offsets: &str| {
            with_header(&format!(r#"{{"t":{{"dtype":"U8","data_offsets":{offsets}}}}}"#), 10)
        };
        let too_long = [&(MAX_HEADER + 1).to_le_bytes()[..], &[b' '; 100]].concat();
        for (bytes, words) in [
            (&b""[..], "empty"),
            (b"1234567", "7 bytes"),
            (&good[..good.len() - 1], "cut short"),
            (&good[..20], "cut short"),
            (&longer, "longer than it should be"),
            (lfs, "Git LFS pointer"),
            (&[0xff; 64], "no safetensors file"),
            (&too_long, "no safetensors file"),
            (&with_header("not JSON", 0), "header is not what it should be"),
            (&with_header("[]", 0), "header is not what it should be"),
            (&with_header(r#"{"t":{"dtype":"U8"}}"#, 0), "missing field `data_offsets`"),
            (&entry("[0,9]"), "longer than it should be"),
            (&entry("[1,10]"), "from 0 on"),
            (&entry("[10,0]"), "from 0 on"),
            (&entry("[-1,10]"), "header is not what it should be"),
            (&entry("[0,99999999999999999999]"), "header is not what it should be"),
        ] {
            let why = checked(bytes).unwrap_err();
            assert!(why.contains(words), "{words:?} is not in {why:?}");
        }
    }

    #[test]
    fn a_file_that_is_shorter_than_announced_is_a_flaw() {
        assert!(check(&b"123"[..], 100).unwrap().unwrap_err().contains("ended before"));
        let good = file(&[10]);
        assert!(check(&good[..20], good.len() as u64).unwrap().is_err());
    }

    #[test]
    fn an_index_names_each_file_once() {
        let index = br#"{"metadata": {"total_size": 5}, "weight_map":
            {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}"#;
        let found = shards(&index[..]).unwrap().unwrap().unwrap();
        assert_eq!(Vec::from_iter(found), ["m-1.safetensors", "m-2.safetensors"]);
        assert_eq!(shards(&b"{}"[..]).unwrap(), Ok(None));
        for bad in ["", "{", "[]", r#"{"weight_map": 5}"#, r#"{"weight_map": {"a": 5}}"#] {
            assert!(shards(bad.as_bytes()).unwrap().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_that_no_object_can_have_is_a_flaw_of_the_index() {
        let named = |len| format!(r#"{{"weight_map": {{"a": "{}"}}}}"#, "x".repeat(len));
        assert!(shards(named(1024).as_bytes()).unwrap().is_ok());
        let why = shards(named(1 << 20).as_bytes()).unwrap().unwrap_err();
        assert!(why.contains("has 1048576 bytes, and no object's name"), "{why}");
        assert!(why.len() < 300, "{why}");
    }

    /// Repeats a pattern without holding it.
    fn repeated(pattern: &'static [u8], bytes: u64) -> impl Read {
        struct Repeated(std::iter::Cycle<std::slice::Iter<'static, u8>>);
        impl Read for Repeated {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                buffer.iter_mut().zip(&mut self.0).for_each(|(to, from)| *to = *from);
                Ok(buffer.len())
            }
        }
        Repeated(pattern.iter().cycle()).take(bytes)
    }

    #[test]
    fn a_header_of_one_long_string_is_left_to_the_loader_before_it_is_held() {
        let length = 90 << 20;
        let mut consumed = 0;
        let bytes = u64::to_le_bytes(length);
        let json = (&br#"{""#[..]).chain(repeated(b"x", length));
        let counted = Counted { json: (&bytes[..]).chain(json), count: &mut consumed };
        assert_eq!(check(counted, length + 8).unwrap(), Ok(()));
        assert!(consumed < MAX_STRING as u64 + (1 << 20), "{consumed} bytes were read");
    }

    struct Counted<'a, R> {
        json: R,
        count: &'a mut u64,
    }

    impl<R: Read> Read for Counted<'_, R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.json.read(buffer)?;
            *self.count += count as u64;
            Ok(count)
        }
    }

    #[test]
    fn quotes_inside_strings_do_not_end_them() {
        let tricky = r#"{"__metadata__":{"a\\":"\"","b":"\\\""},"t":{"data_offsets":[0,5]}}"#;
        assert_eq!(checked(&with_header(tricky, 5)), Ok(()));
        let long = format!(r#"{{"\"{}":1}}"#, "\\\"".repeat(MAX_STRING / 2));
        assert_eq!(checked(&with_header(&long, 5)), Ok(()), "it is longer than what is read");
    }

    #[test]
    fn adjacent_tensors_are_merged_in_either_order_and_the_rest_is_limited() {
        let pieces = |header: &str| serde_json::from_str::<Tensors>(header).unwrap().0;
        let entry = |at: u64| format!(r#""t{at}":{{"data_offsets":[{at},{}]}}"#, at + 1);
        let header = |ats: &mut dyn Iterator<Item = u64>| {
            format!("{{{}}}", ats.map(entry).collect::<Vec<_>>().join(","))
        };
        assert_eq!(pieces(&header(&mut (0..1000))), Some(vec![(0, 1000)]));
        assert_eq!(pieces(&header(&mut (0..1000).rev())), Some(vec![(0, 1000)]));
        let empty = r#""e":{"data_offsets":[500,500]}"#;
        let mixed = header(&mut (0..1000)).replacen('}', &format!("}},{empty}"), 1);
        assert_eq!(pieces(&mixed), Some(vec![(0, 1000)]));
        let apart = header(&mut (0..=MAX_PIECES as u64).map(|n| n * 2));
        assert_eq!(pieces(&apart), None);
    }

    #[test]
    fn an_index_names_no_more_files_than_a_model_has() {
        let entries = (0..=MAX_SHARDS).map(|n| format!(r#""{n}":"{n}""#)).collect::<Vec<_>>();
        let index = format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","));
        let why = shards(index.as_bytes()).unwrap().unwrap_err();
        assert!(why.contains("more than 100000 files"), "{why}");
    }

    #[test]
    fn files_of_an_index_are_in_its_directory() {
        let index = "unet/diffusion.safetensors.index.json";
        for (shard, expected) in [
            ("m.safetensors", Some("unet/m.safetensors")),
            ("./d//m.safetensors", Some("unet/d/m.safetensors")),
            ("../m.safetensors", Some("m.safetensors")),
            ("../../m.safetensors", None),
            ("/m.safetensors", None),
        ] {
            assert_eq!(shard_path(index, shard).as_deref(), expected, "{shard}");
        }
        assert_eq!(shard_path("x.safetensors.index.json", "a/b").as_deref(), Some("a/b"));
    }

    proptest! {
        #[test]
        fn nonsense_is_a_flaw_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = checked(&bytes);
            let _ = shards(&bytes[..]).unwrap();
        }

        #[test]
        fn a_header_of_nonsense_is_a_flaw_and_never_a_panic(header in "\\PC{0,80}", data in 0..20u64) {
            let _ = checked(&with_header(&header, data));
        }

        #[test]
        fn any_cut_and_anything_behind_the_end_is_found(
            tensors in proptest::collection::vec(0..200u64, 0..6),
            cut in any::<proptest::sample::Index>(),
            more in proptest::collection::vec(any::<u8>(), 1..20),
        ) {
            let good = file(&tensors);
            prop_assert_eq!(checked(&good), Ok(()));
            prop_assert!(checked(&good[..cut.index(good.len())]).is_err());
            prop_assert!(checked(&[good, more].concat()).is_err());
        }
    }
}
