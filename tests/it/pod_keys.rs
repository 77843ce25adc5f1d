//! Secrets of volumes: a pod reads with the API key in its own Secret.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::driver::Setup;
use crate::support::kubelet::{Kubelet, Volume, is_final, mount_capability};
use crate::support::models::{BUCKET, MIB, PHI3, PREFIX, content_of, put_large, store_with_phi3};
use crate::support::pod_keys::{ALLOWED, key, pod, secret, setup};
use crate::support::run::{end_to_end, eventually};
use crate::support::workloads::{self, caller, callers, sent};
use localstore::{Action, LocalStore, Operation, Rule, UserKey};
use oci_model_csi::csi::proto::volume_capability::access_mode::Mode;
use oci_model_csi::csi::proto::{CapacityRange, CreateVolumeRequest};
use tonic::Code;

/// All ways to ask for the model of [`PHI3`].
const POLICIES: [(&str, &str); 3] =
    [("pullPolicy", "Always"), ("pullPolicy", "IfNotPresent"), ("pullPolicy", "Never")];

/// The text for a key that may read nothing under a prefix.
fn unseen(store: &LocalStore, key: &UserKey, prefix: &str) -> String {
    format!(
        "no object under \"{prefix}\" in bucket {BUCKET} of namespace {} that the user of API key \
         {} may read; to allow it: Allow group <the user's group> to read objects in compartment \
         <the bucket's> where target.bucket.name='{BUCKET}'",
        store.namespace(),
        key.fingerprint
    )
}

/// The callers of all requests for the bucket.
fn all_callers(store: &LocalStore) -> Vec<String> {
    let mut all: Vec<String> = store.requests().into_iter().filter_map(|one| one.caller).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn a_secret_is_refused_by_the_setting_that_allows_it_and_running_pods_stay() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let user = key(&store, "a");
        let mut driver = setup(scratch, &store).start().await;
        let running = pod(&driver.kubelet(), &user, 1, &PHI3);
        running.publish().await.unwrap();
        driver.terminate().await;
        driver.ended().await;
        let driver = Setup::new(scratch, &store).start().await;
        store.reset_stats();
        // kubelet asks again for every running pod, whatever its Secret is by now.
        let mut again = pod(&driver.kubelet(), &user, 1, &PHI3);
        again.publish().await.unwrap();
        again.secrets.insert("key_file".to_owned(), "/etc/passwd".to_owned());
        again.publish().await.unwrap();
        for secrets in [secret(&user), BTreeMap::from([("x".to_owned(), "y".to_owned())])] {
            let mut refused = pod(&driver.kubelet(), &user, 2, &PHI3);
            refused.secrets = secrets;
            let (code, message) = refused.refused().await;
            assert_eq!(code, Code::PermissionDenied, "{message}");
            assert!(message.contains("objectStorage.podSecrets: true"), "{message}");
        }
        assert_eq!(store.requests(), []);
        // kubelet's own tokens are no Secret of the volume.
        let mut tokens = driver.kubelet().inline("3", &PHI3);
        tokens.secrets.insert(workloads::TOKENS.to_owned(), "{}".to_owned());
        tokens.publish().await.unwrap();
    });
}

#[test]
fn a_cached_model_is_shared_with_exactly_those_whose_own_key_may_read_it() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let [allowed, other, without, lists] = ["a", "b", "c", "d"].map(|name| key(&store, name));
        for user in [&allowed, &other] {
            store.allow(&user.caller(), BUCKET);
        }
        store.allow(&without.caller(), "another-bucket");
        store.allow_inspect(&lists.caller(), BUCKET);
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        // What the driver itself has cached is no business of a key.
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        store.reset_stats();
        let mut pods = 10..;
        let mut refused = async |user: &UserKey, prefix: &str, policy| {
            let attributes = [("bucket", BUCKET), ("prefix", prefix), policy];
            let volume = pod(&kubelet, user, pods.next().unwrap(), &attributes);
            let (code, message) = volume.refused().await;
            assert_eq!(code, Code::NotFound, "{message}");
            assert_eq!(message, unseen(&store, user, prefix), "{policy:?}");
        };
        for policy in POLICIES {
            refused(&without, PREFIX, policy).await;
        }
        let first = pod(&kubelet, &allowed, 2, &PHI3);
        first.publish().await.unwrap();
        assert_eq!(
            content_of(&first.target())["tokenizer/vocab.txt"],
            Some(b"one\ntwo\n".to_vec())
        );
        assert_eq!(all_callers(&store), {
            let mut both = [allowed.caller(), without.caller()];
            both.sort();
            both
        });
        for (policy, n) in POLICIES.into_iter().zip(3..) {
            for user in [&without, &lists] {
                // The same text for what is cached and for what is not there.
                refused(user, PREFIX, policy).await;
                refused(user, "models/no-such-one/", policy).await;
            }
            store.reset_stats();
            let attributes = [&PHI3[..], &[policy]].concat();
            pod(&kubelet, &other, n, &attributes).publish().await.unwrap();
            assert_eq!(callers(&store, Operation::Get), [other.caller()], "{policy:?}");
            assert_eq!(sent(&store), 2, "one byte for each directory: {policy:?}");
        }
        assert_eq!(driver.in_cache("models").len(), 2, "the driver's copy, and that of the keys");
    });
}

#[test]
fn each_mistake_in_a_secret_is_an_invalid_argument_that_names_it_and_quotes_nothing() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let [user, other] = ["a", "b"].map(|name| key(&store, name));
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let encrypted = include_str!("../vectors/keys/legacy-aes-128-cbc.pem");
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../vectors/oci-signing.json")).unwrap();
        let public = vectors["public_key_spki"].as_str().unwrap();
        let of_vectors = vectors["fingerprint_md5_of_spki_der"].as_str().unwrap();
        store.reset_stats();
        for (n, (changed, named)) in (1..).zip([
            (&[("key_file", "/hunter2")][..], "key_file"),
            (&[("endpoint", "http://hunter2")], "endpoint"),
            (&[("region", "eu-frankfurt-1")], "the bucket is read in us-ashburn-1"),
            (&[("region", "hunter2")], "region"),
            (&[("user", "hunter2")], "OCID of a user"),
            (&[("fingerprint", &other.fingerprint)], "correct fingerprint or key"),
            (&[("key", &other.pem)], "correct fingerprint or key"),
            (&[("key", "hunter2")], "its first and last line"),
            (&[("key", public)], "put the private key"),
            (&[("key", encrypted), ("fingerprint", of_vectors)], "add passphrase"),
            (
                &[("key", encrypted), ("fingerprint", of_vectors), ("passphrase", "not-hunter2")],
                "correct passphrase",
            ),
        ]) {
            let mut volume = pod(&kubelet, &user, n, &PHI3);
            let changed = changed.iter().map(|(name, value)| (*name, (*value).to_owned()));
            volume.secrets.extend(changed.map(|(name, value)| (name.to_owned(), value)));
            let (code, message) = volume.refused().await;
            assert_eq!(code, Code::InvalidArgument, "{message}");
            assert!(message.contains(named), "{named}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        assert_eq!(store.requests(), [], "none of them asks");
        // What is right beside that: the bucket's region by any name, an encrypted key.
        let pem = vectors["public_key_spki"].as_str().unwrap();
        let of = |name: &str| vectors[name].as_str().unwrap().to_owned();
        store.register_api_key(&of("tenancy"), &of("user"), of_vectors, pem).unwrap();
        let mut right = kubelet.inline("40", &PHI3);
        for (name, value) in [
            ("user", of("user")),
            ("tenancy", of("tenancy")),
            ("fingerprint", of_vectors.to_uppercase()),
            ("key", of("private_key_pkcs8_encrypted_passphrase_hunter2")),
            ("passphrase", "hunter2\n".to_owned()),
            ("region", "IAD".to_owned()),
        ] {
            right.secrets.insert(name.to_owned(), value);
        }
        right.publish().await.unwrap();
    });
}

#[test]
fn during_an_outage_only_the_very_key_that_could_read_before_gets_the_cached_model() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let [proved, unproved] = ["a", "b"].map(|name| key(&store, name));
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        pod(&kubelet, &proved, 1, &PHI3).publish().await.unwrap();
        let away = store.faults().add(Rule::new(Action::status(503)));
        let if_absent = [&PHI3[..], &[("pullPolicy", "IfNotPresent")]].concat();
        let always = pod(&kubelet, &proved, 2, &PHI3);
        let cached = pod(&kubelet, &proved, 3, &if_absent);
        let mut hasty = driver.kubelet();
        hasty.deadline = Duration::from_secs(30);
        let stranger = pod(&hasty, &unproved, 4, &if_absent);
        // The key of one user under the name of another, whose proof it would use.
        let mut as_another = pod(&hasty, &unproved, 5, &if_absent);
        as_another.secrets.insert("user".to_owned(), proved.user.clone());
        let mut of_another_team = pod(&hasty, &proved, 6, &if_absent);
        of_another_team.namespace = "team-b".to_owned();
        // A fingerprint is no secret: the key has to be its own.
        let mut forged = pod(&hasty, &unproved, 7, &if_absent);
        forged.secrets.insert("user".to_owned(), proved.user.clone());
        forged.secrets.insert("fingerprint".to_owned(), proved.fingerprint.clone());
        assert_eq!(forged.refused().await.0, Code::InvalidArgument);
        let (always, cached, stranger, as_another, of_another_team) = tokio::join!(
            always.publish(),
            cached.publish(),
            stranger.refused(),
            as_another.refused(),
            of_another_team.refused(),
        );
        always.unwrap();
        cached.unwrap();
        for (code, message) in [stranger, as_another, of_another_team] {
            assert!(!is_final(code), "{code:?}: {message}");
        }
        // A refusal ends the proof.
        store.faults().remove(away);
        store.revoke_api_key(&proved.caller());
        let (code, message) = pod(&kubelet, &proved, 8, &if_absent).finally_refused().await;
        assert_eq!(code, Code::Unauthenticated, "{message}");
        let remedy = format!("the key {} still is one of this user's", proved.fingerprint);
        assert!(message.contains(&remedy), "{message}");
        store.faults().add(Rule::new(Action::status(503)));
        let (code, message) = pod(&hasty, &proved, 9, &if_absent).refused().await;
        assert!(!is_final(code), "{code:?}: {message}");
    });
}

#[test]
fn a_download_continues_as_another_key_when_the_first_is_refused() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        put_large(&store, "large.safetensors", 24 * MIB, 3, localstore::PutOptions::default());
        let slow = Action::Bandwidth { bytes_per_sec: 2 * MIB };
        store.faults().add(Rule::new(slow).operation(Operation::Get));
        let config = format!("{ALLOWED}download: {{rangeSize: 1MiB, concurrency: 2}}\n");
        let [first, second] = ["a", "b"].map(|name| key(&store, name));
        let driver = Setup::new(scratch, &store).with_config(&config).start().await;
        let kubelet = driver.kubelet();
        let (begins, joins) = (pod(&kubelet, &first, 1, &PHI3), pod(&kubelet, &second, 2, &PHI3));
        let bound = Duration::from_secs(60);
        let refusing = async {
            eventually("the download runs", bound, async || (sent(&store) > MIB).then_some(()))
                .await;
            let listed = || callers(&store, Operation::List).contains(&second.caller());
            eventually("the second pod has joined", bound, async || listed().then_some(())).await;
            // Its proof of permission, one byte of each directory, comes before it joins.
            let proved = || {
                let all = store.requests();
                all.iter().filter(|one| one.caller == Some(second.caller())).count() > 2
            };
            eventually("it has proved its permission", bound, async || proved().then_some(()))
                .await;
            store.hide(&first.caller(), BUCKET);
        };
        let joined = async {
            eventually("the download runs", bound, async || (sent(&store) > 0).then_some(())).await;
            joins.publish().await
        };
        let (begun, joined, ()) = tokio::join!(begins.publish(), joined, refusing);
        joined.unwrap();
        // The one that was refused in the middle had been allowed when it asked.
        let _ = begun;
        let again = [&PHI3[..], &[("pullPolicy", "Never")]].concat();
        assert_eq!(pod(&kubelet, &first, 3, &again).refused().await.0, Code::NotFound);
    });
}

#[test]
fn a_key_of_another_tenancy_never_decides_which_bucket_is_meant() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let user = key(&store, "a");
        let mut setup = workloads::setup(scratch, &store).with_config(ALLOWED);
        setup.arguments.extend(["--log-level", "debug"].map(str::to_owned));
        let driver = setup.start().await;
        let kubelet = driver.kubelet();
        // The driver has no identity to ask with, and the pod no token of its account.
        let (code, message) = pod(&kubelet, &user, 1, &PHI3).refused().await;
        assert_eq!(code, Code::FailedPrecondition, "{message}");
        assert!(message.contains("write the attribute namespace"), "{message}");
        let named = [&PHI3[..], &[("namespace", store.namespace())]].concat();
        pod(&kubelet, &user, 2, &named).publish().await.unwrap();
        assert_eq!(store.stats().requests_of(Operation::GetNamespace), 0);
        // With a token, its service account asks, and the key still reads.
        let with_token = workloads::of_team(pod(&kubelet, &user, 3, &PHI3), &store, "team-a");
        with_token.publish().await.unwrap();
        assert_eq!(callers(&store, Operation::GetNamespace), [caller("team-a")]);
        assert_eq!(callers(&store, Operation::List), [user.caller()], "the Secret's key wins");
        assert_eq!(callers(&store, Operation::Get), [user.caller()]);
    });
}

/// A claim of this class.
fn claim(class: &[(&str, &str)], name: &str) -> CreateVolumeRequest {
    let parameters = class.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    CreateVolumeRequest {
        name: name.to_owned(),
        parameters: parameters.collect(),
        capacity_range: Some(CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
        volume_capabilities: vec![mount_capability(Mode::MultiNodeReaderOnly)],
        ..CreateVolumeRequest::default()
    }
}

#[test]
fn a_class_whose_bucket_only_keys_of_pods_may_read_makes_volumes_for_them() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let user = key(&store, "a");
        let own = "*/ocid1.user.oc1..localstore/*";
        store.hide(own, BUCKET);
        let mut driver = setup(scratch, &store).start().await;
        let kubelet: Kubelet = driver.kubelet();
        let mut controller = kubelet.controller().await;
        let made = controller.create_volume(claim(&PHI3, "pvc-1")).await.unwrap().into_inner();
        let made = made.volume.unwrap();
        assert_eq!(made.capacity_bytes, 1 << 30, "the size of the claim");
        let attributes: Vec<(&str, &str)> =
            made.volume_context.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let of_claim = |n: &str| kubelet.persistent(&made.volume_id, n, &attributes);
        let without: Volume = of_claim("1");
        assert_eq!(without.refused().await.0, Code::NotFound);
        let mut with: Volume = of_claim("2");
        with.secrets = secret(&user);
        with.publish().await.unwrap();
        // An answer that has nothing to mount is the same for every identity.
        store.allow(own, "open");
        store.create_bucket("open").unwrap();
        let empty = [("bucket", "open"), ("prefix", "nothing/")];
        let refused = controller.create_volume(claim(&empty, "pvc-2")).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        driver.terminate().await;
        driver.ended().await;
        let driver = Setup::new(scratch, &store).start().await;
        let mut controller = driver.kubelet().controller().await;
        let refused = controller.create_volume(claim(&PHI3, "pvc-3")).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "without the setting: {refused}");
    });
}

#[test]
fn a_hundred_pods_with_one_key_cost_one_listing_and_one_download() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let user = key(&store, "a");
        let slow = Rule::new(Action::Latency { ms: 2000 }).operation(Operation::List);
        store.faults().add(slow);
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let pods: Vec<Volume> = (0..100).map(|n| pod(&kubelet, &user, n, &PHI3)).collect();
        let published = futures_util::future::join_all(pods.iter().map(Volume::publish)).await;
        assert!(published.iter().all(Result::is_ok), "{published:?}");
        assert_eq!(store.stats().requests_of(Operation::List), 1);
        let size = 3 * MIB + 7;
        assert!((size..size + 1000).contains(&sent(&store)), "{}", sent(&store));
    });
}
