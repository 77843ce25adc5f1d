//! Content that the disk has damaged: found, quarantined, reported and repaired.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::api_server::ApiServer;
use crate::support::commands::Commands;
use crate::support::disk::{Disk, run};
use crate::support::driver::{Driver, Setup};
use crate::support::models::{
    BUCKET, MIB, PHI3, PREFIX, assert_synthetic, content_of, put, store_with_phi3,
};
use crate::support::run::{end_to_end, end_to_end_within, eventually, figure};
use localstore::{LocalStore, PutOptions, Source};
use nix::libc;

/// The blob behind a file that a pod sees.
fn blob_of(driver: &Driver, seen: &Path) -> PathBuf {
    let inode = fs::metadata(seen).unwrap().ino();
    let blobs = driver.setup.cache.join("blobs");
    let fans = fs::read_dir(blobs).unwrap().map(|fan| fan.unwrap().path());
    let mut files = fans.flat_map(|fan| fs::read_dir(fan).unwrap());
    files
        .find(|file| file.as_ref().unwrap().metadata().unwrap().ino() == inode)
        .unwrap()
        .unwrap()
        .path()
}

/// Damages the file as a failing disk would, unseen by the driver.
fn flip_a_bit(blob: &Path) {
    fs::set_permissions(blob, fs::Permissions::from_mode(0o644)).unwrap();
    let file = File::options().read(true).write(true).open(blob).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, MIB).unwrap();
    file.write_all_at(&[byte[0] ^ 1], MIB).unwrap();
    file.sync_all().unwrap();
    fs::set_permissions(blob, fs::Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn a_damaged_blob_is_found_reported_to_its_pods_and_downloaded_again() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        put(&store, "model-2.bin", vec![7; 2_000_000]);
        let api = ApiServer::start().await;
        let account = scratch.join("account");
        fs::create_dir(&account).unwrap();
        fs::write(account.join("token"), "a-token").unwrap();
        let mut setup = Setup::new(scratch, &store);
        let account = account.to_str().unwrap();
        let events = ["--kubernetes-api", &*api.url, "--service-account-dir", account];
        setup.arguments.extend(events.map(str::to_owned));
        let driver = setup.start().await;
        let kubelet = driver.kubelet();
        let (shows, other) = (kubelet.inline("1", &PHI3), kubelet.inline("2", &PHI3));
        shows.publish().await.unwrap();
        let good = content_of(&shows.target());
        let commands = Commands::of(&driver.setup);
        assert_eq!(commands.run(&["verify"]).await.code, 0);

        flip_a_bit(&blob_of(&driver, &shows.target().join("model.safetensors")));
        let verified = commands.run(&["verify"]).await;
        figure(format_args!("cache verify: {}", verified.stdout.trim()));
        assert_eq!(verified.code, 5, "{}{}", verified.stdout, verified.stderr);
        assert!(verified.stdout.contains("model.safetensors"), "{}", verified.stdout);
        assert_eq!(driver.metric("cache_damaged_total").await, 1);
        assert!(driver.log().contains("damaged content in the cache was quarantined"));
        let condition = shows.stats().await.unwrap().volume_condition.unwrap();
        assert!(condition.abnormal && condition.message.contains("model.safetensors"));
        let message = eventually("an event", Duration::from_secs(10), async || {
            api.message_of("ModelDamaged")
        })
        .await;
        figure(format_args!("event ModelDamaged: {message}"));
        assert!(message.contains("restart the pod"), "{message}");

        store.reset_stats();
        other.publish().await.unwrap();
        assert!(content_of(&other.target()) == good, "damaged bytes were served");
        let size = u64::try_from(good["model.safetensors"].as_ref().unwrap().len()).unwrap();
        assert_eq!(store.stats().body_bytes, size, "the damaged object alone");
        assert!(!other.stats().await.unwrap().volume_condition.unwrap().abnormal);

        // A quarantined file stays as long as a pod shows it, and no longer.
        commands.text(&["gc", "--all"]).await;
        assert!(shows.target().join("model.safetensors").exists());
        shows.unpublish().await.unwrap();
        commands.text(&["gc", "--all"]).await;
        assert_eq!(driver.in_cache("quarantine"), Vec::<String>::new());
        assert!(content_of(&other.target()) == good);
    });
}

#[test]
fn a_truncated_blob_is_reported_by_the_publish_that_notices_it() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let first = driver.kubelet().inline("1", &PHI3);
        first.publish().await.unwrap();
        let good = content_of(&first.target());
        let models = driver.setup.cache.join("models");
        let durable = models.join(&driver.in_cache("models")[0]).join("durable");
        eventually("it is on the disk", Duration::from_secs(30), async || {
            durable.exists().then_some(())
        })
        .await;
        let blob = blob_of(&driver, &first.target().join("model.safetensors"));
        driver.kill().await;
        fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
        File::options().write(true).open(&blob).unwrap().set_len(MIB).unwrap();
        driver.restart().await;
        assert!(!first.stats().await.unwrap().volume_condition.unwrap().abnormal);
        let second = driver.kubelet().inline("2", &PHI3);
        second.publish().await.unwrap();
        assert!(content_of(&second.target()) == good, "damaged bytes were served");
        assert_eq!(driver.metric("cache_damaged_total").await, 1);
        assert!(driver.log().contains("damaged content in the cache was quarantined"));
        let condition = first.stats().await.unwrap().volume_condition.unwrap();
        assert!(condition.abnormal && condition.message.contains("model.safetensors"));
        assert!(!second.stats().await.unwrap().volume_condition.unwrap().abnormal);
    });
}

#[test]
fn damage_is_found_without_a_driver_too() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        let blob = blob_of(&driver, &volume.target().join("model.safetensors"));
        driver.kill().await;
        flip_a_bit(&blob);
        let commands = Commands::of(&driver.setup);
        assert_eq!(commands.run(&["verify"]).await.code, 5);
        driver.restart().await;
        let condition = volume.stats().await.unwrap().volume_condition.unwrap();
        assert!(condition.abnormal, "the mark outlives processes: {condition:?}");
    });
}

#[test]
fn a_driver_that_scrubs_finds_and_repairs_damage_without_a_command() {
    end_to_end_within(Duration::from_secs(240), async |scratch| {
        let store = store_with_phi3();
        let config = "cache: {minFree: 1MiB, minFreeInodes: 0%, scrubInterval: 1m}\n";
        let driver = Setup::new(scratch, &store).with_config(config).start().await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        let seen = volume.target().join("model.safetensors");
        let blob = blob_of(&driver, &seen);
        volume.unpublish().await.unwrap();
        flip_a_bit(&blob);
        eventually("it is mended", Duration::from_secs(150), async || {
            driver.log().contains("repaired").then_some(())
        })
        .await;
        assert_eq!(driver.metric("cache_damaged_total").await, 1);
        store.reset_stats();
        let again = driver.kubelet().inline("2", &PHI3);
        again.publish().await.unwrap();
        assert_eq!(store.stats().body_bytes, 0, "{PREFIX} is in the cache again");
    });
}

/// Makes the file system of `disk` find the inode of a file broken from now on.
fn break_inode(disk: &Disk, image: &Path, path: &Path) {
    let inode = fs::metadata(path).unwrap().ino();
    run(Command::new("umount").arg(&disk.path));
    let asked = format!("imap <{inode}>");
    let asked = Command::new("debugfs").args(["-R", &asked]).arg(image).output().unwrap();
    let said = String::from_utf8(asked.stdout).unwrap();
    let (block, offset) =
        said.split_once("at block ").unwrap().1.split_once(", offset 0x").unwrap();
    let place =
        block.parse::<u64>().unwrap() * BLOCK + u64::from_str_radix(offset.trim(), 16).unwrap();
    // Changes the time of its last use, so that the inode's checksum is wrong.
    let file = File::options().write(true).open(image).unwrap();
    file.write_all_at(&[0xff], place + 8).unwrap();
    run(Command::new("mount").args(["-o", "loop"]).args([image, &disk.path]));
    let error = fs::read(path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADMSG), "{error}");
}

const BLOCK: u64 = 4096;

#[test]
fn a_file_that_the_disk_cannot_remove_does_not_stop_other_evictions() {
    end_to_end(async |scratch| {
        let disk = Disk::ext4(scratch, 100 * MIB, &["-b", &BLOCK.to_string()]);
        let store = LocalStore::builder().start().unwrap();
        let config = "cache: {minFree: 1MiB, minFreeInodes: 0%, maxSize: 50MiB}\n";
        let mut setup = Setup::new(scratch, &store).with_config(config);
        setup.cache = disk.path.join("cache");
        let mut driver = setup.start().await;
        let kubelet = driver.kubelet();
        let pod = |model: &'static str, seed: u64| {
            let prefix = format!("models/{model}/");
            let source = Source::Synthetic { size: 20 * MIB, seed };
            let name = format!("{prefix}weights");
            store.put_with(BUCKET, &name, source, PutOptions::default()).unwrap();
            kubelet.inline(model, &[("bucket", BUCKET), ("prefix", &prefix)])
        };
        for volume in [pod("1", 1), pod("2", 2)] {
            volume.publish().await.unwrap();
            volume.unpublish().await.unwrap();
        }
        driver.kill().await;
        let key = driver.in_cache("models").remove(0);
        let model = driver.setup.cache.join("models").join(key);
        for name in ["summary.json", "manifest.json"] {
            break_inode(&disk, &scratch.join("disk.img"), &model.join(name));
        }
        driver.restart().await;
        let volume = pod("3", 3);
        volume.publish().await.unwrap();
        assert_synthetic(&volume.target().join("weights"), 3, 20 * MIB);
        assert!(driver.log().contains("an entry of the cache cannot be read; check the disk"));
    });
}
