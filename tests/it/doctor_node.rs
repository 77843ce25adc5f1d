//! The node half of `doctor`, on set-ups that are really broken: disks, mounts, directories, and
//! a driver that runs, fails or hangs.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::disk::{Disk, run};
use crate::support::documents::{read, table};
use crate::support::driver::{Driver, Setup};
use crate::support::fuse;
use crate::support::kubelet::register;
use crate::support::models::{BUCKET, MIB, PHI3, store_with_phi3};
use crate::support::namespace::mount_tmpfs;
use crate::support::run::{end_to_end, eventually, figure};
use nix::mount::{MsFlags, mount};
use oci_model_csi::cache::CacheLimits;
use oci_model_csi::doctor::{CheckId, Finding, NodeView, Severity, ask_driver, examine_node};
use serde_json::Value;

/// The header of the table of set-ups.
const SETUPS: &str = "| Set-up of a node |";

/// A node whose cache and kubelet are in `scratch`, both as they should be.
fn node(scratch: &Path) -> NodeView {
    let kubelet_dir = scratch.join("kubelet");
    for name in ["pods", "plugins_registry", "plugins/oci-model-csi.dev"] {
        fs::create_dir_all(kubelet_dir.join(name)).unwrap();
    }
    NodeView {
        cache_dir: scratch.join("cache"),
        require_mount: false,
        limits: Ok(CacheLimits { min_free: MIB, min_free_inodes: 0, max_size: None }),
        kubelet_dir,
        driver_name: "oci-model-csi.dev".to_owned(),
        csi_socket: None,
        admin_socket: Some(scratch.join("cache/admin.sock")),
        may_write: true,
    }
}

fn view_of(setup: &Setup) -> NodeView {
    let node = node(&setup.scratch);
    let registry = node.kubelet_dir.join("plugins_registry");
    fs::write(registry.join("oci-model-csi.dev-reg.sock"), "").unwrap();
    NodeView { csi_socket: Some(setup.socket.clone()), ..node }
}

/// The worst finding of a check.
#[track_caller]
fn worst(found: &[Finding], check: CheckId) -> &Finding {
    let of_check = found.iter().filter(|one| one.check == check);
    of_check.max_by_key(|one| one.severity).unwrap_or_else(|| panic!("no {check:?}: {found:#?}"))
}

/// The check has no worse finding than that all is well, and one with all these parts.
#[track_caller]
fn assert_fine(found: &[Finding], check: CheckId, parts: &[&str]) {
    let one = worst(found, check);
    assert_eq!(one.severity, Severity::Fine, "{one:#?}");
    for part in parts {
        assert!(one.what.contains(part), "{part:?} is not in {one:#?}");
    }
}

/// There is what docs/doctor.md says of this set-up; `…` marks what depends on the place.
#[track_caller]
fn assert_says(found: &[Finding], setup: &str) {
    let rows = table("docs/doctor.md", SETUPS);
    let row = rows.iter().find(|row| row[0] == setup);
    let row = row.unwrap_or_else(|| panic!("docs/doctor.md has no set-up {setup:?}"));
    let (check, severity, says) = (row[1].trim_matches('`'), &row[2], row[3].trim_matches('`'));
    let line = |one: &Finding| match &one.fix {
        Some(fix) => format!("{}; fix: {fix}", one.what),
        None => one.what.clone(),
    };
    let is_it = |one: &&Finding| {
        let named = one.check.name() == check && one.severity.name() == severity;
        named && has_in_order(&line(one), says)
    };
    let one = found.iter().find(is_it);
    let one = one.unwrap_or_else(|| panic!("no {severity} of {check}, {says:?}, in {found:#?}"));
    figure(format_args!("{setup}: {check}: {severity}: {}", line(one)));
    assert!(one.fix.is_some() && !line(one).contains('\n'), "{one:#?}");
}

fn has_in_order(line: &str, says: &str) -> bool {
    let mut rest = line;
    says.split('…').map(str::trim).all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

#[test]
fn each_set_up_of_a_node_in_the_document_is_made_here() {
    let documented: Vec<String> =
        table("docs/doctor.md", SETUPS).into_iter().map(|row| row[0].clone()).collect();
    let text = read("tests/it/doctor_node.rs");
    let untested: Vec<_> =
        documented.iter().filter(|setup| !text.contains(&format!("{setup:?}"))).collect();
    assert!(untested.is_empty(), "{untested:?}");
    assert!(documented.len() >= 20, "{} set-ups", documented.len());
}

fn bind(source: &Path, target: &Path) {
    fs::create_dir_all(target).unwrap();
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

fn set_propagation(target: &Path, flags: MsFlags) {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>).unwrap();
}

#[test]
fn mounts_that_would_never_reach_pods_are_a_fault_until_they_are_shared() {
    end_to_end(async |scratch| {
        let node = node(scratch);
        let pods = node.kubelet_dir.join("pods");
        bind(&pods, &pods);
        assert_says(&examine_node(&node), "kubelet's pods on a private mount");
        set_propagation(&pods, MsFlags::MS_SHARED);
        assert_fine(&examine_node(&node), CheckId::Propagation, &[pods.to_str().unwrap()]);
        // As HostToContainer has it: a peer that only receives.
        let elsewhere = scratch.join("elsewhere");
        bind(&pods, &elsewhere);
        set_propagation(&pods, MsFlags::MS_SLAVE);
        assert_says(&examine_node(&node), "kubelet's pods with `HostToContainer`");
    });
}

#[test]
fn a_cache_in_memory_or_on_a_read_only_disk_is_named() {
    end_to_end(async |scratch| {
        let node = node(scratch);
        fs::create_dir(&node.cache_dir).unwrap();
        mount_tmpfs(&node.cache_dir, MsFlags::empty(), "64m");
        let found = examine_node(&node);
        assert_says(&found, "a cache on tmpfs");
        assert_says(&found, "a disk with little room");
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        set_propagation(&node.cache_dir, flags);
        let found = examine_node(&node);
        assert_says(&found, "a disk that is mounted read-only");
        let refused = worst(&found, CheckId::FileSystem);
        assert!(refused.what.starts_with("no file can be written to"), "{refused:?}");
    });
}

#[test]
fn a_disk_of_its_own_is_fine_on_each_file_system_and_nothing_stays_on_it() {
    end_to_end(async |scratch| {
        for (kind, size) in [("ext4", 64), ("xfs", 320), ("btrfs", 256)] {
            let directory = scratch.join(kind);
            fs::create_dir(&directory).unwrap();
            let node = NodeView { require_mount: true, ..node(&directory) };
            let disk = Disk::formatted(kind, &directory, size * MIB);
            fs::create_dir(&node.cache_dir).unwrap();
            assert_says(&examine_node(&node), "`requireMount` without the disk");

            bind(&disk.path, &node.cache_dir);
            let before = fs::read_dir(&disk.path).unwrap().count();
            let found = examine_node(&node);
            assert_fine(&found, CheckId::CacheDirectory, &["can become a cache"]);
            let device = disk.device();
            let device = device.to_str().unwrap();
            assert_fine(&found, CheckId::CacheDisk, &[kind, device, "loop device"]);
            let reflinks = worst(&found, CheckId::FileSystem).what.contains("without reflinks");
            assert_eq!(reflinks, kind == "ext4", "{found:#?}");
            assert_fine(&found, CheckId::FileSystem, &["hard links", kind]);
            assert_eq!(fs::read_dir(&disk.path).unwrap().count(), before);
        }
    });
}

#[test]
fn a_disk_without_room_or_inodes_is_a_fault_before_any_model() {
    end_to_end(async |scratch| {
        let node = node(scratch);
        let disk = Disk::ext4(scratch, 64 * MIB, &["-N", "128"]);
        fs::create_dir(&node.cache_dir).unwrap();
        bind(&disk.path, &node.cache_dir);
        assert_says(&examine_node(&node), "a disk with few inodes");
        for n in 0.. {
            if fs::write(disk.path.join(n.to_string()), "").is_err() {
                break;
            }
        }
        assert_says(&examine_node(&node), "a disk without inodes");
        for entry in fs::read_dir(&disk.path).unwrap().flatten() {
            let _ = fs::remove_file(entry.path());
        }
        disk.fill_but("images", MIB / 2);
        // A file that is not the cache's would be refused before anything else.
        fs::rename(disk.path.join("images"), disk.path.join("lost+found/images")).unwrap();
        assert_says(&examine_node(&node), "a disk that other files fill");
    });
}

#[test]
fn a_cache_on_kubelets_disk_is_a_warning_with_kubelets_threshold() {
    end_to_end(async |scratch| {
        let disk = Disk::ext4(scratch, 256 * MIB, &[]);
        let node = node(&disk.path);
        let found = examine_node(&node);
        assert_says(&found, "a cache on kubelet's disk");
        assert_says(&found, "`minFree` below kubelet's threshold");
    });
}

#[test]
fn a_file_system_without_hard_links_is_a_fault_and_stays_empty() {
    end_to_end(async |scratch| {
        let node = node(scratch);
        fuse::without_hard_links(&node.cache_dir);
        let found = examine_node(&node);
        assert_says(&found, "a file system without hard links");
        assert_says(&found, "a cache on FUSE");
        assert_eq!(fs::read_dir(&node.cache_dir).unwrap().count(), 0);
    });
}

#[test]
fn directories_that_a_driver_would_refuse_have_its_message() {
    end_to_end(async |scratch| {
        let node = node(scratch);
        let dir = &node.cache_dir;
        let says = |setup: &str| assert_says(&examine_node(&node), setup);
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("backup.tar"), "x").unwrap();
        says("files of another program in the directory");
        fs::remove_file(dir.join("backup.tar")).unwrap();
        fs::write(dir.join("VERSION"), "oci-model-csi cache 99\n").unwrap();
        says("a cache of a newer version");
        fs::remove_file(dir.join("VERSION")).unwrap();
        fs::set_permissions(dir, Permissions::from_mode(0o777)).unwrap();
        says("a directory that others may write to");
        fs::remove_dir(dir).unwrap();
        symlink(scratch, dir).unwrap();
        says("a symbolic link as the cache");
        fs::remove_file(dir).unwrap();
        assert_fine(&examine_node(&node), CheckId::CacheDirectory, &["the driver creates it"]);
        assert!(!dir.exists(), "and doctor does not");
        fs::write(dir, "x").unwrap();
        let below = NodeView { cache_dir: dir.join("models"), ..node };
        assert_says(&examine_node(&below), "a file above the directory of the cache");
    });
}

#[test]
fn a_directory_that_is_not_kubelets_is_a_fault() {
    end_to_end(async |scratch| {
        let node = node(scratch);
        fs::remove_dir(node.kubelet_dir.join("pods")).unwrap();
        assert_says(&examine_node(&node), "a directory that is not kubelet's");
    });
}

#[test]
fn a_node_without_a_driver_is_a_warning_and_a_laptop_is_not() {
    end_to_end(async |scratch| {
        let node = node(scratch);
        assert_says(&ask_driver(&node).await, "a node without a driver");
        let laptop = NodeView { kubelet_dir: scratch.join("nowhere"), ..node };
        assert_eq!(ask_driver(&laptop).await, []);
        assert_eq!(examine_node(&laptop).len(), 1, "{:#?}", examine_node(&laptop));
    });
}

#[test]
fn failed_calls_are_shown_with_their_message_until_they_succeed_and_never_on_the_metrics_port() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let view = view_of(&driver.setup);
        let found = ask_driver(&view).await;
        assert_fine(&found, CheckId::Driver, &["runs for"]);
        assert_fine(&found, CheckId::Failures, &["no call failed"]);
        assert!(!worst(&found, CheckId::Registration).what.contains("kubelet"), "{found:#?}");

        let typo = [("bucket", BUCKET), ("prefix", "models/phi3-mimi/")];
        let volume = driver.kubelet().inline("1", &typo);
        for _ in 0..3 {
            volume.refused().await;
        }
        assert_says(&ask_driver(&view).await, "a volume with a misspelt prefix");
        assert!(!driver.metrics().await.contains("phi3-mimi"));
        assert_eq!(driver.post_to_metrics("/status", "").await, 404);

        // The same volume, once the prefix is there.
        store.put(BUCKET, "models/phi3-mimi/config.json", b"{}").unwrap();
        volume.mount().await;
        let mended = ask_driver(&view).await;
        assert_fine(&mended, CheckId::Failures, &["succeeded later"]);
        assert_fine(&mended, CheckId::Registration, &["and kubelet calls it"]);
        volume.unpublish().await.unwrap();
    });
}

#[test]
fn the_status_of_a_driver_says_what_kubelet_asked_and_what_failed() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let admin = driver.setup.cache.join("admin.sock");
        let status = || {
            let mut curl = Command::new("curl");
            curl.args(["-sS", "--unix-socket"]).arg(&admin).arg("http://localhost/status");
            let answer = curl.output().expect("curl");
            serde_json::from_slice::<Value>(&answer.stdout).expect("JSON")
        };
        assert_eq!(status()["kubeletCalled"], Value::Null);
        register(&driver.setup.socket).await;
        let now = status();
        assert!(now["kubeletCalled"].as_u64() >= now["started"].as_u64(), "{now}");
        assert_eq!((&now["ready"], &now["failures"]), (&Value::Bool(true), &Value::Array(vec![])));
        let volume = driver.kubelet().inline("1", &[("bucket", "nowhere"), PHI3[1]]);
        volume.refused().await;
        let failures = status()["failures"].clone();
        let one = &failures[0];
        assert_eq!((&one["method"], &one["count"]), (&"NodePublishVolume".into(), &1.into()));
        assert_eq!(one["volume"].as_str(), Some(&*volume.id), "{failures}");
        assert_eq!(one["pod"], format!("{}/{}", volume.namespace, volume.pod), "{failures}");
    });
}

/// Whether the kernel has stopped each thread of a process, as it does one after the other.
fn has_stopped(pid: &str) -> bool {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| {
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
    })
}

#[test]
fn drivers_that_hang_end_or_have_another_name_are_faults() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let view = view_of(&driver.setup);
        let other = NodeView { driver_name: "models.example.com".to_owned(), ..view.clone() };
        let registry = view.kubelet_dir.join("plugins_registry");
        fs::write(registry.join("models.example.com-reg.sock"), "").unwrap();
        assert_says(&ask_driver(&other).await, "a driver of another name at the socket");

        fs::remove_file(registry.join("oci-model-csi.dev-reg.sock")).unwrap();
        assert_says(&ask_driver(&view).await, "no registrar");

        let pid = driver.pid().to_string();
        run(Command::new("kill").args(["-STOP", &pid]));
        eventually("all threads of the driver stop", Duration::from_secs(20), async || {
            has_stopped(&pid).then_some(())
        })
        .await;
        let hung = ask_driver(&view).await;
        assert_says(&hung, "a driver that hangs");
        assert!(hung.iter().any(|one| one.what.contains("no answer within 5 s")), "{hung:#?}");
        run(Command::new("kill").args(["-CONT", &pid]));

        driver.kill().await;
        let ended = ask_driver(&view).await;
        assert_says(&ended, "a node without a driver");
        assert_says(&ended, "a driver that was killed");
    });
}
