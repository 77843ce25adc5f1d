//! Bind mounts against the real kernel.

mod support;

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use oci_model_csi::mount::mountinfo::{MountEntry, MountTable};
use oci_model_csi::mount::{
    self, BindOptions, bind_read_only, bind_read_only_by_remount, create_target, identity,
    mounted_root, mounts_of_file_system, remove_target, unmount,
};
use oci_model_csi::{ErrorKind, Result};
use support::namespace::{
    check, mount_tmpfs, rerun_here, run_in_mount_namespace, run_in_user_namespace,
};

type Bind = fn(&Path, &Path, BindOptions) -> Result<()>;
const BOTH_WAYS: [Bind; 2] = [bind_read_only, bind_read_only_by_remount];

fn model(scratch: &Path, name: impl AsRef<Path>) -> PathBuf {
    let dir = scratch.join("models").join(name);
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("config.json"), "{}").unwrap();
    dir
}

fn target(scratch: &Path, name: impl AsRef<Path>) -> PathBuf {
    let target = scratch.join("pods").join(name);
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    create_target(&target).unwrap();
    target
}

fn entry_at(target: &Path) -> MountEntry {
    MountTable::read().unwrap().at(target).cloned().expect("a mount in mountinfo")
}

fn number_of_mounts_at(target: &Path) -> usize {
    MountTable::read().unwrap().entries().iter().filter(|entry| entry.mount_point == target).count()
}

fn plain_bind(source: &Path, target: &Path) {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

#[track_caller]
fn assert_read_only<T>(result: io::Result<T>) {
    assert_eq!(result.err().map(|error| error.kind()), Some(io::ErrorKind::ReadOnlyFilesystem));
}

#[test]
fn a_published_tree_is_readable_and_nothing_in_it_can_change() {
    run_in_mount_namespace(
        "a_published_tree_is_readable_and_nothing_in_it_can_change",
        |scratch| {
            for (index, bind) in BOTH_WAYS.into_iter().enumerate() {
                let source = model(scratch, "phi");
                let target = target(scratch, index.to_string());
                bind(&source, &target, BindOptions::default()).unwrap();

                let file = target.join("config.json");
                assert_eq!(fs::read_to_string(&file).unwrap(), "{}");
                assert_read_only(fs::write(&file, "changed"));
                assert_read_only(File::create(target.join("new")));
                assert_read_only(fs::create_dir(target.join("sub/new")));
                assert_read_only(fs::remove_file(&file));
                assert_read_only(fs::rename(&file, target.join("other")));
                assert_read_only(fs::set_permissions(&file, Permissions::from_mode(0o777)));
                assert_read_only(fs::set_permissions(&target, Permissions::from_mode(0o777)));

                fs::write(source.join("config.json"), "{}").unwrap();
            }
        },
    );
}

#[test]
fn a_kernel_that_can_needs_no_writable_instant() {
    run_in_mount_namespace("a_kernel_that_can_needs_no_writable_instant", |scratch| {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        let version = (numbers.next().unwrap().unwrap(), numbers.next().unwrap().unwrap());
        if version < (5, 12) {
            return;
        }
        let log = scratch.join("log");
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(File::create(&log).unwrap())
            .finish();
        let target = target(scratch, "t");
        tracing::subscriber::with_default(subscriber, || {
            bind_read_only(&model(scratch, "phi"), &target, BindOptions::default()).unwrap();
        });
        assert_eq!(fs::read_to_string(log).unwrap(), "", "the fallback logs that it is taken");
    });
}

#[test]
fn mountinfo_shows_the_flags_that_were_asked_for() {
    run_in_mount_namespace("mountinfo_shows_the_flags_that_were_asked_for", |scratch| {
        let source = model(scratch, "phi");
        for (way, bind) in BOTH_WAYS.into_iter().enumerate() {
            let plain = target(scratch, format!("plain{way}"));
            bind(&source, &plain, BindOptions::default()).unwrap();
            let options = entry_at(&plain).options;
            assert!(["ro", "nosuid", "nodev"].into_iter().all(|flag| options.has(flag)));
            assert!(!options.has("noexec") && !options.has("noatime"));

            let strict = target(scratch, format!("strict{way}"));
            bind(&source, &strict, BindOptions { noexec: true, noatime: true }).unwrap();
            let options = entry_at(&strict).options;
            assert!(
                ["ro", "nosuid", "nodev", "noexec", "noatime"]
                    .into_iter()
                    .all(|flag| options.has(flag)),
                "{options:?}"
            );
            assert!(mount::mounted(&strict).unwrap().unwrap().hardened);
        }
        let of_the_source = entry_at(scratch).options;
        assert!(of_the_source.has("rw"), "the source's own mount is as it was");
    });
}

#[test]
fn locked_flags_of_a_parent_user_namespace_are_kept() {
    const TEST: &str = "locked_flags_of_a_parent_user_namespace_are_kept";
    run_in_mount_namespace(TEST, |scratch| {
        let locked = scratch.join("locked");
        let prepare = || {
            fs::create_dir(&locked).unwrap();
            let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME;
            mount_tmpfs(&locked, flags, "16m");
            model(&locked, "phi");
        };
        run_in_user_namespace(TEST, prepare, || {
            let source = locked.join("models/phi");
            // The premise: dropping noexec is what this kernel refuses here.
            let probe = target(&locked, "probe");
            plain_bind(&source, &probe);
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            let refused = mount(None::<&str>, &probe, None::<&str>, flags, None::<&str>);
            assert_eq!(refused, Err(nix::errno::Errno::EPERM));

            for (way, bind) in BOTH_WAYS.into_iter().enumerate() {
                for noatime in [false, true] {
                    let target = target(&locked, format!("{way}{noatime}"));
                    bind(&source, &target, BindOptions { noexec: false, noatime }).unwrap();
                    let options = entry_at(&target).options;
                    assert!(
                        ["ro", "nosuid", "nodev", "noexec"]
                            .into_iter()
                            .all(|flag| options.has(flag)),
                        "{options:?}"
                    );
                    assert!(!options.has("noatime") && !options.has("relatime"), "{options:?}");
                }
            }
        });
    });
}

#[test]
fn a_source_that_the_kernel_will_not_bind_leaves_nothing_mounted() {
    const TEST: &str = "a_source_that_the_kernel_will_not_bind_leaves_nothing_mounted";
    run_in_mount_namespace(TEST, |scratch| {
        let unbindable = scratch.join("unbindable");
        fs::create_dir(&unbindable).unwrap();
        mount_tmpfs(&unbindable, MsFlags::empty(), "16m");
        mount(None::<&str>, &unbindable, None::<&str>, MsFlags::MS_UNBINDABLE, None::<&str>)
            .unwrap();
        let source = model(&unbindable, "phi");
        for (way, bind) in BOTH_WAYS.into_iter().enumerate() {
            let target = target(scratch, way.to_string());
            let error = bind(&source, &target, BindOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal);
            assert!(error.message().contains(target.to_str().unwrap()), "{error}");
            assert_eq!(number_of_mounts_at(&target), 0);
            remove_target(&target).unwrap();
        }
    });
}

#[test]
fn a_stack_of_mounts_is_taken_off_whole() {
    run_in_mount_namespace("a_stack_of_mounts_is_taken_off_whole", |scratch| {
        let (first, second) = (model(scratch, "first"), model(scratch, "second"));
        let target = target(scratch, "stacked");
        bind_read_only(&first, &target, BindOptions::default()).unwrap();
        plain_bind(&second, &target);
        plain_bind(&second, &target);
        assert_eq!(number_of_mounts_at(&target), 3);
        assert_eq!(mounted_root(&target).unwrap(), Some(identity(&second).unwrap()));
        assert!(!mount::mounted(&target).unwrap().unwrap().hardened);

        assert!(unmount(&target).unwrap());
        assert_eq!(number_of_mounts_at(&target), 0);
        assert!(!unmount(&target).unwrap());
        remove_target(&target).unwrap();
        assert!(first.join("config.json").exists() && second.join("config.json").exists());
    });
}

#[test]
fn unmounting_what_is_not_mounted_is_no_error() {
    run_in_mount_namespace("unmounting_what_is_not_mounted_is_no_error", |scratch| {
        let target = target(scratch, "plain");
        assert!(!unmount(&target).unwrap());
        assert!(!unmount(&scratch.join("no/such/place")).unwrap());
        assert!(!unmount(&target.join("below")).unwrap());
        fs::write(scratch.join("file"), "").unwrap();
        assert!(!unmount(&scratch.join("file")).unwrap());
        assert!(!unmount(&scratch.join("file/below")).unwrap());
    });
}

#[test]
fn unmount_does_not_follow_a_symbolic_link_to_a_mount() {
    run_in_mount_namespace("unmount_does_not_follow_a_symbolic_link_to_a_mount", |scratch| {
        let target = target(scratch, "real");
        bind_read_only(&model(scratch, "phi"), &target, BindOptions::default()).unwrap();
        let link = scratch.join("link");
        symlink(&target, &link).unwrap();
        assert!(!unmount(&link).unwrap());
        assert_eq!(mounted_root(&link).unwrap(), None);
        assert_eq!(number_of_mounts_at(&target), 1);
    });
}

#[test]
fn a_busy_mount_is_detached_as_the_last_resort() {
    run_in_mount_namespace("a_busy_mount_is_detached_as_the_last_resort", |scratch| {
        let target = target(scratch, "busy");
        bind_read_only(&model(scratch, "phi"), &target, BindOptions::default()).unwrap();
        let reader = File::open(target.join("config.json")).unwrap();
        assert_eq!(
            umount2(&target, MntFlags::UMOUNT_NOFOLLOW),
            Err(nix::errno::Errno::EBUSY),
            "the premise: an open file keeps the mount busy"
        );
        assert!(unmount(&target).unwrap());
        assert_eq!(number_of_mounts_at(&target), 0);
        assert_eq!(io::read_to_string(reader).unwrap(), "{}", "who reads, reads on");
    });
}

#[test]
fn no_descriptor_of_ours_keeps_a_fresh_mount_busy() {
    run_in_mount_namespace("no_descriptor_of_ours_keeps_a_fresh_mount_busy", |scratch| {
        let source = model(scratch, "phi");
        for (way, bind) in BOTH_WAYS.into_iter().enumerate() {
            let target = target(scratch, way.to_string());
            bind(&source, &target, BindOptions::default()).unwrap();
            umount2(&target, MntFlags::UMOUNT_NOFOLLOW).unwrap();
        }
    });
}

#[test]
fn a_target_in_use_is_refused_and_left_as_it_was() {
    run_in_mount_namespace("a_target_in_use_is_refused_and_left_as_it_was", |scratch| {
        let source = model(scratch, "phi");
        for bind in BOTH_WAYS {
            let full = target(scratch, "full");
            let file = full.join("somebody's");
            fs::write(&file, "data").unwrap();
            let error = bind(&source, &full, BindOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert_eq!(fs::read_to_string(&file).unwrap(), "data");
            assert_eq!(number_of_mounts_at(&full), 0);
            fs::remove_file(file).unwrap();

            // Not even an empty mount is covered by a second one.
            let empty = scratch.join("empty");
            fs::create_dir_all(&empty).unwrap();
            let taken = target(scratch, "taken");
            plain_bind(&empty, &taken);
            let error = bind(&source, &taken, BindOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert!(error.message().contains("mount point already"), "{error}");
            assert_eq!(number_of_mounts_at(&taken), 1);
            unmount(&taken).unwrap();
        }
    });
}

#[test]
fn a_target_that_is_no_directory_is_invalid() {
    run_in_mount_namespace("a_target_that_is_no_directory_is_invalid", |scratch| {
        let source = model(scratch, "phi");
        let real = target(scratch, "real");
        let link = scratch.join("link");
        symlink(&real, &link).unwrap();
        fs::write(scratch.join("file"), "").unwrap();
        let wrong = [
            link,
            scratch.join("file"),
            scratch.join("missing"),
            scratch.join("no/parent"),
            PathBuf::from("relative"),
        ];
        for bind in BOTH_WAYS {
            for target in &wrong {
                let error = bind(&source, target, BindOptions::default()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
                assert!(error.message().contains(target.to_str().unwrap()), "{error}");
            }
        }
        assert_eq!(number_of_mounts_at(&real), 0);
    });
}

#[test]
fn a_source_that_is_a_symbolic_link_or_no_directory_is_refused() {
    run_in_mount_namespace(
        "a_source_that_is_a_symbolic_link_or_no_directory_is_refused",
        |scratch| {
            let real = model(scratch, "phi");
            let link = scratch.join("link");
            symlink(&real, &link).unwrap();
            let target = target(scratch, "t");
            for source in [link, real.join("config.json"), scratch.join("missing")] {
                for bind in BOTH_WAYS {
                    let error = bind(&source, &target, BindOptions::default()).unwrap_err();
                    assert!(error.message().contains(source.to_str().unwrap()), "{error}");
                    assert_eq!(number_of_mounts_at(&target), 0);
                }
            }
        },
    );
}

#[test]
fn any_name_can_be_mounted_and_found_again() {
    run_in_mount_namespace("any_name_can_be_mounted_and_found_again", |scratch| {
        let names: [&OsStr; 5] = [
            OsStr::new("with space"),
            OsStr::new("new\nline\ttab"),
            OsStr::new("Gewürz-模型"),
            OsStr::new("back\\040slash#"),
            OsStr::from_bytes(b"not \xff utf-8"),
        ];
        for name in names {
            let source = model(scratch, name);
            for bind in BOTH_WAYS {
                let target = target(scratch, name);
                bind(&source, &target, BindOptions::default()).unwrap();
                assert_eq!(mounted_root(&target).unwrap(), Some(identity(&source).unwrap()));
                assert_eq!(entry_at(&target).mount_point, target);
                assert!(unmount(&target).unwrap());
                assert_eq!(mounted_root(&target).unwrap(), None);
                remove_target(&target).unwrap();
            }
        }
    });
}

#[test]
fn a_target_below_a_symbolic_link_is_found_where_it_really_is() {
    run_in_mount_namespace(
        "a_target_below_a_symbolic_link_is_found_where_it_really_is",
        |scratch| {
            let source = model(scratch, "phi");
            let real = target(scratch, "volume");
            symlink(scratch.join("pods"), scratch.join("linked")).unwrap();
            let through = scratch.join("linked/volume");
            bind_read_only(&source, &through, BindOptions::default()).unwrap();
            assert_eq!(mounted_root(&through).unwrap(), Some(identity(&source).unwrap()));
            assert_eq!(mounted_root(&real).unwrap(), mounted_root(&through).unwrap());
            assert!(unmount(&through).unwrap());
        },
    );
}

#[test]
fn a_mount_is_matched_to_its_tree_after_the_tree_was_renamed() {
    run_in_mount_namespace(
        "a_mount_is_matched_to_its_tree_after_the_tree_was_renamed",
        |scratch| {
            let source = model(scratch, "staged");
            let target = target(scratch, "t");
            bind_read_only(&source, &target, BindOptions::default()).unwrap();
            // As kubelet does for a subPath.
            let sub_path = scratch.join("subpath");
            fs::create_dir(&sub_path).unwrap();
            plain_bind(&target.join("sub"), &sub_path);

            let renamed = scratch.join("models/renamed");
            fs::rename(&source, &renamed).unwrap();
            let wanted = identity(&renamed).unwrap();
            assert_eq!(mounted_root(&target).unwrap(), Some(wanted));

            let found = mounts_of_file_system(&renamed).unwrap();
            let at: Vec<_> = found.iter().filter(|one| one.root == wanted).collect();
            assert_eq!(at.len(), 1);
            assert_eq!(at[0].target, target);
            assert_eq!(at[0].root_path, Path::new("/models/renamed"));
            let below = identity(&renamed.join("sub")).unwrap();
            assert!(found.iter().any(|one| one.root == below && one.target == sub_path));
            assert!(found.iter().all(|one| one.target != Path::new("/proc")));
        },
    );
}

#[test]
fn a_mount_outlives_the_process_that_made_it() {
    const TEST: &str = "a_mount_outlives_the_process_that_made_it";
    const MOUNTER: &str = "OCI_MODEL_CSI_TEST_MOUNTER";
    run_in_mount_namespace(TEST, |scratch| {
        if std::env::var_os(MOUNTER).is_some() {
            let source = model(scratch, "phi");
            return bind_read_only(&source, &target(scratch, "t"), BindOptions::default()).unwrap();
        }
        check(TEST, &rerun_here(TEST, MOUNTER));
        let target = scratch.join("pods/t");
        assert_eq!(fs::read_to_string(target.join("config.json")).unwrap(), "{}");
        assert_read_only(File::create(target.join("new")));
        assert!(unmount(&target).unwrap());
    });
}
