//! Which revision a pod gets: pull policies, pinned revisions, uploads while
//! pods run, and outages.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::support::driver::{Driver, Setup};
use crate::support::fetch::Fetch;
use crate::support::kubelet::Volume;
use crate::support::models::{BUCKET, MIB, PHI3, PREFIX, content_of, put, store_with_phi3};
use crate::support::run::{end_to_end, eventually};
use localstore::{Action, LocalStore, Operation, Rule, synthetic_bytes};
use tonic::Code;

/// PHI3 with one more attribute.
fn with<'a>(key: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    [PHI3.as_slice(), &[(key, value)]].concat()
}

fn config(volume: &Volume) -> String {
    fs::read_to_string(volume.target().join("config.json")).unwrap()
}

/// The revision as `fetch` reports it.
async fn revision_now(scratch: &Path, store: &LocalStore) -> String {
    let mut fetch = Fetch::new(scratch, store).with(&["--output", "json"]);
    fetch.directory = tempfile::tempdir_in(scratch).unwrap().keep();
    fetch.run().await.json()["revision"].as_str().unwrap().to_owned()
}

#[test]
fn a_running_pod_keeps_its_revision_and_a_new_one_downloads_only_what_changed() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let old = kubelet.inline("1", &PHI3);
        old.publish().await.unwrap();
        let before = content_of(&old.target());

        put(&store, "config.json", b"new");
        put(&store, "added.txt", b"added");
        store.delete(BUCKET, &format!("{PREFIX}tokenizer/vocab.txt")).unwrap();
        store.reset_stats();
        let new = kubelet.inline("2", &PHI3);
        new.publish().await.unwrap();

        let names: Vec<String> = content_of(&new.target()).into_keys().collect();
        assert_eq!(names, ["added.txt", "config.json", "model.safetensors"]);
        assert_eq!(config(&new), "new");
        assert!(content_of(&old.target()) == before, "the running pod's model changed");
        let downloaded: Vec<String> = store.stats().object_bytes.into_keys().collect();
        let expected = ["added.txt", "config.json"].map(|name| format!("{BUCKET}/{PREFIX}{name}"));
        assert_eq!(downloaded, expected);

        old.publish().await.unwrap();
        assert!(content_of(&old.target()) == before, "another publish changes nothing");
    });
}

#[test]
fn the_old_revision_is_evicted_when_its_last_pod_ends_and_a_named_one_stays() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let pods = ["1", "2"].map(|pod| kubelet.inline(pod, &PHI3));
        for pod in &pods {
            pod.publish().await.unwrap();
        }
        put(&store, "config.json", b"new");
        let new = kubelet.inline("3", &PHI3);
        new.publish().await.unwrap();
        pods[0].unpublish().await.unwrap();
        // It is remembered by the disk that there is a newer one.
        driver.kill().await;
        driver.restart().await;
        assert_eq!(driver.in_cache("models").len(), 2, "a pod holds the old one");
        pods[1].unpublish().await.unwrap();
        let soon = Duration::from_secs(10);
        eventually("the old one goes", soon, async || {
            (driver.in_cache("models").len() == 1).then_some(())
        })
        .await;
        assert_eq!(driver.metric("cache_evictions_total{reason=\"superseded\"}").await, 1);
        assert_eq!(content_of(&new.target()).len(), 4, "what both had stays");

        let revision = revision_now(scratch, &store).await;
        let named = kubelet.inline("4", &with("revision", &revision));
        named.publish().await.unwrap();
        put(&store, "config.json", b"newer");
        kubelet.inline("5", &PHI3).publish().await.unwrap();
        new.unpublish().await.unwrap();
        named.unpublish().await.unwrap();
        put(&store, "config.json", b"newest");
        let newest = kubelet.inline("6", &PHI3);
        newest.publish().await.unwrap();
        named.publish().await.unwrap();
        assert_eq!(config(&named), "new", "who asks for it by its name gets it");
    });
}

#[test]
fn a_reupload_of_the_same_bytes_is_a_new_revision_that_downloads_nothing() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        let first = revision_now(scratch, &store).await;
        put(&store, "model.safetensors", synthetic_bytes(1, 0..3 * MIB + 7));
        assert_ne!(revision_now(scratch, &store).await, first);
        store.reset_stats();
        let again = kubelet.inline("2", &PHI3);
        again.publish().await.unwrap();
        assert_eq!(store.stats().body_bytes, 0);
        let found = fs::read(again.target().join("model.safetensors")).unwrap();
        assert!(found == synthetic_bytes(1, 0..3 * MIB + 7));
    });
}

#[test]
fn if_not_present_uses_a_cached_model_without_a_request() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let first = kubelet.inline("1", &with("pullPolicy", "IfNotPresent"));
        first.publish().await.unwrap();
        let original = config(&first);
        put(&store, "config.json", b"new");
        let second = kubelet.inline("2", &with("pullPolicy", "IfNotPresent"));
        second.publish().await.unwrap();
        assert_eq!(config(&second), original);
        // The newest revision that any pod's publish has found is the one from then on.
        kubelet.inline("3", &PHI3).publish().await.unwrap();
        let fourth = kubelet.inline("4", &with("pullPolicy", "IfNotPresent"));
        fourth.publish().await.unwrap();
        assert_eq!(config(&fourth), "new");

        // And it needs no Object Storage, not even after a restart.
        driver.kill().await;
        store.faults().add(Rule::new(Action::Disconnect));
        driver.restart().await;
        let fifth = kubelet.inline("5", &with("pullPolicy", "IfNotPresent"));
        fifth.publish().await.unwrap();
        assert_eq!(config(&fifth), "new");
    });
}

#[test]
fn pull_policy_never_is_served_from_the_cache_alone() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let never = kubelet.inline("1", &with("pullPolicy", "Never"));
        let (code, message) = never.refused().await;
        assert_eq!(code, Code::NotFound);
        assert!(message.contains("cache") && message.contains("Never"), "{message}");
        assert_eq!(store.stats().body_bytes, 0);
        kubelet.inline("2", &PHI3).publish().await.unwrap();
        store.faults().add(Rule::new(Action::Disconnect));
        never.publish().await.unwrap();
    });
}

#[test]
fn a_cached_copy_of_another_request_does_not_satisfy_if_not_present() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        let attributes =
            [PHI3.as_slice(), &[("include", "*.json"), ("pullPolicy", "IfNotPresent")]].concat();
        let filtered = kubelet.inline("2", &attributes);
        filtered.publish().await.unwrap();
        assert_eq!(content_of(&filtered.target()).len(), 1);
    });
}

#[test]
fn namespaces_that_do_not_share_the_cache_download_on_their_own() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let of_namespace = |pod: &str, namespace: &str, scope: &str, policy: &str| {
            let own = [("cacheScope", scope), ("pullPolicy", policy)];
            let mut volume = kubelet.persistent("pv", pod, &[PHI3.as_slice(), &own].concat());
            namespace.clone_into(&mut volume.namespace);
            volume
        };
        of_namespace("1", "team-a", "namespace", "Always").publish().await.unwrap();
        let once = store.stats().body_bytes;
        of_namespace("2", "team-a", "namespace", "Never").publish().await.unwrap();
        for (pod, namespace, scope) in [("3", "team-b", "namespace"), ("4", "team-a", "cluster")] {
            let never = of_namespace(pod, namespace, scope, "Never");
            assert_eq!(never.refused().await.0, Code::NotFound, "{namespace} {scope}");
        }
        of_namespace("5", "team-b", "namespace", "Always").publish().await.unwrap();
        assert_eq!(store.stats().body_bytes, 2 * once);
    });
}

#[test]
fn pods_that_share_a_file_see_each_others_locks_and_those_of_another_scope_share_none() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        for (first, scope, is_shared) in [(1, "cluster", true), (3, "namespace", false)] {
            let attributes = [PHI3.as_slice(), &[("cacheScope", scope)]].concat();
            let mut files = Vec::new();
            for (pod, namespace) in [(first, "team-a"), (first + 1, "team-b")] {
                let mut volume = kubelet.persistent("pv", &pod.to_string(), &attributes);
                namespace.clone_into(&mut volume.namespace);
                volume.publish().await.unwrap();
                files.push(fs::File::open(volume.target().join("config.json")).unwrap());
            }
            let [one, other] = [0, 1].map(|at| files[at].metadata().unwrap());
            // What inotify and leases are set on, too.
            assert_eq!((one.dev(), one.ino()) == (other.dev(), other.ino()), is_shared, "{scope}");
            files[0].lock().unwrap();
            assert_eq!(files[1].try_lock().is_err(), is_shared, "{scope}");
        }
    });
}

#[test]
fn a_pinned_revision_is_that_one_or_nothing() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let first = revision_now(scratch, &store).await;
        let pinned = kubelet.inline("1", &with("revision", &first));
        pinned.publish().await.unwrap();
        let original = config(&pinned);

        put(&store, "config.json", b"new");
        let second = revision_now(scratch, &store).await;
        let cached = kubelet.inline("2", &with("revision", &first));
        cached.publish().await.unwrap();
        assert_eq!(config(&cached), original, "a cached copy is a hit though the bucket moved on");

        let elsewhere = format!("sha256:{}", "ab".repeat(32));
        let (code, message) = kubelet.inline("3", &with("revision", &elsewhere)).refused().await;
        assert_eq!(code, Code::FailedPrecondition);
        assert!(message.contains(&elsewhere) && message.contains(&second), "{message}");

        let newest = kubelet.inline("4", &with("revision", &second));
        newest.publish().await.unwrap();
        assert_eq!(config(&newest), "new");
    });
}

#[test]
fn during_an_outage_the_newest_cached_revision_is_mounted_after_ten_seconds() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        for (pod, outage) in [("2", Action::Disconnect), ("3", Action::retry_after(429, 1))] {
            let rule = store.faults().add(Rule::new(outage));
            let volume = kubelet.inline(pod, &PHI3);
            volume.publish().await.unwrap();
            let took = volume.calls()[0].took;
            assert!(took.as_secs_f64() >= 10.0, "{took:?}");
            assert_eq!(config(&volume), "{\"model_type\": \"phi3\"}");
            store.faults().remove(rule);
        }
        assert_eq!(driver.metric("publish_total{result=\"stale\"}").await, 2);
        assert!(driver.log().contains("mounting the newest cached revision"));
        let volume = kubelet.inline("4", &PHI3);
        volume.publish().await.unwrap();
        assert_eq!(driver.metric("publish_total{result=\"hit\"}").await, 1);
    });
}

#[test]
fn without_a_cached_revision_an_outage_is_unavailable() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        store.faults().add(Rule::new(Action::status(503)));
        let volume = driver.kubelet().inline("1", &PHI3);
        let (code, message) = volume.refused().await;
        assert_eq!(code, Code::Unavailable);
        assert!(message.contains("503") && message.contains("attempts"), "{message}");
    });
}

#[test]
fn an_administrator_can_forbid_stale_models() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let setup = Setup::new(scratch, &store).with_config("serveStaleOnOutage: false\n");
        let driver = setup.start().await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        store.faults().add(Rule::new(Action::status(503)));
        assert_eq!(kubelet.inline("2", &PHI3).refused().await.0, Code::Unavailable);
    });
}

#[test]
fn a_refusal_is_never_answered_with_a_stale_model() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        for (pod, status, expected) in [
            ("2", 401, Code::Unauthenticated),
            ("3", 403, Code::PermissionDenied),
            ("4", 404, Code::NotFound),
        ] {
            let refusal = Rule::new(Action::status(status)).operation(Operation::List);
            let rule = store.faults().add(refusal);
            store.reset_stats();
            let (code, message) = kubelet.inline(pod, &PHI3).refused().await;
            assert_eq!(code, expected, "{message}");
            if status == 404 {
                // The bucket worked a moment ago: asked for once, and three times more.
                assert_eq!(store.stats().answered(Operation::List, 404), 4);
            }
            store.faults().remove(rule);
        }
        assert_eq!(driver.metric("publish_total{result=\"stale\"}").await, 0);
        assert_eq!(driver.leases(), 1);
    });
}

#[test]
fn leaving_out_the_own_namespace_and_writing_it_are_one_request() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().namespace("mytenancy").start().unwrap();
        for model in ["a", "b"] {
            store.put(BUCKET, &format!("models/{model}/config.json"), b"1").unwrap();
        }
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let volume = |pod: &str, model: &str, is_named: bool, policy: &str| {
            let prefix = format!("models/{model}/");
            let named = [("namespace", "mytenancy")];
            let more = if is_named { named.as_slice() } else { &[] };
            let base = [("bucket", BUCKET), ("prefix", &*prefix), ("pullPolicy", policy)];
            kubelet.inline(pod, &[base.as_slice(), more].concat())
        };
        // The first request of `a` leaves it out, that of `b` writes it.
        volume("1", "a", false, "Always").publish().await.unwrap();
        volume("2", "b", true, "Always").publish().await.unwrap();
        driver.restart_to(None).await;
        let listed = store.stats().requests_of(Operation::List);
        for (pod, model) in [("3", "a"), ("4", "b")] {
            for (is_named, policy) in
                [(true, "Never"), (true, "IfNotPresent"), (false, "Never"), (false, "IfNotPresent")]
            {
                volume(&format!("{pod}-{is_named}-{policy}"), model, is_named, policy)
                    .publish()
                    .await
                    .unwrap();
            }
        }
        assert_eq!(store.stats().requests_of(Operation::List), listed, "all are in the cache");

        // A newer revision that either gets is the newest of both.
        for (round, is_named) in [("5", true), ("6", false)] {
            for model in ["a", "b"] {
                store
                    .put(BUCKET, &format!("models/{model}/config.json"), round.as_bytes())
                    .unwrap();
                volume(&format!("{round}-{model}"), model, is_named, "Always")
                    .publish()
                    .await
                    .unwrap();
                let other = volume(&format!("{round}-{model}-other"), model, !is_named, "Never");
                other.publish().await.unwrap();
                assert_eq!(config(&other), round, "{model}");
            }
        }
        let elsewhere = kubelet.inline(
            "8",
            &[
                ("bucket", BUCKET),
                ("prefix", "models/a/"),
                ("pullPolicy", "Never"),
                ("namespace", "other"),
            ],
        );
        assert_eq!(elsewhere.refused().await.0, Code::NotFound);

        // Once the administrator has chosen another namespace, that one is meant.
        driver.setup = driver.setup.clone().with_config("objectStorage: {namespace: other}\n");
        driver.restart_to(None).await;
        for (pod, model) in [("9", "a"), ("10", "b")] {
            let (code, message) = volume(pod, model, false, "Never").refused().await;
            assert_eq!(code, Code::NotFound, "{message}");
            volume(&format!("{pod}-named"), model, true, "Never").publish().await.unwrap();
        }
    });
}
