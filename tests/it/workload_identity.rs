//! `auth: oke_workload_identity`: every pod reads with its own service account.

use std::time::Duration;

use crate::support::driver::Driver;
use crate::support::kubelet::{Kubelet, Volume, mount_capability};
use crate::support::models::{BUCKET, MIB, PHI3, PREFIX, content_of, put_large, store_with_phi3};
use crate::support::run::{end_to_end, eventually, figure};
use crate::support::workloads::{self, HOUR, caller, callers, of_team, renew, sent, setup};
use localstore::{Action, LocalStore, Operation, Rule};
use oci_model_csi::csi::proto::{CapacityRange, CreateVolumeRequest};
use tonic::Code;

/// A pod of the model under [`PREFIX`].
fn pod(kubelet: &Kubelet, store: &LocalStore, n: u32, team: &str, more: &[(&str, &str)]) -> Volume {
    workloads::pod(kubelet, store, n, team, &[&PHI3[..], more].concat())
}

#[test]
fn a_cached_model_is_shared_with_exactly_those_whose_own_identity_may_read_it() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        for team in ["team-a", "team-c"] {
            store.allow(&caller(team), BUCKET);
        }
        store.allow(&caller("team-b"), "another-bucket");
        store.allow_inspect(&caller("team-d"), BUCKET);
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let first = pod(&kubelet, &store, 1, "team-a", &[]);
        first.publish().await.unwrap();
        assert_eq!(
            content_of(&first.target())["tokenizer/vocab.txt"],
            Some(b"one\ntwo\n".to_vec())
        );
        assert_eq!(callers(&store, Operation::Get), [caller("team-a")]);
        assert_eq!(callers(&store, Operation::List), [caller("team-a")]);
        let revision = commands_revision(&driver);
        let bytes = sent(&store);
        let policies = [
            [("pullPolicy", "Always")],
            [("pullPolicy", "IfNotPresent")],
            [("pullPolicy", "Never")],
            [("revision", revision.as_str())],
        ];
        for (n, policy) in (10..).step_by(10).zip(&policies) {
            // One account without any grant, and one that may list but not read.
            for (n, team) in [(n, "team-b"), (n + 1, "team-d")] {
                let refused = pod(&kubelet, &store, n, team, policy);
                let (code, message) = refused.refused().await;
                assert_eq!(code, Code::NotFound, "{team} {policy:?}: {message}");
                let statement = format!("request.principal.namespace='{team}'");
                assert!(message.contains(&statement), "{message}");
            }
            store.reset_stats();
            pod(&kubelet, &store, n + 2, "team-c", policy).publish().await.unwrap();
            assert_eq!(callers(&store, Operation::Get), [caller("team-c")], "{policy:?}");
            let listed = callers(&store, Operation::List).len();
            assert_eq!(listed, usize::from(policy[0].1 == "Always"), "{policy:?}");
            assert_eq!(sent(&store), 2, "one byte for each directory: {policy:?}");
        }
        assert!(bytes > 3 * MIB);
        assert_eq!(driver.in_cache("models").len(), 1);
    });
}

/// The revision of the one model that is cached.
fn commands_revision(driver: &Driver) -> String {
    let models = driver.setup.cache.join("models");
    let key = driver.in_cache("models").remove(0);
    let text = std::fs::read_to_string(models.join(key).join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    manifest["revision"].as_str().unwrap().to_owned()
}

#[test]
fn a_download_continues_as_another_pod_when_the_first_is_refused() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        put_large(&store, "large.safetensors", 24 * MIB, 3, localstore::PutOptions::default());
        let slow = Action::Bandwidth { bytes_per_sec: 2 * MIB };
        store.faults().add(Rule::new(slow).operation(Operation::Get));
        let config = "download: {rangeSize: 1MiB, concurrency: 2}\n";
        let driver = setup(scratch, &store).with_config(config).start().await;
        let kubelet = driver.kubelet();
        let first = pod(&kubelet, &store, 1, "team-a", &[]);
        let second = pod(&kubelet, &store, 2, "team-b", &[]);
        let refusing = async {
            eventually("the download runs", HOUR, async || (sent(&store) > MIB).then_some(()))
                .await;
            let listed = || callers(&store, Operation::List).contains(&caller("team-b"));
            eventually("the second pod has joined", HOUR, async || listed().then_some(())).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(callers(&store, Operation::Get).starts_with(&[caller("team-a")]));
            store.hide(&caller("team-a"), BUCKET);
            sent(&store)
        };
        let joined = async {
            eventually("the download runs", HOUR, async || (sent(&store) > 0).then_some(())).await;
            second.publish().await
        };
        let (begun, joined, before) = tokio::join!(first.publish(), joined, refusing);
        begun.unwrap();
        joined.unwrap();
        assert!(before < 24 * MIB, "the premise: it was refused in the middle");
        assert_eq!(callers(&store, Operation::Get).last(), Some(&caller("team-b")));
        let sent: u64 = store.stats().bytes_of(BUCKET, &format!("{PREFIX}large.safetensors"));
        assert!(sent < 28 * MIB, "the download was resumed: {sent}");
        // From now on the first one's account is refused.
        let again = pod(&kubelet, &store, 3, "team-a", &[("pullPolicy", "Never")]);
        assert_eq!(again.refused().await.0, Code::NotFound);
    });
}

#[test]
fn a_download_outlives_the_session_tokens_that_it_began_with() {
    end_to_end(async |scratch| {
        let ttl = Duration::from_secs(3);
        let store = LocalStore::builder().token_ttl(ttl).start().unwrap();
        put_large(&store, "large.safetensors", 16 * MIB, 3, localstore::PutOptions::default());
        let slow = Action::Bandwidth { bytes_per_sec: MIB };
        store.faults().add(Rule::new(slow).operation(Operation::Get));
        let config = "download: {rangeSize: 1MiB, concurrency: 2}\n";
        let driver = setup(scratch, &store).with_config(config).start().await;
        let volume = pod(&driver.kubelet(), &store, 1, "team-a", &[]);
        volume.publish().await.unwrap();
        let exchanges = store.stats().requests_of(Operation::WorkloadIdentity);
        assert!(exchanges >= 2, "{exchanges}");
        assert_eq!(store.stats().answered(Operation::Get, 401), 0);
    });
}

#[test]
fn a_field_that_kubelet_should_have_sent_is_named() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let without = kubelet.inline("1", &PHI3);
        let (code, message) = without.refused().await;
        assert_eq!(code, Code::FailedPrecondition);
        assert!(message.contains("tokenRequests: [{audience: \"\"}]"), "{message}");
        // A token of another pod.
        let mut stolen = pod(&kubelet, &store, 2, "team-a", &[]);
        stolen.namespace = "team-b".to_owned();
        let (code, message) = stolen.refused().await;
        assert_eq!(code, Code::InvalidArgument);
        assert!(message.contains("another pod's"), "{message}");
        // A token for another audience.
        let mut elsewhere = pod(&kubelet, &store, 5, "team-a", &[]);
        let (team, uid) = (elsewhere.namespace.clone(), elsewhere.uid.clone());
        let token = store.service_account_token_for("vault", &team, "default", Some(&uid)).unwrap();
        let tokens = serde_json::json!({"vault": {"token": token}}).to_string();
        elsewhere.attributes.insert(workloads::TOKENS.to_owned(), tokens);
        let (code, message) = elsewhere.refused().await;
        assert_eq!(code, Code::Unauthenticated, "{message}");
        assert!(message.contains("check the audience in tokenRequests"), "{message}");
        assert_eq!(store.stats().refusals["wrong_audience"], 1, "it is not asked again");
        // And one that the cluster does not know.
        let other = LocalStore::builder().start().unwrap();
        let (code, message) = pod(&kubelet, &other, 3, "team-a", &[]).refused().await;
        assert_eq!(code, Code::Unauthenticated, "{message}");
        let mut old = pod(&kubelet, &store, 4, "team-a", &[]);
        renew(&mut old, &store, Duration::ZERO);
        let (code, message) = old.refused().await;
        assert_eq!(code, Code::Unauthenticated);
        assert!(message.contains("expired"), "{message}");
        renew(&mut old, &store, HOUR);
        old.publish().await.unwrap();
    });
}

#[test]
fn during_an_outage_of_the_identity_service_pods_that_could_read_before_get_a_stale_model() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        pod(&kubelet, &store, 1, "team-a", &[]).publish().await.unwrap();
        let away = Rule::new(Action::status(503)).operation(Operation::WorkloadIdentity);
        let away = store.faults().add(away);
        let proved = [
            pod(&kubelet, &store, 2, "team-a", &[]),
            pod(&kubelet, &store, 3, "team-a", &[("pullPolicy", "IfNotPresent")]),
        ];
        let mut hasty = driver.kubelet();
        hasty.deadline = Duration::from_secs(30);
        let unproved = pod(&hasty, &store, 4, "team-b", &[("pullPolicy", "IfNotPresent")]);
        // Another account that was given the name of the one that could read.
        store.make_service_account_again("team-a", "default");
        let namesake = pod(&hasty, &store, 6, "team-a", &[("pullPolicy", "IfNotPresent")]);
        let (always, cached, unproved, namesake) = tokio::join!(
            proved[0].publish(),
            proved[1].publish(),
            unproved.refused(),
            namesake.refused()
        );
        always.unwrap();
        cached.unwrap();
        for volume in &proved {
            let took = volume.calls()[0].took;
            assert!(took.as_secs_f64() >= 10.0, "{took:?}");
        }
        for (code, message) in [unproved, namesake] {
            assert!(!crate::support::kubelet::is_final(code), "{code:?}: {message}");
        }
        assert!(driver.metric("publish_total{result=\"stale\"}").await >= 2);
        // A refusal is not an outage, and ends the proof of permission.
        store.faults().remove(away);
        store.hide("*", BUCKET);
        let refused = pod(&kubelet, &store, 5, "team-a", &[]);
        assert_eq!(refused.finally_refused().await.0, Code::NotFound);
    });
}

#[test]
fn a_class_chooses_the_pods_identity_and_the_scope_of_the_cache() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut setup = setup(scratch, &store);
        setup.auth = "api_key";
        let driver = setup.start().await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        assert!(!callers(&store, Operation::List)[0].starts_with("system:serviceaccount:"));
        let class = |scope| {
            let more = [("auth", "oke_workload_identity"), ("cacheScope", scope)];
            [&PHI3[..], &more].concat()
        };
        for (n, scope, team, downloads) in [
            (2, "cluster", "team-a", true),
            (3, "cluster", "team-b", false),
            (4, "namespace", "team-a", true),
            (5, "namespace", "team-b", true),
            (6, "namespace", "team-b", false),
        ] {
            store.reset_stats();
            let volume = kubelet.persistent("volume-1", &n.to_string(), &class(scope));
            of_team(volume, &store, team).publish().await.unwrap();
            assert_eq!(callers(&store, Operation::List), [caller(team)]);
            assert_eq!(sent(&store) > MIB, downloads, "{scope} {team}");
        }
        assert_eq!(driver.in_cache("models").len(), 4);

        // The Controller has no pod: the check is left to the pods.
        let parameters = class("cluster").into_iter();
        let claim = CreateVolumeRequest {
            name: "pvc-1".to_owned(),
            parameters: parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            capacity_range: Some(CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
            volume_capabilities: vec![mount_capability(
                oci_model_csi::csi::proto::volume_capability::access_mode::Mode::MultiNodeReaderOnly,
            )],
            ..CreateVolumeRequest::default()
        };
        store.reset_stats();
        let made = kubelet.controller().await.create_volume(claim).await.unwrap().into_inner();
        assert_eq!(made.volume.unwrap().capacity_bytes, 1 << 30);
        assert_eq!(store.requests(), []);
    });
}

#[test]
fn a_listed_bucket_is_read_by_its_pods_over_tls_and_not_prefetched_without_an_own_account() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let secured = LocalStore::builder().namespace("other").tls(true).start().unwrap();
        secured.put("theirs", "m/config.json", b"theirs").unwrap();
        let mut setup = setup(scratch, &store);
        setup.auth = "api_key";
        let ca = secured.ca_file().unwrap().to_str().unwrap().to_owned();
        let endpoint = secured.endpoint();
        setup.arguments = ["--oke-endpoint", &endpoint, "--oke-ca-file", &ca, "--ca-file", &ca]
            .map(str::to_owned)
            .to_vec();
        let entry = format!(
            "{{name: theirs, namespace: other, endpoint: \"{endpoint}\", auth: oke_workload_identity}}"
        );
        let config = format!(
            "objectStorage: {{buckets: [{entry}]}}\nprefetch: [\"oci://theirs@other/m/\"]\n"
        );
        let driver = setup.with_config(&config).start().await;
        let attributes = [("bucket", "theirs"), ("namespace", "other"), ("prefix", "m/")];
        let volume = driver.kubelet().inline("1", &attributes);
        of_team(volume, &secured, "team-a").publish().await.unwrap();
        assert_eq!(callers(&secured, Operation::Get), [caller("team-a")]);
        eventually("the prefetch says why not", Duration::from_secs(30), async || {
            driver
                .log()
                .contains("oke_workload_identity works in pods: run it in one")
                .then_some(())
        })
        .await;
    });
}

#[test]
fn a_download_that_fails_as_one_pod_names_it_to_no_other() {
    end_to_end(async |scratch| {
        for refused in [true, false] {
            let store = LocalStore::builder().token_ttl(Duration::from_secs(3)).start().unwrap();
            put_large(&store, "large.safetensors", 48 * MIB, 3, localstore::PutOptions::default());
            let slow = Action::Bandwidth { bytes_per_sec: 2 * MIB };
            store.faults().add(Rule::new(slow).operation(Operation::Get));
            let scratch = scratch.join(if refused { "refused" } else { "unavailable" });
            let config = "download: {rangeSize: 1MiB, concurrency: 2}\n";
            let driver = setup(&scratch, &store).with_config(config).start().await;
            let mut kubelet = driver.kubelet();
            kubelet.deadline = Duration::from_secs(60);
            let pods = ["team-a", "team-b"]
                .map(|team| pod(&kubelet, &store, if team == "team-a" { 1 } else { 2 }, team, &[]));
            let failing = async {
                let both = || callers(&store, Operation::List).len() >= 2 && sent(&store) > MIB;
                eventually("both wait for it", HOUR, async || both().then_some(())).await;
                if refused {
                    store.hide("*", BUCKET);
                } else {
                    let away = Rule::new(Action::status(503));
                    store.faults().add(away.operation(Operation::WorkloadIdentity));
                }
            };
            let (first, second, ()) = tokio::join!(pods[0].refused(), pods[1].refused(), failing);
            for ((code, message), other) in [(first, "team-b"), (second, "team-a")] {
                assert!(!message.contains(other), "{code:?}: {message}");
                assert!(code == Code::NotFound || !refused, "{code:?}: {message}");
            }
            assert_eq!(driver.in_cache("models"), [""; 0]);
        }
    });
}

/// A volume's answer, or "granted".
async fn outcome_of(volume: &Volume) -> String {
    match volume.publish().await {
        Ok(()) => "granted".to_owned(),
        Err(status) => format!("{:?}", status.code()),
    }
}

#[test]
fn a_hundred_identities_at_once_each_get_their_own_answer_from_one_exchange() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        for n in 0..100 {
            let bucket = if n % 2 == 0 { BUCKET } else { "another-bucket" };
            store.allow(&caller(&format!("team-{n}")), bucket);
        }
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let pods: Vec<Volume> =
            (0..100).map(|n| pod(&kubelet, &store, n, &format!("team-{n}"), &[])).collect();
        let outcomes = futures_util::future::join_all(pods.iter().map(outcome_of)).await;
        let are =
            |n: usize, outcome: &str| outcomes.iter().skip(n).step_by(2).all(|one| one == outcome);
        assert!(are(0, "granted") && are(1, "NotFound"), "{outcomes:?}");
        let exchanges = store.stats().requests_of(Operation::WorkloadIdentity);
        assert_eq!(exchanges, 100, "one for each identity");
        // The bytes of the model once, and a byte of each directory for each other pod.
        let bytes = sent(&store);
        assert!((3 * MIB..4 * MIB).contains(&bytes), "{bytes}");
        assert_eq!(driver.in_cache("models").len(), 1);
        figure(format_args!(
            "100 identities at once: 50 granted, 50 refused, {exchanges} requests to the identity \
             service, {bytes} bytes of objects"
        ));
    });
}
