//! The administrator's rules, as pods, claims and the administrator see them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use crate::support::commands::Commands;
use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::{Kubelet, Volume, mount_capability};
use crate::support::models::{BUCKET, MIB, PHI3, put_large, store_with_phi3};
use crate::support::run::{end_to_end, eventually};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};
use oci_model_csi::csi::proto::volume_capability::access_mode::Mode;
use oci_model_csi::csi::proto::{CreateVolumeRequest, Volume as Made};
use tonic::{Code, Status};

const BOUND: Duration = Duration::from_secs(30);

/// Allows the namespace `team-a` everything under `models/`.
const TEAM_A: &str =
    "- {namespaces: [team-a], buckets: [ai-model-cache], prefixes: [models/], allow: true}";

fn rules(lines: &[&str]) -> String {
    format!("policy:\n  rules:\n  {}\n", lines.join("\n  "))
}

async fn driver_with(scratch: &Path, store: &LocalStore, lines: &[&str]) -> Driver {
    Setup::new(scratch, store).with_config(&rules(lines)).start().await
}

/// A volume of a pod in this namespace.
fn pod_of(kubelet: &Kubelet, namespace: &str, pod: &str, more: &[(&str, &str)]) -> Volume {
    let mut volume = kubelet.inline(pod, &[PHI3.as_slice(), more].concat());
    namespace.clone_into(&mut volume.namespace);
    volume
}

async fn denied(volume: &Volume) -> String {
    let (code, message) = volume.refused().await;
    assert_eq!(code, Code::PermissionDenied, "{message}");
    message
}

/// Other rules in the driver's file, as an editor writes it.
fn write_rules(driver: &Driver, lines: &[&str]) {
    let setup = driver.setup.clone().with_config(&rules(lines));
    fs::write(driver.setup.scratch.join("config.yaml"), setup.config_text()).unwrap();
}

async fn until_changes(driver: &Driver, count: usize) {
    eventually("the policy is taken over", BOUND, async || {
        (driver.log().matches("the policy changed").count() == count).then_some(())
    })
    .await;
}

#[test]
fn a_cache_hit_is_refused_like_a_miss() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = driver_with(scratch, &store, &[TEAM_A]).await;
        let kubelet = driver.kubelet();
        denied(&pod_of(&kubelet, "team-b", "1", &[])).await;
        assert_eq!(store.stats().requests_of(Operation::List), 0, "they cause no request");

        pod_of(&kubelet, "team-a", "2", &[]).publish().await.unwrap();
        let listed = store.stats().requests_of(Operation::List);
        let models = Commands::of(&driver.setup).json(&["ls"]).await;
        let revision = models["models"][0]["revision"].as_str().unwrap().to_owned();
        for (pod, more) in [
            ("3", ("pullPolicy", "Always")),
            ("4", ("pullPolicy", "IfNotPresent")),
            ("5", ("pullPolicy", "Never")),
            ("6", ("revision", &*revision)),
        ] {
            let message = denied(&pod_of(&kubelet, "team-b", pod, &[more])).await;
            assert!(message.starts_with(
                "Kubernetes namespace team-b, service account default, may not mount \
                 models/phi3-mini/ from ai-model-cache: no rule of policy.rules allows it; "
            ));
            pod_of(&kubelet, "team-a", &format!("1{pod}"), &[more]).publish().await.unwrap();
        }
        let always = store.stats().requests_of(Operation::List);
        assert_eq!(always, listed + 1, "the one that `Always` of team-a asks for");
        assert_eq!(driver.leases(), 5);
    });
}

#[test]
fn the_rule_of_a_refusal_pasted_into_the_file_allows_what_was_refused() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = driver_with(scratch, &store, &[TEAM_A]).await;
        let kubelet = driver.kubelet();
        let volume = pod_of(&kubelet, "team-b", "1", &[]);
        let message = denied(&volume).await;
        let (_, rule) = message.split_once("the driver's policy.rules: ").unwrap();
        write_rules(&driver, &[TEAM_A, rule]);
        until_changes(&driver, 1).await;
        volume.publish().await.unwrap();
        let other = [("csi.storage.k8s.io/serviceAccount.name", "other")];
        denied(&pod_of(&kubelet, "team-b", "2", &other)).await;
    });
}

#[test]
fn a_new_policy_applies_to_new_pods_and_not_to_running_ones() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let running = pod_of(&kubelet, "team-a", "1", &[]);
        running.publish().await.unwrap();
        let deny_all = "- {namespaces: ['*'], buckets: ['*'], prefixes: [''], allow: false}";
        write_rules(&driver, &[deny_all]);
        until_changes(&driver, 1).await;

        let message = denied(&pod_of(&kubelet, "team-a", "2", &[])).await;
        assert!(message.contains("rule 1 of policy.rules denies it"), "{message}");
        running.publish().await.unwrap();
        driver.setup = driver.setup.clone().with_config(&rules(&[deny_all]));
        driver.restart_to(None).await;
        running.publish().await.unwrap();
        assert!(running.target().join("config.json").is_file());
        denied(&pod_of(&kubelet, "team-a", "3", &[])).await;
        running.unpublish().await.unwrap();
        denied(&running).await;
    });
}

#[test]
fn a_policy_that_changes_during_a_download_applies_to_its_mount() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_large(&store, "model.bin", 24 * MIB, 1, PutOptions::default());
        let slow = Action::Bandwidth { bytes_per_sec: 4 * MIB };
        let slow = store.faults().add(Rule::new(slow).operation(Operation::Get));
        let driver = driver_with(scratch, &store, &[TEAM_A]).await;
        let volume = pod_of(&driver.kubelet(), "team-a", "1", &[]);
        let changing = async {
            eventually("it is downloaded", BOUND, async || {
                (driver.metric("downloads_in_flight").await == 1).then_some(())
            })
            .await;
            write_rules(&driver, &[&TEAM_A.replace("team-a", "team-b")]);
            until_changes(&driver, 1).await;
            assert_eq!(driver.metric("downloads_in_flight").await, 1, "too late for this test");
            store.faults().remove(slow);
        };
        let (message, ()) = tokio::join!(denied(&volume), changing);
        assert!(message.contains("no rule of policy.rules allows it"), "{message}");
        assert_eq!(driver.leases(), 0);
        let of_others = pod_of(&driver.kubelet(), "team-b", "2", &[("pullPolicy", "Never")]);
        of_others.publish().await.unwrap();
    });
}

#[test]
fn an_unusable_file_is_logged_and_leaves_the_last_good_policy() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = driver_with(scratch, &store, &[TEAM_A]).await;
        let kubelet = driver.kubelet();
        assert_eq!(driver.metric("config_valid").await, 1);
        let read = driver.metric("config_last_reload_success_timestamp_seconds").await;
        assert!(read > 1_700_000_000, "{read}");

        for (bad, said) in [
            ("- {namespaces: [team-b], bukcets: ['*'], prefixes: [''], allow: true}", "`buckets`"),
            ("- {namespaces: [], buckets: ['*'], prefixes: [''], allow: true}", "empty list"),
        ] {
            write_rules(&driver, &[TEAM_A, bad]);
            eventually("the error is logged", BOUND, async || {
                driver.log().contains(said).then_some(())
            })
            .await;
            let log = driver.log();
            let line = log.lines().find(|line| line.contains(said)).unwrap();
            assert!(line.contains("config.yaml, line 5, column "), "{line}");
            assert!(line.contains("keeping the previous one"), "{line}");
        }
        assert_eq!(driver.metric("config_valid").await, 0);
        pod_of(&kubelet, "team-a", "1", &[]).publish().await.unwrap();
        denied(&pod_of(&kubelet, "team-b", "2", &[])).await;

        write_rules(&driver, &[&TEAM_A.replace("team-a", "team-b")]);
        until_changes(&driver, 1).await;
        denied(&pod_of(&kubelet, "team-a", "3", &[])).await;
        pod_of(&kubelet, "team-b", "4", &[]).publish().await.unwrap();
        eventually("it is valid again", BOUND, async || {
            (driver.metric("config_valid").await == 1).then_some(())
        })
        .await;
    });
}

#[test]
fn a_configuration_that_lost_its_policy_is_refused_while_the_driver_runs_and_at_its_next_start() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = driver_with(scratch, &store, &[TEAM_A]).await;
        let kubelet = driver.kubelet();
        let running = pod_of(&kubelet, "team-a", "1", &[]);
        running.publish().await.unwrap();
        assert_eq!(driver.metric("policy_rules").await, 1);
        let whole = driver.setup.config_text();
        let (before, _) = whole.split_once("policy:").unwrap();
        let lossy = [
            "",
            "# nothing\n",
            "{}",
            before,
            &format!("{before}policy:\n"),
            &format!("{before}policy: {{}}\n"),
            &format!("{before}policy:\n  rules:\n"),
        ];
        for (number, text) in lossy.iter().enumerate() {
            fs::write(scratch.join("config.new"), text).unwrap();
            fs::rename(scratch.join("config.new"), scratch.join("config.yaml")).unwrap();
            eventually("the loss is refused", BOUND, async || {
                let refused = driver.log().matches("keeping the previous one").count();
                (refused == number + 1).then_some(())
            })
            .await;
            let message = denied(&pod_of(&kubelet, "team-b", "2", &[])).await;
            assert!(message.contains("no rule of policy.rules allows it"), "{text:?}: {message}");
            assert_eq!(driver.metric("config_valid").await, 0, "{text:?}");
            assert_eq!(driver.metric("policy_rules").await, 1, "{text:?}");
        }
        assert!(driver.log().contains("to drop them write policy: {rules: []}"));

        driver.kill().await;
        for (config, said) in [("", "has no policy.rules"), ("policy: {}\n", "has no policy.rules")]
        {
            let (status, log) = driver.setup.clone().with_config(config).refuses().await;
            assert_eq!(status.code(), Some(2), "{log}");
            assert!(log.lines().rev().take(3).any(|line| line.contains(said)), "{log}");
        }
        assert!(running.target().join("config.json").is_file(), "it is mounted all the time");

        driver.setup = driver.setup.clone().with_config("policy: {rules: []}\n");
        driver.restart().await;
        assert_eq!(driver.metric("policy_rules").await, 0);
        pod_of(&kubelet, "team-b", "3", &[]).publish().await.unwrap();
        running.publish().await.unwrap();
        // They are dropped, so nothing is lost any more.
        driver.setup = driver.setup.clone().with_config("");
        driver.restart_to(None).await;
        pod_of(&kubelet, "team-b", "4", &[]).publish().await.unwrap();
    });
}

#[test]
fn a_configmap_that_kubelet_replaces_is_never_seen_half_written() {
    const EXCHANGES: usize = 6;
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = driver_with(scratch, &store, &[TEAM_A]).await;
        let path = scratch.join("config.yaml");
        let texts = ["team-a", "team-b"].map(|team| {
            let filler = format!("# {}\n", "x".repeat(100)).repeat(2000);
            let lines = [&*TEAM_A.replace("team-a", team)];
            format!("{filler}{}", driver.setup.clone().with_config(&rules(&lines)).config_text())
        });
        // As kubelet lays a ConfigMap out: the file is a link through `..data`.
        for number in 0..EXCHANGES {
            let version = scratch.join(format!("..version-{number}"));
            fs::create_dir(&version).unwrap();
            fs::write(version.join("config.yaml"), &texts[(number + 1) % 2]).unwrap();
            let (new, data) = (scratch.join("..data_tmp"), scratch.join("..data"));
            symlink(&version, &new).unwrap();
            fs::rename(&new, &data).unwrap();
            if number == 0 {
                symlink("..data/config.yaml", scratch.join("config.new")).unwrap();
                fs::rename(scratch.join("config.new"), &path).unwrap();
            } else {
                fs::remove_dir_all(scratch.join(format!("..version-{}", number - 1))).unwrap();
            }
            until_changes(&driver, number + 1).await;
            assert_eq!(driver.metric("config_valid").await, 1);
        }
        assert!(!driver.log().contains("keeping the previous one"), "{}", driver.log());
        pod_of(&driver.kubelet(), "team-a", "1", &[]).publish().await.unwrap();
        denied(&pod_of(&driver.kubelet(), "team-b", "2", &[])).await;
    });
}

#[test]
fn a_configuration_that_is_wrong_stops_the_start_with_its_line() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        for (bad, said) in [
            (
                rules(&["- {namespaces: [Team], buckets: [b], prefixes: [p], allow: true}"]),
                "`Team`",
            ),
            (
                rules(&["- {namespaces: [a], bucket: [b], prefixes: [p], allow: true}"]),
                "`buckets`?",
            ),
            ("policy:\n  rules: []\n  defalut: deny\n".to_owned(), "unknown key `defalut`"),
        ] {
            let (status, log) = Setup::new(scratch, &store).with_config(&bad).refuses().await;
            assert_eq!(status.code(), Some(2), "{log}");
            let line = log.lines().find(|line| line.contains(said)).unwrap();
            assert!(line.contains("config.yaml, line 4, column "), "{line}");
        }
    });
}

#[test]
fn with_rules_a_pod_without_pod_info_is_refused() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let everything = "- {namespaces: ['*'], buckets: ['*'], prefixes: [''], allow: true}";
        let driver = driver_with(scratch, &store, &[everything]).await;
        let kubelet = driver.kubelet();
        for missing in ["pod.uid", "pod.namespace", "pod.name", "serviceAccount.name"] {
            let key = format!("csi.storage.k8s.io/{missing}");
            let message = denied(&pod_of(&kubelet, "team-a", "1", &[(&key, "")])).await;
            assert!(message.contains("podInfoOnMount: true"), "{missing}: {message}");
        }
        pod_of(&kubelet, "team-a", "1", &[]).publish().await.unwrap();
    });
}

#[test]
fn prefetches_of_the_administrator_need_no_rule() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let deny_all =
            rules(&["- {namespaces: ['*'], buckets: ['*'], prefixes: [''], allow: false}"]);
        let config = format!("{deny_all}prefetch: [oci://ai-model-cache/models/phi3-mini/]\n");
        let driver = Setup::new(scratch, &store).with_config(&config).start().await;
        let commands = Commands::of(&driver.setup);
        eventually("it is there", BOUND, async || {
            let listing = commands.json(&["ls"]).await;
            (listing["prefetch"][0]["state"] == "complete").then_some(())
        })
        .await;
        denied(&pod_of(&driver.kubelet(), "team-a", "1", &[("pullPolicy", "Never")])).await;
    });
}

#[test]
fn the_own_tenancy_may_be_named_and_an_outage_allows_nothing() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().namespace("mytenancy").start().unwrap();
        store.put(BUCKET, "models/phi3-mini/config.json", b"{}").unwrap();
        let (oci_code, message, retry_after) = (None, None, None);
        let away = Action::Status { code: 503, oci_code, message, retry_after };
        store.faults().add(Rule::new(away).operation(Operation::GetNamespace));
        let driver = driver_with(scratch, &store, &[TEAM_A]).await;
        let kubelet = driver.kubelet();
        let own = pod_of(&kubelet, "team-a", "1", &[("namespace", "mytenancy")]);
        let (code, message) = own.refused().await;
        assert!(matches!(code, Code::Unavailable | Code::Aborted), "{code:?}: {message}");
        store.faults().clear();
        own.mount().await;
        let other = pod_of(&kubelet, "team-a", "2", &[("namespace", "other")]);
        let message = denied(&other).await;
        assert!(message.contains("objectStorageNamespaces: [\"other\"]"), "{message}");
    });
}

fn claim(name: &str, namespace: &str) -> CreateVolumeRequest {
    let parameters = [
        ("bucket", BUCKET),
        ("prefix", "models/${pvc.name}/"),
        ("csi.storage.k8s.io/pvc/name", "phi3-mini"),
        ("csi.storage.k8s.io/pvc/namespace", namespace),
    ];
    CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![mount_capability(Mode::MultiNodeReaderOnly)],
        parameters: parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..CreateVolumeRequest::default()
    }
}

async fn create(kubelet: &Kubelet, request: CreateVolumeRequest) -> Result<Made, Status> {
    let response = kubelet.controller().await.create_volume(request).await?;
    Ok(response.into_inner().volume.expect("a volume"))
}

#[test]
fn a_claim_is_refused_where_no_service_account_could_be_allowed() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let trainers = TEAM_A.replace("buckets", "serviceAccounts: [trainer], buckets");
        let driver = driver_with(scratch, &store, &[&trainers]).await;
        let kubelet = driver.kubelet();
        let status = create(&kubelet, claim("pvc-1", "team-b")).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().starts_with(
            "Kubernetes namespace team-b, may not mount models/phi3-mini/ from ai-model-cache: "
        ));
        let mut nameless = claim("pvc-2", "");
        nameless.parameters.insert("prefix".to_owned(), "models/phi3-mini/".to_owned());
        let status = create(&kubelet, nameless).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains("--extra-create-metadata"), "{}", status.message());
        assert_eq!(store.stats().requests_of(Operation::List), 0);

        // The node checks which service account uses it.
        let made = create(&kubelet, claim("pvc-3", "team-a")).await.unwrap();
        let context: Vec<(&str, &str)> =
            made.volume_context.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let account = "csi.storage.k8s.io/serviceAccount.name";
        denied(&kubelet.persistent(&made.volume_id, "1", &context)).await;
        let trainer = [context.as_slice(), &[(account, "trainer")]].concat();
        kubelet.persistent(&made.volume_id, "2", &trainer).publish().await.unwrap();
    });
}

#[test]
fn the_nearest_prefixes_are_named_only_as_far_as_the_rules_allow_them() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        for name in ["phi3-maxi", "phi3-secret"] {
            store.put(BUCKET, &format!("models/{name}/w"), b"w").unwrap();
        }
        let secret = "- {namespaces: ['*'], buckets: ['*'], prefixes: [models/phi3-secret/], \
                      allow: false}";
        let driver = driver_with(scratch, &store, &[secret, TEAM_A]).await;
        let wrong =
            driver.kubelet().inline("1", &[("bucket", BUCKET), ("prefix", "models/phi3-secre")]);
        let (code, message) = wrong.refused().await;
        assert_eq!(code, Code::NotFound, "{message}");
        assert!(message.contains("models/phi3-maxi/") && message.contains("models/phi3-mini/"));
        assert!(!message.contains("models/phi3-secret/"), "{message}");
    });
}
