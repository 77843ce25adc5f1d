//! A user's API key, as a profile of the oci CLI names it.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::profile::ProfileSource;
use super::{Credential, CredentialSource};
use crate::oci::config_file::Profile;
use crate::oci::error::{StorageError, StorageErrorKind};
use crate::oci::key::KeyPair;
use crate::text;

/// The API key of a profile.
#[derive(Clone)]
pub(crate) struct ApiKey(pub(crate) ProfileSource);

impl ApiKey {
    /// The key that belongs to the profile, checked against its fingerprint.
    fn credential(&self) -> Result<Credential, StorageError> {
        let source = &self.0;
        let profile = source.read()?;
        let need = |variable: &str, key: &str| {
            let value = source.value(&profile, variable, key);
            value.ok_or_else(|| source.missing(&profile, variable, key))
        };
        let tenancy = need("OCI_CLI_TENANCY", "tenancy")?;
        let user = need("OCI_CLI_USER", "user")?;
        let fingerprint = need("OCI_CLI_FINGERPRINT", "fingerprint")?.to_ascii_lowercase();
        let (text, origin) = self.key_text(&profile)?;
        let passphrase = source
            .environment
            .get_exact("OCI_CLI_PASSPHRASE")
            .or_else(|| profile.get("pass_phrase"))
            .or_else(|| profile.get("passphrase"));
        let attempted = || format!("loading the API key from {origin}");
        let refuse = |why: String| StorageError::config(attempted(), why);
        let key =
            KeyPair::from_pem(&text, passphrase).map_err(|error| refuse(error.to_string()))?;
        let actual = key.fingerprint().map_err(|error| refuse(error.to_string()))?;
        if actual != fingerprint {
            return Err(refuse(format!(
                "its fingerprint is {actual}, but {fingerprint} is configured"
            ))
            .with_remedy("correct fingerprint or key_file: they belong to different keys"));
        }
        let credential = Credential::permanent(format!("{tenancy}/{user}/{fingerprint}"), key);
        #[cfg(feature = "oci-rust-sdk")]
        let credential = credential.through_sdk()?;
        Ok(credential)
    }

    fn key_text(&self, profile: &Profile) -> Result<(String, String), StorageError> {
        let source = &self.0;
        if let Some(content) = source.environment.get("OCI_CLI_KEY_CONTENT") {
            return Ok((content.to_owned(), "OCI_CLI_KEY_CONTENT".to_owned()));
        }
        let path = source
            .value(profile, "OCI_CLI_KEY_FILE", "key_file")
            .ok_or_else(|| source.missing(profile, "OCI_CLI_KEY_FILE", "key_file"))?;
        let path = source.environment.expand(&path);
        let text = text::read(&path).map_err(|why| {
            StorageError::config(format!("reading the API key {}", path.display()), why)
        })?;
        Ok((text, path.display().to_string()))
    }
}

impl CredentialSource for ApiKey {
    /// Reads the files again: after the next 401, a key that was replaced on disk is used.
    fn fetch(&self) -> BoxFuture<'_, Result<Credential, StorageError>> {
        let source = self.clone();
        async move {
            tokio::task::spawn_blocking(move || source.credential()).await.unwrap_or_else(|error| {
                Err(StorageError::new(
                    StorageErrorKind::Identity,
                    "loading the API key",
                    error.to_string(),
                ))
            })
        }
        .boxed()
    }
}

#[cfg(test)]
#[path = "api_key_tests.rs"]
mod tests;
