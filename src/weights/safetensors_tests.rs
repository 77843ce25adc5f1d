use proptest::prelude::*;

use super::super::tensors::MAX_PIECES;
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

fn checked(bytes: &[u8]) -> Option<String> {
    check_header(bytes, bytes.len() as u64).unwrap()
}

fn flaw_of_index(index: &str) -> String {
    match shards(index.as_bytes()).unwrap() {
        IndexContent::Flawed(why) => why,
        other => panic!("{index:?}: {other:?}"),
    }
}

#[test]
fn what_a_loader_accepts_is_accepted() {
    for tensors in [&[][..], &[0], &[16], &[5, 0, 0, 7, 1]] {
        assert_eq!(checked(&file(tensors)), None, "{tensors:?}");
    }
    assert_eq!(checked(&with_header("{}", 0)), None);
}

#[test]
fn each_flaw_is_named() {
    let good = file(&[100, 50]);
    let longer = [&good[..], b"x"].concat();
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
    let entry = |offsets: &str| {
        with_header(&format!(r#"{{"t":{{"dtype":"?","shape":[],"data_offsets":{offsets}}}}}"#), 10)
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
        (&with_header(r#"{"t":{"dtype":"U8","shape":[]}}"#, 0), "missing field `data_offsets`"),
        (&entry("[0,9]"), "longer than it should be"),
        (&entry("[1,10]"), "from 0 on"),
        (&entry("[10,0]"), "from 0 on"),
        (&entry("[-1,10]"), "header is not what it should be"),
        (&entry("[0,99999999999999999999]"), "header is not what it should be"),
    ] {
        let why = checked(bytes).unwrap();
        assert!(why.contains(words), "{words:?} is not in {why:?}");
    }
}

/// Verdicts of safetensors 0.8.0, which `tests/clients/test_weights.py` compares too.
#[test]
fn types_shapes_and_metadata_are_judged_as_the_library_judges_them() {
    let header = |metadata: &str, dtype: &str, shape: &str| {
        format!(
            r#"{{"__metadata__":{metadata},"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,8]}}}}"#
        )
    };
    for (dtype, shape) in [
        ("F32", "[2]"),
        ("F32", "[1,2,1]"),
        ("I64", "[]"),
        ("C64", "[1]"),
        ("BF16", "[4]"),
        ("F8_E4M3", "[8]"),
        ("F4", "[16]"),
        ("OF_TOMORROW", "[3]"),
    ] {
        let good = header(r#"{"format":"pt"}"#, dtype, shape);
        assert_eq!(checked(&with_header(&good, 8)), None, "{good}");
    }
    assert_eq!(checked(&with_header(&header("null", "U8", "[8]"), 8)), None);
    for (metadata, dtype, shape, words) in [
        ("{}", "F32", "[3]", "t has 8 bytes, and its shape of F32 does not take as many"),
        ("{}", "F4", "[15]", "does not take as many"),
        ("{}", "F32", "[0]", "does not take as many"),
        ("{}", "U8", "[4294967296,4294967296]", "does not take as many"),
        ("{}", "U8", "[-8]", "integer `-8`"),
        (r#"{"n":1}"#, "U8", "[8]", "expected a string"),
        ("[]", "U8", "[8]", "an object of strings"),
    ] {
        let bad = header(metadata, dtype, shape);
        let why = checked(&with_header(&bad, 8)).unwrap();
        assert!(why.contains(words), "{words:?} is not in {why:?}");
    }
    let without = r#"{"t":{"dtype":"U8","data_offsets":[0,8]}}"#;
    assert!(checked(&with_header(without, 8)).unwrap().contains("missing field `shape`"));
}

#[test]
fn a_file_that_is_shorter_than_announced_is_a_flaw() {
    assert!(check_header(&b"123"[..], 100).unwrap().unwrap().contains("ended before"));
    let good = file(&[10]);
    assert!(check_header(&good[..20], good.len() as u64).unwrap().is_some());
}

#[test]
fn an_index_names_each_file_once() {
    let index = br#"{"metadata": {"total_size": 5}, "weight_map":
        {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}"#;
    let IndexContent::Shards(found) = shards(&index[..]).unwrap() else { panic!("no index") };
    assert_eq!(Vec::from_iter(found), ["m-1.safetensors", "m-2.safetensors"]);
    assert_eq!(shards(&b"{}"[..]).unwrap(), IndexContent::Other);
    for bad in ["", "{", "[]", r#"{"weight_map": 5}"#, r#"{"weight_map": {"a": 5}}"#] {
        flaw_of_index(bad);
    }
}

#[test]
fn a_name_that_no_object_can_have_is_a_flaw_of_the_index() {
    let named = |len| format!(r#"{{"weight_map": {{"a": "{}"}}}}"#, "x".repeat(len));
    let longest = shards(named(1024).as_bytes()).unwrap();
    assert!(!matches!(longest, IndexContent::Flawed(_)), "{longest:?}");
    let why = flaw_of_index(&named(1 << 20));
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
    assert_eq!(check_header(counted, length + 8).unwrap(), None);
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
    let tricky = r#"{"__metadata__":{"a\\":"\"","b":"\\\""},"t":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}"#;
    assert_eq!(checked(&with_header(tricky, 5)), None);
    let long = format!(r#"{{"\"{}":1}}"#, "\\\"".repeat(MAX_STRING / 2));
    assert_eq!(checked(&with_header(&long, 5)), None, "it is longer than what is read");
}

#[test]
fn adjacent_tensors_are_merged_in_either_order_and_the_rest_is_limited() {
    let pieces = |header: &str| serde_json::from_str::<Tensors>(header).unwrap().0;
    let entry = |at: u64| {
        format!(r#""t{at}":{{"dtype":"U8","shape":[],"data_offsets":[{at},{}]}}"#, at + 1)
    };
    let header = |ats: &mut dyn Iterator<Item = u64>| {
        format!("{{{}}}", ats.map(entry).collect::<Vec<_>>().join(","))
    };
    assert_eq!(pieces(&header(&mut (0..1000))), Some(vec![(0, 1000)]));
    assert_eq!(pieces(&header(&mut (0..1000).rev())), Some(vec![(0, 1000)]));
    let empty = r#""e":{"dtype":"U8","shape":[0],"data_offsets":[500,500]}"#;
    let mixed = header(&mut (0..1000)).replacen('}', &format!("}},{empty}"), 1);
    assert_eq!(pieces(&mixed), Some(vec![(0, 1000)]));
    let apart = header(&mut (0..=MAX_PIECES as u64).map(|n| n * 2));
    assert_eq!(pieces(&apart), None);
}

#[test]
fn an_index_names_no_more_files_than_a_model_has() {
    let entries = (0..=MAX_SHARDS).map(|n| format!(r#""{n}":"{n}""#)).collect::<Vec<_>>();
    let index = format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","));
    let why = flaw_of_index(&index);
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
    #![proptest_config(seeded::cases(256))]

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
        prop_assert_eq!(checked(&good), None);
        prop_assert!(checked(&good[..cut.index(good.len())]).is_some());
        prop_assert!(checked(&[good, more].concat()).is_some());
    }
}
