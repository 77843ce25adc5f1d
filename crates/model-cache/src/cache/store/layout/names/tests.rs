use super::*;

/// The directories and the tree of every layout, oldest first. A new layout adds a
/// line; no line ever changes.
const LAYOUTS: &[(&str, [&str; 9], &str)] = &[(
    "oci-model-csi cache 1\n",
    ["blobs", "content", "models", "requests", "staging", "leases", "pins", "quarantine", "trash"],
    "tree",
)];

#[test]
fn a_renamed_directory_takes_a_new_layout_and_keeps_its_former_name() {
    let (version, names, tree) = LAYOUTS.last().unwrap();
    assert_eq!((*version, *tree), (VERSION, ModelFile::Tree.name()));
    assert_eq!(*names, Directory::ALL.map(Directory::name));
    for (version, names, tree) in LAYOUTS {
        for (directory, name) in Directory::ALL.into_iter().zip(names) {
            assert!(directory.names().any(|own| own == *name), "{name} of {version}");
        }
        let path = Path::new(names[2]).join("k").join(tree);
        assert!(EntryPath::parse(&path).unwrap().is_tree(), "{version}");
    }
}

#[test]
fn only_the_tree_of_a_model_counts_as_one() {
    let is_tree = |path: &str| EntryPath::parse(Path::new(path)).is_some_and(|p| p.is_tree());
    for tree in ["models/k/tree", "trash/k.0/tree", "old-layout-1.0/models/k/tree"] {
        assert!(is_tree(tree), "{tree}");
    }
    for other in
        ["", "models", "models/k", "models/k/tree/d", "staging/k/tree", "data/models/k/tree"]
    {
        assert!(!is_tree(other), "{other}");
    }
}

#[test]
fn a_mount_of_any_part_of_a_model_is_a_use_of_the_model() {
    let key = "a".repeat(64);
    let model = |path: &Path| EntryPath::parse(path).and_then(|path| path.model());
    for below in ["tree", "tree/config.json", "tree/d/e", ""] {
        let path = Path::new("models").join(&key).join(below);
        assert_eq!(model(&path).unwrap().as_str(), key, "{below}");
    }
    let elsewhere = [format!("trash/{key}"), format!("old-layout-1.0/models/{key}")];
    for other in elsewhere.iter().map(String::as_str).chain(["models/x", "models"]) {
        assert_eq!(model(Path::new(other)), None, "{other}");
    }
}

#[test]
fn the_admin_sockets_files_may_be_there_before_the_cache() {
    for name in ["admin.sock", ".admin.sock.lock", ".admin.sock.new", "lock", "lost+found"] {
        assert!(RootFile::may_precede_version(name), "{name}");
    }
    for name in ["VERSION", ".lock.new", "models", "admin.sock.new"] {
        assert!(!RootFile::may_precede_version(name), "{name}");
    }
}

#[test]
fn names_are_parsed_as_they_are_written() {
    let (id, key) = (BlobId::parse(&"0f".repeat(32)), ModelKey::parse(&"a1".repeat(32)));
    let (id, key) = (id.unwrap(), key.unwrap());
    for file in [
        StagingFile::Part(id.clone()),
        StagingFile::Journal(id.clone()),
        StagingFile::Copy(id.clone(), 12),
        StagingFile::Building(key.clone()),
    ] {
        assert_eq!(StagingFile::parse(&file.to_string()), Some(file));
    }
    for file in [BlobFile::Blob, BlobFile::Record, BlobFile::UnsyncedRecord] {
        assert_eq!(BlobFile::parse(&file.name(&id)), Some((file, id.clone())));
    }
    let blob = QuarantineFile::parse(&quarantined_blob(&id));
    assert_eq!(blob, Some(QuarantineFile::Blob(id.clone())));
    let model = QuarantineFile::parse(&numbered(key.as_str(), 3));
    assert_eq!(model, Some(QuarantineFile::Model(key)));
    assert!(is_blob_aside(&trashed_blob(&id, 0)) && is_unfinished(&unfinished("f", 0)));
}
