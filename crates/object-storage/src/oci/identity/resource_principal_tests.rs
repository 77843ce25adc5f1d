use std::time::Duration;

use super::*;
use crate::oci::identity::session::tests::token;
use crate::oci::sign::tests::vectors;

fn load(variables: &[(&str, &str)]) -> Result<Credential, StorageError> {
    let environment = variables.iter().copied().collect();
    ResourcePrincipal { environment, clock: Clock::system() }.credential()
}

fn key(form: &str) -> String {
    vectors()[form].as_str().unwrap().to_owned()
}

#[test]
fn token_and_key_are_values_or_files() {
    let (token, plain) = (token("a", Duration::from_secs(600)), key("private_key_pkcs1"));
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let locked = file("locked.pem", &key("private_key_pkcs8_encrypted_passphrase_hunter2"));
    for variables in [
        vec![(VERSION, "2.2"), (TOKEN, &token), (KEY, &plain)],
        vec![
            (VERSION, "2.2"),
            (TOKEN, &file("token", &format!("{token}\n"))),
            (KEY, &locked),
            (PASSPHRASE, "hunter2"),
        ],
        vec![
            (VERSION, "2.2"),
            (TOKEN, &token),
            (KEY, &locked),
            (PASSPHRASE, &file("passphrase", "hunter2\n")),
        ],
    ] {
        assert_eq!(load(&variables).unwrap().key_id, format!("ST${token}"));
    }
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let (good, plain) = (token("a", Duration::from_secs(600)), key("private_key_pkcs1"));
    let expired = token("a", Duration::ZERO);
    for (variables, words) in [
        (vec![], "OCI_RESOURCE_PRINCIPAL_VERSION is not set; resource_principal works where"),
        (vec![(VERSION, "1.1")], "is 1.1, and only 2.2"),
        (vec![(VERSION, "2.2")], "OCI_RESOURCE_PRINCIPAL_RPST is not set"),
        (vec![(VERSION, "2.2"), (TOKEN, &good)], "PRIVATE_PEM is not set"),
        (vec![(VERSION, "2.2"), (TOKEN, "/no/such"), (KEY, &plain)], "reading /no/such, which"),
        (vec![(VERSION, "2.2"), (TOKEN, &good), (KEY, "x")], "reading OCI_RESOURCE_PRINCIPAL_P"),
        (vec![(VERSION, "2.2"), (TOKEN, &expired), (KEY, &plain)], "has expired already"),
        (
            vec![(VERSION, "2.2"), (TOKEN, &good), (KEY, &plain), (PASSPHRASE, "/s3cret")],
            "reading the file, which OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM_PASSPHRASE names",
        ),
        (vec![(VERSION, "2.2"), (TOKEN, "x"), (KEY, &plain)], "is not a JWT"),
    ] {
        let error = load(&variables).expect_err(words).to_string();
        assert!(!error.contains("s3cret"), "{error}");
        assert!(error.contains(words), "{words:?} is not in {error}");
    }
}
