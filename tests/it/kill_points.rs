//! SIGKILL at each numbered step of the driver's work, and at random instants
//! under load. After each kill the driver is started again and all invariants
//! are checked.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use crate::support::commands::Commands;
use crate::support::documents::sources;
use crate::support::driver::{Setup, with_budget};
use crate::support::invariants::{Descriptors, Kind, Tally, check_invariants};
use crate::support::kubelet::is_final;
use crate::support::load::{Load, State};
use crate::support::models::MIB;
use crate::support::namespace::mount_tmpfs;
use crate::support::pods::{Model, Pod, sent_of, sent_twice};
use crate::support::random::{random_for, rounds};
use crate::support::run::{end_to_end, end_to_end_within, figure};
use crate::support::steps::{
    self, Asked, BIND, BLOB_COMMIT, DOWNLOAD, EVICT, IMPORT, MODEL_COMMIT, Step, UNBIND, WRITES,
};
use localstore::LocalStore;
use nix::mount::MsFlags;
use oci_model_csi::abort_point::STEPS;

/// Small ranges and few of them, so that the bytes in flight are known.
const CONFIG: &str = "cache: {minFree: 1MiB, minFreeInodes: 0%}
download: {concurrency: 4, rangeSize: 1MiB}
";

/// Keeps many rounds from filling the disk.
const BUDGET: u64 = 96 * MIB;

/// Bytes in flight at once under `CONFIG`.
const IN_FLIGHT: u64 = 4 * MIB;

const SHARDS: [u64; 2] = [3 * MIB + 7, 2 * MIB];

/// For many rounds; one takes about a second.
const LIMIT: Duration = Duration::from_secs(60 * 60);

#[test]
fn every_step_is_reached_by_a_test_and_named_by_the_code() {
    let tested: BTreeSet<&str> = steps::all().map(|(_, (step, _))| *step).collect();
    let listed: BTreeSet<&str> = STEPS.iter().copied().collect();
    assert_eq!(listed.len(), STEPS.len(), "a step is in the list twice");
    assert_eq!(tested, listed);
    let mut named = BTreeSet::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        for rest in text.split("abort_point::reach(").skip(1) {
            let name = rest.strip_prefix('"').and_then(|rest| rest.split_once('"'));
            named
                .insert(name.unwrap_or_else(|| panic!("{}: no name", path.display())).0.to_owned());
        }
    }
    assert_eq!(named, listed.into_iter().map(str::to_owned).collect());
}

#[test]
fn a_driver_that_is_killed_in_its_first_start_starts_again() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let model = Model::upload(&store, "new", 1, &SHARDS);
        let setup = Setup::new(scratch, &store).with_config(&with_budget(CONFIG, BUDGET));
        // The file that probes hard links, and VERSION.
        for nth in 1..=2 {
            let mut killed = setup.clone();
            killed.environment.push(("OCI_MODEL_CSI_ABORT_AT", format!("kill:write-1:{nth}")));
            let (status, log) = killed.refuses().await;
            assert_eq!(status.signal(), Some(9), "{log}");
        }
        let driver = setup.start().await;
        let idle = Descriptors::of_idle(&driver).await;
        let mut tally = Tally::default();
        check_invariants(&driver, &[], &[&model], idle, &mut tally).await;
        tally.assert_clean("killed in the first start");
    });
}

#[test]
fn a_driver_that_is_killed_while_it_writes_any_small_file_recovers() {
    end_to_end_within(LIMIT, async |scratch| {
        kill_at(scratch, &WRITES, Asked::Publish, IN_FLIGHT).await;
    });
}

#[test]
fn a_driver_that_is_killed_at_any_step_of_a_download_loses_only_bytes_in_flight() {
    end_to_end_within(LIMIT, async |scratch| {
        kill_at(scratch, &DOWNLOAD, Asked::Publish, IN_FLIGHT).await;
    });
}

#[test]
fn a_driver_that_is_killed_at_any_step_of_a_blobs_commit_loses_only_bytes_in_flight() {
    end_to_end_within(LIMIT, async |scratch| {
        kill_at(scratch, &BLOB_COMMIT, Asked::Publish, IN_FLIGHT).await;
    });
}

#[test]
fn a_driver_that_is_killed_at_any_step_of_a_models_commit_downloads_nothing_again() {
    end_to_end_within(LIMIT, async |scratch| {
        kill_at(scratch, &MODEL_COMMIT, Asked::Publish, 0).await;
    });
}

#[test]
fn a_driver_that_is_killed_at_any_step_of_lease_and_bind_leaves_both_or_neither() {
    end_to_end_within(LIMIT, async |scratch| {
        kill_at(scratch, &BIND, Asked::Publish, 0).await;
    });
}

#[test]
fn a_driver_that_is_killed_at_any_step_of_an_eviction_recovers() {
    end_to_end_within(LIMIT, async |scratch| {
        kill_at(scratch, &EVICT, Asked::Evict, 0).await;
    });
}

#[test]
fn a_driver_that_is_killed_at_any_step_of_an_unpublish_leaves_both_or_neither() {
    end_to_end_within(LIMIT, async |scratch| {
        kill_at(scratch, &UNBIND, Asked::Unpublish, 0).await;
    });
}

#[test]
fn the_check_after_a_kill_finds_violations() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let model = Model::upload(&store, "new", 1, &SHARDS);
        let driver = Setup::new(scratch, &store).start().await;
        let volume = model.volume(&driver.kubelet(), 1);
        volume.publish().await.unwrap();
        let running = [Pod::start(volume, &model)];
        let cache = &driver.setup.cache;
        fs::write(cache.join("staging/ab.part"), "half of a pair").unwrap();
        fs::write(cache.join("leases/other.json"), "{\"target\": \"/elsewhere\"}").unwrap();
        fs::create_dir(scratch.join("kubelet/pods/other")).unwrap();
        mount_tmpfs(&scratch.join("kubelet/pods/other"), MsFlags::empty(), "1m");
        let tree = cache.join("models").join(&driver.in_cache("models")[0]).join("tree");
        fs::remove_file(tree.join("config.json")).unwrap();
        let shard = File::options().write(true).open(tree.join("model-0.safetensors")).unwrap();
        shard.write_at(b"!", 1_000_000).unwrap();
        let mut tally = Tally::default();
        check_invariants(&driver, &running, &[], Descriptors::default(), &mut tally).await;
        let mut found: Vec<Kind> = tally.violations.iter().map(|one| one.kind).collect();
        found.sort_unstable();
        // The wrong byte is seen by path and by what is held open.
        let expected = [
            Kind::WrongBytes,
            Kind::WrongBytes,
            Kind::Vanished,
            Kind::Mount,
            Kind::Lease,
            Kind::Space,
            Kind::Descriptor,
        ];
        assert_eq!(found, expected, "{:?}", tally.violations);
    });
}

/// Kills a driver at each of these steps, several times, and checks how the
/// next one recovers. At most `twice` bytes may be downloaded again.
async fn kill_at(scratch: &Path, steps: &[Step], asked: Asked, twice: u64) {
    let store = LocalStore::builder().start().unwrap();
    let mut random = random_for(steps[0].0);
    let old = Model::upload(&store, "old", 0, &[MIB]);
    let mut driver =
        Setup::new(scratch, &store).with_config(&with_budget(CONFIG, BUDGET)).start().await;
    let idle = Descriptors::of_idle(&driver).await;
    let kept = old.volume(&driver.kubelet(), 0);
    kept.publish().await.unwrap();
    let mut running = vec![Pod::start(kept, &old)];
    // A model that no pod uses.
    let idle_model =
        Model::upload(&store, "new", random.next(), &SHARDS).volume(&driver.kubelet(), 1);
    idle_model.publish().await.unwrap();
    idle_model.unpublish().await.unwrap();
    let (mut tally, mut kills, mut most) = (Tally::default(), 0, 0);
    for (step, times) in steps {
        for round in 0..rounds(4) {
            let nth = times.start() + random.below(times.end() - times.start() + 1);
            let when = format!("kill:{step}:{nth}");
            let model = Model::upload(&store, "new", random.next(), &SHARDS);
            if asked == Asked::Evict {
                driver.restart_full(CONFIG).await;
            }
            driver.restart_to(Some(&when)).await;
            driver.setup = driver.setup.clone().with_config(&with_budget(CONFIG, BUDGET));
            store.reset_stats();
            let volume = model.volume(&driver.kubelet(), round + 1);
            let answer = match asked {
                Asked::Publish | Asked::Evict => volume.publish().await,
                Asked::Unpublish => {
                    volume.publish().await.unwrap();
                    volume.unpublish().await
                }
                Asked::Import => unreachable!("a process of its own"),
            };
            let final_error = answer.as_ref().is_err_and(|status| is_final(status.code()));
            assert!(!final_error, "{when}: {answer:?}");
            let status = driver.ended().await;
            assert_eq!(status.signal(), Some(9), "{when}: {status}");
            kills += 1;
            driver.restart_to(None).await;

            // kubelet asks again, or the pod was deleted meanwhile.
            if asked != Asked::Unpublish && round % 2 == 0 {
                volume.mount().await;
                running.push(Pod::start(volume, &model));
            } else {
                volume.unpublish().await.unwrap();
            }
            check_invariants(&driver, &running, &[&model, &old], idle, &mut tally).await;
            tally.assert_clean(&when);
            let again = sent_twice(&store, &[&model]);
            assert!(again <= twice, "{when}: {again} bytes were downloaded again");
            most = most.max(again);
            for pod in running.drain(1..) {
                pod.end().unpublish().await.unwrap();
            }
        }
    }
    let kept = running.remove(0).end();
    kept.unpublish().await.unwrap();
    driver.restart_to(None).await;
    check_invariants(&driver, &[], &[&old], idle, &mut tally).await;
    tally.assert_clean("at the end");
    assert_eq!(driver.in_cache("staging"), Vec::<String>::new());
    let first = steps[0].0;
    figure(format_args!(
        "{kills} kills from {first} on: {tally}; at most {most} bytes downloaded again"
    ));
}

const LOAD_SHARDS: [u64; 2] = [2 * MIB + 5, MIB];

/// Models, and pods that want them, under load.
const MODELS: u64 = 4;
const PODS: u64 = 6;

#[test]
fn an_import_that_is_killed_at_any_step_leaves_a_consistent_cache() {
    end_to_end_within(LIMIT, async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let mut random = random_for("import-1");
        let mut driver =
            Setup::new(scratch, &store).with_config(&with_budget(CONFIG, BUDGET)).start().await;
        let idle = Descriptors::of_idle(&driver).await;
        let commands = Commands::of(&driver.setup);
        let (mut tally, mut kills) = (Tally::default(), 0);
        for (step, times) in &IMPORT {
            for round in 0..rounds(4) {
                let nth = times.start() + random.below(times.end() - times.start() + 1);
                let when = format!("kill:{step}:{nth}");
                let model = Model::upload(&store, "new", random.next(), &SHARDS);
                let directory = scratch.join(format!("{step}-{round}"));
                model.fill(&directory);
                let uri = model.uri();
                let import = ["import", directory.to_str().unwrap(), &uri, "--move"];
                driver.kill().await;
                store.reset_stats();
                let mut killed = commands.clone();
                killed.environment.push(("OCI_MODEL_CSI_ABORT_AT", when.clone()));
                let ran = killed.run(&import).await;
                assert_eq!(ran.code, -1, "{when}: {}", ran.stderr);
                kills += 1;
                // Every file is in the directory or in the cache.
                let resumes = round % 2 == 0;
                if resumes {
                    let json = commands.json(&import).await;
                    assert_eq!(json["downloadedFiles"], 0, "{when}: {json}");
                }
                driver.restart_to(None).await;
                check_invariants(&driver, &[], &[&model], idle, &mut tally).await;
                tally.assert_clean(&when);
                let sent = sent_of(&store, &model);
                assert!(sent == 0 || !resumes && sent <= model.bytes(), "{when}: {sent} bytes");
                fs::remove_dir_all(&directory).unwrap();
            }
        }
        figure(format_args!("{kills} kills from import-1 on: {tally}"));
    });
}

#[test]
fn a_driver_that_is_killed_at_random_instants_under_load_recovers() {
    end_to_end_within(LIMIT, async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let mut random = random_for("kills under load");
        let mut models: Vec<Model> = (0..MODELS)
            .map(|n| Model::upload(&store, &n.to_string(), random.next(), &LOAD_SHARDS))
            .collect();
        let mut driver =
            Setup::new(scratch, &store).with_config(&with_budget(CONFIG, BUDGET)).start().await;
        let idle = Descriptors::of_idle(&driver).await;
        let mut running: Vec<Pod> = Vec::new();
        let (mut tally, mut unanswered, kills) = (Tally::default(), 0, rounds(40));
        for round in 0..kills {
            if random.below(3) > 0 {
                let changed = usize::try_from(random.below(MODELS)).unwrap();
                let seed = random.next();
                models[changed] = Model::upload(&store, &changed.to_string(), seed, &LOAD_SHARDS);
            }
            let (kubelet, pods) = (driver.kubelet(), std::mem::take(&mut running));
            let load = Load::start(1..=PODS, pods, &models, &kubelet, &mut random);
            tokio::time::sleep(random.up_to(Duration::from_millis(700))).await;
            load.over();
            driver.kill().await;
            let left = load.end().await;
            driver.restart_to(None).await;

            for state in left {
                unanswered += usize::from(matches!(state, State::Starting(..) | State::Leaving(_)));
                match state {
                    State::Gone => {}
                    State::Running(pod) => running.push(pod),
                    State::Starting(volume, model) if random.below(2) == 0 => {
                        volume.mount().await;
                        running.push(Pod::start(volume, &model));
                    }
                    State::Starting(volume, _) | State::Leaving(volume) => {
                        volume.unpublish().await.unwrap();
                    }
                }
            }
            let all: Vec<&Model> = models.iter().collect();
            check_invariants(&driver, &running, &all, idle, &mut tally).await;
            tally.assert_clean(&format!("kill {round}"));
        }
        figure(format_args!("{kills} kills under load: {unanswered} calls unanswered; {tally}"));
        assert!(unanswered > 0, "no kill came before an answer");
    });
}
