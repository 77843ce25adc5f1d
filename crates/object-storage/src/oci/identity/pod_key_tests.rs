use std::time::Duration;

use futures_util::FutureExt;

use super::*;
use crate::oci::sign::tests::vectors;
use crate::text::pem;

/// The one key of the vectors, encrypted with `hunter2` where the form says so.
fn secret(form: &str, passphrase: Option<&str>) -> ApiKeySecret {
    let vectors = vectors();
    let text = |name: &str| vectors[name].as_str().unwrap().to_owned();
    ApiKeySecret {
        user: text("user"),
        tenancy: text("tenancy"),
        fingerprint: text("fingerprint_md5_of_spki_der"),
        key: text(form).into(),
        passphrase: passphrase.map(|text| text.to_owned().into()),
        region: None,
    }
}

const PLAIN: &str = "private_key_pkcs8";
const ENCRYPTED: &str = "private_key_pkcs8_encrypted_passphrase_hunter2";

async fn of(keys: &PodKeys, secret: &ApiKeySecret) -> LoadedKey {
    keys.of("team-a", secret, &Clock::system()).await
}

#[tokio::test]
async fn a_key_of_any_form_signs_as_its_user_and_is_one_identity() {
    let keys = PodKeys::new();
    let mut digests = Vec::new();
    for (form, passphrase) in [
        (PLAIN, None),
        (PLAIN, Some("not needed")),
        ("private_key_pkcs1", None),
        (ENCRYPTED, Some("hunter2")),
        ("private_key_pkcs1_dek_encrypted_passphrase_hunter2", Some("hunter2")),
    ] {
        let secret = secret(form, passphrase);
        let (identity, key) = of(&keys, &secret).await.unwrap();
        let credential = identity.credentials().await.unwrap();
        assert_eq!(credential.key_id(), vectors()["vectors"][0]["keyId"].as_str().unwrap());
        assert_eq!((key.namespace.as_str(), &key.fingerprint), ("team-a", &secret.fingerprint));
        let (again, _) = of(&keys, &secret).await.unwrap();
        assert!(again.is(&identity), "it is read once");
        digests.push(key.digest);
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "the same key, whatever its form");
    let of_another = ApiKeySecret { user: "ocid1.user.oc1..x".into(), ..secret(PLAIN, None) };
    let (_, key) = of(&keys, &of_another).await.unwrap();
    assert_ne!(key.digest, digests[0], "the same key of another user");
}

/// A key whose encryption says that it takes this many iterations of PBKDF2.
fn with_iterations(count: u32) -> String {
    let text = secret(ENCRYPTED, None).key;
    let mut der = pem::blocks(&text)[0].der().unwrap();
    // The count is an INTEGER of two bytes, 2048, in five sequences, whose lengths lie there.
    let at = der.windows(4).position(|four| four == [2, 2, 8, 0]).unwrap();
    let integer = [2, 4].into_iter().chain(count.to_be_bytes());
    der.splice(at..at + 4, integer);
    for length in [3, 5, 18, 20, 33] {
        der[length] += 2;
    }
    pem::encode("ENCRYPTED PRIVATE KEY", &der)
}

#[tokio::test]
async fn a_secret_without_a_usable_key_is_refused_with_the_remedy_and_not_quoted() {
    let keys = PodKeys::new();
    let (plain, encrypted) = (secret(PLAIN, None), secret(ENCRYPTED, None));
    let with_key = |key: &str| ApiKeySecret { key: key.to_owned().into(), ..plain.clone() };
    let of_another = ApiKeySecret { fingerprint: ["00"; 16].join(":"), ..plain.clone() };
    let rc2 = include_str!("../../../../../tests/vectors/keys/legacy-aes-128-cbc.pem")
        .replace("AES-128-CBC", "RC2-CBC");
    let pbes1 = include_str!("../../../../../tests/vectors/keys/pbes1-3des.pem");
    let passphrase = Some("not-hunter2".to_owned().into());
    for (secret, remedy) in [
        (with_key("hunter2 no markers"), "its first and last line"),
        (secret("public_key_spki", None), "put the private key"),
        (encrypted.clone(), "add passphrase"),
        (ApiKeySecret { passphrase: passphrase.clone(), ..encrypted }, "correct passphrase"),
        (ApiKeySecret { passphrase: passphrase.clone(), ..with_key(pbes1) }, "openssl pkcs8"),
        (ApiKeySecret { passphrase, ..with_key(&rc2) }, "openssl pkcs8"),
        (with_key(&pem::encode("PRIVATE KEY", b"garbage")), "copy it again"),
        (with_key(&pem::encode("HUNTER2 PRIVATE KEY", b"garbage")), "openssl pkcs8"),
        (of_another, "correct fingerprint or key"),
    ] {
        for _ in 0..2 {
            let error = of(&keys, &secret).await.unwrap_err();
            assert_eq!(error.kind(), StorageErrorKind::Invalid);
            let text = error.to_string();
            assert!(text.contains(remedy), "{text}");
            assert!(!text.to_lowercase().contains("hunter2"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_key_that_is_made_to_be_slow_is_refused_at_once() {
    let keys = PodKeys::new();
    let slow = ApiKeySecret {
        key: with_iterations(90_000_000).into(),
        passphrase: Some("hunter2".to_owned().into()),
        ..secret(PLAIN, None)
    };
    let loading = tokio::time::timeout(Duration::from_secs(30), of(&keys, &slow));
    let error = loading.await.expect("minutes of PBKDF2").unwrap_err();
    assert!(error.to_string().contains("takes 90000000 iterations"), "{error}");
}

#[tokio::test]
async fn a_namespace_with_many_keys_delays_another_by_no_more_than_the_key_that_it_reads() {
    let turns = KeyTurns::new();
    let mut loud: Vec<_> = (0..50).map(|_| turns.enter("loud").boxed()).collect();
    let mut reading: Vec<_> = loud.iter_mut().filter_map(FutureExt::now_or_never).collect();
    assert_eq!(reading.len(), 1, "its own keys wait for each other");
    let quiet = turns.enter("quiet").now_or_never();
    assert!(quiet.is_some(), "a place is free for another one");
    let mut third = turns.enter("third").boxed();
    assert!((&mut third).now_or_never().is_none(), "all places are taken");
    reading.clear();
    assert!(loud[1].as_mut().now_or_never().is_none(), "it asked before, and had its turn");
    let third = third.now_or_never();
    assert!(third.is_some());
    drop(quiet);
    let next = loud[1].as_mut().now_or_never();
    assert!(next.is_some(), "its next turn");
    // Of those that leave, and of those that ended, nothing is kept.
    drop((loud, third, next));
    drop(turns.enter("last").await);
    assert_eq!(lock(&turns.queues).len(), 1, "the last one");
}

#[tokio::test]
async fn a_key_whose_caller_has_gone_away_is_kept_for_its_next_call() {
    let (keys, secret) = (PodKeys::new(), secret(ENCRYPTED, Some("hunter2")));
    assert!(of(&keys, &secret).now_or_never().is_none(), "the premise: it is read elsewhere");
    let kept = async {
        while !keys.known.has(&digest_of(&secret)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), kept).await.expect("the key is kept");
}
