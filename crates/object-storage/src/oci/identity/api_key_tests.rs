use std::path::Path;

use super::*;
use crate::oci::settings::Settings;
use crate::oci::sign::tests::vectors;
use crate::source::{AuthMethod, StorageError};

const PASSPHRASE: &str = "hunter2";

/// A home directory with a config file and keys in it.
struct Home(tempfile::TempDir);

impl Home {
    fn new(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let oci = directory.path().join(".oci");
        std::fs::create_dir(&oci).unwrap();
        std::fs::write(oci.join("config"), config).unwrap();
        let vectors = vectors();
        for (name, form) in [
            ("plain.pem", "private_key_pkcs1"),
            ("locked.pem", "private_key_pkcs8_encrypted_passphrase_hunter2"),
            ("public.pem", "public_key_spki"),
        ] {
            std::fs::write(oci.join(name), vectors[form].as_str().unwrap()).unwrap();
        }
        Self(directory)
    }

    fn settings(&self, variables: &[(&str, &str)]) -> Settings {
        let home = ("HOME", self.0.path().to_str().unwrap());
        Settings {
            environment: variables.iter().copied().chain([home]).collect(),
            ..Settings::new(AuthMethod::ApiKey)
        }
    }

    fn load(&self, variables: &[(&str, &str)]) -> Result<Credential, StorageError> {
        ApiKey(ProfileSource::new(&self.settings(variables))).credential()
    }
}

fn config(key_file: &str, more: &str) -> String {
    let vectors = vectors();
    let text = |name: &str| vectors[name].as_str().unwrap().to_owned();
    format!(
        "[DEFAULT]\nuser={}\ntenancy={}\nfingerprint={}\nkey_file=~/.oci/{key_file}\n\
         region=us-phoenix-1\n{more}",
        text("user"),
        text("tenancy"),
        text("fingerprint_md5_of_spki_der"),
    )
}

#[test]
fn the_default_profile_of_the_usual_file_gives_the_key_id_of_the_vectors() {
    let credential = Home::new(&config("plain.pem", "")).load(&[]).unwrap();
    assert_eq!(credential.key_id, vectors()["vectors"][0]["keyId"]);
}

#[test]
fn a_passphrase_comes_from_the_profile_or_the_variable_which_wins() {
    let locked = |more: &str| Home::new(&config("locked.pem", more));
    assert!(locked("pass_phrase=hunter2\n").load(&[]).is_ok());
    assert!(locked("pass_phrase=no\n").load(&[("OCI_CLI_PASSPHRASE", PASSPHRASE)]).is_ok());
    let error = locked("").load(&[]).unwrap_err().to_string();
    assert!(error.contains("no passphrase") && error.contains("locked.pem"), "{error}");
    let error = locked("pass_phrase=sesame\n").load(&[]).unwrap_err().to_string();
    assert!(error.contains("does not open") && !error.contains("sesame"), "{error}");
}

#[test]
fn a_profile_is_chosen_by_setting_before_variable_and_inherits() {
    let home = Home::new(&config("plain.pem", "[a]\nregion=phx\n[b]\nregion=lhr\n"));
    let mut settings = home.settings(&[("OCI_CLI_PROFILE", "a")]);
    let region = |settings: &Settings| {
        let source = ProfileSource::new(settings);
        assert!(ApiKey(source.clone()).credential().is_ok());
        source.region(&source.read().unwrap()).unwrap().unwrap().to_string()
    };
    assert_eq!(region(&settings), "phx");
    settings.profile = Some("b".into());
    assert_eq!(region(&settings), "lhr");
}

#[test]
fn a_fingerprint_of_another_key_is_an_error_with_both() {
    let actual = vectors()["fingerprint_md5_of_spki_der"].as_str().unwrap().to_owned();
    let other = actual.replace("70:", "71:");
    let home = Home::new(&config("plain.pem", ""));
    let error = home.load(&[("OCI_CLI_FINGERPRINT", &other)]).unwrap_err().to_string();
    assert!(error.contains(&actual) && error.contains(&other), "{error}");
}

#[test]
fn variables_alone_are_enough() {
    let vectors = vectors();
    let text = |name: &str| vectors[name].as_str().unwrap();
    let settings = Settings {
        environment: [
            ("HOME", "/nonexistent"),
            ("OCI_CLI_USER", text("user")),
            ("OCI_CLI_TENANCY", text("tenancy")),
            ("OCI_CLI_FINGERPRINT", text("fingerprint_md5_of_spki_der")),
            ("OCI_CLI_KEY_CONTENT", text("private_key_pkcs8")),
        ]
        .into_iter()
        .collect(),
        ..Settings::new(AuthMethod::Auto)
    };
    let source = ProfileSource::new(&settings);
    assert!(source.is_there());
    assert!(ApiKey(source.clone()).credential().is_ok());
}

#[test]
fn a_missing_value_is_named_with_the_place_where_it_belongs() {
    let home = Home::new("[DEFAULT]\ntenancy=t\n");
    let error = home.load(&[]).unwrap_err().to_string();
    assert!(error.contains(".oci/config") && error.contains("add user="), "{error}");

    let session = Home::new("[DEFAULT]\ntenancy=t\nsecurity_token_file=~/token\n");
    let error = session.load(&[]).unwrap_err().to_string();
    assert!(error.contains("session's profile"), "{error}");

    let error = Home::new(&config("public.pem", "")).load(&[]).unwrap_err().to_string();
    assert!(error.contains("public key") && error.contains("public.pem"), "{error}");

    let error = Home::new(&config("gone.pem", "")).load(&[]).unwrap_err().to_string();
    assert!(error.contains("gone.pem"), "{error}");
}

#[test]
fn a_configured_file_or_profile_must_exist_and_the_usual_ones_need_not() {
    let home = Home::new("");
    let mut settings = home.settings(&[("OCI_CLI_CONFIG_FILE", "~/elsewhere")]);
    let read = |settings: &Settings| ProfileSource::new(settings).read();
    let error = read(&settings).err().unwrap().to_string();
    assert!(error.contains("elsewhere"), "{error}");
    settings.config_file = Some(Path::new("~/.oci/config").into());
    settings.profile = Some("absent".into());
    assert!(read(&settings).err().unwrap().to_string().contains("absent"));

    let empty = tempfile::tempdir().unwrap();
    let home = ("HOME", empty.path().to_str().unwrap());
    let settings =
        Settings { environment: [home].into_iter().collect(), ..Settings::new(AuthMethod::ApiKey) };
    assert!(read(&settings).is_ok());
    assert!(!ProfileSource::new(&settings).is_there());
}

#[test]
fn a_profile_and_a_key_are_read_as_windows_tools_save_them() {
    let windows = |text: &str| format!("\u{feff}{}", text.trim_end().replace('\n', "\r\n"));
    for (key, more) in [("plain.pem", ""), ("locked.pem", "pass_phrase=hunter2\n")] {
        let home = Home::new(&windows(&config(key, more)));
        let path = home.0.path().join(".oci").join(key);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, windows(&text)).unwrap();
        let credential = home.load(&[]).unwrap();
        assert_eq!(credential.key_id, vectors()["vectors"][0]["keyId"], "{key}");

        let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        std::fs::write(&path, utf16).unwrap();
        let error = home.load(&[]).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("UTF-16"), "{error}");
    }
}
