//! Bind mounts against the real kernel.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::namespace::{
    MAY_SKIP, check, mount_tmpfs, rerun_here, run_in_mount_namespace, run_in_user_namespace,
    this_binary,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use oci_model_csi::mount::mountinfo::{MountEntry, MountTable};
use oci_model_csi::mount::{
    BindOptions, DirId, Mounted, OpenTarget, TargetState, identity, uses_of,
};
use oci_model_csi::{ErrorKind, Result};

type Bind = fn(&OpenTarget, &Path, BindOptions) -> Result<Mounted>;
const BOTH_WAYS: [Bind; 2] = [OpenTarget::bind_read_only, OpenTarget::bind_read_only_by_remount];

fn model(scratch: &Path, name: impl AsRef<Path>) -> PathBuf {
    let dir = scratch.join("models").join(name);
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("config.json"), "{}").unwrap();
    dir
}

/// A place of a pod, whose kubelet has its directory in `scratch`.
fn place(scratch: &Path, name: impl AsRef<Path>) -> OpenTarget {
    let target = scratch.join("pods/uid").join(name);
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    OpenTarget::open(scratch, &target).unwrap().unwrap()
}

fn target(scratch: &Path, name: impl AsRef<Path>) -> OpenTarget {
    let place = place(scratch, name);
    place.make().unwrap();
    place
}

fn root_at(place: &OpenTarget) -> Option<DirId> {
    place.mounted().unwrap().map(|mounted| mounted.root)
}

fn unmount(place: &OpenTarget) {
    place.unmount(&place.mounted().unwrap().expect("a mount")).unwrap();
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
    run_in_mount_namespace(|scratch| {
        for (index, bind) in BOTH_WAYS.into_iter().enumerate() {
            let source = model(scratch, "phi");
            let target = target(scratch, index.to_string());
            bind(&target, &source, BindOptions::default()).unwrap();

            let file = target.path().join("config.json");
            assert_eq!(fs::read_to_string(&file).unwrap(), "{}");
            assert_read_only(fs::write(&file, "changed"));
            assert_read_only(File::create(target.path().join("new")));
            assert_read_only(fs::create_dir(target.path().join("sub/new")));
            assert_read_only(fs::remove_file(&file));
            assert_read_only(fs::rename(&file, target.path().join("other")));
            assert_read_only(fs::set_permissions(&file, Permissions::from_mode(0o777)));
            assert_read_only(fs::set_permissions(target.path(), Permissions::from_mode(0o777)));

            fs::write(source.join("config.json"), "{}").unwrap();
        }
    });
}

#[test]
fn with_the_new_mount_interface_no_mount_is_ever_writable() {
    run_in_mount_namespace(|scratch| {
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
            target.bind_read_only(&model(scratch, "phi"), BindOptions::default()).unwrap();
        });
        assert_eq!(fs::read_to_string(log).unwrap(), "", "the fallback logs that it is taken");
    });
}

#[test]
fn mountinfo_shows_the_flags_that_were_asked_for() {
    run_in_mount_namespace(|scratch| {
        let source = model(scratch, "phi");
        for (way, bind) in BOTH_WAYS.into_iter().enumerate() {
            let plain = target(scratch, format!("plain{way}"));
            bind(&plain, &source, BindOptions::default()).unwrap();
            let options = entry_at(plain.path()).options;
            assert!(["ro", "nosuid", "nodev"].into_iter().all(|flag| options.has(flag)));
            assert!(!options.has("noexec") && !options.has("noatime"));

            let strict = target(scratch, format!("strict{way}"));
            bind(&strict, &source, BindOptions { noexec: true, noatime: true }).unwrap();
            let options = entry_at(strict.path()).options;
            assert!(
                ["ro", "nosuid", "nodev", "noexec", "noatime"]
                    .into_iter()
                    .all(|flag| options.has(flag)),
                "{options:?}"
            );
            assert!(strict.mounted().unwrap().unwrap().hardened);
        }
        let of_the_source = entry_at(scratch).options;
        assert!(of_the_source.has("rw"), "the source's own mount is as it was");
    });
}

#[test]
fn locked_flags_of_a_parent_user_namespace_are_kept() {
    run_in_mount_namespace(|scratch| {
        let locked = scratch.join("locked");
        let prepare = || {
            fs::create_dir(&locked).unwrap();
            let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME;
            mount_tmpfs(&locked, flags, "16m");
            model(&locked, "phi");
        };
        run_in_user_namespace(prepare, || {
            let source = locked.join("models/phi");
            // The premise: dropping noexec is what this kernel refuses here.
            let probe = target(&locked, "probe");
            plain_bind(&source, probe.path());
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            let refused = mount(None::<&str>, probe.path(), None::<&str>, flags, None::<&str>);
            assert_eq!(refused, Err(nix::errno::Errno::EPERM));

            for (way, bind) in BOTH_WAYS.into_iter().enumerate() {
                for noatime in [false, true] {
                    let target = target(&locked, format!("{way}{noatime}"));
                    bind(&target, &source, BindOptions { noexec: false, noatime }).unwrap();
                    let options = entry_at(target.path()).options;
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
    run_in_mount_namespace(|scratch| {
        let unbindable = scratch.join("unbindable");
        fs::create_dir(&unbindable).unwrap();
        mount_tmpfs(&unbindable, MsFlags::empty(), "16m");
        mount(None::<&str>, &unbindable, None::<&str>, MsFlags::MS_UNBINDABLE, None::<&str>)
            .unwrap();
        let source = model(&unbindable, "phi");
        for (way, bind) in BOTH_WAYS.into_iter().enumerate() {
            let target = target(scratch, way.to_string());
            let error = bind(&target, &source, BindOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal);
            assert!(error.message().contains(target.path().to_str().unwrap()), "{error}");
            assert_eq!(number_of_mounts_at(target.path()), 0);
            target.remove().unwrap();
        }
    });
}

#[test]
fn a_mount_on_top_of_a_mount_is_not_mistaken_for_it() {
    run_in_mount_namespace(|scratch| {
        let (first, second) = (model(scratch, "first"), model(scratch, "second"));
        let target = target(scratch, "stacked");
        let ours = target.bind_read_only(&first, BindOptions::default()).unwrap();
        // Even the same tree, as another mount.
        for on_top in [&second, &first] {
            plain_bind(on_top, target.path());
            let error = target.unmount(&ours).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert_eq!(number_of_mounts_at(target.path()), 2);
            assert_eq!(root_at(&target), Some(identity(on_top).unwrap()));
            assert!(!target.mounted().unwrap().unwrap().hardened);
            unmount(&target);
        }
        target.unmount(&ours).unwrap();
        assert_eq!(number_of_mounts_at(target.path()), 0);
        target.remove().unwrap();
        assert!(first.join("config.json").exists() && second.join("config.json").exists());
    });
}

#[test]
fn unmounting_a_missing_mount_is_no_error() {
    run_in_mount_namespace(|scratch| {
        let target = target(scratch, "plain");
        let mounted = target.bind_read_only(&model(scratch, "phi"), BindOptions::default());
        let mounted = mounted.unwrap();
        target.unmount(&mounted).unwrap();
        target.unmount(&mounted).unwrap();
        target.remove().unwrap();
        target.unmount(&mounted).unwrap();
        assert_eq!(target.inspect().unwrap(), TargetState::Nothing);
    });
}

#[test]
fn a_symbolic_link_to_a_mount_is_no_mount() {
    run_in_mount_namespace(|scratch| {
        let target = target(scratch, "real");
        let mounted = target.bind_read_only(&model(scratch, "phi"), BindOptions::default());
        let link = place(scratch, "link");
        symlink(target.path(), link.path()).unwrap();
        assert_eq!(link.inspect().unwrap(), TargetState::Other("a symbolic link"));
        link.unmount(&mounted.unwrap()).unwrap_err();
        assert_eq!(number_of_mounts_at(target.path()), 1);
    });
}

#[test]
fn a_busy_mount_stays_until_its_reader_is_done() {
    run_in_mount_namespace(|scratch| {
        let target = target(scratch, "busy");
        let mounted = target.bind_read_only(&model(scratch, "phi"), BindOptions::default());
        let mounted = mounted.unwrap();
        let reader = File::open(target.path().join("config.json")).unwrap();
        let error = target.unmount(&mounted).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains("fuser -vm"), "{error}");
        assert_eq!(number_of_mounts_at(target.path()), 1, "never detached");
        assert_eq!(io::read_to_string(reader).unwrap(), "{}", "who reads, reads on");
        target.unmount(&mounted).unwrap();
        assert_eq!(number_of_mounts_at(target.path()), 0);
    });
}

#[test]
fn a_mount_inside_a_volume_is_named_and_both_stay() {
    run_in_mount_namespace(|scratch| {
        let (source, other) = (model(scratch, "phi"), model(scratch, "other"));
        let target = target(scratch, "t");
        let mounted = target.bind_read_only(&source, BindOptions::default()).unwrap();
        plain_bind(&other, &target.path().join("sub"));
        let error = target.unmount(&mounted).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition);
        assert!(error.message().contains(target.path().join("sub").to_str().unwrap()), "{error}");
        assert_eq!(number_of_mounts_at(target.path()), 1);
        umount2(&target.path().join("sub"), MntFlags::UMOUNT_NOFOLLOW).unwrap();
        target.unmount(&mounted).unwrap();
    });
}

#[test]
fn no_descriptor_of_ours_keeps_a_fresh_mount_busy() {
    run_in_mount_namespace(|scratch| {
        let source = model(scratch, "phi");
        for (way, bind) in BOTH_WAYS.into_iter().enumerate() {
            let target = target(scratch, way.to_string());
            bind(&target, &source, BindOptions::default()).unwrap();
            umount2(target.path(), MntFlags::UMOUNT_NOFOLLOW).unwrap();
        }
    });
}

#[test]
fn a_target_in_use_is_refused_and_left_as_it_was() {
    run_in_mount_namespace(|scratch| {
        let source = model(scratch, "phi");
        for bind in BOTH_WAYS {
            let full = target(scratch, "full");
            let file = full.path().join("precious");
            fs::write(&file, "data").unwrap();
            let error = bind(&full, &source, BindOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert_eq!(fs::read_to_string(&file).unwrap(), "data");
            assert_eq!(number_of_mounts_at(full.path()), 0);
            fs::remove_file(file).unwrap();

            // Not even an empty mount is covered by a second one.
            let empty = scratch.join("empty");
            fs::create_dir_all(&empty).unwrap();
            let taken = target(scratch, "taken");
            plain_bind(&empty, taken.path());
            let error = bind(&taken, &source, BindOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert!(error.message().contains("mount point already"), "{error}");
            assert_eq!(number_of_mounts_at(taken.path()), 1);
            unmount(&taken);
        }
    });
}

#[test]
fn a_target_that_is_no_directory_is_invalid() {
    run_in_mount_namespace(|scratch| {
        let source = model(scratch, "phi");
        let real = target(scratch, "real");
        let [link, file, missing] = ["link", "file", "missing"].map(|name| place(scratch, name));
        symlink(real.path(), link.path()).unwrap();
        fs::write(file.path(), "").unwrap();
        for bind in BOTH_WAYS {
            for target in [&link, &file, &missing] {
                let error = bind(target, &source, BindOptions::default()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
                assert!(error.message().contains(target.path().to_str().unwrap()), "{error}");
            }
        }
        assert_eq!(number_of_mounts_at(real.path()), 0);
    });
}

#[test]
fn a_source_that_is_a_symbolic_link_or_no_directory_is_refused() {
    run_in_mount_namespace(|scratch| {
        let real = model(scratch, "phi");
        let link = scratch.join("link");
        symlink(&real, &link).unwrap();
        let target = target(scratch, "t");
        for source in [link, real.join("config.json"), scratch.join("missing")] {
            for bind in BOTH_WAYS {
                let error = bind(&target, &source, BindOptions::default()).unwrap_err();
                assert!(error.message().contains(source.to_str().unwrap()), "{error}");
                assert_eq!(number_of_mounts_at(target.path()), 0);
            }
        }
    });
}

#[test]
fn any_name_can_be_mounted_and_found_again() {
    run_in_mount_namespace(|scratch| {
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
                bind(&target, &source, BindOptions::default()).unwrap();
                assert_eq!(root_at(&target), Some(identity(&source).unwrap()));
                assert_eq!(entry_at(target.path()).mount_point, target.path());
                unmount(&target);
                assert_eq!(root_at(&target), None);
                target.remove().unwrap();
            }
        }
    });
}

#[test]
fn a_target_of_a_kubelet_whose_directory_is_a_link_is_found_where_it_really_is() {
    run_in_mount_namespace(|scratch| {
        let source = model(scratch, "phi");
        let kubelet = scratch.join("real");
        let real = target(&kubelet, "volume");
        symlink(&kubelet, scratch.join("linked")).unwrap();
        let through = place(&scratch.join("linked"), "volume");
        through.bind_read_only(&source, BindOptions::default()).unwrap();
        assert_eq!(root_at(&through), Some(identity(&source).unwrap()));
        assert_eq!(real.mounted().unwrap(), through.mounted().unwrap());
        unmount(&through);
    });
}

#[test]
fn a_mount_is_matched_to_its_tree_after_the_tree_was_renamed() {
    run_in_mount_namespace(|scratch| {
        let source = model(scratch, "staged");
        let target = target(scratch, "t");
        target.bind_read_only(&source, BindOptions::default()).unwrap();
        // As kubelet does for a subPath.
        let sub_path = scratch.join("subpath");
        fs::create_dir(&sub_path).unwrap();
        plain_bind(&target.path().join("sub"), &sub_path);

        let renamed = scratch.join("models/renamed");
        fs::rename(&source, &renamed).unwrap();
        let wanted = identity(&renamed).unwrap();
        assert_eq!(root_at(&target), Some(wanted));

        let found: BTreeSet<(PathBuf, PathBuf)> = uses_of(&renamed)
            .unwrap()
            .into_iter()
            .map(|found| (found.root, found.target))
            .collect();
        let whole = (PathBuf::new(), target.path().to_owned());
        assert_eq!(found, BTreeSet::from([whole, (PathBuf::from("sub"), sub_path)]));
    });
}

#[test]
fn a_test_that_cannot_mount_fails_unless_it_may_be_skipped() {
    let without_unshare = |may_skip: Option<&str>| {
        let mut command = std::process::Command::new(this_binary());
        command.args(["--exact", "mounts::any_name_can_be_mounted_and_found_again", "--nocapture"]);
        command.env_remove(MAY_SKIP).env("PATH", "/nonexistent");
        command.envs(may_skip.map(|value| (MAY_SKIP, value)));
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (may_skip, passes) in [(None, false), (Some("0"), false), (Some("1"), true)] {
        let (passed, said) = without_unshare(may_skip);
        assert_eq!(passed, passes, "{may_skip:?}: {said}");
        assert!(said.contains("SKIPPED mounts::any_name_can_be_mounted_and_found_again"), "{said}");
    }
}

#[test]
fn a_mount_outlives_the_process_that_made_it() {
    const TEST: &str = "mounts::a_mount_outlives_the_process_that_made_it";
    const MOUNTER: &str = "OCI_MODEL_CSI_TEST_MOUNTER";
    run_in_mount_namespace(|scratch| {
        if std::env::var_os(MOUNTER).is_some() {
            let (source, target) = (model(scratch, "phi"), target(scratch, "t"));
            target.bind_read_only(&source, BindOptions::default()).unwrap();
            return;
        }
        check(TEST, &rerun_here(TEST, MOUNTER));
        let target = place(scratch, "t");
        let file = fs::read_to_string(target.path().join("config.json")).unwrap();
        assert_eq!(file, "{}");
        assert_read_only(File::create(target.path().join("new")));
        unmount(&target);
    });
}
