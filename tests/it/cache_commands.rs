//! `oci-model-csi cache …`, through a running driver and without one.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::commands::Commands;
use crate::support::disk::run;
use crate::support::driver::{Driver, Setup};
use crate::support::models::{
    BUCKET, MIB, PHI3, PREFIX, content_of, put, put_large, store_with_phi3,
};
use crate::support::random::number;
use crate::support::run::{end_to_end, end_to_end_within, eventually, figure};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const URI: &str = "oci://ai-model-cache/models/phi3-mini/";

const BOUND: Duration = Duration::from_secs(30);

/// Another model, which shares no object with the first.
fn put_other(store: &LocalStore) {
    store.put(BUCKET, "models/other/weights", vec![7; 100_000]).unwrap();
}

const OTHER: &str = "oci://ai-model-cache/models/other/";

fn keys(listing: &Value) -> Vec<String> {
    let models = listing["models"].as_array().expect("models");
    models.iter().map(|model| model["key"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_list_shows_each_model_its_holders_and_its_state() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let cache = Commands::of(&driver.setup);
        let empty = cache.text(&["ls"]).await;
        assert!(empty.starts_with("0 models, "), "{empty}");

        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        // A second revision shares what did not change.
        put(&store, "config.json", b"new");
        driver.kubelet().inline("2", &PHI3).publish().await.unwrap();
        let listing = cache.json(&["ls"]).await;
        assert_eq!(listing["models"].as_array().unwrap().len(), 2);
        for model in listing["models"].as_array().unwrap() {
            assert_eq!(model["uri"], "oci://ai-model-cache@axlocalstore/models/phi3-mini/");
            assert!(model["sharedBytes"].as_u64().unwrap() >= 3 * MIB, "{model}");
            assert!(model["allocatedBytes"].as_u64() >= model["sharedBytes"].as_u64());
            assert_eq!(model["holders"].as_array().unwrap().len(), 1);
            assert_eq!(model["pinned"], false);
            assert!(["complete", "unchecked"].contains(&model["state"].as_str().unwrap()));
            assert!(model["lastUsed"].as_str().unwrap().ends_with('Z'));
        }
        let oldest = keys(&listing).pop().unwrap();
        let details = cache.json(&["inspect", &oldest[..8]]).await;
        let details = &details[0];
        assert_eq!(details["key"].as_str().unwrap(), oldest);
        assert_eq!(details["holders"][0]["pod"], "team-a/1");
        let target = details["holders"][0]["target"].as_str().unwrap();
        assert_eq!(Path::new(target), volume.target());
        let files: Vec<_> =
            details["files"].as_array().unwrap().iter().map(|f| f["path"].as_str()).collect();
        assert_eq!(
            files,
            [Some("config.json"), Some("model.safetensors"), Some("tokenizer/vocab.txt")]
        );
        assert_eq!(cache.json(&["inspect", URI]).await.as_array().unwrap().len(), 2);

        let text = cache.text(&["ls"]).await;
        assert!(text.lines().next().unwrap().starts_with("KEY "), "{text}");
        assert!(text.contains(&oldest[..12]) && text.contains("2 models, "), "{text}");
        let inspected = cache.text(&["inspect", &oldest]).await;
        assert!(inspected.contains("held by     team-a/1, volume"), "{inspected}");

        // The same without a driver: the lock decides, not the socket.
        let before = cache.json(&["ls"]).await;
        driver.terminate().await;
        driver.ended().await;
        let after = cache.json(&["ls"]).await;
        assert_eq!(keys(&after), keys(&before));
        assert_eq!(after["models"][0]["holders"], before["models"][0]["holders"]);
        assert!(volume.target().join("config.json").is_file(), "the pod reads on");
        driver.restart().await;
        volume.publish().await.unwrap();
    });
}

#[test]
fn a_model_is_prefetched_once_and_its_pod_downloads_nothing() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        put_other(&store);
        let mut driver = Driver::start(scratch, &store).await;
        let cache = Commands::of(&driver.setup);
        let both = cache.json(&["prefetch", URI, OTHER]).await;
        assert_eq!(
            (&both[0]["result"], &both[1]["result"]),
            (&"downloaded".into(), &"downloaded".into())
        );
        let again = cache.text(&["prefetch", URI]).await;
        assert!(again.starts_with(&format!("cached: {URI}: 3 MiB, revision sha256:")), "{again}");
        let before = store.stats().object_bytes;
        let attributes = [PHI3.as_slice(), &[("pullPolicy", "IfNotPresent")]].concat();
        let volume = driver.kubelet().inline("1", &attributes);
        volume.publish().await.unwrap();
        assert_eq!(store.stats().object_bytes, before);
        assert_eq!(driver.metric("publish_total{result=\"hit\"}").await, 1);

        // Each failure is reported, and sets the exit code.
        let said = cache.fails(3, &["prefetch", "oci://ai-model-cache/nothing/", OTHER]).await;
        assert_eq!(said.matches("no object under").count(), 1, "{said}");
        assert!(said.contains("failed: oci://ai-model-cache/nothing/: no object under"), "{said}");
        assert!(said.contains(&format!("cached: {OTHER}")), "{said}");
        cache.fails(2, &["prefetch", "models/phi3-mini"]).await;

        // Without a driver, it is on the disk when the command ends.
        driver.terminate().await;
        driver.ended().await;
        put(&store, "config.json", b"new");
        assert_eq!(cache.json(&["prefetch", URI]).await[0]["result"], "downloaded");
        let listing = cache.json(&["ls"]).await;
        let states = listing["models"].as_array().unwrap().iter().map(|model| &model["state"]);
        assert!(states.clone().all(|state| *state == "complete"), "{listing}");
        let said = cache.fails(2, &["prefetch", URI, "--detach"]).await;
        assert!(said.contains("no driver runs"), "{said}");
    });
}

#[test]
fn a_detached_prefetch_continues_and_its_progress_is_shown() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_large(&store, "weights", 8 * MIB, 1, PutOptions::default());
        let slow = Action::Bandwidth { bytes_per_sec: 4 * MIB };
        store.faults().add(Rule::new(slow).operation(Operation::Get));
        let driver = Driver::start(scratch, &store).await;
        let cache = Commands::of(&driver.setup);
        let started = cache.json(&["prefetch", URI, "--detach"]).await;
        assert_eq!(started[0]["result"], "started");
        eventually("the list shows a download", BOUND, async || {
            let text = cache.text(&["ls"]).await;
            (text.contains("downloading") && text.contains(" %")).then_some(())
        })
        .await;
        eventually("it is there", BOUND, async || {
            let listing = cache.json(&["ls"]).await;
            (listing["models"][0]["state"] == "complete").then_some(())
        })
        .await;
    });
}

#[test]
fn pinned_and_held_models_stay_and_the_rest_is_evicted() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        put_other(&store);
        let driver = Driver::start(scratch, &store).await;
        let cache = Commands::of(&driver.setup);
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        cache.text(&["prefetch", OTHER]).await;
        let said = cache.text(&["pin", OTHER]).await;
        assert!(said.contains("is pinned"), "{said}");
        assert!(cache.text(&["ls"]).await.contains(", pinned"));
        let nothing = cache.json(&["gc", "--all"]).await;
        assert_eq!(nothing["models"].as_array().unwrap().len(), 0, "{nothing}");

        cache.text(&["unpin", OTHER]).await;
        let would = cache.text(&["gc", "--all", "--dry-run"]).await;
        assert!(would.contains("models/other/") && would.contains("would free"), "{would}");
        assert_eq!(keys(&cache.json(&["ls"]).await).len(), 2, "a dry run changes nothing");
        let gone = cache.json(&["gc", "--free", "1KiB"]).await;
        assert_eq!(gone["models"].as_array().unwrap().len(), 1);
        assert!(gone["reached"].as_bool().unwrap() && gone["bytes"].as_u64().unwrap() >= 100_000);
        assert_eq!(keys(&cache.json(&["ls"]).await).len(), 1, "what a pod holds stays");
        assert_eq!(content_of(&volume.target()).len(), 4);
        let said = cache.fails(1, &["gc", "--free", "1GiB"]).await;
        assert!(said.contains("nothing more can be evicted"), "{said}");

        // With two revisions, pinning needs to know which one.
        put(&store, "config.json", b"new");
        cache.text(&["prefetch", URI]).await;
        let said = cache.fails(2, &["pin", URI]).await;
        assert!(said.contains("names 2 models"), "{said}");
        cache.fails(3, &["pin", "0123456789ab"]).await;
        cache.fails(2, &["pin", "../x"]).await;
    });
}

/// The file of the only blob of this size.
fn blob_of(driver: &Driver, size: u64) -> PathBuf {
    let blobs = driver.setup.cache.join("blobs");
    let fans =
        fs::read_dir(blobs).unwrap().flat_map(|fan| fs::read_dir(fan.unwrap().path()).unwrap());
    let mut paths = fans.map(|entry| entry.unwrap().path());
    paths.find(|path| fs::metadata(path).unwrap().len() == size).expect("a blob of this size")
}

#[test]
fn damage_is_found_named_and_quarantined() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let cache = Commands::of(&driver.setup);
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        let good = cache.text(&["verify"]).await;
        assert!(good.contains("1 model, 3 blobs, 3 MiB read: no damage found"), "{good}");

        let blob = blob_of(&driver, 3 * MIB + 7);
        fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
        File::options().write(true).open(&blob).unwrap().write_all_at(b"X", MIB).unwrap();
        let said = cache.fails(5, &["verify", URI, "--rate", "1GiB"]).await;
        for words in ["damaged: models/phi3-mini/model.safetensors", "CRC-32C", "team-a/1"] {
            assert!(said.contains(words), "{words:?} is not in {said}");
        }
        assert!(cache.text(&["ls"]).await.contains("damaged"));
        let asked = store.stats().object_bytes;
        let next = driver.kubelet().inline("2", &PHI3);
        next.publish().await.unwrap();
        assert_ne!(store.stats().object_bytes, asked, "it was downloaded again");
        assert!(cache.text(&["verify"]).await.contains("no damage found"));
        let json = cache.run(&["verify", "feedfeed", "--output", "json"]).await;
        assert_eq!((json.code, json.json()["kind"].as_str()), (3, Some("NotFound")));
    });
}

#[test]
fn a_check_keeps_its_rate_limit() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let cache = Commands::of(&driver.setup);
        cache.json(&["prefetch", URI]).await;
        let started = Instant::now();
        let said = cache.text(&["verify", "--rate", "1MiB"]).await;
        assert!(said.contains("3 MiB read: no damage found"), "{said}");
        let took = started.elapsed();
        assert!(took >= Duration::from_secs(2), "3 MiB in {took:?}");
    });
}

#[test]
fn a_purge_needs_an_unused_cache_and_a_confirmation() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let cache = Commands::of(&driver.setup);
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        fs::write(driver.setup.cache.join("notes"), "mine").unwrap();
        let said = cache.fails(1, &["purge", "--yes"]).await;
        assert!(said.contains("team-a/1") && said.contains("end those pods first"), "{said}");
        // A foreign mount of a part of it, such as kubelet's of a subPath.
        let [key] = &driver.in_cache("models")[..] else { panic!("one model") };
        let part = driver.setup.cache.join("models").join(key).join("tree/config.json");
        let subpath = scratch.join("subpath");
        fs::write(&subpath, "").unwrap();
        run(Command::new("mount").arg("--bind").args([&part, &subpath]));
        volume.unpublish().await.unwrap();
        let said = cache.fails(1, &["purge", "--yes"]).await;
        assert!(said.contains("is mounted at") && said.contains("unmount that first"), "{said}");
        assert_eq!(fs::read(&subpath).unwrap(), b"{\"model_type\": \"phi3\"}");
        run(Command::new("umount").arg(&subpath));
        let said = cache.fails(2, &["purge"]).await;
        assert!(said.contains("--yes"), "{said}");
        let said = cache.text(&["purge", "--yes"]).await;
        assert!(said.contains("removed the cache: 1 model"), "{said}");
        assert_eq!(keys(&cache.json(&["ls"]).await).len(), 0);
        volume.publish().await.unwrap();
        volume.unpublish().await.unwrap();

        driver.terminate().await;
        driver.ended().await;
        cache.text(&["purge", "--yes"]).await;
        let left: Vec<_> = fs::read_dir(&driver.setup.cache).unwrap().collect();
        let names: Vec<_> = left.into_iter().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().any(|name| name == "notes"), "{names:?}");
        assert!(
            names.iter().all(|name| name == "notes" || name == ".admin.sock.lock"),
            "{names:?}"
        );
    });
}

#[test]
fn a_command_that_cannot_be_answered_says_why() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let setup = Setup::new(scratch, &store);
        let cache = Commands::of(&setup);
        let said = cache.fails(3, &["ls"]).await;
        assert!(said.contains("is not a cache, and no driver listens in it"), "{said}");
        assert!(!setup.cache.exists(), "a query creates no cache");
        let elsewhere = format!("unix://{}", scratch.join("absent.sock").display());
        let said = cache.fails(1, &["ls", "--admin-endpoint", &elsewhere]).await;
        assert!(said.contains("no driver listens at"), "{said}");
        cache.fails(2, &["gc", "--free", "10GB"]).await;
        cache.fails(2, &["gc", "--free", "1GiB", "--all"]).await;

        // A driver whose socket is elsewhere still owns the cache.
        let mut setup = setup;
        let own = format!("unix://{}", scratch.join("admin.sock").display());
        setup.arguments = vec!["--admin-endpoint".into(), own.clone()];
        let _driver = setup.start().await;
        let said = cache.fails(1, &["ls"]).await;
        assert!(said.contains("in use by another oci-model-csi process"), "{said}");
        cache.text(&["ls", "--admin-endpoint", &own]).await;
    });
}

/// The answer of the admin socket to this request.
async fn raw(driver: &Driver, request: &str) -> String {
    let mut stream = UnixStream::connect(driver.setup.cache.join("admin.sock")).await.unwrap();
    // The answer may come before the whole request is read.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[test]
fn the_socket_takes_commands_from_the_nodes_administrator_and_nothing_else() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_large(&store, "weights", 6 * MIB, 1, PutOptions::default());
        let slow = Action::Bandwidth { bytes_per_sec: 4 * MIB };
        store.faults().add(Rule::new(slow).operation(Operation::Get));
        let driver = Driver::start(scratch, &store).await;
        let mode =
            fs::metadata(driver.setup.cache.join("admin.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let post = |body: &str| {
            let length = body.len();
            format!(
                "POST /cache HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            )
        };
        let command = format!(
            r#"{{"command": "prefetch", "models": [{{"uri": "{URI}"}}], "detach": false}}"#
        );
        let answer = raw(&driver, &post(&command)).await;
        assert!(answer.contains("application/x-ndjson"), "{answer}");
        let lines = answer.lines().filter(|line| line.starts_with('{'));
        let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        let (last, progress) = lines.split_last().unwrap();
        assert_eq!(last["answer"]["prefetch"][0]["result"], "downloaded");
        let seen = |line: &Value| line["progress"]["done"].as_u64().is_some_and(|done| done > 0);
        assert!(progress.iter().any(seen), "{answer}");
        assert!(progress.iter().all(|line| line["progress"]["subject"].is_string()));

        for body in
            ["", "nonsense", r#"{"command": "format"}"#, r#"{"command":"unpin","model":"x","y":1}"#]
        {
            let answer = raw(&driver, &post(body)).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{body}: {answer}");
        }
        let huge = "x".repeat(2 << 20);
        assert!(raw(&driver, &post(&huge)).await.starts_with("HTTP/1.1 400 "));
        let get = "GET /cache HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        assert!(raw(&driver, get).await.starts_with("HTTP/1.1 405 "));
        let unknown = r#"{"command": "pin", "model": "0123456789"}"#;
        let answer = raw(&driver, &post(unknown)).await;
        assert!(
            answer.contains(r#"{"error":{"kind":"NotFound","message":"0123456789"#),
            "{answer}"
        );
        // The metrics port takes no commands.
        assert!(!driver.metrics().await.contains("x-ndjson"));
        assert_eq!(driver.post_to_metrics("/cache", r#"{"command": "ls"}"#).await, 404);
    });
}

#[test]
fn a_directory_is_imported_through_the_driver_and_without_one() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let cache = Commands::of(&driver.setup);
        let dir = scratch.join("filled").join(PREFIX);
        let fill = || {
            fs::create_dir_all(dir.join("tokenizer")).unwrap();
            fs::write(dir.join("config.json"), "{\"model_type\": \"phi3\"}").unwrap();
            fs::write(dir.join("tokenizer/vocab.txt"), "one\ntwo\n").unwrap();
            fs::write(
                dir.join("model.safetensors"),
                localstore::synthetic_bytes(1, 0..3 * MIB + 7),
            )
            .unwrap();
            fs::write(dir.join(".complete"), "").unwrap();
        };
        fill();
        let top = scratch.join("filled");
        let top = top.to_str().unwrap();
        let said = cache.text(&["import", top, URI, "--move"]).await;
        assert!(
            said.contains("imported 3 files (3 MiB, 0 B of it copied); downloaded 0 files"),
            "{said}"
        );
        assert!(
            said.contains("left in the directory, 1 file: models/phi3-mini/.complete"),
            "{said}"
        );
        assert_eq!(store.stats().object_bytes.values().sum::<u64>(), 0);
        let attributes = [PHI3.as_slice(), &[("pullPolicy", "Never")]].concat();
        let volume = driver.kubelet().inline("1", &attributes);
        volume.publish().await.unwrap();
        assert_eq!(content_of(&volume.target()).len(), 4);
        volume.unpublish().await.unwrap();
        cache.text(&["gc", "--all"]).await;

        driver.terminate().await;
        driver.ended().await;
        fill();
        fs::remove_file(dir.join("config.json")).unwrap();
        let json = cache.json(&["import", top, URI]).await;
        assert_eq!((&json["adoptedFiles"], &json["downloadedFiles"]), (&2.into(), &1.into()));
        cache.fails(3, &["import", "/nowhere/at/all", URI]).await;
        driver.restart().await;
        volume.publish().await.unwrap();
        assert_eq!(store.stats().object_bytes.len(), 1, "only what was missing was downloaded");
    });
}

#[test]
fn an_import_that_is_killed_at_any_step_loses_nothing_and_resumes() {
    end_to_end(async |scratch| {
        for (number, (step, nth)) in (1..=4).flat_map(|step| [(step, 1), (step, 2)]).enumerate() {
            let scratch = scratch.join(number.to_string());
            let store = store_with_phi3();
            let cache = Commands::of(&Setup::new(&scratch, &store));
            let dir = scratch.join("filled");
            fs::create_dir_all(dir.join("tokenizer")).unwrap();
            fs::write(dir.join("config.json"), "{\"model_type\": \"phi3\"}").unwrap();
            fs::write(dir.join("tokenizer/vocab.txt"), "one\ntwo\n").unwrap();
            let weights = localstore::synthetic_bytes(1, 0..3 * MIB + 7);
            fs::write(dir.join("model.safetensors"), weights).unwrap();
            let arguments = ["import", dir.to_str().unwrap(), URI, "--move"];
            let mut killed = cache.clone();
            killed
                .environment
                .push(("OCI_MODEL_CSI_ABORT_AT", format!("kill:import-{step}:{nth}")));
            let ran = killed.run(&arguments).await;
            assert_eq!(ran.code, -1, "import-{step} is reached: {}", ran.stderr);

            let json = cache.json(&arguments).await;
            assert_eq!(json["downloadedFiles"], 0, "import-{step}: {json}");
            let there = |name: &str| json[name].as_u64().unwrap();
            assert_eq!(there("adoptedFiles") + there("cachedFiles"), 3, "import-{step}: {json}");
            assert_eq!(there("copiedBytes"), 0, "import-{step}: {json}");
            assert_eq!(store.stats().object_bytes.values().sum::<u64>(), 0);
            assert!(cache.text(&["verify"]).await.contains("no damage found"));
            assert_eq!(content_of(&dir).values().flatten().count(), 0, "everything was moved");
        }
    });
}

/// A directory of 96 MiB here; `OCI_MODEL_CSI_TEST_IMPORT_MIB=2048` is one of 2 GiB.
#[test]
fn a_large_directory_is_moved_without_a_byte_copied_or_downloaded() {
    end_to_end_within(Duration::from_secs(600), async |scratch| {
        const SHARDS: u64 = 4;
        let size = number("OCI_MODEL_CSI_TEST_IMPORT_MIB").unwrap_or(96) * MIB / SHARDS;
        let store = LocalStore::builder().start().unwrap();
        let dir = scratch.join("filled");
        fs::create_dir_all(&dir).unwrap();
        let checked = PutOptions { crc32c: true, ..PutOptions::default() };
        for shard in 0..SHARDS {
            let name = format!("model-{shard}.bin");
            put_large(&store, &name, size, shard, checked.clone());
            let file = File::create(dir.join(name)).unwrap();
            for at in (0..size).step_by(usize::try_from(8 * MIB).unwrap()) {
                let bytes = localstore::synthetic_bytes(shard, at..size.min(at + 8 * MIB));
                file.write_all_at(&bytes, at).unwrap();
            }
        }
        let driver = Driver::start(scratch, &store).await;
        let cache = Commands::of(&driver.setup);
        let started = Instant::now();
        let json = cache.json(&["import", dir.to_str().unwrap(), URI, "--move"]).await;
        let took = started.elapsed();
        let downloaded = store.stats().object_bytes.values().sum::<u64>();
        assert_eq!(
            (&json["adoptedBytes"], &json["copiedBytes"]),
            (&(SHARDS * size).into(), &0.into())
        );
        assert_eq!(downloaded, 0);
        figure(format_args!(
            "import of {} MiB with --move: {downloaded} bytes downloaded, {} copied, {:.1} s",
            SHARDS * size / MIB,
            json["copiedBytes"],
            took.as_secs_f64()
        ));
    });
}
