use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

/// A target of a pod in a kubelet directory of its own, whose parent exists.
fn place(dir: &Path) -> OpenTarget {
    fs::create_dir_all(dir.join("pods/u")).unwrap();
    OpenTarget::open(dir, &dir.join("pods/u/mount")).unwrap().unwrap()
}

#[test]
fn a_target_is_made_private_to_the_group_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    place.make().unwrap();
    let mode = fs::metadata(place.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7027, 0, "{mode:o}");
    place.make().unwrap();
    assert_eq!(place.inspect().unwrap(), TargetState::Directory);
}

#[test]
fn only_the_last_component_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    fs::remove_dir(dir.path().join("pods/u")).unwrap();
    let error = place.make().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.message().contains("pods/u/mount"), "{error}");
    assert!(OpenTarget::open(dir.path(), &dir.path().join("pods/u/mount")).unwrap().is_none());
    assert!(!dir.path().join("pods/u").exists());
}

#[test]
fn a_target_with_content_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    place.make().unwrap();
    let file = place.path().join("precious");
    fs::write(&file, "data").unwrap();
    assert_eq!(place.make().unwrap_err().kind(), ErrorKind::Conflict);

    let error = place.remove().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.message().contains(place.path().to_str().unwrap()), "{error}");
    assert_eq!(fs::read_to_string(file).unwrap(), "data");
}

#[test]
fn a_symbolic_link_or_a_file_is_refused_as_a_target_and_named() {
    for (kind, is_link) in [("a symbolic link", true), ("a regular file", false)] {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        if is_link {
            symlink(dir.path(), place.path()).unwrap();
        } else {
            fs::write(place.path(), "data").unwrap();
        }
        assert_eq!(place.inspect().unwrap(), TargetState::Other(kind));
        let error = place.make().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.message().contains(kind), "{error}");
        let error = place.remove().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition);
        assert!(error.message().contains(kind), "{error}");
        assert!(fs::symlink_metadata(place.path()).is_ok(), "it is still there");
    }
}

#[test]
fn removing_a_target_that_is_gone_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    place.remove().unwrap();
    place.make().unwrap();
    place.remove().unwrap();
    assert_eq!(place.inspect().unwrap(), TargetState::Nothing);
    fs::remove_dir(dir.path().join("pods/u")).unwrap();
    place.remove().unwrap();
}

#[test]
fn the_fallback_of_openat2_refuses_the_same() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("pods/u/volumes")).unwrap();
    symlink("u", dir.path().join("pods/link")).unwrap();
    fs::write(dir.path().join("pods/file"), "").unwrap();
    let walk = |relative: &str| {
        let top = File::open(dir.path()).unwrap().into();
        let relative = Path::new("pods").join(relative);
        walk(top, dir.path(), &relative, &dir.path().join(&relative).join("mount"))
    };
    assert!(walk("u/volumes").unwrap().is_some());
    assert!(walk("u/nothing").unwrap().is_none());
    for (relative, why) in [("link/volumes", "symbolic link"), ("file/x", "not a directory")] {
        let stepwise = walk(relative).unwrap_err();
        assert_eq!(stepwise.kind(), ErrorKind::Invalid);
        assert!(stepwise.message().contains(why), "{stepwise}");
        let target = dir.path().join("pods").join(relative).join("mount");
        assert_eq!(OpenTarget::open(dir.path(), &target).unwrap_err(), stepwise);
    }
}

#[test]
fn a_target_is_in_the_directory_that_was_opened_whatever_its_name_is_by_now() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    fs::rename(dir.path().join("pods/u"), dir.path().join("pods/moved")).unwrap();
    fs::create_dir_all(dir.path().join("pods/u/mount")).unwrap();
    place.make().unwrap();
    assert!(dir.path().join("pods/moved/mount").is_dir());
    place.remove().unwrap();
    assert!(dir.path().join("pods/u/mount").is_dir(), "another directory of that name");
}
