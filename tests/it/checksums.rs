//! What proves that a pod's bytes are the object's: each kind of checksum that
//! Object Storage gives, against damage on the way, in the bucket and on the disk.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::api_server::ApiServer;
use crate::support::commands::Commands;
use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::Volume;
use crate::support::models::{BUCKET, MIB, PHI3, assert_synthetic, mounts_at, put_large};
use crate::support::run::{end_to_end, end_to_end_within, eventually, figure};
use futures_util::future::join_all;
use localstore::{Action, LocalStore, Operation, PutOptions, Rule, Source, synthetic_bytes};
use tonic::Code;

const FILE: &str = "model.safetensors";

fn on_get(action: Action) -> Rule {
    Rule::new(action).operation(Operation::Get)
}

fn in_parts(part_size: u64) -> PutOptions {
    PutOptions { part_size: Some(part_size), ..PutOptions::default() }
}

fn with_crc32c() -> PutOptions {
    PutOptions { crc32c: true, ..PutOptions::default() }
}

async fn passed(driver: &Driver, check: &str) -> u64 {
    driver.metric(&format!("verify_total{{check=\"{check}\",result=\"passed\"}}")).await
}

#[test]
fn an_object_with_only_a_multipart_md5_that_is_damaged_every_time_is_data_loss_until_it_is_uploaded_again()
 {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let size = 20 * MIB;
        put_large(&store, FILE, size, 1, in_parts(8 * MIB));
        let driver = Driver::start(scratch, &store).await;
        store.faults().add(on_get(Action::FlipByte { offset: 9 * MIB }));
        let volume = driver.kubelet().inline("1", &PHI3);
        let (code, message) = volume.refused().await;
        assert_eq!(code, Code::DataLoss, "{message}");
        assert!(message.contains(FILE) && message.contains("2 times in a row"), "{message}");
        assert!(message.contains("--opc-checksum-algorithm CRC32C"), "{message}");
        assert_eq!((driver.leases(), mounts_at(&volume.target()).len()), (0, 0));
        assert!(driver.in_cache("blobs").is_empty(), "a damaged blob was committed");
        let downloaded = store.stats().body_bytes;
        assert_eq!(downloaded, 2 * size, "a third download would prove no more");
        figure(format_args!(
            "20 MiB in 3 parts of 8 MiB, one bit flipped on every answer: {code:?}, {} passed as \
             size_etag",
            passed(&driver, "size_etag").await
        ));
        // The remedy, as it is printed.
        store.faults().clear();
        put_large(&store, FILE, size, 1, with_crc32c());
        volume.mount().await;
        assert_synthetic(&volume.target().join(FILE), 1, size);
        assert_eq!(passed(&driver, "crc32c").await, 1);
    });
}

#[test]
fn intact_objects_in_parts_of_odd_and_of_large_sizes_are_proved_by_their_multipart_md5() {
    end_to_end_within(Duration::from_secs(300), async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let sizes = [
            ("9-mib", 20 * MIB + 5, 9 * MIB),
            ("10-mb", 25_000_000, 10_000_000),
            ("100-mib", 201 * MIB, 100 * MIB),
            ("256-mib", 300 * MIB, 256 * MIB),
        ];
        for (seed, (name, size, part_size)) in sizes.iter().enumerate() {
            put_large(&store, name, *size, seed as u64, in_parts(*part_size));
        }
        let driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.mount().await;
        for (seed, (name, size, _)) in sizes.iter().enumerate() {
            assert_synthetic(&volume.target().join(name), seed as u64, *size);
        }
        assert_eq!(passed(&driver, "multipart_md5").await, 4);
        let all: u64 = sizes.iter().map(|(_, size, _)| size).sum();
        assert_eq!(store.stats().body_bytes, all, "each was downloaded once");
    });
}

#[test]
fn a_layout_that_cannot_be_known_is_decided_once_and_said_in_log_event_and_metric() {
    end_to_end_within(Duration::from_secs(300), async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        // Any whole number of MiB from 70 to 139 gives two parts, and 77 is not a usual size.
        let size = 140 * MIB;
        put_large(&store, FILE, size, 1, in_parts(77 * MIB));
        let api = ApiServer::start().await;
        let account = scratch.join("account");
        fs::create_dir(&account).unwrap();
        fs::write(account.join("token"), "a-token").unwrap();
        let mut setup = Setup::new(scratch, &store);
        let account = account.to_str().unwrap();
        let events = ["--kubernetes-api", &*api.url, "--service-account-dir", account];
        setup.arguments.extend(events.map(str::to_owned));
        let driver = setup.start().await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.mount().await;
        assert_synthetic(&volume.target().join(FILE), 1, size);
        assert_eq!(store.stats().body_bytes, size, "it was downloaded once");
        assert_eq!(passed(&driver, "unknown_layout").await, 1);
        assert_eq!(passed(&driver, "size_etag").await, 0);
        assert!(driver.log().contains("its 2 parts may have more than 64 sizes"));
        let event = eventually("an event", Duration::from_secs(10), async || {
            api.message_of("ModelUnverified")
        })
        .await;
        assert!(event.contains(FILE) && event.contains("CRC32C"), "{event}");
        figure(format_args!("event ModelUnverified: {event}"));
    });
}

#[test]
fn strict_refuses_objects_without_a_checksum_until_they_are_uploaded_again_as_the_message_says() {
    end_to_end_within(Duration::from_secs(300), async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let config = "download: {rangeSize: 1MiB, verify: strict}\n";
        let driver = Setup::new(scratch, &store).with_config(config).start().await;
        let volume = driver.kubelet().inline("1", &PHI3);
        let size = 140 * MIB;
        let refused = async |options: PutOptions, why: &str| {
            put_large(&store, FILE, size, 1, options);
            store.reset_stats();
            let (code, message) = volume.refused().await;
            assert_eq!(code, Code::FailedPrecondition, "{message}");
            assert!(message.contains(FILE) && message.contains(why), "{message}");
            assert!(message.contains("--opc-checksum-algorithm CRC32C"), "{message}");
            assert_eq!((driver.leases(), mounts_at(&volume.target()).len()), (0, 0));
            store.stats().body_bytes
        };
        let none = PutOptions { no_checksums: true, ..PutOptions::default() };
        assert_eq!(refused(none, "carries no checksum").await, 0, "known before the first byte");
        let unknown = refused(in_parts(77 * MIB), "2 parts may have more than 64 sizes").await;
        assert_eq!(unknown, size, "the usual sizes were tried");
        put_large(&store, FILE, size, 1, with_crc32c());
        volume.mount().await;
        assert_synthetic(&volume.target().join(FILE), 1, size);
    });
}

#[test]
fn cheap_reads_no_object_over_one_gib_for_its_md5_and_compares_everything_else() {
    end_to_end_within(Duration::from_secs(300), async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let config = "download: {verify: cheap}\n";
        let driver = Setup::new(scratch, &store).with_config(config).start().await;
        // The MD5 of no bytes: any comparison finds damage.
        let wrong = Action::header("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==");
        store.faults().add(Rule::new(wrong).operation(Operation::Head));
        let none = || PutOptions { no_checksums: true, ..PutOptions::default() };
        let volume = driver.kubelet().inline("1", &PHI3);
        put_large(&store, FILE, 40 * MIB, 1, none());
        assert_eq!(volume.refused().await.0, Code::DataLoss);
        put_large(&store, FILE, 1024 * MIB + 1, 2, none());
        volume.mount().await;
        assert_eq!(passed(&driver, "size_etag").await, 1);
        assert_eq!(fs::metadata(volume.target().join(FILE)).unwrap().len(), 1024 * MIB + 1);
    });
}

#[test]
fn answers_that_lack_their_checksum_or_their_version_are_asked_for_again() {
    end_to_end_within(Duration::from_secs(300), async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let config = "download: {rangeSize: 1MiB}\n";
        let driver = Setup::new(scratch, &store).with_config(config).start().await;
        for (seed, (size, operation, fault)) in [
            (5 * MIB, Operation::Head, Action::header("opc-content-crc32c", "4waS")),
            (5 * MIB, Operation::Head, Action::header("content-md5", "not-base64")),
            (5 * MIB, Operation::Head, Action::no_header("etag")),
            (4096, Operation::Get, Action::header("content-md5", "not-base64")),
            (4096, Operation::Get, Action::no_header("etag")),
            (5 * MIB, Operation::Get, Action::no_header("etag")),
        ]
        .into_iter()
        .enumerate()
        {
            let (seed, shown) = (seed as u64, format!("{operation:?} {fault:?}"));
            put_large(&store, FILE, size, seed, PutOptions::default());
            store.faults().add(Rule::new(fault).operation(operation).times(2));
            let volume = driver.kubelet().inline(&seed.to_string(), &PHI3);
            volume.publish().await.unwrap_or_else(|error| panic!("{shown}: {error}"));
            assert_synthetic(&volume.target().join(FILE), seed, size);
            assert_eq!(store.faults().list()[0].hits, 2, "{shown}");
            store.faults().clear();
        }
        // An answer that stays incomplete is not served, and is not reported as damage.
        put_large(&store, FILE, 5 * MIB, 9, PutOptions::default());
        let broken = Action::header("content-md5", "not-base64");
        store.faults().add(Rule::new(broken).operation(Operation::Head));
        let volume = driver.kubelet().inline("9", &PHI3);
        let (code, message) = volume.refused().await;
        assert_eq!(code, Code::Unavailable, "{message}");
        assert!(message.contains("content-md5") && message.contains("8 attempts"), "{message}");
        assert_eq!(passed(&driver, "size_etag").await, 0);
        store.faults().clear();
        volume.mount().await;
        assert_synthetic(&volume.target().join(FILE), 9, 5 * MIB);
    });
}

#[test]
fn a_model_is_published_through_a_proxy_that_gives_answers_rare_and_legal_forms() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_large(&store, "small.bin", 4096, 1, PutOptions::default());
        put_large(&store, "large.bin", 9 * MIB + 1, 2, in_parts(5 * MIB));
        store.faults().add(Rule::new(Action::Proxied));
        let config = "download: {rangeSize: 1MiB}\n";
        let driver = Setup::new(scratch, &store).with_config(config).start().await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        assert_synthetic(&volume.target().join("small.bin"), 1, 4096);
        assert_synthetic(&volume.target().join("large.bin"), 2, 9 * MIB + 1);
        assert_eq!((passed(&driver, "md5").await, passed(&driver, "multipart_md5").await), (1, 1));
    });
}

#[test]
fn a_body_that_loses_its_end_after_the_last_byte_is_not_downloaded_again() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_large(&store, "small.bin", 4096, 1, PutOptions::default());
        put_large(&store, "large.bin", 3 * MIB + 1, 2, PutOptions::default());
        store.faults().add(Rule::new(Action::Proxied));
        let cut = Action::ShortBody { missing: 0 };
        store.faults().add(Rule::new(cut).operation(Operation::Get));
        let config = "download: {rangeSize: 1MiB}\n";
        let driver = Setup::new(scratch, &store).with_config(config).start().await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        assert_synthetic(&volume.target().join("small.bin"), 1, 4096);
        assert_synthetic(&volume.target().join("large.bin"), 2, 3 * MIB + 1);
        let sent: u64 = store.stats().object_bytes.values().sum();
        assert_eq!(sent, 4096 + 3 * MIB + 1);
    });
}

/// How an object's content is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// In one answer.
    Once,
    /// In every answer, as if it lay so in the bucket.
    Always,
    /// On the node's disk, after it was published.
    AtRest,
}

/// One row and column of the table: an object of its own, under a prefix of its own.
struct Cell {
    prefix: String,
    seed: u64,
    size: u64,
    damage: Damage,
}

impl Cell {
    fn volume(&self, driver: &Driver, pod: &str) -> Volume {
        let pod = format!("{pod}-{}", self.seed);
        driver.kubelet().inline(&pod, &[("bucket", BUCKET), ("prefix", &self.prefix)])
    }

    /// Whether the target shows anything but the object's bytes.
    fn shows_wrong_bytes(&self, volume: &Volume) -> bool {
        let Ok(bytes) = fs::read(volume.target().join("weights")) else { return false };
        bytes != synthetic_bytes(self.seed, 0..self.size)
    }

    fn flipped(&self) -> u64 {
        self.size / 2
    }
}

const DAMAGES: [Damage; 3] = [Damage::Once, Damage::Always, Damage::AtRest];

/// One request, several ranges of an object in one part, and several parts.
const SIZES: [(&str, u64, u64); 3] =
    [("one", 4101, MIB), ("ranges", 3 * MIB + 7, MIB), ("parts", 12 * MIB + 3, 5 * MIB)];

/// A cell for each size and damage, whose objects carry a checksum of this kind.
fn cells(store: &LocalStore, kind: &str, options: impl Fn(u64) -> PutOptions) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (size_name, size, part_size) in SIZES {
        for damage in DAMAGES {
            let prefix = format!("{kind}/{size_name}/{damage:?}/").to_lowercase();
            let seed = cells.len() as u64 + 100 * kind.len() as u64;
            let cell = Cell { prefix, seed, size, damage };
            let object = format!("{}weights", cell.prefix);
            let source = Source::Synthetic { size, seed };
            store.put_with(BUCKET, &object, source, options(part_size)).unwrap();
            let flip = on_get(Action::FlipByte { offset: cell.flipped() }).object(object);
            match damage {
                Damage::Once => drop(store.faults().add(flip.times(1))),
                Damage::Always => drop(store.faults().add(flip)),
                Damage::AtRest => {}
            }
            cells.push(cell);
        }
    }
    cells
}

/// The blob behind a file that a pod sees.
fn blob_of(driver: &Driver, seen: &Path) -> PathBuf {
    let inode = fs::metadata(seen).unwrap().ino();
    let fans = fs::read_dir(driver.setup.cache.join("blobs")).unwrap();
    let mut blobs = fans.flat_map(|fan| fs::read_dir(fan.unwrap().path()).unwrap());
    blobs
        .find_map(|blob| {
            let blob = blob.unwrap();
            (blob.metadata().unwrap().ino() == inode).then(|| blob.path())
        })
        .expect("its blob")
}

/// As a failing disk would.
fn flip_on_disk(blob: &Path, offset: u64) {
    fs::set_permissions(blob, fs::Permissions::from_mode(0o644)).unwrap();
    let file = File::options().read(true).write(true).open(blob).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    file.sync_all().unwrap();
    fs::set_permissions(blob, fs::Permissions::from_mode(0o444)).unwrap();
}

/// Publishes each cell, damages those at rest, and publishes those again. Returns
/// how many targets showed wrong bytes, and the code of each cell's first publish.
async fn run_table(driver: &Driver, cells: &[Cell]) -> (usize, Vec<Code>) {
    let published = join_all(cells.iter().map(async |cell| {
        let volume = cell.volume(driver, "first");
        let code = volume.publish().await.map_or_else(|status| status.code(), |()| Code::Ok);
        (cell.shows_wrong_bytes(&volume), code, volume)
    }));
    let published = published.await;
    let mut wrong = published.iter().filter(|(wrong, ..)| *wrong).count();
    let at_rest: Vec<_> = cells
        .iter()
        .zip(&published)
        .filter(|(cell, (_, code, _))| cell.damage == Damage::AtRest && *code == Code::Ok)
        .collect();
    for (cell, (_, _, volume)) in &at_rest {
        flip_on_disk(&blob_of(driver, &volume.target().join("weights")), cell.flipped());
    }
    let verified = Commands::of(&driver.setup).run(&["verify"]).await;
    assert_eq!(verified.code, 5, "{}{}", verified.stdout, verified.stderr);
    assert_eq!(driver.metric("cache_damaged_total").await, at_rest.len() as u64);
    let again = join_all(at_rest.iter().map(async |(cell, _)| {
        let volume = cell.volume(driver, "second");
        volume.publish().await.unwrap_or_else(|status| panic!("{}: {status}", cell.prefix));
        cell.shows_wrong_bytes(&volume)
    }));
    wrong += again.await.into_iter().filter(|wrong| *wrong).count();
    (wrong, published.into_iter().map(|(_, code, _)| code).collect())
}

const TABLE: &str = "download: {rangeSize: 1MiB, maxModels: 8}\n";

#[test]
fn no_damage_once_always_or_at_rest_is_published_whichever_checksum_an_object_carries() {
    end_to_end_within(Duration::from_secs(400), async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let whole = |_| PutOptions::default();
        let listed = |options| PutOptions { listed_only: true, ..options };
        let cells: Vec<Cell> = [
            cells(&store, "crc32c", |_| with_crc32c()),
            cells(&store, "md5", whole),
            cells(&store, "multipart-md5", in_parts),
            cells(&store, "listed-md5", |_| listed(PutOptions::default())),
            cells(&store, "listed-multipart-md5", |part_size| listed(in_parts(part_size))),
        ]
        .into_iter()
        .flatten()
        .collect();
        let driver = Setup::new(scratch, &store).with_config(TABLE).start().await;
        let (wrong, codes) = run_table(&driver, &cells).await;
        for (cell, code) in cells.iter().zip(&codes) {
            let expected = if cell.damage == Damage::Always { Code::DataLoss } else { Code::Ok };
            assert_eq!(*code, expected, "{}", cell.prefix);
        }
        assert_eq!(wrong, 0, "wrong bytes were published");
        assert_eq!(passed(&driver, "size_etag").await, 0);
        figure(format_args!(
            "5 kinds of checksum × (once, always, at rest) × 3 sizes = {} cells: wrong bytes \
             published {wrong}",
            cells.len()
        ));
    });
}

#[test]
fn damage_of_objects_without_a_checksum_is_published_only_without_strict() {
    end_to_end_within(Duration::from_secs(400), async |scratch| {
        let none = |_| PutOptions { no_checksums: true, ..PutOptions::default() };
        let table = async |name: &str, config: &str| {
            let scratch = scratch.join(name);
            fs::create_dir(&scratch).unwrap();
            let store = LocalStore::builder().start().unwrap();
            let cells = cells(&store, "none", none);
            let driver = Setup::new(&scratch, &store).with_config(config).start().await;
            (cells, store, driver)
        };
        let (cells, _store, driver) = table("always", TABLE).await;
        let (wrong, codes) = run_table(&driver, &cells).await;
        assert!(codes.iter().all(|code| *code == Code::Ok), "{codes:?}");
        // Damage on the way cannot be detected; later damage on the disk is found anyway.
        assert_eq!((wrong, passed(&driver, "size_etag").await), (6, 9 + 3));
        let strict = TABLE.replace("{rangeSize", "{verify: strict, rangeSize");
        let (cells, _store, driver) = table("strict", &strict).await;
        let volumes = cells.iter().map(|cell| cell.volume(&driver, "first"));
        let refused = join_all(volumes.map(async |volume| volume.refused().await)).await;
        let refusals = refused.iter().filter(|(code, _)| *code == Code::FailedPrecondition);
        assert_eq!(refusals.count(), cells.len(), "{refused:?}");
        figure(format_args!(
            "no checksum at all × (once, always, at rest) × 3 sizes: wrong bytes published {wrong} \
             (verify: always, each counted as size_etag), 0 (verify: strict)"
        ));
    });
}
