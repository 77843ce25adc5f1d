//! The profile of the oci CLI's config file, and the variables that replace its values.

use std::path::PathBuf;

use crate::oci::config_file::{ConfigFile, Profile};
use crate::oci::environment::Environment;
use crate::oci::error::StorageError;
use crate::oci::settings::Settings;
use crate::source::RegionName;

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
        ConfigFile::read(&path)?.profile(self.profile.as_deref().unwrap_or("DEFAULT"))
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

    /// The error for a value that neither the profile nor the variable has.
    pub(super) fn missing(&self, profile: &Profile, variable: &str, key: &str) -> StorageError {
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
