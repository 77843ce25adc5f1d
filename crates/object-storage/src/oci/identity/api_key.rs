//! A user's API key: the oci CLI's config file and its `OCI_CLI_*` variables.

use std::path::PathBuf;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::{Credential, CredentialSource};
use crate::oci::config_file::{ConfigFile, Profile};
use crate::oci::error::{StorageError, StorageErrorKind};
use crate::oci::key::KeyPair;
use crate::oci::settings::{Environment, Settings};
use crate::text;

/// Where to find a profile, and which one.
#[derive(Clone)]
pub(crate) struct ProfileSource {
    config_file: Option<PathBuf>,
    profile: Option<String>,
    environment: Environment,
}

impl ProfileSource {
    pub(crate) fn new(settings: &Settings) -> Self {
        let config_file = settings
            .config_file
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned())
            .or_else(|| settings.environment.get("OCI_CLI_CONFIG_FILE").map(str::to_owned))
            .map(|path| settings.environment.expand(&path));
        let profile = settings.or_variable(settings.profile.as_ref(), "OCI_CLI_PROFILE");
        Self { config_file, profile, environment: settings.environment.clone() }
    }

    /// The configured file, else the first existing one of those that the oci CLI tries.
    pub(crate) fn path(&self) -> PathBuf {
        if let Some(named) = &self.config_file {
            return named.clone();
        }
        let usual = self.environment.expand("~/.oci/config");
        let others = [
            self.environment.get("OCI_CONFIG_FILE").map(|path| self.environment.expand(path)),
            Some(self.environment.expand("~/.oraclebmc/config")),
        ];
        std::iter::once(Some(usual.clone()))
            .chain(others)
            .flatten()
            .find(|path| path.exists())
            .unwrap_or(usual)
    }

    /// Whether an API key is configured at all, by the file or by variables alone.
    pub(crate) fn is_there(&self) -> bool {
        self.environment.get("OCI_CLI_USER").is_some() || self.path().exists()
    }

    /// The profile; an empty one if there is no file and none was configured.
    pub(crate) fn read(&self) -> Result<Profile, StorageError> {
        let path = self.path();
        let named = self.config_file.is_some() || self.profile.is_some();
        if !named && !path.exists() {
            return Ok(Profile::default());
        }
        ConfigFile::read(&path)?.profile(self.profile.as_deref().unwrap_or("DEFAULT"))
    }

    /// The variable's value, else the profile's.
    fn value(&self, profile: &Profile, variable: &str, key: &str) -> Option<String> {
        self.environment.get(variable).or_else(|| profile.get(key)).map(str::to_owned)
    }

    /// The region of `OCI_CLI_REGION`, the profile or `OCI_REGION`, in this order.
    pub(crate) fn region(&self, profile: &Profile) -> Option<String> {
        self.value(profile, "OCI_CLI_REGION", "region")
            .or_else(|| self.environment.get("OCI_REGION").map(str::to_owned))
    }

    /// The key that belongs to the profile, checked against its fingerprint.
    pub(crate) fn credential(&self) -> Result<Credential, StorageError> {
        let profile = self.read()?;
        let need = |variable: &str, key: &str| {
            self.value(&profile, variable, key).ok_or_else(|| self.missing(&profile, variable, key))
        };
        let tenancy = need("OCI_CLI_TENANCY", "tenancy")?;
        let user = need("OCI_CLI_USER", "user")?;
        let fingerprint = need("OCI_CLI_FINGERPRINT", "fingerprint")?.to_ascii_lowercase();
        let (text, origin) = self.key_text(&profile)?;
        let passphrase = self
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
        if let Some(content) = self.environment.get("OCI_CLI_KEY_CONTENT") {
            return Ok((content.to_owned(), "OCI_CLI_KEY_CONTENT".to_owned()));
        }
        let path = self
            .value(profile, "OCI_CLI_KEY_FILE", "key_file")
            .ok_or_else(|| self.missing(profile, "OCI_CLI_KEY_FILE", "key_file"))?;
        let path = self.environment.expand(&path);
        let text = text::read(&path).map_err(|why| {
            StorageError::config(format!("reading the API key {}", path.display()), why)
        })?;
        Ok((text, path.display().to_string()))
    }

    fn missing(&self, profile: &Profile, variable: &str, key: &str) -> StorageError {
        let name = self.profile.as_deref().unwrap_or("DEFAULT");
        let path = self.path();
        let attempted = format!("reading the profile {name} of {}", path.display());
        if !path.exists() {
            return StorageError::config(attempted, "the file is not there")
                .with_remedy("create it with `oci setup config`, or choose another --auth");
        }
        let error = StorageError::config(attempted, format!("it has no {key}"));
        if profile.get("security_token_file").is_some() {
            return error.with_remedy("it is a session's profile, which --auth api_key cannot use");
        }
        error.with_remedy(format!("add {key}= to it, or set {variable}"))
    }
}

impl CredentialSource for ProfileSource {
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
