//! Flags for the access to Object Storage, shared by all commands.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::config;
use crate::error::{Error, Result};
use crate::metrics::{CredentialState, Metrics};
use crate::oci::{ObjectStorage, ParUrl, Settings, StorageConnector, Timeouts};
use crate::source::{
    AuthMethod, ObjectSink, RetryPolicy, SourceConnector, StorageError, StorageErrorKind,
};

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Object Storage")]
pub(super) struct StorageArgs {
    /// Identity, by the oci CLI's names: auto, api_key, security_token, instance_principal,
    /// resource_principal, oke_workload_identity, none
    /// [default: api_key for commands, instance_principal for services]
    #[arg(long, env = "OCI_MODEL_CSI_AUTH", value_name = "METHOD")]
    auth: Option<String>,
    /// Profile in the oci CLI's config file [default: DEFAULT]
    #[arg(long, env = "OCI_MODEL_CSI_PROFILE")]
    profile: Option<String>,
    /// The oci CLI's config file [default: ~/.oci/config]
    #[arg(long, env = "OCI_MODEL_CSI_CONFIG_FILE", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Region, such as us-ashburn-1 or iad [default: the instance's, or the profile's]
    #[arg(long, env = "OCI_MODEL_CSI_REGION")]
    region: Option<String>,
    /// Object Storage endpoint to use instead of the region's: a URL, dedicated (the namespace's own
    /// host) or dual-stack (IPv6, too)
    #[arg(long, env = "OCI_MODEL_CSI_OCI_ENDPOINT", value_name = "URL")]
    oci_endpoint: Option<String>,
    /// PEM certificates to trust in addition to the system's
    #[arg(long, env = "OCI_MODEL_CSI_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    #[command(flatten)]
    oke: OkeArgs,
}

/// What connects the sources of objects; opaque to the commands, which only pass it along.
pub(super) struct SourceSettings {
    object_storage: Settings,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "OKE workload identity")]
struct OkeArgs {
    /// OKE's identity service [default: https://KUBERNETES_SERVICE_HOST:12250]
    #[arg(
        long = "oke-endpoint",
        id = "oke_endpoint",
        env = "OCI_MODEL_CSI_OKE_ENDPOINT",
        value_name = "URL"
    )]
    endpoint: Option<String>,
    /// CA of that service, PEM [default: ca.crt of the service account]
    #[arg(
        long = "oke-ca-file",
        id = "oke_ca_file",
        env = "OCI_MODEL_CSI_OKE_CA_FILE",
        value_name = "FILE"
    )]
    ca_file: Option<PathBuf>,
    /// Token of the service account that this process runs as [default: token of the service
    /// account]
    #[arg(
        long = "oke-token-file",
        id = "oke_token_file",
        env = "OCI_MODEL_CSI_OKE_TOKEN_FILE",
        value_name = "FILE"
    )]
    token_file: Option<PathBuf>,
}

impl SourceSettings {
    /// Takes the token and the CA of the service account from another directory than the one of
    /// every pod, unless a flag names them.
    pub(super) fn with_service_account(mut self, directory: &Path) -> Self {
        let settings = &mut self.object_storage;
        let in_directory = |name: &str| Some(directory.join(name)).filter(|file| file.exists());
        settings.oke_ca_file = settings.oke_ca_file.take().or_else(|| in_directory("ca.crt"));
        settings.oke_token_file = settings.oke_token_file.take().or_else(|| in_directory("token"));
        self
    }
}

/// Connects the driver's own source, and reports the state of its credential to the
/// metrics; others are connected at their first use. A configuration error is `Invalid`.
pub(super) async fn connect(
    settings: SourceSettings,
    metrics: &Metrics,
) -> Result<Arc<dyn SourceConnector>> {
    let connector = StorageConnector::connect(settings.object_storage).await.map_err(as_invalid)?;
    if let Some(identity) = connector.identity().cloned() {
        metrics.watch_credential(move || CredentialState {
            refresh_failures: identity.refresh_failures(),
            expires_at: identity.expires_at(),
        });
    }
    Ok(Arc::new(connector))
}

/// Connects a client that can write. A configuration error is `Invalid`.
pub(super) async fn connect_sink(settings: SourceSettings) -> Result<Arc<dyn ObjectSink>> {
    let client = ObjectStorage::connect(settings.object_storage).await.map_err(as_invalid)?;
    Ok(Arc::new(client.as_own_account()))
}

fn as_invalid(error: StorageError) -> Error {
    match error.kind() {
        StorageErrorKind::Config => Error::invalid(error.to_string()),
        _ => error.into(),
    }
}

impl SourceSettings {
    /// Has requests to Object Storage come from these addresses of this node.
    #[must_use]
    pub(super) fn coming_from(mut self, download: &config::Download) -> Self {
        self.object_storage.source_addresses.clone_from(&download.source_addresses);
        self
    }

    /// Reads with a pre-authenticated request, if there is one, instead of any identity.
    pub(super) fn with_par(mut self, par: Option<ParUrl>) -> Self {
        self.object_storage.par = par;
        self
    }

    /// For a diagnosis, which has to say soon what is wrong.
    pub(super) fn impatient(self) -> Result<Settings> {
        let (first, longest) = (Duration::from_millis(250), Duration::from_secs(1));
        let retry =
            RetryPolicy::new(2, first, longest, Duration::from_secs(5)).map_err(as_invalid)?;
        let timeouts = Timeouts {
            connect: Duration::from_secs(5),
            response_head: Duration::from_secs(15),
            ..Timeouts::default()
        };
        Ok(Settings { retry, timeouts, ..self.object_storage })
    }
}

impl OkeArgs {
    fn or(&self, other: &Self) -> Self {
        Self {
            endpoint: self.endpoint.clone().or_else(|| other.endpoint.clone()),
            ca_file: self.ca_file.clone().or_else(|| other.ca_file.clone()),
            token_file: self.token_file.clone().or_else(|| other.token_file.clone()),
        }
    }
}

impl StorageArgs {
    /// These flags, and those of `other` where one is not given.
    pub(super) fn or(&self, other: &Self) -> Self {
        Self {
            auth: self.auth.clone().or_else(|| other.auth.clone()),
            profile: self.profile.clone().or_else(|| other.profile.clone()),
            config_file: self.config_file.clone().or_else(|| other.config_file.clone()),
            region: self.region.clone().or_else(|| other.region.clone()),
            oci_endpoint: self.oci_endpoint.clone().or_else(|| other.oci_endpoint.clone()),
            ca_file: self.ca_file.clone().or_else(|| other.ca_file.clone()),
            oke: self.oke.or(&other.oke),
        }
    }

    /// The same access as options of the oci CLI. It has no method `auto`.
    pub(super) fn of_the_oci_cli(&self) -> Vec<String> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let options = [
            ("--auth", self.auth.clone().filter(|auth| auth != "auto")),
            ("--profile", self.profile.clone()),
            ("--config-file", path(&self.config_file)),
            ("--region", self.region.clone()),
            // It has no words for other hosts of a region.
            ("--endpoint", self.oci_endpoint.clone().filter(|endpoint| endpoint.contains("://"))),
            ("--cert-bundle", path(&self.ca_file)),
        ];
        let given = options.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let given = given.filter(|(_, value)| !value.trim().is_empty());
        given.flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }

    /// The settings of the sources: flags before `config`, before `default_auth`.
    pub(super) fn settings(
        &self,
        config: Option<&config::ObjectStorageSection>,
        default_auth: AuthMethod,
        metrics: &Arc<Metrics>,
    ) -> Result<SourceSettings> {
        let mut settings = Settings::new(default_auth);
        match (&self.auth, config) {
            (Some(flag), _) => settings.auth = flag.parse().map_err(as_invalid)?,
            (None, Some(config)) => settings.auth = config.auth,
            // The variable replaces the default of a command, as in the oci CLI.
            (None, None) if settings.environment.get("OCI_CLI_AUTH").is_some() => {
                settings.auth = AuthMethod::Auto;
            }
            (None, None) => {}
        }
        let region = self.region.as_deref().filter(|text| !text.trim().is_empty());
        settings.region = match region {
            Some(flag) => Some(flag.parse().map_err(as_invalid)?),
            None => config.and_then(|config| config.region.clone()),
        };
        settings.endpoint = self.oci_endpoint.clone().or_else(|| config?.endpoint.clone());
        settings.namespace = config.and_then(|config| config.namespace.clone());
        settings.ca_file = self.ca_file.clone().or_else(|| config?.ca_file.clone());
        settings.proxy = config.and_then(|config| config.proxy.clone());
        settings.proxy_ca_file = config.and_then(|config| config.proxy_ca_file.clone());
        settings.config_file.clone_from(&self.config_file);
        settings.profile.clone_from(&self.profile);
        let OkeArgs { endpoint, ca_file, token_file } = self.oke.clone();
        settings.oke_endpoint = endpoint;
        settings.oke_ca_file = ca_file;
        settings.oke_token_file = token_file;
        let metrics = Arc::clone(metrics);
        settings.observer = Some(Arc::new(move |operation, status| {
            metrics.object_storage_request(operation, status);
        }));
        Ok(SourceSettings { object_storage: settings })
    }
}
