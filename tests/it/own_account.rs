//! `auth: oke_workload_identity` without a pod that asks: commands, and what the driver reads for
//! itself, use the service account that the process runs as.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use localstore::{Action, LocalStore, Operation, Rule};
use tonic::Code;

use crate::support::access::Access;
use crate::support::commands::Commands;
use crate::support::doctor::Doctor;
use crate::support::driver::Setup;
use crate::support::fetch::{Fetch, Fetched};
use crate::support::models::{BUCKET, MIB, PHI3, put_large, store_with_phi3};
use crate::support::push::Push;
use crate::support::run::{end_to_end, eventually};
use crate::support::workloads::{self, HOUR, caller, callers, sent};

const URI: &str = "oci://ai-model-cache/models/phi3-mini/";
const TEAM: &str = "team-l";

/// Writes the token of the account as kubelet mounts it, and returns its file.
fn mounted_token(scratch: &Path, store: &LocalStore, ttl: Duration) -> PathBuf {
    let file = scratch.join("token");
    let token = store.service_account_token(TEAM, "default", None, ttl).unwrap();
    // A reader must never find half a token.
    let new = scratch.join("token.new");
    fs::write(&new, token).unwrap();
    fs::rename(new, &file).unwrap();
    file
}

/// The flags by which a process exchanges the token of this file.
fn flags(store: &LocalStore, token: &Path) -> Vec<String> {
    let token = token.to_str().unwrap().to_owned();
    let named = ["--auth", "oke_workload_identity", "--oke-endpoint"].map(str::to_owned);
    let rest = [store.endpoint(), "--oke-token-file".to_owned(), token];
    named.into_iter().chain(rest).collect()
}

fn as_str(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

/// A node whose driver prefetches the model as its own account.
fn prefetching(scratch: &Path, store: &LocalStore, token: &Path) -> Setup {
    let mut setup = workloads::setup(scratch, store);
    setup.arguments.extend(["--oke-token-file".to_owned(), token.to_str().unwrap().to_owned()]);
    setup.with_config(&format!("prefetch: [\"{URI}\"]\n"))
}

#[tokio::test]
async fn every_command_reads_and_writes_as_the_account_of_its_pod() {
    let (scratch, store) = (tempfile::tempdir().unwrap(), store_with_phi3());
    let token = mounted_token(scratch.path(), &store, HOUR);
    let flags = flags(&store, &token);
    let fetched = Fetch::new(scratch.path(), &store).with(&as_str(&flags)).run().await;
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    assert_eq!(fs::read(scratch.path().join("model/tokenizer/vocab.txt")).unwrap(), b"one\ntwo\n");

    let mut ls = Access::new(scratch.path(), &store).command("ls");
    let listed = Fetched::of(ls.args(&flags).arg(URI).spawn().unwrap()).await;
    assert_eq!(listed.code, 0, "{}", listed.stderr);
    assert!(listed.stdout.contains("phi3-mini"), "{}", listed.stdout);

    let mut push = Push::new(scratch.path(), &store).with(&as_str(&flags));
    push.uri = format!("oci://{BUCKET}/models/pushed/");
    push.file("config.json", b"{}");
    push.succeeds().await;

    let found = Doctor::new(scratch.path(), &store).with(&as_str(&flags)).run();
    assert_eq!(found.code, 0, "{}", found.stdout);
    let identity = "service account team-l/default, tenancy ocid1.tenancy";
    assert!(found.stdout.contains(identity), "{}", found.stdout);
    assert!(found.stdout.contains("config.json can be read"), "{}", found.stdout);

    let mut setup = Setup::new(scratch.path(), &store);
    setup.cache = scratch.path().join("cache-of-no-driver");
    let prefetched =
        Commands::of(&setup).text(&[&["prefetch", URI][..], &as_str(&flags)[..]].concat()).await;
    assert!(prefetched.contains("phi3-mini"), "{prefetched}");
    for operation in [Operation::Get, Operation::List, Operation::Put] {
        assert_eq!(callers(&store, operation), [caller(TEAM)], "{operation:?}");
    }
}

#[tokio::test]
async fn a_command_without_a_token_or_permission_says_what_to_do() {
    let (scratch, store) = (tempfile::tempdir().unwrap(), store_with_phi3());
    let absent = scratch.path().join("absent");
    let fetch = Fetch::new(scratch.path(), &store);
    let failed = fetch.clone().with(&as_str(&flags(&store, &absent))).run().await;
    assert_eq!(failed.code, 1, "{}", failed.stderr);
    assert!(failed.stderr.contains("works in pods: run it in one"), "{}", failed.stderr);

    let token = mounted_token(scratch.path(), &store, HOUR);
    store.allow(&caller(TEAM), "another-bucket");
    let refused = fetch.clone().with(&as_str(&flags(&store, &token))).run().await;
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    let statement =
        "request.principal.namespace='team-l', request.principal.service_account='default'";
    assert!(refused.stderr.contains(statement), "{}", refused.stderr);

    store.allow(&caller(TEAM), BUCKET);
    store.faults().add(Rule::new(Action::status(403)).operation(Operation::Put));
    let mut push = Push::new(scratch.path(), &store).with(&as_str(&flags(&store, &token)));
    push.uri = format!("oci://{BUCKET}/models/pushed/");
    push.file("config.json", b"{}");
    let refused = push.run().await;
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert!(refused.stderr.contains("Allow any-user to manage objects"), "{}", refused.stderr);
}

#[tokio::test]
async fn a_token_for_another_audience_ends_with_the_way_to_the_right_one() {
    let (scratch, store) = (tempfile::tempdir().unwrap(), store_with_phi3());
    let file = scratch.path().join("token");
    let token = store.service_account_token_for("vault", TEAM, "default", None).unwrap();
    fs::write(&file, token).unwrap();
    let fetch = Fetch::new(scratch.path(), &store).with(&as_str(&flags(&store, &file)));
    let refused = fetch.run().await;
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert!(refused.stderr.contains("a projected one without `audience`"), "{}", refused.stderr);
    assert_eq!(store.stats().refusals["wrong_audience"], 1, "it is not asked again");
}

#[test]
fn a_download_outlives_the_token_of_the_account_that_kubelet_renews() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().token_ttl(Duration::from_secs(3)).start().unwrap();
        for shard in 0..32 {
            let name = format!("shard-{shard}.bin");
            put_large(&store, &name, MIB / 2, shard, localstore::PutOptions::default());
        }
        let slow = Action::Bandwidth { bytes_per_sec: 3 * MIB / 4 };
        store.faults().add(Rule::new(slow).operation(Operation::Get));
        // The first one expires before the download ends.
        let life = Duration::from_secs(15);
        let token = mounted_token(scratch, &store, life);
        let fetch = Fetch::new(scratch, &store)
            .with(&as_str(&flags(&store, &token)))
            .with(&["--concurrency", "2"]);
        let mut renewals = tokio::time::interval(Duration::from_secs(1));
        let renewing = async {
            loop {
                renewals.tick().await;
                mounted_token(scratch, &store, life);
            }
        };
        let fetched = tokio::select! {
            fetched = fetch.run() => fetched,
            () = renewing => unreachable!("it renews without end"),
        };
        assert_eq!(fetched.code, 0, "{}", fetched.stderr);
        let exchanges = store.stats().requests_of(Operation::WorkloadIdentity);
        assert!(exchanges >= 3, "{exchanges}");
        assert_eq!(store.stats().answered(Operation::Get, 401), 0);
        assert_eq!(store.stats().answered(Operation::WorkloadIdentity, 401), 0);
    });
}

#[test]
fn what_the_driver_prefetched_as_itself_is_given_only_to_pods_that_may_read_it() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        for team in [TEAM, "team-a"] {
            store.allow(&caller(team), BUCKET);
        }
        store.allow(&caller("team-b"), "another-bucket");
        let token = mounted_token(scratch, &store, HOUR);
        let driver = prefetching(scratch, &store, &token).start().await;
        eventually("the model is prefetched", Duration::from_secs(60), async || {
            (driver.in_cache("models").len() == 1).then_some(())
        })
        .await;
        assert_eq!(callers(&store, Operation::Get), [caller(TEAM)]);
        let bytes = sent(&store);
        let kubelet = driver.kubelet();
        for (n, policy) in (10..).step_by(10).zip(["Always", "IfNotPresent", "Never"]) {
            let attributes = [&PHI3[..], &[("pullPolicy", policy)]].concat();
            let refused = workloads::pod(&kubelet, &store, n, "team-b", &attributes);
            let (code, message) = refused.refused().await;
            assert_eq!(code, Code::NotFound, "{policy}: {message}");
            assert!(message.contains("request.principal.namespace='team-b'"), "{message}");
            assert!(!message.contains(TEAM), "{message}");
            let granted = workloads::pod(&kubelet, &store, n + 1, "team-a", &attributes);
            granted.publish().await.unwrap();
        }
        assert_eq!(sent(&store) - bytes, 3 * 2, "one byte for each directory, and each pod");
        assert_eq!(driver.in_cache("models").len(), 1, "all share the driver's copy");
    });
}

#[test]
fn a_driver_whose_own_account_may_read_nothing_serves_pods_that_may() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        store.allow(&caller(TEAM), "another-bucket");
        let token = mounted_token(scratch, &store, HOUR);
        let driver = prefetching(scratch, &store, &token).start().await;
        eventually("the prefetch says why not", Duration::from_secs(30), async || {
            driver.log().contains("request.principal.namespace='team-l'").then_some(())
        })
        .await;
        workloads::pod(&driver.kubelet(), &store, 1, "team-a", &PHI3).publish().await.unwrap();
        assert_eq!(callers(&store, Operation::Get), [caller("team-a")]);
    });
}
