use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::*;
use crate::oci::clock::Clock;
use crate::oci::identity::workload::Workloads;
use crate::oci::identity::workload::tests::{answer, jwt, settings};
use crate::oci::test_server::{ScriptedAnswer, TestServer};

/// The token of an account, as the cluster issues it.
fn token(subject: &str) -> String {
    let claims = json!({ "sub": subject, "exp": 4_000_000_000_u64 });
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

struct TokenFile(tempfile::TempDir);

impl TokenFile {
    fn holding(text: &str) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.write(text);
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("token")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    fn workloads(&self, url: &str) -> Workloads {
        let settings = Settings { oke_token_file: Some(self.path()), ..settings(url) };
        Workloads::new(&settings, Clock::system()).unwrap()
    }
}

#[tokio::test]
async fn the_token_is_read_again_for_each_exchange() {
    let server = TestServer::start(|number, _| answer(&jwt(number, 2))).await;
    let file = TokenFile::holding("first\n");
    let workloads = file.workloads(&server.url);
    let identity = &workloads.own().identity;
    identity.credentials().await.unwrap();
    file.write("second\r\n");
    while identity.refreshes() < 2 {
        identity.credentials().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let seen = server.seen();
    let sent = seen.iter().map(|request| request.header("authorization").unwrap());
    assert_eq!(sent.collect::<Vec<_>>(), ["Bearer first", "Bearer second"]);
}

#[tokio::test]
async fn a_token_that_is_absent_empty_expired_or_refused_says_what_to_do() {
    let server = TestServer::start(|_, _| ScriptedAnswer::refusal(401, "NotAuthenticated")).await;
    for (content, kind, words) in [
        (None, StorageErrorKind::Config, "works in pods: run it in one"),
        (Some(""), StorageErrorKind::Config, "the file is empty; oke_workload_identity works"),
        (Some(&*jwt(0, -1)), StorageErrorKind::Unauthenticated, "name that file"),
        (Some("foreign"), StorageErrorKind::Unauthenticated, "automountServiceAccountToken"),
    ] {
        let file = TokenFile::holding(content.unwrap_or_default());
        if content.is_none() {
            std::fs::remove_file(file.path()).unwrap();
        }
        let workloads = file.workloads(&server.url);
        assert_eq!(workloads.own().account.is_there(), content.is_some());
        let error = workloads.own().identity.credentials().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let text = error.to_string();
        assert!(text.contains(words), "{words:?} is not in {text}");
        assert!(text.contains(&file.path().display().to_string()), "{text}");
        assert!(!text.contains("foreign") && !text.contains("eyJ"), "{text}");
    }
}

#[tokio::test]
async fn an_error_names_the_account_of_the_token() {
    let server = TestServer::start(|_, _| ScriptedAnswer::refusal(403, "NotAllowed")).await;
    let file = TokenFile::holding(&token("system:serviceaccount:team-a:loader"));
    let workloads = file.workloads(&server.url);
    assert_eq!(workloads.own().account.name().to_string(), "service account …/…");
    let error = workloads.own().identity.credentials().await.unwrap_err();
    assert!(error.to_string().contains("service account team-a/loader at"), "{error}");
    assert_eq!(workloads.own().account.name().to_string(), "service account team-a/loader");
}

#[test]
fn only_the_subject_of_a_service_account_names_one() {
    for (subject, expected) in [
        ("system:serviceaccount:team-a:vllm.x", Some("service account team-a/vllm.x")),
        ("system:serviceaccount:team-a:", None),
        ("system:serviceaccount:team-a:x' or 'y", None),
        ("system:node:n", None),
        ("", None),
    ] {
        let account = ServiceAccount::of_token(&token(subject));
        assert_eq!(account.map(|one| one.to_string()).as_deref(), expected, "{subject}");
    }
    assert_eq!(ServiceAccount::of_token("opaque"), None);
}
