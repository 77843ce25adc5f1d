//! No credential appears in the log, an error, a metric or a span, or is written to disk.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::collector::Collector;
use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::Volume;
use crate::support::models::{BUCKET, PHI3, put};
use crate::support::pod_keys::{self, ALLOWED};
use crate::support::run::end_to_end;
use localstore::{Action, LocalStore, Operation, Rule};

/// The tokens that kubelet may send for a pod.
const POD_TOKEN: &str = "pods-own-token-5e0f9c";

/// What begins every token (a JWT) and every signature, and ends every key.
const MARKS: [&str; 6] = ["eyJ", "ST$", "Signature version=", "PRIVATE KEY", POD_TOKEN, PASSPHRASE];

/// The identity that the driver reads with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    ApiKey,
    Instance,
    Pod,
    /// A pod with the key in its Secret.
    PodKey,
    /// A pod with a pre-authenticated request in its Secret.
    Par,
}

/// The passphrase of a key that is not encrypted with it.
const PASSPHRASE: &str = "pods-own-passphrase-77d1";

/// Everything that goes right and wrong once, with every log line there is.
async fn live(
    scratch: &Path,
    store: &LocalStore,
    collector: &Collector,
    who: Who,
) -> (Driver, String) {
    let mut setup = Setup::new(scratch, store);
    setup.environment.extend(collector.environment());
    match who {
        Who::ApiKey => {}
        Who::Instance => setup = setup.with_instance_principal(store),
        Who::Pod => {
            setup.auth = "oke_workload_identity";
            setup.arguments = vec!["--oke-endpoint".to_owned(), store.endpoint()];
        }
        Who::PodKey | Who::Par => setup = setup.with_config(ALLOWED),
    }
    let user = store.make_api_key("pod").unwrap();
    fs::write(scratch.join("oci/pods_key.pem"), &user.pem).unwrap();
    let url = store.make_par(BUCKET, "", true, Duration::from_secs(3600)).unwrap();
    fs::write(scratch.join("oci/token_of_par"), pod_keys::token(&url)).unwrap();
    let with_secret = |mut volume: Volume| {
        if who == Who::Par {
            volume.secrets.insert("par".to_owned(), url.clone());
        }
        if who == Who::PodKey {
            volume.secrets = pod_keys::secret(&user);
            volume.secrets.insert("passphrase".to_owned(), PASSPHRASE.to_owned());
        }
        volume
    };
    setup.arguments.extend(["--log-level", "trace"].map(str::to_owned));
    let driver = setup.start().await;
    let kubelet = driver.kubelet();
    let tokens = format!("{{\"\":{{\"token\":\"{POD_TOKEN}\"}}}}");
    let with_token = [PHI3.as_slice(), &[("csi.storage.k8s.io/serviceAccount.tokens", &tokens)]];
    let volume = with_secret(kubelet.inline("1", &with_token.concat()));
    volume.publish().await.unwrap();
    let mut output = String::new();
    for (pod, key) in [("10", "key"), ("11", "user"), ("12", "fingerprint"), ("13", "other")] {
        let mut broken = with_secret(kubelet.inline(pod, &PHI3));
        if who == Who::PodKey {
            let value = user.pem.replace('A', "B");
            broken.secrets.insert(key.to_owned(), value);
            output.push_str(&broken.refused().await.1);
        }
        if who == Who::Par {
            let (host, path) = url.split_once("/p/").unwrap();
            let broken_url = match key {
                "key" => format!("http://127.0.0.1:1/p/{path}"),
                "user" => format!("{host}/p/{path}?x=y"),
                "fingerprint" => format!("{host}/p/{path}x/\n/p/{path}"),
                _ => url.replace(BUCKET, "other"),
            };
            broken.secrets.insert("par".to_owned(), broken_url);
            output.push_str(&broken.refused().await.1);
        }
    }
    for (pod, status, prefix) in [("2", 401, "a"), ("3", 403, "b"), ("4", 404, "c")] {
        let rule = Rule::new(Action::status(status)).operation(Operation::List);
        let rule = store.faults().add(rule);
        let token = ("csi.storage.k8s.io/serviceAccount.tokens", tokens.as_str());
        let refused = kubelet.inline(pod, &[("bucket", BUCKET), ("prefix", prefix), token]);
        let refused = with_secret(refused);
        output.push_str(&refused.refused().await.1);
        store.faults().remove(rule);
    }
    output.push_str(&driver.metrics().await);
    (driver, output)
}

/// Every file below a directory, as far as it is text.
fn text_below(directory: &Path) -> String {
    let content = crate::support::models::content_of(directory);
    content
        .into_values()
        .flatten()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect()
}

#[track_caller]
fn assert_no_secret(what: &str, text: &str, secrets: &[String]) {
    assert!(!text.is_empty(), "there is nothing in {what}");
    for secret in MARKS.iter().copied().chain(secrets.iter().map(String::as_str)) {
        let line = text.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret:?} is in {what}: {line:?}");
    }
}

async fn assert_discreet(scratch: &Path, who: Who) {
    let mut builder = LocalStore::builder();
    if who == Who::Pod {
        builder = builder.cluster_token(POD_TOKEN, "team-a", "default");
    }
    let store = builder.start().unwrap();
    for name in ["config.json", "tokenizer/vocab.txt", "model.safetensors"] {
        put(&store, name, name);
    }
    let collector = Collector::start().await;
    let (mut driver, output) = live(scratch, &store, &collector, who).await;
    let exchanged = store.stats().requests_of(Operation::WorkloadIdentity) > 0;
    assert_eq!(exchanged, who == Who::Pod, "the premise: the pod's token is used");
    // The lines of the key file, whose marks alone a log could leave out.
    let keys = text_below(&scratch.join("oci"));
    let lines = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.len() == 64).map(str::to_owned).collect()
    };
    // And of the one that was broken on purpose.
    let secrets = [lines(&keys), lines(&keys.replace('A', "B"))].concat();
    assert!(secrets.len() > 10, "the premise: a key in PEM");
    assert_no_secret("errors and metrics", &output, &secrets);
    assert_no_secret("the log", &driver.log(), &secrets);
    assert!(driver.log().contains("TRACE"), "the premise: everything is logged");
    // A running driver has a socket in the cache, which is neither file nor directory.
    driver.terminate().await;
    driver.ended().await;
    assert!(collector.traces("publish volume").len() > 3, "the premise: traces are exported");
    assert_no_secret("spans", &collector.text(), &secrets);
    assert_no_secret("the cache", &text_below(&driver.setup.cache), &secrets);
    let lease = &driver.in_cache("leases")[0];
    let lease = fs::read_to_string(driver.setup.cache.join("leases").join(lease)).unwrap();
    assert_no_secret("a lease", &lease, &secrets);
}

#[test]
fn neither_an_api_key_nor_a_pods_token_is_found_anywhere() {
    end_to_end(async |scratch| assert_discreet(scratch, Who::ApiKey).await);
}

#[test]
fn neither_an_instances_token_nor_its_key_is_found_anywhere() {
    end_to_end(async |scratch| assert_discreet(scratch, Who::Instance).await);
}

#[test]
fn neither_a_pods_session_token_nor_its_own_is_found_anywhere() {
    end_to_end(async |scratch| assert_discreet(scratch, Who::Pod).await);
}

#[test]
fn neither_the_key_in_a_pods_secret_nor_its_passphrase_is_found_anywhere() {
    end_to_end(async |scratch| assert_discreet(scratch, Who::PodKey).await);
}

#[test]
fn a_pre_authenticated_request_in_a_pods_secret_is_found_nowhere() {
    end_to_end(async |scratch| assert_discreet(scratch, Who::Par).await);
}
