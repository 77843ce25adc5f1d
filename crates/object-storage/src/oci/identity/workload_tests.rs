use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD};
use serde_json::json;

use super::super::recently_used::KEPT;
use super::*;
use crate::oci::Environment;
use crate::oci::error::StorageErrorKind;
use crate::oci::test_server::{ScriptedAnswer, TestServer};
use crate::source::{AuthMethod, RetryPolicy};

fn pod(uid: &str) -> Workload {
    let [namespace, service_account, pod_uid] = ["team-a", "vllm", uid].map(str::to_owned);
    Workload { namespace, service_account, account_uid: None, pod_uid }
}

/// A JWT with this lifetime from now on, identified by its number.
pub(in crate::oci::identity) fn jwt(number: usize, seconds: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({ "exp": now.saturating_add_signed(seconds), "n": number });
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

pub(in crate::oci::identity) fn answer(token: &str) -> ScriptedAnswer {
    let inner = json!({ "token": format!("ST${token}") }).to_string();
    ScriptedAnswer::new(200, json!(BASE64.encode(inner)).to_string())
}

pub(in crate::oci::identity) fn settings(url: &str) -> Settings {
    Settings {
        oke_endpoint: Some(url.to_owned()),
        retry: RetryPolicy::once(),
        environment: Environment::empty(),
        ..Settings::new(AuthMethod::OkeWorkloadIdentity)
    }
}

fn workloads(server: &TestServer) -> Workloads {
    Workloads::new(&settings(&server.url), Clock::system()).unwrap()
}

#[tokio::test]
async fn a_pods_token_is_exchanged_once_for_a_credential_with_its_own_key() {
    let server = TestServer::start(|number, _| answer(&jwt(number, 3600))).await;
    let workloads = workloads(&server);
    let token = jwt(0, 600);
    let first = workloads.of(&pod("1"), &token).credentials().await.unwrap();
    let again = workloads.of(&pod("1"), "a newer token").credentials().await.unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    let other = workloads.of(&pod("2"), "other").credentials().await.unwrap();
    assert_ne!(first.key_id, other.key_id);
    assert!(first.key_id.starts_with("ST$e30."));

    let [asked, others] = &server.seen()[..] else { panic!("one exchange for each pod") };
    assert_eq!(asked.method, "POST");
    assert_eq!(asked.target, "/resourcePrincipalSessionTokens");
    assert_eq!(asked.header("authorization").unwrap(), format!("Bearer {token}"));
    let body = |seen: &crate::oci::test_server::Seen| -> serde_json::Value {
        serde_json::from_slice(&seen.body).unwrap()
    };
    assert_eq!(body(asked)["podKey"], BASE64.encode(first.key.public_der().unwrap()));
    assert_ne!(body(asked), body(others));
}

#[tokio::test]
async fn a_credential_is_replaced_in_the_second_half_of_its_life_while_it_is_used() {
    let server = TestServer::start(|number, _| answer(&jwt(number, 4))).await;
    let identity = workloads(&server).of(&pod("1"), "token");
    let first = identity.credentials().await.unwrap();
    let started = std::time::Instant::now();
    let mut used = Vec::new();
    while identity.refreshes() < 2 && started.elapsed() < Duration::from_secs(20) {
        used.push(identity.credentials().await.unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(identity.refreshes(), 2);
    // No caller waited for the successor.
    assert!(used.iter().all(|one| one.key_id == first.key_id));
    assert_ne!(identity.credentials().await.unwrap().key_id, first.key_id);
}

#[tokio::test]
async fn refusals_have_their_meaning_and_no_error_holds_the_token() {
    for (status, kind) in [
        (401, StorageErrorKind::Unauthenticated),
        (403, StorageErrorKind::Forbidden),
        (404, StorageErrorKind::Forbidden),
        (429, StorageErrorKind::Identity),
        (500, StorageErrorKind::Identity),
    ] {
        let server = TestServer::start(move |_, seen| {
            let echo = seen.header("authorization").unwrap().to_owned();
            ScriptedAnswer::new(status, json!({ "code": "C", "message": echo }).to_string())
        })
        .await;
        let error = workloads(&server).of(&pod("1"), "s3cret").credentials().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status}");
        let text = error.to_string();
        assert!(text.contains("service account team-a/vllm") && !text.contains("s3cret"), "{text}");
    }
    for nonsense in ["", "\"AAAA\"", "{}", "\"e30=\""] {
        let server = TestServer::start(move |_, _| ScriptedAnswer::new(200, nonsense)).await;
        let error = workloads(&server).of(&pod("1"), "t").credentials().await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Protocol, "{nonsense}");
    }
}

#[tokio::test]
async fn a_token_that_has_expired_is_not_sent_and_the_next_one_is() {
    let server = TestServer::start(|number, _| answer(&jwt(number, 3600))).await;
    let workloads = workloads(&server);
    let error = workloads.of(&pod("1"), &jwt(0, -1)).credentials().await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unauthenticated);
    assert!(error.to_string().contains("expired") && server.seen().is_empty(), "{error}");
    workloads.of(&pod("1"), &jwt(1, 600)).credentials().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn credentials_of_pods_are_bounded() {
    let workloads = Workloads::new(&settings("http://127.0.0.1:1"), Clock::tokio()).unwrap();
    for n in 0..KEPT + 10 {
        workloads.of(&pod(&n.to_string()), "token");
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert_eq!(workloads.0.known.len(), KEPT);
    assert!(!workloads.0.known.has(&pod("0")));
}

#[test]
fn outside_a_cluster_the_endpoint_must_be_named() {
    let nowhere = Settings { oke_endpoint: None, ..settings("") };
    let error = Workloads::new(&nowhere, Clock::system()).err().unwrap();
    assert!(error.to_string().contains("--oke-endpoint"), "{error}");
    for (host, expected) in [("10.96.0.1", "10.96.0.1:12250"), ("fd00::1", "[fd00::1]:12250")] {
        let environment = [("KUBERNETES_SERVICE_HOST", host)].into_iter().collect();
        let inside = Settings { environment, ..nowhere.clone() };
        let workloads = Workloads::new(&inside, Clock::system()).unwrap();
        assert_eq!(workloads.0.exchange.endpoint.host(), expected);
    }
}
