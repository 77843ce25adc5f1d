//! `oci-model-csi doctor`: what it says of broken set-ups on the way to a model. docs/doctor.md
//! has the texts, one row for each set-up.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use localstore::{Action, LocalStore, Operation, Rule};

use crate::support::doctor::{Diagnosis, Doctor, SETUPS};
use crate::support::documents::{read, table};
use crate::support::models::{BUCKET, PREFIX, put, store_with_phi3};
use crate::support::proxy::{Behaviour, TestProxy};

/// A store with a model, and a directory for the files of a client.
fn setup() -> (tempfile::TempDir, LocalStore) {
    (tempfile::tempdir().unwrap(), store_with_phi3())
}

/// The OCID of the user that the store knows.
fn user(store: &LocalStore, scratch: &std::path::Path) -> String {
    let file = store.write_cli_config(&scratch.join("oci")).unwrap();
    let text = fs::read_to_string(file).unwrap();
    text.lines().find_map(|line| line.strip_prefix("user=")).unwrap().trim().to_owned()
}

/// Replaces a line of the client's file.
fn edit(scratch: &std::path::Path, key: &str, line: &str) {
    let file = scratch.join("oci/config");
    let text = fs::read_to_string(&file).unwrap();
    let lines =
        text.lines().map(|one| if one.starts_with(&format!("{key}=")) { line } else { one });
    fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
}

#[test]
fn a_model_that_can_be_read_has_no_fault() {
    let (scratch, store) = setup();
    let found = Doctor::new(scratch.path(), &store).run();
    assert_eq!(found.code, 0, "{}", found.stdout);
    let named = ["identity", "endpoint", "clock", "namespace", "bucket", "read", "model"];
    for check in named {
        let line = found.stdout.lines().find(|line| line.split_whitespace().nth(1) == Some(check));
        let line = line.unwrap_or_else(|| panic!("no {check} in\n{}", found.stdout));
        assert!(line.starts_with("fine"), "{line}");
    }
    assert!(found.stdout.contains(&user(&store, scratch.path())), "{}", found.stdout);
}

#[test]
fn the_result_as_json_has_each_finding_with_its_fix() {
    let (scratch, store) = setup();
    let doctor = Doctor::new(scratch.path(), &store).with(&["--output", "json"]);
    let found = doctor.of("oci://no-such-bucket/models/").run();
    assert_eq!(found.code, 3);
    let json = found.json();
    let first = &json["findings"][0];
    assert_eq!((&first["check"], &first["severity"]), (&"bucket".into(), &"fault".into()));
    assert!(first["fix"].as_str().unwrap().contains("Allow group"), "{first}");
    let fine = json["findings"].as_array().unwrap().iter().find(|one| one["severity"] == "fine");
    assert!(fine.unwrap()["fix"].is_null());
}

#[test]
fn without_any_identity_the_missing_metadata_service_is_named() {
    let (scratch, store) = setup();
    let doctor = Doctor::without_identity(scratch.path());
    doctor
        .with(&["--oci-endpoint", &store.endpoint()])
        .run()
        .is_of("no file of the oci CLI, on no instance");
}

#[test]
fn a_slow_metadata_service_ends_in_a_fault_and_not_in_a_hang() {
    let (scratch, store) = setup();
    store.faults().add(Rule::new(Action::Latency { ms: 60_000 }).operation(Operation::Imds));
    let started = Instant::now();
    let found = Doctor::on_instance(scratch.path(), &store).run();
    found.is_of("the metadata service does not answer");
    assert!(started.elapsed() < Duration::from_secs(58), "{:?}", started.elapsed());
}

#[test]
fn a_profile_without_a_user_is_named() {
    let (scratch, store) = setup();
    let doctor = Doctor::new(scratch.path(), &store);
    edit(scratch.path(), "user", "");
    doctor.run().is_of("a profile without `user`");
}

#[test]
fn a_missing_key_file_is_named() {
    let (scratch, store) = setup();
    let doctor = Doctor::new(scratch.path(), &store);
    edit(scratch.path(), "key_file", "key_file=/no/such/key.pem");
    doctor.run().is_of("`key_file` names no file");
}

#[test]
fn a_fingerprint_of_another_key_is_named() {
    let (scratch, store) = setup();
    let doctor = Doctor::new(scratch.path(), &store);
    let other = format!("fingerprint={}", ["00"; 16].join(":"));
    edit(scratch.path(), "fingerprint", &other);
    doctor.run().is_of("a fingerprint of another key");
}

#[test]
fn a_key_that_the_service_does_not_know_is_refused() {
    let (scratch, store) = setup();
    let doctor = Doctor::new(scratch.path(), &store);
    edit(scratch.path(), "user", "user=ocid1.user.oc1..another");
    doctor.run().is_of("a key that was removed in the OCI Console");
}

#[test]
fn a_clock_that_is_off_is_named_with_its_offset() {
    let (scratch, store) = setup();
    store.faults().add(Rule::new(Action::DateOffset { secs: -432 }));
    Doctor::new(scratch.path(), &store).run().is_of("a clock that is too fast");
}

#[test]
fn an_endpoint_without_a_server_is_named() {
    let (scratch, store) = setup();
    let doctor = Doctor::new(scratch.path(), &store);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    doctor.at(&format!("http://{address}")).run().is_of("no way to the endpoint");
}

#[test]
fn a_certificate_of_an_unknown_ca_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let store = LocalStore::builder().tls(true).start().unwrap();
    put(&store, &format!("{PREFIX}config.json"), b"{}");
    Doctor::new(scratch.path(), &store).run().is_of("an endpoint with a private CA");
}

/// What a doctor finds at an endpoint whose certificate is valid in this year alone.
fn found_of_certificate(year: i32) -> Diagnosis {
    let scratch = tempfile::tempdir().unwrap();
    let builder = LocalStore::builder().tls(true).certificate_years(year, year + 1);
    let store = builder.start().unwrap();
    let ca = store.ca_file().unwrap().to_str().unwrap().to_owned();
    Doctor::new(scratch.path(), &store).with(&["--ca-file", &ca]).run()
}

#[test]
fn a_clock_that_is_months_off_is_named_where_tls_fails() {
    found_of_certificate(2001).is_of("a clock that is months fast");
    found_of_certificate(2900).is_of("a clock that is months slow");
}

#[test]
fn a_page_of_a_proxy_is_no_answer_of_the_service() {
    let (scratch, store) = setup();
    store.faults().add(Rule::new(Action::Page { code: 302 }));
    Doctor::new(scratch.path(), &store).run().is_of("a portal in place of the service");
}

#[test]
fn an_outage_of_the_service_is_named() {
    let (scratch, store) = setup();
    store.faults().add(Rule::new(Action::status(503)));
    Doctor::new(scratch.path(), &store).run().is_of("Object Storage answers 503");
}

#[test]
fn a_misspelt_bucket_gets_the_statement_for_the_user() {
    let (scratch, store) = setup();
    let doctor = Doctor::new(scratch.path(), &store).of("oci://ai-model-cahce/models/");
    doctor.run().is_of("a misspelt bucket, or no policy, with an API key");
}

#[test]
fn a_node_without_a_policy_gets_its_matching_rule_and_the_statement() {
    let (scratch, store) = setup();
    store.hide("*", BUCKET);
    let found = Doctor::on_instance(scratch.path(), &store).run();
    found.is_of("no policy for the nodes");
}

#[test]
fn a_policy_that_only_allows_to_inspect_is_named() {
    let (scratch, store) = setup();
    store.allow_inspect("*", BUCKET);
    Doctor::new(scratch.path(), &store).run().is_of("a policy with `inspect objects` only");
}

#[test]
fn a_key_that_object_storage_may_not_use_gets_its_statement() {
    let (scratch, store) = setup();
    store.set_key(BUCKET, "ocid1.key.oc1..k").unwrap();
    store.faults().add(Rule::new(Action::status(404)).operation(Operation::Get));
    let doctor = Doctor::on_instance(scratch.path(), &store);
    doctor.run().is_of("a Vault key that Object Storage may not use");
}

#[test]
fn a_misspelt_prefix_gets_the_nearest_ones() {
    let (scratch, store) = setup();
    let doctor =
        Doctor::new(scratch.path(), &store).of(&format!("oci://{BUCKET}/models/phi3-mnii/"));
    doctor.run().is_of("a misspelt prefix");
}

#[test]
fn an_archived_object_is_named() {
    let (scratch, store) = setup();
    store.faults().add(Rule::new(Action::Archived).object("*.safetensors"));
    Doctor::new(scratch.path(), &store).run().is_of("an archived object");
}

#[test]
fn names_that_no_directory_can_show_are_named() {
    let (scratch, store) = setup();
    store.put(BUCKET, &format!("{PREFIX}a/../b"), b"x").unwrap();
    Doctor::new(scratch.path(), &store).run().is_of("an object named `a/../b`");
}

#[test]
fn an_index_without_its_shards_is_named() {
    let (scratch, store) = setup();
    let index = br#"{"weight_map":{"w":"model-00001-of-00002.safetensors"}}"#;
    store.put(BUCKET, &format!("{PREFIX}model.safetensors.index.json"), index).unwrap();
    Doctor::new(scratch.path(), &store).run().is_of("an index without its shards");
}

/// A doctor at an https endpoint, which it would reach through this proxy.
fn behind(proxy: &str, scratch: &std::path::Path, store: &LocalStore) -> Doctor {
    let https = store.endpoint().replace("http://", "https://");
    Doctor::new(scratch, store).at(&https).and_variable("HTTPS_PROXY", proxy)
}

#[test]
fn a_proxy_that_is_not_there_is_named_with_its_variable() {
    let (scratch, store) = setup();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let found = behind(&format!("http://me:s3cret@{address}"), scratch.path(), &store).run();
    found.is_of("a proxy that is not there");
    assert!(!found.stdout.contains("s3cret"), "{}", found.stdout);
}

#[test]
fn a_proxy_that_wants_a_login_is_named_with_where_to_write_it() {
    let (scratch, store) = setup();
    let answer = "HTTP/1.1 407 X\r\nproxy-authenticate: Basic realm=\"corp\"\r\n\r\n";
    let proxy = TestProxy::start(Behaviour::Answer(answer), None);
    let found = behind(&proxy.url(), scratch.path(), &store).run();
    found.is_of("a proxy that wants a login");
}

#[test]
fn the_proxy_of_the_endpoint_is_shown_with_the_reason_and_without_its_login() {
    let (scratch, store) = setup();
    let proxy = TestProxy::start(Behaviour::Forward, None);
    let doctor = Doctor::new(scratch.path(), &store);
    let doctor = doctor.and_variable("http_proxy", &proxy.url_with("me:s3cret"));
    let found = doctor.run();
    assert_eq!(found.code, 0, "{}", found.stdout);
    let through = format!("through the proxy {}, which http_proxy names", proxy.address());
    assert!(found.stdout.contains(&through), "{}", found.stdout);
    assert!(!found.stdout.contains("s3cret"), "{}", found.stdout);
    let found = doctor.and_variable("no_proxy", "127.0.0.1").run();
    let exempt = "is reached directly: 127.0.0.1 in NO_PROXY exempts it";
    assert!(found.stdout.contains(exempt), "{}", found.stdout);
}

#[test]
fn a_broken_configuration_is_a_fault_and_does_not_end_the_checks() {
    let (scratch, store) = setup();
    let file = scratch.path().join("config.yaml");
    fs::write(&file, "cache: {dri: /x}\n").unwrap();
    let doctor = Doctor::new(scratch.path(), &store).with(&[
        "--config",
        file.to_str().unwrap(),
        "--auth",
        "api_key",
    ]);
    let found = doctor.run();
    found.is_of("a misspelt key in the configuration");
    assert!(found.stdout.contains("can be listed"), "{}", found.stdout);
}

#[test]
fn a_region_that_is_none_does_not_end_the_other_checks() {
    let (scratch, store) = setup();
    let file = scratch.path().join("config.yaml");
    fs::write(&file, "{}\n").unwrap();
    let doctor = Doctor::new(scratch.path(), &store).with(&[
        "--region",
        "Frankfurt",
        "--config",
        file.to_str().unwrap(),
    ]);
    let found = doctor.run();
    assert_eq!(found.code, 1, "{}", found.stdout);
    assert!(found.stdout.contains("such as eu-frankfurt-1"), "{}", found.stdout);
    assert!(found.stdout.contains("config.yaml is valid"), "{}", found.stdout);
}

#[test]
fn an_expired_session_under_a_wrong_clock_gets_the_clock_too() {
    let (scratch, store) = setup();
    store.faults().add(Rule::new(Action::DateOffset { secs: -7200 }));
    let doctor = Doctor::new(scratch.path(), &store);
    // Its `exp` is the first second of 1970.
    fs::write(scratch.path().join("token"), "e30.eyJleHAiOjF9.c2ln").unwrap();
    let token = format!("security_token_file={}", scratch.path().join("token").display());
    edit(scratch.path(), "user", &token);
    let found = doctor.with(&["--auth", "security_token"]).run();
    let said = |words: &str| assert!(found.stdout.contains(words), "{words}\n{}", found.stdout);
    said("has expired");
    said("this clock is 2h");
    assert!(!found.stdout.contains("eyJ"), "{}", found.stdout);
}

#[test]
fn the_key_of_a_bucket_is_named_for_a_region_and_never_for_a_url() {
    let (scratch, store) = setup();
    store.set_key(BUCKET, "ocid1.key.oc1..k").unwrap();
    store.faults().add(Rule::new(Action::status(404)).operation(Operation::Get));
    let found = Doctor::on_instance(scratch.path(), &store).run();
    assert!(found.stdout.contains("objectstorage-<region> to use keys"), "{}", found.stdout);
}

#[test]
fn names_of_objects_cannot_act_on_the_terminal() {
    let (scratch, store) = setup();
    store.put(BUCKET, "models/esc\u{1b}[2Jape/config.json", b"{}").unwrap();
    let doctor = Doctor::new(scratch.path(), &store);
    let found = doctor.of(&format!("oci://{BUCKET}/models/esc")).run();
    assert!(!found.stdout.contains('\u{1b}'), "{:?}", found.stdout);
    let found = Doctor::new(scratch.path(), &store).of(&format!("oci://{BUCKET}/models/")).run();
    assert!(!found.stdout.contains('\u{1b}'), "{:?}", found.stdout);
}

#[test]
fn every_row_of_the_table_of_set_ups_has_a_test() {
    let rows = table("docs/doctor.md", SETUPS);
    let documented: BTreeSet<String> = rows.iter().map(|row| row[0].clone()).collect();
    assert_eq!(documented.len(), rows.len(), "a set-up is there twice");
    let sources = ["tests/it/doctor.rs"];
    let tested: BTreeSet<String> = sources
        .iter()
        .flat_map(|source| {
            let text = read(source);
            let calls = text.split(".is_of(\"").skip(1);
            calls.filter_map(|call| Some(call.split_once('"')?.0.to_owned())).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(documented, tested);
    assert!(documented.len() >= 20, "{} set-ups", documented.len());
}
