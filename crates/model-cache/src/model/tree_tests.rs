use super::*;

fn object(name: &str, size: u64) -> ListedObject {
    let etag = format!("etag-{name}");
    ListedObject { name: name.into(), size, etag, md5: None, archived: false }
}

fn arrange(objects: &[ListedObject]) -> Result<Option<Tree>> {
    let prefix = Prefix::parse("m/").unwrap();
    Tree::arrange(objects.to_vec(), &prefix, &Filters::default())
}

fn refusal(objects: &[ListedObject]) -> Error {
    let error = arrange(objects).expect_err("was taken");
    assert_eq!(error.kind(), ErrorKind::Precondition);
    error
}

#[test]
fn the_root_is_the_content_of_the_prefix() {
    let tree = arrange(&[object("m/config.json", 3), object("m/a/b/w.bin", 0)]).unwrap();
    let tree = tree.unwrap();
    let paths: Vec<_> = tree.files.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(paths, ["a/b/w.bin", "config.json"]);
    assert_eq!(tree.directories, [""; 0], "names imply them");
    assert_eq!(tree.bytes(), 3);
}

#[test]
fn zero_byte_markers_are_directories_and_the_prefixs_own_marker_is_ignored() {
    assert_eq!(arrange(&[object("m/", 0)]).unwrap(), None);
    assert_eq!(arrange(&[object("m/", 1)]).unwrap(), None);
    let with_bytes = arrange(&[object("m/", 7), object("m/a", 1)]).unwrap();
    assert_eq!(with_bytes, arrange(&[object("m/a", 1)]).unwrap());
    assert_eq!(arrange(&[]).unwrap(), None);
    let tree = arrange(&[object("m/", 0), object("m/empty/", 0)]).unwrap().unwrap();
    assert_eq!(tree.directories, ["empty"]);
    assert!(tree.files.is_empty());
}

#[test]
fn names_that_could_leave_or_break_the_tree_are_refused_by_name() {
    let long = format!("m/{}", "x".repeat(256));
    for (bad, why) in [
        ("m/../etc/passwd", "'..'"),
        ("m/a/./b", "'.'"),
        ("m/a/..", "'..'"),
        ("m//a", "empty path segment"),
        ("m/a//b", "empty path segment"),
        ("m/a//", "empty path segment"),
        ("m//", "empty path segment"),
        ("m/a\0b", "NUL"),
        (long.as_str(), "255"),
    ] {
        let error = refusal(&[object(bad, 1)]);
        assert!(error.message().contains(why), "{bad}: {error}");
    }
    assert!(refusal(&[object("m/../etc/passwd", 1)]).message().contains("m/../etc/passwd"));
    assert!(arrange(&[object(&format!("m/{}", "x".repeat(255)), 1)]).is_ok());
    assert!(arrange(&[object("m/..dots/...", 1)]).is_ok());
}

#[test]
fn a_name_or_a_size_that_no_object_can_have_is_refused_by_name() {
    let long = format!("m/{}", "d/".repeat(512));
    assert!(refusal(&[object(&format!("{long}x"), 1)]).message().contains("1,024 bytes"));
    assert!(arrange(&[object(&long[..1024], 0)]).is_ok());
    for size in [LARGEST_OBJECT + 1, u64::MAX - 4094, u64::MAX] {
        let error = refusal(&[object("m/w", size)]);
        assert!(error.message().contains("\"m/w\"") && error.message().contains("10 TiB"));
    }
    assert!(arrange(&[object("m/w", LARGEST_OBJECT)]).is_ok());
}

#[test]
fn a_file_beside_a_directory_of_its_name_is_refused() {
    for other in ["m/a/b", "m/a/", "m/a/b/c"] {
        let size = u64::from(!other.ends_with('/'));
        let error = refusal(&[object("m/a", 1), object(other, size)]);
        assert!(error.message().contains("\"m/a\""), "{error}");
    }
}

#[test]
fn markers_with_bytes_and_archived_objects_are_refused() {
    assert!(refusal(&[object("m/d/", 1)]).message().contains("has bytes"));
    let archived = ListedObject { archived: true, ..object("m/w", 1) };
    assert!(refusal(&[archived]).message().contains("restore"));
}

#[test]
fn excluded_objects_cannot_refuse_the_model() {
    let filters = Filters::parse(None, Some("bad*")).unwrap();
    let prefix = Prefix::parse("m").unwrap();
    let bad = ListedObject { archived: true, ..object("m/bad//x", 1) };
    let tree = Tree::arrange([bad, object("m/w", 1)], &prefix, &filters).unwrap().unwrap();
    assert_eq!(tree.files.len(), 1);
}

#[test]
fn suspicious_names_and_patterns_are_warnings_of_the_tree() {
    let prefix = Prefix::parse("m").unwrap();
    let filters = Filters::parse(Some("*.bin, *.onnx, d/"), Some("original,x.bin")).unwrap();
    let objects = ["m/w.bin", "m/W.bin", "m/original/w", "m/x.bin", "m/d/"];
    let tree = Tree::arrange(objects.map(|name| object(name, 0)), &prefix, &filters);
    let warnings = tree.unwrap().unwrap().warnings;
    let kinds: Vec<_> = warnings.iter().map(|warning| warning.kind.label()).collect();
    assert_eq!(kinds, ["names", "pattern"]);
    assert!(warnings[0].text.contains("\"W.bin\" and \"w.bin\""), "{warnings:?}");
    assert!(warnings[1].text.contains("\"*.onnx\" of include"), "{warnings:?}");
    assert!(warnings[1].text.contains("\"original\" of exclude"), "{warnings:?}");
    assert!(!warnings[1].text.contains("x.bin"), "{warnings:?}");
}

#[test]
fn the_exclude_that_a_refusal_suggests_works() {
    let prefix = Prefix::parse("m").unwrap();
    for bad in ["m/a//b", "m//a", "m/./x", "m/../x", "m/d//", "m/a\0b", "m/'q'", "m/x,{y}"] {
        let objects = [object("m/w", 1), ListedObject { archived: true, ..object(bad, 0) }];
        let error = refusal(&objects);
        let (_, advice) = error.message().split_once("exclude: ").expect(bad);
        let (pattern, _) = advice.split_once('`').unwrap();
        let filters = Filters::parse(None, Some(pattern)).unwrap();
        let tree = Tree::arrange(objects, &prefix, &filters).unwrap().unwrap();
        assert_eq!(tree.files.len(), 1, "{pattern} for {bad}");
    }
}

#[test]
fn directories_and_their_blocks_are_limited_before_one_is_made() {
    let deep = |n: usize| object(&format!("m/{n}/{}w", "x/".repeat(500)), 0);
    let mut listing = ObjectListing::new(Prefix::parse("m/").unwrap());
    listing.push((0..200).map(deep)).unwrap();
    let refusal = |limits: TreeLimits| {
        let refused = Selected::of(&listing, &Filters::default(), &limits).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Precondition);
        refused.message().to_owned()
    };
    let limits = TreeLimits { directories: 100_000, bytes: None };
    assert!(refusal(limits).contains("more than 100000 directories"), "{}", refusal(limits));
    let limits = TreeLimits { directories: 200_000, bytes: Some(1 << 20) };
    assert!(refusal(limits).contains("with its 100200 directories, more than limits.max"));
    let enough = TreeLimits { directories: 100_200, bytes: Some(100_200 * 4096) };
    let selected = Selected::of(&listing, &Filters::default(), &enough).unwrap().unwrap();
    assert_eq!(selected.tree().directories, [""; 0]);
    assert!(selected.weight() > 200 * 2000 && selected.weight() < 200 * 2400);
}

#[test]
fn a_listing_out_of_order_gives_the_same_tree_and_the_later_entry_of_a_name_counts() {
    let objects = [object("m/b", 1), object("m/a-b", 2), object("m/a/c", 3), object("m/d/", 0)];
    let tree = arrange(&objects).unwrap().unwrap();
    let mut sorted = objects.to_vec();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(arrange(&sorted).unwrap().unwrap(), tree);
    let twice = [object("m/w", 1), object("m/w", 2)];
    assert_eq!(arrange(&twice).unwrap().unwrap().bytes(), 2);
}

#[test]
fn a_hostile_name_cannot_fill_the_message() {
    let name = format!("m/{}\u{1b}[2J/..", "é".repeat(500));
    let error = refusal(&[object(&name, 1)]);
    assert!(error.message().len() < 800, "{}", error.message().len());
    assert!(!refusal(&[object("m/\u{1b}[2J/..", 1)]).message().contains('\u{1b}'));
}
