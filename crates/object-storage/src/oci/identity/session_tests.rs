use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;
use crate::oci::identity::Identity;
use crate::oci::identity::token::REREAD;
use crate::oci::key::KeyPair;
use crate::oci::settings::Settings;
use crate::oci::sign::tests::vectors;
use crate::source::AuthMethod;

/// A token that expires after this time.
pub(crate) fn token(id: &str, left: Duration) -> String {
    let end = SystemTime::now() + left;
    let exp = end.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{exp},"jti":"{id}"}}"#)))
}

struct SessionFiles(tempfile::TempDir);

impl SessionFiles {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let key = vectors()["private_key_pkcs1"].as_str().unwrap().to_owned();
        std::fs::write(home.path().join("key.pem"), key).unwrap();
        let config = "[DEFAULT]\ntenancy=t\nregion=iad\n\
                      [s]\nkey_file=~/key.pem\nsecurity_token_file=~/token\n";
        std::fs::write(home.path().join("config"), config).unwrap();
        Self(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn session(&self) -> Session {
        let home = self.0.path().to_str().unwrap();
        let settings = Settings {
            config_file: Some(self.path("config")),
            profile: Some("s".to_owned()),
            environment: [("HOME", home)].into_iter().collect(),
            ..Settings::new(AuthMethod::SecurityToken)
        };
        Session { profile: ProfileSource::new(&settings), clock: Clock::tokio() }
    }
}

#[test]
fn the_key_id_is_the_token_without_its_line_break() {
    let home = SessionFiles::new();
    let token = token("a", Duration::from_secs(3600));
    std::fs::write(home.path("token"), format!("{token}\n")).unwrap();
    assert_eq!(home.session().credential().unwrap().key_id, format!("ST${token}"));
}

#[test]
fn an_absent_or_expired_token_names_the_command_that_renews_it() {
    let home = SessionFiles::new();
    let error = home.session().credential().unwrap_err();
    assert!(error.to_string().contains("oci session refresh --profile s"), "{error}");
    std::fs::write(home.path("token"), token("a", Duration::ZERO)).unwrap();
    let error = home.session().credential().unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unauthenticated);
    let text = error.to_string();
    assert!(text.contains("has expired already") && text.contains("session refresh"), "{text}");
}

#[tokio::test]
async fn a_token_that_was_read_beside_the_old_key_is_used_with_the_new_one() {
    let home = SessionFiles::new();
    std::fs::write(home.path("token"), token("a", Duration::from_secs(3600))).unwrap();
    let session = home.session();
    let identity = Identity::new(session.clone(), session.clock);
    // Another session was begun, and of its two files one is written.
    let mixed = identity.credentials().await.unwrap();
    assert!(identity.invalidate(&mixed).await.unwrap().is_none(), "nothing has changed yet");
    let identity = Identity::new(home.session(), Clock::tokio());
    let mixed = identity.credentials().await.unwrap();
    let key = KeyPair::generate().unwrap();
    std::fs::write(home.path("key.pem"), key.to_pkcs8_pem().unwrap()).unwrap();
    let whole = identity.invalidate(&mixed).await.unwrap().expect("the new key is another one");
    assert_eq!(whole.key_id, mixed.key_id);
    assert!(whole.key.is(&key) && !mixed.key.is(&key));
    assert!(Arc::ptr_eq(&identity.invalidate(&mixed).await.unwrap().unwrap(), &whole));
}

#[tokio::test(start_paused = true)]
async fn a_renewed_token_is_used_within_half_a_minute() {
    let home = SessionFiles::new();
    std::fs::write(home.path("token"), token("a", Duration::from_secs(3600))).unwrap();
    let session = home.session();
    let identity = Identity::new(session.clone(), session.clock);
    let first = identity.credentials().await.unwrap();
    let renewed = token("b", Duration::from_secs(7200));
    std::fs::write(home.path("token"), &renewed).unwrap();
    for _ in 0..100 {
        tokio::time::sleep(REREAD / 10).await;
        // Files are read by another thread, whose time is not paused.
        std::thread::sleep(Duration::from_millis(1));
        if identity.credentials().await.unwrap().key_id != first.key_id {
            break;
        }
    }
    assert_eq!(identity.credentials().await.unwrap().key_id, format!("ST${renewed}"));
    assert!(identity.refreshes() < 15, "{} reads", identity.refreshes());
}
