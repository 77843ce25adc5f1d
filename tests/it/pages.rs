//! The driver's own memory, and the page cache, in which models stay.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::driver::{Driver, Setup, memory_of};
use crate::support::kubelet::Volume;
use crate::support::models::{MIB, PHI3, content_of, store_with_phi3};
use crate::support::run::{end_to_end, end_to_end_within, eventually, figure};
use localstore::{LocalStore, PutOptions, Source};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// What downloads may need at 16 requests, the default.
const MOST: u64 = 64;

/// For states that are reached soon.
const BOUND: Duration = Duration::from_secs(60);

/// For a download of 8 GiB with a development build.
const PATIENCE: Duration = Duration::from_secs(300);

const WEIGHTS: [(&str, &str); 2] = [("bucket", "b"), ("prefix", "m/")];

/// Bytes of a file that are in the page cache.
fn resident(file: &Path) -> u64 {
    let mut fincore = Command::new("fincore");
    fincore.args(["--bytes", "--noheadings", "--output", "RES"]).arg(file);
    let output = fincore.output().expect("fincore of util-linux");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// Removes most of a file from the page cache, once it is on the disk. Pages that the kernel
/// has in hand just now stay.
async fn leave_the_page_cache(path: &Path) {
    let file = fs::File::open(path).unwrap();
    eventually("the file has left the page cache", BOUND, async || {
        file.sync_all().unwrap();
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        (resident(path) < file.metadata().unwrap().len() / 4).then_some(())
    })
    .await;
}

/// The peak of the driver's resident memory in MiB.
fn peak(driver: &Driver) -> u64 {
    memory_of(driver.pid(), "VmHWM") / MIB
}

#[test]
fn a_driver_under_its_heap_limit_publishes() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut setup = Setup::new(scratch, &store);
        setup.arguments = vec!["--heap-limit".to_owned(), "256MiB".to_owned()];
        let driver = setup.start().await;
        let limits = fs::read_to_string(format!("/proc/{}/limits", driver.pid())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max data size")).unwrap();
        assert_eq!(line.split_whitespace().nth(3), Some((256 * MIB).to_string().as_str()));
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        assert_eq!(content_of(&volume.target()).len(), 4);
    });
}

#[test]
fn a_download_needs_its_buffers_only_and_leaves_the_model_in_memory() {
    // The larger one takes a minute, and the disk.
    let large = std::env::var_os("OCI_MODEL_CSI_TEST_LARGE").is_some();
    let sizes = if large { vec![1024 * MIB, 8192 * MIB] } else { vec![1024 * MIB] };
    end_to_end_within(PATIENCE, async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        // Each connection has a buffer, and how many `auto` opens depends on the machine's load.
        let config = "download: {concurrency: 16}\n";
        let driver = Setup::new(scratch, &store).with_config(config).start().await;
        for size in sizes {
            for crc32c in [true, false] {
                let prefix = format!("{size}-{crc32c}/");
                let options =
                    PutOptions { crc32c, part_size: Some(128 * MIB), ..PutOptions::default() };
                let source = Source::Synthetic { size, seed: 1 };
                store.put_with("b", &format!("{prefix}weights.bin"), source, options).unwrap();
                let attributes = [("bucket", "b"), ("prefix", prefix.as_str())];
                let volume = driver.kubelet().inline(&prefix.replace('/', ""), &attributes);
                volume.publish().await.unwrap();
                let there = resident(&volume.target().join("weights.bin"));
                let check = if crc32c { "CRC-32C" } else { "MD5s of parts" };
                figure(format_args!(
                    "{} MiB with {check}: peak memory {} MiB, {there} bytes in the page cache",
                    size / MIB,
                    peak(&driver)
                ));
                assert!(peak(&driver) <= MOST, "{} MiB", peak(&driver));
                assert!(there >= size / 100 * 95, "{there} of {size} bytes");
                volume.unpublish().await.unwrap();
            }
        }
        let by_md5 = driver.metric("verify_total{check=\"multipart_md5\",result=\"passed\"}").await;
        assert_eq!(by_md5, u64::from(large) + 1);
    });
}

#[test]
fn a_hit_reads_the_model_ahead_from_the_disk_if_that_is_configured() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let size = 40 * MIB + 5;
        let source = Source::Synthetic { size, seed: 1 };
        store.put_with("b", "m/weights.bin", source, PutOptions::default()).unwrap();
        for (config, warms) in [("", false), ("cache: {warmPageCache: onHit, minFree: 1MiB}", true)]
        {
            let driver = Setup::new(scratch, &store).with_config(config).start().await;
            let volume = driver.kubelet().inline(&format!("first-{warms}"), &WEIGHTS);
            volume.publish().await.unwrap();
            let path = volume.target().join("weights.bin");
            // The second driver finds the first one's model: its first publish is a hit, too.
            let reads = async |times| {
                eventually("the driver reports what it read ahead", BOUND, async || {
                    let log = driver.log();
                    let lines = log.lines().filter(|line| line.contains("read ahead into"));
                    let whole = format!("bytes={size} complete=true");
                    (lines.filter(|line| line.contains(&whole)).count() == times).then_some(())
                })
                .await;
            };
            if warms {
                reads(1).await;
            }
            leave_the_page_cache(&path).await;
            let again = driver.kubelet().inline(&format!("second-{warms}"), &WEIGHTS);
            again.publish().await.unwrap();
            if warms {
                reads(2).await;
                assert!(resident(&path) >= size, "{} bytes", resident(&path));
            } else {
                assert!(resident(&path) < size);
                assert!(!driver.log().contains("read ahead"), "{}", driver.log());
            }
            volume.unpublish().await.unwrap();
            again.unpublish().await.unwrap();
        }
    });
}

/// What the driver reads as the memory of the machine: one eighth is the reserve, and above it so
/// many bytes are available.
fn meminfo(above_the_reserve: u64) -> String {
    let (total, reserve) = (1024 * MIB, 128 * MIB);
    let available = reserve + above_the_reserve;
    format!("MemTotal: {} kB\nMemAvailable: {} kB\n", total >> 10, available >> 10)
}

/// Lets the drivers of this test read another file as /proc/meminfo.
fn replace_meminfo(path: &Path) {
    let nothing: Option<&str> = None;
    mount(Some(path), "/proc/meminfo", nothing, MsFlags::MS_BIND, nothing).expect("a bind mount");
}

/// A driver that reads ahead, and a cached model of one file that a pod uses.
async fn warming(scratch: &Path, store: &LocalStore, size: u64) -> (Driver, Volume) {
    let source = Source::Synthetic { size, seed: 1 };
    store.put_with("b", "m/weights.bin", source, PutOptions::default()).unwrap();
    let config = "cache: {warmPageCache: onHit, minFree: 1MiB}";
    let driver = Setup::new(scratch, store).with_config(config).start().await;
    let volume = driver.kubelet().inline("first", &WEIGHTS);
    volume.publish().await.unwrap();
    (driver, volume)
}

#[test]
fn reading_ahead_ends_where_memory_is_short_and_the_pod_starts() {
    end_to_end(async |scratch| {
        let (store, size) = (LocalStore::builder().start().unwrap(), 40 * MIB);
        let file = scratch.join("meminfo");
        fs::write(&file, meminfo(16 * MIB + MIB / 2)).unwrap();
        replace_meminfo(&file);
        let (driver, _first) = warming(scratch, &store, size).await;
        for (pod, room) in [("some", 16 * MIB), ("none", 0)] {
            driver.kubelet().inline(pod, &WEIGHTS).publish().await.unwrap();
            let ended = format!("bytes={room} complete=false");
            eventually("reading ahead has ended", BOUND, async || {
                driver.log().contains(&ended).then_some(())
            })
            .await;
            fs::write(&file, meminfo(0)).unwrap();
        }
        assert!(!driver.log().contains("complete=true"), "{}", driver.log());
    });
}

#[test]
fn no_publish_waits_for_reading_ahead_which_ends_with_the_last_pod() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        // Who reads the memory waits until the test writes it.
        let pipe = scratch.join("meminfo");
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        replace_meminfo(&pipe);
        let (driver, first) = warming(scratch, &store, 40 * MIB).await;
        let second = driver.kubelet().inline("second", &WEIGHTS);
        second.publish().await.unwrap();
        assert!(!driver.log().contains("read ahead"), "{}", driver.log());
        first.unpublish().await.unwrap();
        second.unpublish().await.unwrap();
        eventually("reading ahead has ended", BOUND, async || {
            let mut options = fs::File::options();
            options.write(true).custom_flags(libc::O_NONBLOCK);
            // Without a reader there is nothing to open.
            if let Ok(mut reader) = options.open(&pipe) {
                reader.write_all(meminfo(512 * MIB).as_bytes()).unwrap();
            }
            driver.log().contains("bytes=0 complete=false").then_some(())
        })
        .await;
    });
}
