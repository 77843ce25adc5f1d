//! What pods with identities of their own get, and which answers they see: only
//! pods that may read a model's objects can find out whether it is cached.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use crate::support::driver::Driver;
use crate::support::kubelet::{Kubelet, Volume};
use crate::support::models::{BUCKET, content_of};
use crate::support::run::{end_to_end, end_to_end_within};
use crate::support::workloads::{caller, pod, sent, setup};
use localstore::{Action, LocalStore, Operation, Rule};
use tonic::Code;

/// A revision that does not exist.
const ANOTHER: &str = "sha256:abababababababababababababababababababababababababababababababab";

/// Puts a small model with two directories; `content` is in each of its files.
fn put_model(store: &LocalStore, prefix: &str, content: &str) {
    for name in ["config.json", "model.bin", "shards/one.bin"] {
        store.put(BUCKET, &format!("{prefix}{name}"), format!("{content} {name}")).unwrap();
    }
}

fn delete_model(store: &LocalStore, prefix: &str) {
    for name in ["config.json", "model.bin", "shards/one.bin"] {
        store.delete(BUCKET, &format!("{prefix}{name}")).unwrap();
    }
}

/// The one answer to pods that may read nothing under a prefix.
fn unseen(store: &LocalStore, prefix: &str, team: &str) -> String {
    format!(
        "no object under \"{prefix}\" in bucket {BUCKET} of namespace {} that service account \
         {team}/default may read; to allow it: Allow any-user to read objects in compartment … \
         where all {{request.principal.type='workload', request.principal.cluster_id='…', \
         request.principal.namespace='{team}', request.principal.service_account='default', \
         target.bucket.name='{BUCKET}'}}",
        store.namespace()
    )
}

/// The revision of a cached model, by its prefix.
fn revision_of(driver: &Driver, prefix: &str) -> String {
    let models = driver.setup.cache.join("models");
    let manifests = driver.in_cache("models").into_iter().map(|key| {
        let text = fs::read_to_string(models.join(key).join("manifest.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    });
    let mut theirs = manifests.filter(|manifest| manifest["prefix"] == prefix);
    theirs.next().unwrap()["revision"].as_str().unwrap().to_owned()
}

/// What became of one publish, in the words of the table.
async fn outcome(store: &LocalStore, volume: &Volume, prefix: &str) -> &'static str {
    if volume.publish().await.is_ok() {
        let shown = content_of(&volume.target())["config.json"].clone().unwrap();
        volume.unpublish().await.unwrap();
        return match shown.as_slice() {
            b"old config.json" => "old",
            b"new config.json" => "new",
            other => panic!("{}", String::from_utf8_lossy(other)),
        };
    }
    let last = volume.calls().pop().unwrap();
    let message = last.message.replace("%%", "%");
    match last.code {
        Code::NotFound if message == unseen(store, prefix, &volume.namespace) => "unseen",
        Code::NotFound
            if message
                == format!(
                    "{prefix} from {BUCKET} is not in this node's cache, and pullPolicy Never \
                     forbids the download; use IfNotPresent, or schedule the pod where it is \
                     cached"
                ) =>
        {
            "uncached"
        }
        Code::FailedPrecondition
            if message.starts_with(&format!("{prefix} from {BUCKET} is at revision sha256:"))
                && message.contains(&format!("{ANOTHER} was requested")) =>
        {
            "other"
        }
        code => panic!("{}: {code:?}: {message}", volume.namespace),
    }
}

/// Who (may list, may read), what became of the objects, whether the node had cached
/// them before, and the outcome under IfNotPresent, Never, a revision, and Always.
/// `old` and `new` are mounted; the others are what [`outcome`] compares word for word.
const TABLE: &str = "
    list       present   cached    unseen unseen   unseen unseen
    list       present   uncached  unseen unseen   unseen unseen
    list       gone      cached    unseen unseen   unseen unseen
    list       gone      uncached  unseen unseen   unseen unseen
    list       replaced  cached    unseen unseen   unseen unseen
    list       replaced  uncached  unseen unseen   unseen unseen
    neither    present   cached    unseen unseen   unseen unseen
    neither    present   uncached  unseen unseen   unseen unseen
    neither    gone      cached    unseen unseen   unseen unseen
    neither    gone      uncached  unseen unseen   unseen unseen
    neither    replaced  cached    unseen unseen   unseen unseen
    neither    replaced  uncached  unseen unseen   unseen unseen
    read       present   cached    old    old      old    unseen
    read       present   uncached  unseen unseen   unseen unseen
    read       gone      cached    unseen unseen   unseen unseen
    read       gone      uncached  unseen unseen   unseen unseen
    read       replaced  cached    old    old      old    unseen
    read       replaced  uncached  unseen unseen   unseen unseen
    both       present   cached    old    old      old    old
    both       present   uncached  -      uncached other  -
    both       gone      cached    unseen unseen   unseen unseen
    both       gone      uncached  unseen unseen   unseen unseen
    both       replaced  cached    old    old      old    new
    both       replaced  uncached  -      uncached other  -
";

#[test]
fn each_cell_of_permission_object_and_policy_has_the_documented_outcome() {
    end_to_end_within(Duration::from_secs(300), async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        for team in ["both", "first"] {
            store.allow(&caller(team), BUCKET);
        }
        store.allow_inspect(&caller("list"), BUCKET);
        store.allow_read_known(&caller("read"), BUCKET);
        store.allow(&caller("neither"), "another-bucket");
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let states = ["present", "gone", "replaced"];
        let prefix_of = |state: &str, cached: &str| format!("{state}/{cached}/");
        for (n, state) in (1..).zip(states) {
            let prefix = prefix_of(state, "cached");
            put_model(&store, &prefix, "old");
            let attributes = [("bucket", BUCKET), ("prefix", &*prefix)];
            let first = pod(&kubelet, &store, n, "first", &attributes);
            first.publish().await.unwrap();
            first.unpublish().await.unwrap();
        }
        let revisions = states.map(|state| revision_of(&driver, &prefix_of(state, "cached")));
        delete_model(&store, &prefix_of("gone", "cached"));
        put_model(&store, &prefix_of("replaced", "cached"), "new");
        for state in ["present", "replaced"] {
            put_model(&store, &prefix_of(state, "uncached"), "new");
        }

        let (mut found, mut pods) = (String::from("\n"), 10..);
        for line in TABLE.trim().lines() {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let [team, state, cached] = columns[..3] else { panic!("{line}") };
            let prefix = prefix_of(state, cached);
            let revision = match cached {
                "cached" => &revisions[states.iter().position(|&one| one == state).unwrap()],
                _ => ANOTHER,
            };
            let policies = [
                ("pullPolicy", "IfNotPresent"),
                ("pullPolicy", "Never"),
                ("revision", revision),
                ("pullPolicy", "Always"),
            ];
            let _ = write!(found, "    {team:<10} {state:<9} {cached:<9}");
            for (policy, expected) in policies.iter().zip(&columns[3..]) {
                let attributes = [("bucket", BUCKET), ("prefix", &*prefix), *policy];
                let outcome = match *expected {
                    // It would be downloaded, and be cached for the next lines.
                    "-" => "-",
                    _ => {
                        let n = pods.next().unwrap();
                        let volume = pod(&kubelet, &store, n, team, &attributes);
                        outcome(&store, &volume, &prefix).await
                    }
                };
                let _ = write!(found, " {outcome:<width$}", width = expected.len().max(6));
            }
            found.push('\n');
        }
        let words = |table: &str| {
            table
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .filter(|line| !line.is_empty())
                .collect::<Vec<_>>()
        };
        assert_eq!(words(&found), words(TABLE), "{found}");
    });
}

#[test]
fn a_pod_that_may_list_but_not_read_learns_nothing_from_filters_or_object_names() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        store.allow(&caller("both"), BUCKET);
        store.allow_inspect(&caller("list"), BUCKET);
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        put_model(&store, "m/", "old");
        let mut pods = 1..;
        let mut ask = async |team: &str, prefix: &str, include: &str| {
            let attributes = [("bucket", BUCKET), ("prefix", prefix), ("include", include)];
            let attributes = &attributes[..if include.is_empty() { 2 } else { 3 }];
            let volume = pod(&kubelet, &store, pods.next().unwrap(), team, attributes);
            let (code, message) = volume.refused().await;
            assert_eq!(code, Code::NotFound, "{message}");
            message.replace("%%", "%")
        };
        for (prefix, include) in
            [("m/", "config.json"), ("m/", "*.gguf"), ("gone/", "*.gguf"), ("m/config.json/", "")]
        {
            let message = ask("list", prefix, include).await;
            assert_eq!(message, unseen(&store, prefix, "list"), "{prefix} {include}");
        }
        let message = ask("both", "m/", "*.gguf").await;
        assert!(message.contains("matches include and exclude"), "{message}");
        let message = ask("both", "m/config.json/", "").await;
        assert!(message.contains("is an object, not a directory of objects"), "{message}");
        let message = ask("both", "gone/", "*.gguf").await;
        assert_eq!(message, unseen(&store, "gone/", "both"));
    });
}

/// The texts of two refusals but for the request ids of the service.
fn without_request_id(message: &str) -> String {
    let (before, rest) = message.split_once("(opc-request-id ").unwrap_or((message, ")"));
    format!("{before}{}", rest.split_once(')').map_or("", |(_, after)| after))
}

#[test]
fn a_refusal_by_401_or_403_does_not_reveal_what_is_cached_either() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_model(&store, "m/cached/", "old");
        put_model(&store, "m/unseen/", "old");
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let attributes = [("bucket", BUCKET), ("prefix", "m/cached/")];
        pod(&kubelet, &store, 1, "team-a", &attributes).publish().await.unwrap();
        let revision = revision_of(&driver, "m/cached/");
        let mut pods = 10..;
        for (status, expected) in [(401, Code::Unauthenticated), (403, Code::PermissionDenied)] {
            let refusal = Rule::new(Action::status(status));
            let refusals = [
                store.faults().add(refusal.clone().operation(Operation::List)),
                store.faults().add(refusal.operation(Operation::Get)),
            ];
            let mut texts = Vec::new();
            for prefix in ["m/cached/", "m/unseen/"] {
                for policy in [
                    ("pullPolicy", "Always"),
                    ("pullPolicy", "IfNotPresent"),
                    ("pullPolicy", "Never"),
                    ("revision", revision.as_str()),
                ] {
                    let attributes = [("bucket", BUCKET), ("prefix", prefix), policy];
                    let volume = pod(&kubelet, &store, pods.next().unwrap(), "team-b", &attributes);
                    let (code, message) = volume.refused().await;
                    assert_eq!(code, expected, "{message}");
                    texts.push(without_request_id(&message).replace(prefix, "PREFIX"));
                }
            }
            texts.dedup();
            assert_eq!(texts.len(), 1, "{texts:#?}");
            for refusal in refusals {
                store.faults().remove(refusal);
            }
        }
    });
}

/// All ways to ask for a model of which this revision is cached.
fn ways<'a>(prefix: &'a str, revision: &'a str) -> [[(&'a str, &'a str); 3]; 4] {
    let way = |policy| [("bucket", BUCKET), ("prefix", prefix), policy];
    [
        way(("pullPolicy", "Always")),
        way(("pullPolicy", "IfNotPresent")),
        way(("pullPolicy", "Never")),
        way(("revision", revision)),
    ]
}

async fn cache_as(driver: &Driver, store: &LocalStore, kubelet: &Kubelet, prefix: &str) -> String {
    let attributes = [("bucket", BUCKET), ("prefix", prefix)];
    let first = pod(kubelet, store, 1, "team-a", &attributes);
    first.publish().await.unwrap();
    first.unpublish().await.unwrap();
    revision_of(driver, prefix)
}

#[test]
fn a_condition_on_any_directory_or_on_the_largest_file_protects_a_cached_model() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_model(&store, "m/", "a");
        store.put(BUCKET, "m/shards/deep/er/weights.bin", [7; 5000]).unwrap();
        store.put(BUCKET, "m/shards/deep/er/small.bin", [7; 5]).unwrap();
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let revision = cache_as(&driver, &store, &kubelet, "m/").await;
        let mut pods = 10..;
        for (team, withheld) in [
            ("team-root", "m/config*"),
            ("team-shards", "m/shards/one*"),
            ("team-deep", "m/shards/deep/*"),
            ("team-largest", "*/weights.bin"),
        ] {
            store.withhold(&caller(team), BUCKET, withheld);
            for attributes in ways("m/", &revision) {
                let volume = pod(&kubelet, &store, pods.next().unwrap(), team, &attributes);
                let (code, message) = volume.refused().await;
                assert_eq!(code, Code::NotFound, "{team}: {message}");
                assert_eq!(message, unseen(&store, "m/", team));
            }
        }
        store.reset_stats();
        for attributes in ways("m/", &revision) {
            let volume = pod(&kubelet, &store, pods.next().unwrap(), "team-b", &attributes);
            volume.publish().await.unwrap();
        }
        // A byte of each directory with files, of the version that is cached.
        assert_eq!(sent(&store), 4 * 3);
        for request in store.requests() {
            assert_ne!(request.operation, Operation::Head, "to inspect suffices for it");
            if request.operation == Operation::Get {
                assert_eq!(request.range.as_deref(), Some("bytes=0-0"));
                assert!(request.if_match.is_some());
            }
        }
    });
}

#[test]
fn permission_is_checked_for_empty_objects_too() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        for name in ["m/a.txt", "m/empty/b.txt", "m/later/c.txt"] {
            store.put(BUCKET, name, if name.contains("later") { "bytes" } else { "" }).unwrap();
        }
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let revision = cache_as(&driver, &store, &kubelet, "m/").await;
        store.withhold(&caller("team-b"), BUCKET, "m/empty/*");
        let mut pods = 10..;
        // And once more when an object has lost its bytes: it is cached with them.
        for way in ways("m/", &revision).into_iter().chain([ways("m/", &revision)[2]]) {
            let n = pods.next().unwrap();
            pod(&kubelet, &store, n, "team-c", &way).publish().await.unwrap();
            let refused = pod(&kubelet, &store, pods.next().unwrap(), "team-b", &way);
            assert_eq!(refused.refused().await.0, Code::NotFound);
            if way == ways("m/", &revision)[3] {
                store.put(BUCKET, "m/later/c.txt", "").unwrap();
            }
        }
    });
}

#[test]
fn too_many_directories_are_reported_only_to_pods_that_may_read() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        for n in 0..257 {
            store.put(BUCKET, &format!("m/{n}/file"), "x").unwrap();
        }
        store.allow(&caller("team-a"), BUCKET);
        store.allow_inspect(&caller("team-b"), BUCKET);
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let attributes = [("bucket", BUCKET), ("prefix", "m/")];
        let (code, message) = pod(&kubelet, &store, 1, "team-a", &attributes).refused().await;
        assert_eq!(code, Code::FailedPrecondition);
        assert!(message.contains("more than 256 directories"), "{message}");
        let (_, message) = pod(&kubelet, &store, 2, "team-b", &attributes).refused().await;
        assert_eq!(message, unseen(&store, "m/", "team-b"));
        let fewer = [&attributes[..], &[("exclude", "0/*")]].concat();
        pod(&kubelet, &store, 3, "team-a", &fewer).publish().await.unwrap();
    });
}

#[test]
fn problems_of_a_listing_are_reported_only_to_pods_that_may_read() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_model(&store, "m/", "a");
        store.put(BUCKET, "m/../etc/passwd", "x").unwrap();
        store.allow(&caller("team-a"), BUCKET);
        store.allow_inspect(&caller("team-b"), BUCKET);
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let attributes = [("bucket", BUCKET), ("prefix", "m/")];
        let (code, message) = pod(&kubelet, &store, 1, "team-a", &attributes).refused().await;
        assert_eq!(code, Code::FailedPrecondition, "{message}");
        let (_, message) = pod(&kubelet, &store, 2, "team-b", &attributes).refused().await;
        assert_eq!(message, unseen(&store, "m/", "team-b"));
    });
}
