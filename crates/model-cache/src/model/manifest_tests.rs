use std::collections::HashSet;

use super::super::{Filters, ListedObject};
use super::*;

fn manifest() -> Manifest {
    let source = ModelSource {
        location: "us-ashburn-1".into(),
        namespace: NamespaceName::parse("ns").unwrap(),
        bucket: BucketName::parse("b").unwrap(),
        prefix: Prefix::parse("m/").unwrap(),
    };
    let object = |name: &str, size| ListedObject {
        name: name.into(),
        size,
        etag: format!("e-{name}"),
        md5: Some("x==".into()),
        archived: false,
    };
    let listing = [object("m/d/c", 0), object("m/e/", 0), object("m/w", 7)];
    let tree = Tree::arrange(listing, &source.prefix, &Filters::default()).unwrap().unwrap();
    Manifest::new(source, "", tree)
}

fn stored(manifest: &Manifest) -> Vec<u8> {
    let mut bytes = Vec::new();
    manifest.write(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_stored_manifest_is_read_back() {
    let manifest = manifest();
    assert_eq!(Manifest::read(&*stored(&manifest)).unwrap(), manifest);
    let summary = manifest.summary();
    assert_eq!((summary.bytes, summary.inodes), (7, 5));
    assert_eq!(Summary::from_json(&summary.to_json()).unwrap(), summary);
    assert_eq!(summary.key(), manifest.key());
}

#[test]
fn directories_that_names_imply_are_made_and_not_stored() {
    let manifest = manifest();
    assert_eq!(manifest.all_directories(), ["d", "e"]);
    assert_eq!(manifest.directories, ["e"]);
}

#[test]
fn a_directory_that_many_markers_imply_is_held_in_memory_once() {
    let mut deep = manifest();
    let above = vec!["x"; 500].join("/");
    deep.directories = (0..1000).map(|n| format!("{above}/{n:04}")).collect();
    let all = deep.all_directories();
    assert_eq!(all.len(), 1 + 500 + 1000);
    assert!(all.capacity() < 4 * all.len(), "room for {}", all.capacity());
}

#[test]
fn a_manifest_that_names_every_directory_is_read_in_the_memory_of_its_files() {
    let mut old = manifest();
    let deep: Vec<String> = (1..=500).map(|depth| vec!["x"; depth].join("/")).collect();
    old.files[0].path = format!("{}/w", deep[499]);
    old.directories = ["d", "e"].map(str::to_owned).into_iter().chain(deep).collect();
    let json = stored(&old);
    let read = Manifest::read(&*json).unwrap();
    assert_eq!(read.directories.len(), 3);
    assert_eq!(read.all_directories().len(), 502);
    let summary = Summary::of_stored(&*json).unwrap();
    assert_eq!((summary.bytes, summary.inodes), (7, 2 + 502 + 1));
}

#[test]
fn a_torn_or_foreign_manifest_is_refused() {
    let json = stored(&manifest());
    for cut in [0, 1, json.len() / 2, json.len() - 1] {
        assert!(Manifest::read(&json[..cut]).is_err());
        assert!(Summary::of_stored(&json[..cut]).is_err());
    }
    let newer = String::from_utf8(json).unwrap().replace("\"format\": 1", "\"format\": 2");
    assert!(Manifest::read(newer.as_bytes()).is_err());
}

#[test]
fn equal_bytes_of_one_listing_are_one_blob_and_nothing_else_is() {
    let file = |name: &str, size, md5: Option<&str>| ListedObject {
        name: format!("m/{name}"),
        size,
        etag: format!("e-{name}"),
        md5: md5.map(str::to_owned),
        archived: false,
    };
    let mut listing = vec![
        file("a", 7, Some("x==")),
        file("b", 7, Some("y==")),
        file("c", 8, Some("x==")),
        file("d", 7, None),
        file("e", 7, Some("x==")),
        file("f", 7, None),
    ];
    listing.extend((0..40).map(|n| file(&format!("n{n}"), 1, Some("z=="))));
    let source = manifest().source;
    let prefix = Prefix::parse("m/").unwrap();
    let tree = Tree::arrange(listing, &prefix, &Filters::default()).unwrap().unwrap();
    let apart = Manifest::new(ModelSource { prefix, ..source }, "", tree);
    let once = apart.clone().with_equal_bytes_once();
    assert_eq!(once.key(), apart.key(), "what a model is does not depend on how it is stored");
    let changed = once.files.iter().zip(&apart.files).filter(|(once, apart)| once != apart);
    let changed = changed.map(|(once, _)| once.path.as_str()).filter(|p| !p.starts_with('n'));
    assert_eq!(changed.collect::<Vec<_>>(), ["e"]);
    assert_eq!(once.files[4].blob, once.files[0].blob);
    let blobs: HashSet<_> = once.files[6..].iter().map(|file| &file.blob).collect();
    assert_eq!(blobs.len(), 40_usize.div_ceil(NAMES_OF_A_BLOB));
    assert_eq!(once.with_a_blob_for_each_file(), apart);
}
