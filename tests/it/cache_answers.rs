//! What `oci-model-csi cache …` answers when something is wrong, and how safe it is.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::commands::Commands;
use crate::support::driver::{Driver, Setup};
use crate::support::models::{BUCKET, PHI3, store_with_phi3};
use crate::support::run::{end_to_end, eventually};
use tonic::Code;

const URI: &str = "oci://ai-model-cache/models/phi3-mini/";

const OTHER: &str = "oci://ai-model-cache/models/other/";

const BOUND: Duration = Duration::from_secs(30);

#[test]
fn a_broken_configuration_does_not_hide_the_running_driver() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let cache = Commands::of(&driver.setup);
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        fs::write(scratch.join("commands.yaml"), "cache: {dri: /x}\n").unwrap();
        let ran = cache.run(&["ls"]).await;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stdout.contains("team-a/1"), "the holders by name: {}", ran.stdout);
        assert!(ran.stderr.contains("warning: ") && ran.stderr.contains("dri"), "{}", ran.stderr);
        driver.terminate().await;
        driver.ended().await;
        let said = cache.fails(2, &["ls"]).await;
        assert!(said.contains("dri") && !said.contains("warning"), "{said}");
    });
}

#[test]
fn no_variable_confirms_a_purge_or_an_eviction_of_everything() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let mut cache = Commands::of(&driver.setup);
        cache.json(&["prefetch", URI]).await;
        for name in ["OCI_MODEL_CSI_YES", "OCI_MODEL_CSI_ALL"] {
            cache.environment.push((name, "true".to_owned()));
        }
        cache.environment.push(("OCI_MODEL_CSI_FREE", "1TiB".to_owned()));
        let said = cache.fails(2, &["purge"]).await;
        assert!(said.contains("confirm it with --yes"), "{said}");
        let said = cache.text(&["gc"]).await;
        assert!(said.contains("freed 0 B and 0 inodes: 0 models"), "{said}");
        assert_eq!(cache.json(&["ls"]).await["models"].as_array().unwrap().len(), 1);
    });
}

#[test]
fn a_model_that_was_verified_is_no_longer_unchecked() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let cache = Commands::of(&driver.setup);
        cache.json(&["prefetch", URI]).await;
        let state = async || cache.json(&["ls"]).await["models"][0]["state"].clone();
        assert_eq!(state().await, "complete", "the driver has just verified it");
        let [key] = &driver.in_cache("models")[..] else { panic!("one model") };
        let durable = driver.setup.cache.join("models").join(key).join("durable");
        eventually("it is durable", BOUND, async || durable.exists().then_some(())).await;
        driver.terminate().await;
        driver.ended().await;
        // As a power loss leaves it.
        fs::remove_file(&durable).unwrap();
        forget_records(&driver.setup.cache.join("blobs"));
        driver.restart().await;
        assert_eq!(state().await, "unchecked");
        cache.text(&["verify"]).await;
        assert_eq!(state().await, "complete");
        assert!(durable.exists());
        driver.terminate().await;
        driver.ended().await;
        assert_eq!(state().await, "complete", "for another process too");
    });
}

/// Makes all blobs ones that may not have reached the disk.
fn forget_records(blobs: &Path) {
    for fan in fs::read_dir(blobs).unwrap() {
        for entry in fs::read_dir(fan.unwrap().path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "json") {
                fs::rename(&path, path.with_extension("unsynced")).unwrap();
            }
        }
    }
}

#[test]
fn a_prefetch_without_room_names_the_holders_once_and_promises_nothing() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        store.put(BUCKET, "models/other/weights", vec![7; 2 << 20]).unwrap();
        store.put(BUCKET, "models/huge/weights", vec![7; 8 << 20]).unwrap();
        let limit = "cache: {minFree: 1MiB, minFreeInodes: 0%, maxSize: 4MiB}\n";
        let driver = Setup::new(scratch, &store).with_config(limit).start().await;
        let cache = Commands::of(&driver.setup);
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        let ran = cache.run(&["prefetch", OTHER]).await;
        assert_eq!((ran.code, ran.stdout.trim()), (1, ""), "{}", ran.stderr);
        assert!(ran.stderr.contains("held by team-a/1 (3 MiB)"), "{}", ran.stderr);
        assert_eq!(ran.stderr.matches("needs 2 MiB").count(), 1, "{}", ran.stderr);
        assert!(!ran.stderr.contains("starts by itself"), "{}", ran.stderr);

        let huge = [("bucket", BUCKET), ("prefix", "models/huge/")];
        let (code, message) = driver.kubelet().inline("2", &huge).refused().await;
        assert_eq!(code, Code::ResourceExhausted);
        assert!(message.contains("it can never fit: it takes 8 MiB, and"), "{message}");
        assert!(!message.contains("starts by itself"), "{message}");
        assert_eq!(driver.in_cache("models").len(), 1);
    });
}
