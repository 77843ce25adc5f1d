//! Outages: what is mounted without an answer, when, and which error is returned
//! where there is nothing to mount.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::{Kubelet, Volume};
use crate::support::models::{BUCKET, PHI3, put};
use crate::support::proxy::{Behaviour, TestProxy};
use crate::support::run::{end_to_end, end_to_end_within, figure};
use crate::support::workloads;
use futures_util::future::join_all;
use localstore::{Action, LocalStore, Operation, Rule};
use tonic::Code;

/// From the first unanswered attempt to the mount, in seconds.
const STALE: std::ops::RangeInclusive<f64> = 10.0..=12.0;

/// The upper bound of an answer that waits for nothing.
const AT_ONCE: Duration = Duration::from_secs(8);

/// Each way to fail a request without denying it.
fn ways_to_be_away() -> Vec<(&'static str, Action)> {
    vec![
        ("reset", Action::Disconnect),
        ("silent", Action::Latency { ms: 600_000 }),
        ("unavailable", Action::status(503)),
        ("unavailable-later", Action::retry_after(503, 600)),
        ("throttled", Action::retry_after(429, 60)),
        ("redirect", Action::Page { code: 302 }),
        ("not-implemented", Action::Page { code: 501 }),
        ("page", Action::Page { code: 200 }),
        // JSON, but not a listing.
        ("portal", Action::status(200)),
        ("method", Action::Page { code: 405 }),
    ]
}

/// Failures that a retry can cure: the client takes its time for them.
fn is_repeated(way: &str) -> bool {
    !["redirect", "not-implemented", "page", "portal", "method"].contains(&way)
}

fn seconds(volume: &Volume) -> f64 {
    volume.calls().last().unwrap().took.as_secs_f64()
}

#[test]
fn forty_volumes_side_by_side_get_their_older_revision_after_10_to_12_seconds() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let ways = ways_to_be_away();
        for (n, (bucket, action)) in (1..).zip(&ways) {
            store.put(bucket, "m/config.json", "{}").unwrap();
            let attributes = [("bucket", *bucket), ("prefix", "m/")];
            kubelet.inline(&n.to_string(), &attributes).publish().await.unwrap();
            store.faults().add(Rule::new(action.clone()).bucket(*bucket));
        }
        let mut volumes = Vec::new();
        for n in 0..40 {
            let attributes = [("bucket", ways[n % ways.len()].0), ("prefix", "m/")];
            volumes.push(kubelet.inline(&(100 + n).to_string(), &attributes));
        }
        let published = join_all(volumes.iter().map(Volume::publish)).await;
        let mut took = Vec::new();
        for (volume, published) in volumes.iter().zip(published) {
            published.unwrap();
            took.push(seconds(volume));
            let way = &volume.attributes["bucket"];
            assert!(STALE.contains(&seconds(volume)), "{way}: {} s", seconds(volume));
        }
        took.sort_by(f64::total_cmp);
        let (median, max) = (took[took.len() / 2], took[took.len() - 1]);
        figure(format_args!("40 outages side by side: p50 {median:.2} s, max {max:.2} s"));
        assert_eq!(driver.metric("publish_total{result=\"stale\"}").await, 40);
    });
}

#[test]
fn without_a_cached_revision_an_unusable_answer_fails_at_once() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        for (n, (bucket, action)) in (1..).zip(ways_to_be_away()) {
            if is_repeated(bucket) {
                continue;
            }
            store.put(bucket, "m/config.json", "{}").unwrap();
            store.faults().add(Rule::new(action).bucket(bucket));
            let attributes = [("bucket", bucket), ("prefix", "m/")];
            let volume = kubelet.inline(&n.to_string(), &attributes);
            let (code, message) = volume.refused().await;
            assert_eq!(code, Code::Unavailable, "{bucket}: {message}");
            assert!(message.contains("ListObjects of prefix \"m/\""), "{bucket}: {message}");
            assert!(volume.calls()[0].took < AT_ONCE, "{bucket}: {:?}", volume.calls());
        }
    });
}

#[test]
fn a_proxy_that_begins_to_refuse_is_an_outage_and_its_refusal_is_no_denial() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put(&store, "config.json", "{}");
        let proxy = TestProxy::start(Behaviour::Forward, None);
        let mut setup = Setup::new(scratch, &store);
        setup.environment.push(("http_proxy", proxy.url()));
        let driver = setup.start().await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        for (pod, answer) in [
            ("2", "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"),
            ("3", "HTTP/1.1 302 Found\r\nlocation: http://portal/\r\ncontent-length: 0\r\n\r\n"),
            ("4", "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>"),
            ("5", ""),
        ] {
            proxy.becomes(Behaviour::Answer(answer));
            let volume = kubelet.inline(pod, &PHI3);
            volume.publish().await.unwrap();
            assert!(STALE.contains(&seconds(&volume)), "{answer:?}: {} s", seconds(&volume));
        }
        assert_eq!(driver.metric("publish_total{result=\"stale\"}").await, 4);
    });
}

#[test]
fn a_certificate_that_is_no_longer_trusted_is_an_outage_and_otherwise_fails_at_once() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().tls(true).start().unwrap();
        put(&store, "config.json", "{}");
        let address = store.address();
        let trusted = scratch.join("ca.pem");
        std::fs::copy(store.ca_file().unwrap(), &trusted).unwrap();
        let config = format!("objectStorage:\n  caFile: {}\n", trusted.display());
        let driver = Setup::new(scratch, &store).with_config(&config).start().await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        drop(store);
        // A CA of the same name with another key, as after its renewal.
        let _other = LocalStore::builder().tls(true).listen(address).start().unwrap();
        let volume = kubelet.inline("2", &PHI3);
        volume.publish().await.unwrap();
        assert!(STALE.contains(&seconds(&volume)), "{} s", seconds(&volume));
        assert_eq!(driver.metric("publish_total{result=\"stale\"}").await, 1);
        let volume = kubelet.inline("3", &[("bucket", BUCKET), ("prefix", "other/")]);
        let (code, message) = volume.refused().await;
        assert_eq!(code, Code::Unavailable, "{message}");
        assert!(volume.calls()[0].took < AT_ONCE, "{:?}", volume.calls());
        let remedy = "name the CA that signed the endpoint's certificate with --ca-file or \
                      objectStorage.caFile";
        assert!(message.contains(remedy), "{message}");
    });
}

#[test]
fn the_ten_seconds_and_the_duration_run_across_the_calls_of_a_volume() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put(&store, "config.json", "{}");
        let driver = Driver::start(scratch, &store).await;
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        // A call of 8 s is answered after 4.
        let mut hasty = driver.kubelet();
        hasty.deadline = Duration::from_secs(8);
        for (pod, away) in [("2", Action::Disconnect), ("3", Action::retry_after(503, 60))] {
            let away = store.faults().add(Rule::new(away));
            let volume = hasty.inline(pod, &PHI3);
            let started = Instant::now();
            let calls = volume.mount().await;
            let took = started.elapsed();
            assert!(STALE.contains(&took.as_secs_f64()), "{took:?}: {:?}", volume.calls());
            assert!(calls > 1, "{:?}", volume.calls());
            for call in &volume.calls()[..calls - 1] {
                assert_eq!(call.code, Code::Aborted, "{call:?}");
            }
            store.faults().remove(away);
        }
        let metrics = driver.metrics().await;
        let sum = "oci_model_csi_publish_duration_seconds_sum{result=\"stale\"} ";
        let sum = metrics.lines().find_map(|line| line.strip_prefix(sum)).unwrap();
        let sum: f64 = sum.parse().unwrap();
        assert!((20.0..=24.0).contains(&sum), "both from their first calls: {sum}");
    });
}

/// What Object Storage does, the policy, and what becomes of the publish: as the
/// driver, and as a pod with an identity of its own that has read the model before.
const TABLE: [(&str, &str, &str, &str); 9] = [
    ("slow", "Always", "hit", "hit"),
    ("slow", "IfNotPresent", "hit", "hit"),
    ("slow", "Never", "hit", "hit"),
    ("down", "Always", "stale", "stale"),
    ("down", "IfNotPresent", "hit", "stale"),
    ("down", "Never", "hit", "stale"),
    ("denying", "Always", "PermissionDenied", "PermissionDenied"),
    ("denying", "IfNotPresent", "hit", "PermissionDenied"),
    ("denying", "Never", "hit", "PermissionDenied"),
];

#[test]
fn each_cell_of_policy_and_outage_has_the_documented_outcome() {
    end_to_end_within(Duration::from_secs(300), async |scratch| {
        // A name on each page: the whole listing takes longer than the time until an outage is declared.
        let store = LocalStore::builder().max_page(1).start().unwrap();
        for n in 0..5 {
            put(&store, &format!("{n}.bin"), "x");
        }
        let (shared, own) = (scratch.join("shared"), scratch.join("own"));
        let mut failed = Vec::new();
        for (directory, of_pods) in [(&shared, false), (&own, true)] {
            std::fs::create_dir_all(directory).unwrap();
            failed.extend(cells(directory, &store, of_pods).await);
        }
        assert!(failed.is_empty(), "{failed:#?}");
    });
}

/// The cells of one column that came out otherwise.
async fn cells(scratch: &Path, store: &LocalStore, of_pods: bool) -> Vec<String> {
    let driver = match of_pods {
        true => workloads::setup(scratch, store).start().await,
        false => Setup::new(scratch, store).start().await,
    };
    let kubelet = driver.kubelet();
    let volume = |n: u32, kubelet: &Kubelet, policy: &str| {
        let attributes = [&PHI3[..], &[("pullPolicy", policy)]].concat();
        match of_pods {
            true => workloads::pod(kubelet, store, n, "team-a", &attributes),
            false => kubelet.inline(&n.to_string(), &attributes),
        }
    };
    volume(1, &kubelet, "Always").publish().await.unwrap();
    let mut failed = Vec::new();
    for (kind, action) in [
        ("slow", Action::Latency { ms: 3000 }),
        ("down", Action::Disconnect),
        ("denying", Action::status(403)),
    ] {
        let reading = Rule::new(action).operation(Operation::List).operation(Operation::Get);
        let rule = store.faults().add(reading);
        let rows = (10..).zip(TABLE.iter().filter(|row| row.0 == kind));
        let row_of = |&(n, row): &(u32, &(&str, &'static str, &'static str, &'static str))| {
            (volume(n, &kubelet, row.1), row.1, if of_pods { row.3 } else { row.2 })
        };
        let asked: Vec<_> = rows.map(|row| row_of(&row)).collect();
        let outcomes = join_all(asked.iter().map(|(volume, ..)| volume.publish())).await;
        for ((volume, policy, expected), outcome) in asked.iter().zip(outcomes) {
            let took = seconds(volume);
            let right = match (*expected, &outcome) {
                ("stale", Ok(())) => STALE.contains(&took),
                // A listing of six pages, and a file of it, both slow.
                ("hit", Ok(())) if (kind, *policy) == ("slow", "Always") => took > 12.0,
                ("hit", Ok(())) => took < 8.0,
                ("PermissionDenied", Err(status)) => status.code() == Code::PermissionDenied,
                _ => false,
            };
            if !right {
                failed.push(format!("{of_pods} {kind} {policy}: {outcome:?} after {took} s"));
            }
            if outcome.is_ok() {
                volume.unpublish().await.unwrap();
            }
        }
        store.faults().remove(rule);
    }
    failed
}

#[test]
fn a_flapping_bucket_is_asked_again_only_for_requesters_it_has_answered() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put(&store, "config.json", "{}");
        store.allow(&workloads::caller("team-a"), BUCKET);
        store.allow(&workloads::caller("team-b"), "another-bucket");
        let driver = workloads::setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let pod = |n, team| workloads::pod(&kubelet, &store, n, team, &PHI3);
        pod(1, "team-a").publish().await.unwrap();
        store.reset_stats();
        assert_eq!(pod(2, "team-b").refused().await.0, Code::NotFound);
        assert_eq!(store.stats().answered(Operation::List, 404), 1, "it had not answered this one");
        store.reset_stats();
        let flicker = Rule::new(Action::status(404)).operation(Operation::List).times(3);
        store.faults().add(flicker);
        pod(3, "team-a").publish().await.unwrap();
        assert_eq!(store.stats().answered(Operation::List, 404), 3);
    });
}
