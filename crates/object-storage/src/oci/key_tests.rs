use super::*;
use crate::oci::sign::tests::vectors;

fn pem(name: &str) -> String {
    vectors()[name].as_str().unwrap().to_owned()
}

const LEGACY: [(&str, &str); 3] = [
    ("AES-128-CBC", include_str!("../../../../tests/vectors/keys/legacy-aes-128-cbc.pem")),
    ("AES-192-CBC", include_str!("../../../../tests/vectors/keys/legacy-aes-192-cbc.pem")),
    ("DES-EDE3-CBC", include_str!("../../../../tests/vectors/keys/legacy-des-ede3-cbc.pem")),
];

#[test]
fn every_form_gives_the_same_key_and_fingerprint() {
    let expected = pem("fingerprint_md5_of_spki_der");
    for (form, passphrase) in [
        ("private_key_pkcs8", None),
        ("private_key_pkcs1", None),
        ("private_key_pkcs8_encrypted_passphrase_hunter2", Some("hunter2")),
        ("private_key_pkcs1_dek_encrypted_passphrase_hunter2", Some("hunter2")),
    ] {
        let key = KeyPair::from_pem(&pem(form), passphrase).unwrap();
        assert_eq!(key.fingerprint().unwrap(), expected, "{form}");
        let spki = pem("public_key_spki");
        let spki = pem::blocks(&spki)[0].der().unwrap();
        assert_eq!(key.public_der().unwrap(), spki, "{form}");
    }
    for (cipher, text) in LEGACY {
        let key = KeyPair::from_pem(text, Some("hunter2")).unwrap();
        assert_eq!(key.fingerprint().unwrap(), expected, "{cipher}");
    }
}

#[test]
fn text_around_the_markers_and_an_unneeded_passphrase_are_ignored() {
    let text = format!("my key:\r\n{}\nOCI_API_KEY\n", pem("private_key_pkcs8"));
    assert!(KeyPair::from_pem(&text, Some("not needed")).is_ok());
    assert!(KeyPair::from_pem(&text.replace('\n', "\r\n"), None).is_ok());
}

#[test]
fn a_wrong_or_missing_passphrase_is_named_in_the_error() {
    let pkcs8 = pem("private_key_pkcs8_encrypted_passphrase_hunter2");
    let pkcs1 = pem("private_key_pkcs1_dek_encrypted_passphrase_hunter2");
    let legacy = LEGACY.iter().map(|(_, text)| (*text).to_owned());
    for text in [pkcs8, pkcs1].into_iter().chain(legacy) {
        assert_eq!(KeyPair::from_pem(&text, None).unwrap_err(), KeyError::PassphraseMissing);
        // Some wrong passphrases give valid padding by chance; the error is the same.
        for wrong in
            (0..40).map(|n| format!("wrong{n}")).take(if text.contains("DEK") { 40 } else { 1 })
        {
            let error = KeyPair::from_pem(&text, Some(&wrong)).unwrap_err();
            assert_eq!(error, KeyError::PassphraseWrong);
            assert!(!error.to_string().contains(&wrong));
        }
    }
}

#[test]
fn text_without_a_private_key_has_a_distinct_error() {
    let error = |text: &str| KeyPair::from_pem(text, Some("hunter2")).unwrap_err();
    assert_eq!(error(&pem("public_key_spki")), KeyError::Public);
    assert!(matches!(error("no markers"), KeyError::Missing { .. }));
    let certificate = error(&pem("leaf_certificate_pem")).to_string();
    assert!(certificate.contains("found CERTIFICATE"), "{certificate}");
    let garbage = pem::encode("PRIVATE KEY", b"garbage");
    assert!(matches!(error(&garbage), KeyError::Malformed { .. }));
    let openssh = pem::encode("OPENSSH PRIVATE KEY", b"garbage");
    assert!(error(&openssh).to_string().contains("openssl pkcs8 -topk8"));
}

#[test]
fn an_unsupported_encryption_is_reported_with_the_command_that_converts_it() {
    let pbes1 = include_str!("../../../../tests/vectors/keys/pbes1-3des.pem");
    let rc2 = LEGACY[0].1.replace("AES-128-CBC", "RC2-CBC");
    for text in [pbes1, &rc2] {
        let error = KeyPair::from_pem(text, Some("hunter2")).unwrap_err();
        assert!(matches!(error, KeyError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("openssl pkcs8 -topk8"), "{error}");
    }
}

#[test]
fn a_generated_key_survives_being_written_and_prints_nothing() {
    let key = KeyPair::generate().unwrap();
    let again = KeyPair::from_pem(&key.to_pkcs8_pem().unwrap(), None).unwrap();
    assert_eq!(key.fingerprint(), again.fingerprint());
    assert_eq!(format!("{key:?}"), "KeyPair(..)");
}
