//! Claims whose annotation names the model: they are read from the API server,
//! and an event on the claim says why it gets no volume.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::api_server::ApiServer;
use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::{Kubelet, mount_capability};
use crate::support::models::{BUCKET, store_with_phi3};
use crate::support::run::{end_to_end, eventually, figure};
use localstore::LocalStore;
use oci_model_csi::csi::proto::volume_capability::access_mode::Mode;
use oci_model_csi::csi::proto::{CreateVolumeRequest, Volume};
use serde_json::{Value, json};
use tonic::{Code, Status};

const BOUND: Duration = Duration::from_secs(10);

const UID: &str = "0f3c2a1e-7d55-4c0b-9a51-3f0c6f3e8f11";
const PLACE: &str = "/api/v1/namespaces/team-a/persistentvolumeclaims/my-model";

async fn driver_with(scratch: &Path, store: &LocalStore, api: &str, config: &str) -> Driver {
    let account = scratch.join("account");
    fs::create_dir(&account).unwrap();
    fs::write(account.join("token"), "a-token").unwrap();
    let mut setup = Setup::new(scratch, store).with_config(config);
    setup.mode = "controller";
    let account = account.to_str().unwrap();
    let arguments = ["--kubernetes-api", api, "--service-account-dir", account];
    setup.arguments.extend(arguments.map(str::to_owned));
    setup.start().await
}

/// A claim as the API server has it.
fn stored(annotations: &Value) -> Value {
    json!({"kind": "PersistentVolumeClaim", "metadata": {
        "name": "my-model", "namespace": "team-a", "uid": UID, "annotations": annotations,
    }})
}

fn model(name: &str) -> Value {
    stored(&json!({"oci-model-csi.dev/model": name, "other": "x"}))
}

/// The request that external-provisioner sends for it.
fn request() -> CreateVolumeRequest {
    let parameters = [
        ("bucket", BUCKET),
        ("prefix", "models/${pvc.annotations['oci-model-csi.dev/model']}/"),
        ("csi.storage.k8s.io/pvc/name", "my-model"),
        ("csi.storage.k8s.io/pvc/namespace", "team-a"),
        ("csi.storage.k8s.io/pv/name", "pvc-of-it"),
    ];
    CreateVolumeRequest {
        name: format!("pvc-{UID}"),
        volume_capabilities: vec![mount_capability(Mode::MultiNodeReaderOnly)],
        parameters: parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..CreateVolumeRequest::default()
    }
}

async fn create(kubelet: &Kubelet, request: CreateVolumeRequest) -> Result<Volume, Status> {
    let response = kubelet.controller().await.create_volume(request).await?;
    Ok(response.into_inner().volume.expect("a volume"))
}

async fn refused(kubelet: &Kubelet, request: CreateVolumeRequest, code: Code, words: &[&str]) {
    let status = create(kubelet, request).await.expect_err("was made");
    assert_eq!(status.code(), code, "{}", status.message());
    for word in words {
        assert!(status.message().contains(word), "{word:?} is not in {:?}", status.message());
    }
}

#[test]
fn a_volume_keeps_the_model_that_its_claims_annotation_named_first() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        store.put(BUCKET, "models/other/config.json", b"{}").unwrap();
        let api = ApiServer::start().await;
        api.put(PLACE, model("phi3-mini"));
        let driver = driver_with(scratch, &store, &api.url, "").await;
        let kubelet = driver.kubelet();
        let first = create(&kubelet, request()).await.unwrap();
        assert_eq!(first.volume_context["prefix"], "models/phi3-mini/");
        assert_eq!(first.volume_context.len(), 2, "{:?}", first.volume_context);
        assert_eq!(api.requests(), [format!("GET {PLACE}")], "no other request is sent");

        api.put(PLACE, model("other"));
        assert_eq!(create(&kubelet, request()).await.unwrap(), first);
        assert_eq!(api.requests().len(), 1, "what was made is not looked up again");
        let next = CreateVolumeRequest { name: "pvc-next".to_owned(), ..request() };
        let next = create(&kubelet, next).await.unwrap();
        assert_eq!(next.volume_context["prefix"], "models/other/");

        let mut of_another = request();
        let key = "csi.storage.k8s.io/pvc/name".to_owned();
        of_another.parameters.insert(key, "another".to_owned());
        refused(&kubelet, of_another, Code::AlreadyExists, &["other parameters"]).await;
    });
}

#[test]
fn an_annotation_that_names_no_model_is_refused_with_the_claim_and_can_be_corrected() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        let driver = driver_with(scratch, &store, &api.url, "").await;
        let kubelet = driver.kubelet();
        let gone = &["claim team-a/my-model", "no longer exists"];
        refused(&kubelet, request(), Code::NotFound, gone).await;

        let command = "kubectl annotate pvc -n team-a my-model oci-model-csi.dev/model=MODEL";
        for annotations in [json!(null), json!({}), json!({"oci-model-csi.dev/Model": "phi3-mini"})]
        {
            api.put(PLACE, stored(&annotations));
            let words = &["claim team-a/my-model has no annotation", command];
            refused(&kubelet, request(), Code::FailedPrecondition, words).await;
        }
        for hostile in ["", ".", "..", "../other", "a/b", "a b", "${pvc.name}", "a\nb"] {
            api.put(PLACE, model(hostile));
            let words = &["of claim team-a/my-model", "not one segment of a path"];
            refused(&kubelet, request(), Code::InvalidArgument, words).await;
        }
        api.put(PLACE, model(&"x".repeat(2000)));
        refused(&kubelet, request(), Code::InvalidArgument, &["longer than an object name"]).await;
        api.put(PLACE, model("phi4"));
        refused(&kubelet, request(), Code::NotFound, &["models/phi4/", BUCKET]).await;

        api.put(PLACE, model("phi3-mini"));
        create(&kubelet, request()).await.unwrap();
    });
}

#[test]
fn a_refusal_by_the_api_server_and_its_absence_are_distinguished() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        api.put(PLACE, model("phi3-mini"));
        let mut driver = driver_with(scratch, &store, &api.url, "").await;
        api.forbid(true);
        let words = &["the role does not say so", "get of persistentvolumeclaims"];
        refused(&driver.kubelet(), request(), Code::PermissionDenied, words).await;
        api.forbid(false);
        create(&driver.kubelet(), request()).await.unwrap();

        for argument in &mut driver.setup.arguments {
            if *argument == api.url {
                "http://127.0.0.1:9".clone_into(argument);
            }
        }
        driver.restart_to(None).await;
        let words = &["reads claim team-a/my-model", "it will be asked again"];
        refused(&driver.kubelet(), request(), Code::Unavailable, words).await;
        let mut plain = request();
        plain.parameters.insert("prefix".to_owned(), "models/phi3-mini/".to_owned());
        create(&driver.kubelet(), plain).await.unwrap();

        driver.setup.arguments.clear();
        driver.restart_to(None).await;
        let words = &["this driver knows none", "--kubernetes-api"];
        refused(&driver.kubelet(), request(), Code::InvalidArgument, words).await;
    });
}

#[test]
fn the_policy_decides_on_the_model_that_the_annotation_resolves_to() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        let rule =
            "{namespaces: [team-a], buckets: ['*'], prefixes: [models/phi3-mini], allow: true}";
        let config = format!("policy: {{rules: [{rule}]}}\n");
        let driver = driver_with(scratch, &store, &api.url, &config).await;
        api.put(PLACE, model("other"));
        let words = &["may not mount models/other/", "no rule of policy.rules allows it"];
        refused(&driver.kubelet(), request(), Code::PermissionDenied, words).await;
        api.put(PLACE, model("phi3-mini"));
        create(&driver.kubelet(), request()).await.unwrap();

        // The Controller follows its file too, also for volumes that it has created.
        let denied =
            driver.setup.clone().with_config(&config.replace("allow: true", "allow: false"));
        fs::write(scratch.join("config.yaml"), denied.config_text()).unwrap();
        eventually("the policy is applied", BOUND, async || {
            driver.log().contains("the policy changed").then_some(())
        })
        .await;
        let words = &["rule 1 of policy.rules denies it"];
        refused(&driver.kubelet(), request(), Code::PermissionDenied, words).await;
    });
}

#[test]
fn a_claim_reads_in_its_events_why_it_gets_no_volume() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        api.put(PLACE, model("phi4"));
        let driver = driver_with(scratch, &store, &api.url, "").await;
        for _ in 0..3 {
            refused(&driver.kubelet(), request(), Code::NotFound, &[]).await;
        }
        let event = eventually("an event", BOUND, async || api.events().pop()).await;
        let about = &event["involvedObject"];
        assert_eq!(about["kind"], "PersistentVolumeClaim");
        assert_eq!((&about["namespace"], &about["name"]), (&json!("team-a"), &json!("my-model")));
        assert_eq!(about["uid"], UID);
        assert_eq!(
            (&event["reason"], &event["type"]),
            (&json!("ModelPullFailed"), &json!("Warning"))
        );
        let message = event["message"].as_str().unwrap();
        figure(format_args!("event on the claim: {message}"));
        assert!(message.starts_with("no object under models/phi4/ in bucket ai-model-cache"));
        assert!(message.contains("oci-model-csi ls oci://"), "the remedy: {message}");

        api.put(PLACE, model("a/b"));
        refused(&driver.kubelet(), request(), Code::InvalidArgument, &[]).await;
        let reported = eventually("the other cause", BOUND, async || {
            Some(api.reported()).filter(|reported| reported.len() > 1)
        })
        .await;
        assert_eq!(reported.len(), 2, "the same error is reported once: {reported:?}");
        assert!(reported[1].1.contains("\"a/b\""), "{reported:?}");

        let mut of_a_class = request();
        of_a_class.mutable_parameters.insert("tier".to_owned(), "gold".to_owned());
        refused(&driver.kubelet(), of_a_class, Code::InvalidArgument, &[]).await;
        let reported = eventually("a request of another kind", BOUND, async || {
            Some(api.reported()).filter(|reported| reported.len() > 2)
        })
        .await;
        assert!(reported[2].1.contains("volumeAttributesClassName"), "{reported:?}");

        api.put(PLACE, model("phi3-mini"));
        create(&driver.kubelet(), request()).await.unwrap();
        assert_eq!(api.reported().len(), 3, "external-provisioner reports a created volume");
    });
}
