//! A user's API key, as a profile of the oci CLI names it.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::profile::ProfileSource;
use super::{Credential, CredentialSource, blocking_credential};
use crate::oci::error::StorageError;

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
        let (key, origin) = source.key_pair(&profile)?;
        let refuse =
            |why: String| StorageError::config(format!("loading the API key from {origin}"), why);
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
}

impl CredentialSource for ApiKey {
    /// Reads the files again: after the next 401, a key that was replaced on disk is used.
    fn fetch(&self) -> BoxFuture<'_, Result<Credential, StorageError>> {
        let source = self.clone();
        blocking_credential("loading the API key", move || source.credential()).boxed()
    }
}

#[cfg(test)]
#[path = "api_key_tests.rs"]
mod tests;
