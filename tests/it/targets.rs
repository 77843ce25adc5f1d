//! Foreign mounts and files at a target, before a call or during it: they are
//! named in the message, and they stay.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::Volume;
use crate::support::models::{PHI3, content_of, mounts_at, store_with_phi3};
use crate::support::namespace::mount_tmpfs;
use crate::support::run::{end_to_end, figure};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tonic::Code;

/// Publishes and unpublishes of the attacker's own pod.
const ROUNDS: usize = 300;

fn bind(source: &Path, target: &Path) {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

fn umount(target: &Path) {
    umount2(target, MntFlags::UMOUNT_NOFOLLOW).unwrap();
}

/// An unpublish that must fail: its code and message.
async fn refused(volume: &Volume) -> (Code, String) {
    let status = volume.unpublish_only().await.expect_err("it was unpublished");
    (status.code(), status.message().to_owned())
}

/// The volume in the directory that it was published in, whatever that is called by now.
struct Held {
    directory: File,
    mount: u64,
}

impl Held {
    fn new(volume: &Volume) -> Self {
        let directory = File::open(volume.target().parent().unwrap()).unwrap();
        let mut held = Self { directory, mount: 0 };
        held.mount = held.mounted();
        held
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}/mount", self.directory.as_raw_fd()).into()
    }

    /// The id of the mount that is there.
    fn mounted(&self) -> u64 {
        let file = File::open(self.path()).expect("its directory is there");
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap();
        info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()).unwrap()
    }

    #[track_caller]
    fn assert_mounted(&self) {
        assert_eq!(self.mounted(), self.mount, "another pod's volume was unmounted");
        assert!(self.path().join("config.json").is_file());
    }
}

/// Swaps two names until it is dropped.
struct Exchanging {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<usize>>,
}

impl Exchanging {
    fn start(one: PathBuf, other: PathBuf) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut exchanged = 0;
            // An even number, so that all is as it was at the end.
            while !ends.load(Ordering::Relaxed) || exchanged % 2 == 1 {
                let flags = RenameFlags::RENAME_EXCHANGE;
                renameat2(AT_FDCWD, &one, AT_FDCWD, &other, flags).expect("an exchange");
                exchanged += 1;
            }
            exchanged
        });
        Self { over, thread: Some(thread) }
    }

    fn end(mut self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

#[test]
fn names_that_are_swapped_in_a_loop_never_lead_to_another_pods_volume() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let pods = scratch.join("kubelet/pods");
        let volumes = |uid: &str| pods.join(uid).join("volumes/kubernetes.io~csi/model");
        // The same model, and the directories of the pods and of the volumes.
        for (names, victim, attacker) in [("pods", "1", "2"), ("volumes", "3", "4")] {
            let victim = kubelet.inline(victim, &PHI3);
            let mut attacker = kubelet.inline(attacker, &PHI3);
            victim.publish().await.unwrap();
            attacker.publish().await.unwrap();
            attacker.unpublish_only().await.unwrap();
            attacker.other_target = Some(attacker.target().to_str().unwrap().to_owned());
            let held = Held::new(&victim);
            let (one, other) = match names {
                "pods" => (pods.join(&victim.uid), pods.join(&attacker.uid)),
                _ => (volumes(&victim.uid), volumes(&attacker.uid)),
            };
            let exchanging = Exchanging::start(one, other);
            let (mut published, mut unpublished) = (0, 0);
            for _ in 0..ROUNDS {
                published += usize::from(attacker.publish().await.is_ok());
                held.assert_mounted();
                unpublished += usize::from(attacker.unpublish_only().await.is_ok());
                held.assert_mounted();
            }
            let exchanged = exchanging.end();
            figure(format_args!(
                "{names} exchanged {exchanged} times during {ROUNDS} publishes ({published} OK) and \
                 {ROUNDS} unpublishes ({unpublished} OK) of the attacker's pod: the other pod's \
                 volume is mounted"
            ));
            assert!(exchanged > ROUNDS, "the names were not exchanged often enough");
            assert!(published > 0 && unpublished > 0, "nothing was tried");
            assert_eq!(mounts_at(&victim.target()).len(), 1);
            victim.publish().await.unwrap();
            attacker.unpublish_only().await.unwrap();
            assert_eq!(mounts_at(&attacker.target()), Vec::<String>::new());
            victim.unpublish().await.unwrap();
            assert_eq!(driver.leases(), 0);
        }
    });
}

/// Swaps two mount points, from a mount namespace in which nothing is mounted
/// there: a pod with a hostPath of kubelet's directory may have one.
fn exchange_mount_points(one: PathBuf, other: PathBuf) {
    let exchanging = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        umount(&one);
        umount(&other);
        renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).unwrap();
    });
    exchanging.join().unwrap();
}

#[test]
fn swapped_mount_points_are_distinguished_even_by_a_process_that_did_not_make_them() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let [victim, attacker] = ["1", "2"].map(|uid| kubelet.inline(uid, &PHI3));
        victim.publish().await.unwrap();
        attacker.publish().await.unwrap();
        for restarted in [false, true] {
            if restarted {
                driver.kill().await;
                driver.restart().await;
            }
            exchange_mount_points(victim.target(), attacker.target());
            let (code, message) = refused(&attacker).await;
            assert_eq!(code, Code::Unavailable, "restarted: {restarted}: {message}");
            assert!(message.contains("leads to the volume of another pod"), "{message}");
            assert_eq!(mounts_at(&attacker.target()).len(), 1);
            assert_eq!(driver.leases(), 2);
            exchange_mount_points(victim.target(), attacker.target());
        }
        attacker.unpublish().await.unwrap();
        assert!(victim.target().join("config.json").is_file());
        victim.unpublish().await.unwrap();
        assert_eq!(driver.leases(), 0);
    });
}

#[test]
fn a_volume_whose_directory_was_moved_is_not_forgotten() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        let pod = scratch.join("kubelet/pods").join(&volume.uid);
        let moved = scratch.join("kubelet/pods/moved");
        for restarted in [false, true] {
            if restarted {
                driver.kill().await;
                driver.restart().await;
            }
            fs::rename(&pod, &moved).unwrap();
            let (code, message) = refused(&volume).await;
            assert_eq!(code, Code::Unavailable, "restarted: {restarted}: {message}");
            assert!(message.contains(moved.to_str().unwrap()), "{message}");
            assert_eq!(driver.leases(), 1);
            fs::rename(&moved, &pod).unwrap();
        }
        volume.unpublish().await.unwrap();
        assert_eq!(driver.leases(), 0);
    });
}

#[test]
fn a_regular_file_at_the_target_is_named_and_left() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let mut volume = driver.kubelet().inline("1", &PHI3);
        let target = volume.target();
        volume.other_target = Some(target.to_str().unwrap().to_owned());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(&target, "precious").unwrap();
        let (code, message) = volume.refused().await;
        assert_eq!(code, Code::InvalidArgument, "{message}");
        assert!(message.contains("a regular file") && message.contains("remove it"), "{message}");
        let (code, message) = refused(&volume).await;
        assert_eq!(code, Code::FailedPrecondition, "{message}");
        assert!(message.contains("a regular file") && message.contains("by hand"), "{message}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        assert_eq!(driver.leases(), 0);
        fs::remove_file(&target).unwrap();
        volume.publish().await.unwrap();
        volume.unpublish_only().await.unwrap();
    });
}

#[test]
fn a_mount_on_top_of_a_volume_is_named_and_both_stay() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let mut volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        let (other, target) = (scratch.join("other"), volume.target());
        volume.other_target = Some(target.to_str().unwrap().to_owned());
        fs::create_dir(&other).unwrap();
        bind(&other, &target);
        // A process that did not make the mount knows it too.
        for restarted in [false, true] {
            if restarted {
                driver.kill().await;
                driver.restart().await;
            }
            let (code, message) = refused(&volume).await;
            assert_eq!(code, Code::FailedPrecondition, "{message}");
            assert!(message.contains("on top of the volume"), "{message}");
            let status = volume.publish().await.unwrap_err();
            assert_eq!(status.code(), Code::AlreadyExists, "{status}");
            assert!(status.message().contains("on top of this volume"), "{status}");
            assert_eq!((mounts_at(&target).len(), driver.leases()), (2, 1));
        }
        umount(&target);
        volume.publish().await.unwrap();
        assert!(target.join("config.json").is_file());
        volume.other_target = None;
        volume.unpublish().await.unwrap();
        assert_eq!(driver.leases(), 0);
    });
}

#[test]
fn without_a_lease_only_the_tree_of_a_model_is_unmounted() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let first = driver.kubelet().inline("1", &PHI3);
        first.publish().await.unwrap();
        let volume = driver.kubelet().inline("2", &PHI3);
        let target = volume.target();
        let cache = driver.setup.cache.clone();
        let key = driver.in_cache("models").remove(0);
        let other = scratch.join("other");
        fs::create_dir(&other).unwrap();
        // On the disk of the cache, and even in it: not what this driver mounts.
        for place in [other, cache.join("models"), cache.join("models").join(&key)] {
            fs::create_dir_all(&target).unwrap();
            bind(&place, &target);
            let (code, message) = refused(&volume).await;
            assert_eq!(code, Code::FailedPrecondition, "{message}");
            assert!(message.contains("not this driver's"), "{message}");
            assert_eq!(mounts_at(&target).len(), 1, "{} stays", place.display());
            umount(&target);
        }
        // A mount of ours whose lease was deleted.
        bind(&cache.join("models").join(&key).join("tree"), &target);
        volume.unpublish_only().await.unwrap();
        assert!(!target.exists());

        // Of a lease that is another target's, nothing is taken off either.
        driver.kill().await;
        driver.restart().await;
        assert!(content_of(&first.target()).contains_key("config.json"));
        first.unpublish().await.unwrap();
        assert_eq!(driver.leases(), 0);
    });
}

#[test]
fn a_bind_that_fails_after_its_lease_leaves_neither() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut setup = Setup::new(scratch, &store);
        setup.cache = scratch.join("disk/cache");
        let disk = scratch.join("disk");
        fs::create_dir(&disk).unwrap();
        mount_tmpfs(&disk, MsFlags::empty(), "64m");
        let propagation = |flags| mount(None::<&str>, &disk, None::<&str>, flags, None::<&str>);
        // Everything works up to the lease, and the kernel refuses to bind what is on it.
        propagation(MsFlags::MS_UNBINDABLE).unwrap();
        let driver = setup.start().await;
        let volume = driver.kubelet().inline("1", &PHI3);
        let (code, message) = volume.refused().await;
        assert_eq!(code, Code::Internal, "{message}");
        assert!(message.contains("binding") && message.contains("read-only"), "{message}");
        assert_eq!(driver.leases(), 0, "a lease is left");
        assert_eq!(driver.metric("leases").await, 0);
        assert!(!volume.target().exists(), "the target is left");

        propagation(MsFlags::MS_PRIVATE).unwrap();
        volume.publish().await.unwrap();
        assert_eq!(driver.leases(), 1);
        volume.unpublish().await.unwrap();
    });
}
