//! The profile of the oci CLI's config file, and the variables that replace its values.

use std::path::PathBuf;

use crate::oci::config_file::{ConfigFile, Profile};
use crate::oci::environment::Environment;
use crate::oci::error::StorageError;
use crate::oci::key::KeyPair;
use crate::oci::settings::Settings;
use crate::source::RegionName;
use crate::text;

/// Where to find a profile, and which one.
#[derive(Clone)]
pub(crate) struct ProfileSource {
    config_file: Option<PathBuf>,
    profile: Option<String>,
    pub(super) environment: Environment,
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
        ConfigFile::read(&path)?.profile(self.name())
    }

    /// The variable's value, else the profile's.
    pub(super) fn value(&self, profile: &Profile, variable: &str, key: &str) -> Option<String> {
        self.environment.get(variable).or_else(|| profile.get(key)).map(str::to_owned)
    }

    /// The region of `OCI_CLI_REGION`, the profile or `OCI_REGION`, in this order.
    pub(crate) fn region(&self, profile: &Profile) -> Result<Option<RegionName>, StorageError> {
        self.value(profile, "OCI_CLI_REGION", "region")
            .or_else(|| self.environment.get("OCI_REGION").map(str::to_owned))
            .map(|text| text.parse())
            .transpose()
    }

    /// The private key of the profile, and where it was read.
    pub(super) fn key_pair(&self, profile: &Profile) -> Result<(KeyPair, String), StorageError> {
        let (text, origin) = self.key_text(profile)?;
        let passphrase = self
            .environment
            .get_exact("OCI_CLI_PASSPHRASE")
            .or_else(|| profile.get("pass_phrase"))
            .or_else(|| profile.get("passphrase"));
        let key = KeyPair::from_pem(&text, passphrase).map_err(|error| {
            StorageError::config(format!("loading the API key from {origin}"), error.to_string())
        })?;
        Ok((key, origin))
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

    /// Whether the profile is that of a session: it has a token and no user of its own; `[DEFAULT]`
    /// may have one.
    pub(crate) fn is_session(&self) -> bool {
        if self.environment.get("OCI_CLI_USER").is_some() {
            return false;
        }
        if self.environment.get("OCI_CLI_SECURITY_TOKEN_FILE").is_some() {
            return true;
        }
        let Ok(file) = ConfigFile::read(&self.path()) else { return false };
        file.has_own(self.name(), "security_token_file") && !file.has_own(self.name(), "user")
    }

    /// The name of the profile.
    pub(crate) fn name(&self) -> &str {
        self.profile.as_deref().unwrap_or("DEFAULT")
    }

    /// The error for a value that neither the profile nor the variable has.
    pub(super) fn missing(&self, profile: &Profile, variable: &str, key: &str) -> StorageError {
        let name = self.name();
        let path = self.path();
        let attempted = format!("reading the profile {name} of {}", path.display());
        if !path.exists() {
            return StorageError::config(attempted, "the file is not there")
                .with_remedy("create it with `oci setup config`, or choose another --auth");
        }
        let error = StorageError::config(attempted, format!("it has no {key}"));
        if profile.get("security_token_file").is_some() {
            return error.with_remedy("it is a session's profile: use --auth security_token");
        }
        error.with_remedy(format!("add {key}= to it, or set {variable}"))
    }
}
