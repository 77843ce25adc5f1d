//! What `kubectl describe pod` shows of a model's way.

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use localstore::{Action, LocalStore, Operation, PutOptions, Rule};
use support::api_server::ApiServer;
use support::driver::{Driver, Setup};
use support::models::{BUCKET, MIB, PHI3, put_large, store_with_phi3};
use support::run::{end_to_end, eventually, figure};
use tonic::Code;

async fn driver_with(scratch: &Path, store: &LocalStore, api: &str) -> Driver {
    let account = scratch.join("account");
    fs::create_dir(&account).unwrap();
    fs::write(account.join("token"), "a-token").unwrap();
    let mut setup = Setup::new(scratch, store);
    let account = account.to_str().unwrap();
    let arguments = ["--kubernetes-api", api, "--service-account-dir", account];
    setup.arguments.extend(arguments.map(str::to_owned));
    setup.start().await
}

async fn told(api: &ApiServer, reason: &str) -> String {
    let message =
        eventually(reason, Duration::from_secs(10), async || api.message_of(reason)).await;
    figure(format_args!("event {reason}: {message}"));
    message
}

#[test]
fn a_pod_reads_in_its_events_how_its_model_comes() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_large(&store, "model.bin", 24 * MIB, 1, PutOptions::default());
        let slow = Action::Bandwidth { bytes_per_sec: 8 * MIB };
        store.faults().add(Rule::new(slow).operation(Operation::Get));
        let api = ApiServer::start().await;
        let driver = driver_with(scratch, &store, &api.url).await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        let pulling = told(&api, "ModelPulling").await;
        assert!(pulling.starts_with("downloading models/phi3-mini/ from ai-model-cache: "));
        let pulled = told(&api, "ModelPulled").await;
        assert!(pulled.contains("(24 MiB) was downloaded and verified"), "{pulled}");
        kubelet.inline("2", &PHI3).publish().await.unwrap();
        assert!(told(&api, "ModelCacheHit").await.contains("was in this node's cache"));
        let pulling = api.told().iter().filter(|(reason, _)| reason == "ModelPulling").count();
        assert_eq!(pulling, 1, "at most once a minute");
    });
}

#[test]
fn a_pod_reads_in_its_events_why_its_model_does_not_come() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        let driver = driver_with(scratch, &store, &api.url).await;
        let wrong = driver.kubelet().inline("1", &[("bucket", BUCKET), ("prefix", "models/phi4/")]);
        for _ in 0..3 {
            assert_eq!(wrong.refused().await.0, Code::NotFound);
        }
        let failed = told(&api, "ModelPullFailed").await;
        assert!(failed.contains("Allow dynamic-group"), "the remedy: {failed}");
        assert_eq!(api.told().len(), 1, "the same is told once: {:?}", api.told());
    });
}

#[test]
fn an_api_server_that_is_not_there_delays_no_publish() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = driver_with(scratch, &store, "http://127.0.0.1:9").await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        assert!(volume.calls()[0].took < Duration::from_secs(60), "{:?}", volume.calls());
    });
}
