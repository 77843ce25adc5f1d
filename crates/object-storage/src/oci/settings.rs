//! The administrator's settings, before they are resolved against the oci CLI's variables and file.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::environment::Environment;
use super::par::ParUrl;
use super::region::Region;
use crate::source::{AuthMethod, RegionName, RetryPolicy, StorageError};
use crate::transport::{
    AddressRange, Proxy, ProxyRules, Transport, TransportOptions, TransportTimeouts,
};

/// How long each step may take. There is no limit on a whole body: a slow
/// transfer is not a stalled one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For a TCP connection.
    pub connect: Duration,
    /// For a TCP connection to the metadata service, which is on the node or not at all.
    pub metadata_connect: Duration,
    /// From sending a request to the head of its answer, TLS handshake included.
    pub response_head: Duration,
    /// Between two chunks of a body.
    pub body_idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            metadata_connect: Duration::from_secs(2),
            response_head: Duration::from_secs(60),
            body_idle: Duration::from_secs(30),
        }
    }
}

impl From<&Timeouts> for TransportTimeouts {
    fn from(timeouts: &Timeouts) -> Self {
        let Timeouts { connect, response_head, body_idle, .. } = *timeouts;
        Self { connect, response_head, body_idle }
    }
}

/// Called once per answered or failed request: operation (`GetObject`), status where one came.
pub type RequestObserver = Arc<dyn Fn(&'static str, Option<u16>) + Send + Sync>;

/// How to reach Object Storage, and with which identity.
///
/// What is `None` here comes from the oci CLI's variables (`OCI_CLI_REGION`,
/// `OCI_CLI_ENDPOINT`, …), then from the profile; flags, `OCI_MODEL_CSI_*` and
/// `--config` are already resolved in these fields.
#[derive(Clone)]
pub struct Settings {
    /// The authentication method.
    pub auth: AuthMethod,
    /// The region. The instance principal asks the metadata service.
    pub region: Option<RegionName>,
    /// `http(s)://host[:port]` instead of the region's host; or the word for another host of the
    /// region, `dedicated` or `dual-stack`.
    pub endpoint: Option<String>,
    /// The Object Storage namespace instead of the tenancy's own.
    pub namespace: Option<String>,
    /// A PEM bundle to trust in addition to the system's roots.
    pub ca_file: Option<PathBuf>,
    /// The proxy of all requests to Object Storage and to Oracle's identity service, instead of
    /// those that `HTTPS_PROXY` and its like name. The metadata service, OKE's identity service and
    /// the API server are never behind a proxy.
    pub proxy: Option<Proxy>,
    /// A PEM bundle to trust where a proxy is used.
    pub proxy_ca_file: Option<PathBuf>,
    /// The addresses of this machine that those requests come from.
    pub source_addresses: Vec<AddressRange>,
    /// The oci CLI's config file instead of `~/.oci/config`.
    pub config_file: Option<PathBuf>,
    /// The profile instead of `DEFAULT`.
    pub profile: Option<String>,
    /// For everything but `get_object`, which its callers resume themselves.
    pub retry: RetryPolicy,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// The metadata service instead of `http://169.254.169.254/opc/v2`.
    pub metadata_base: Option<String>,
    /// The whole URL instead of `https://auth.REGION.DOMAIN/v1/x509`.
    pub federation_endpoint: Option<String>,
    /// OKE's identity service instead of `https://KUBERNETES_SERVICE_HOST:12250`.
    pub oke_endpoint: Option<String>,
    /// The CA of that service instead of the one that every pod is given.
    pub oke_ca_file: Option<PathBuf>,
    /// The token of this process's own service account instead of the one that every pod is given.
    pub oke_token_file: Option<PathBuf>,
    /// Where the oci CLI's variables are read.
    pub environment: Environment,
    /// A pre-authenticated request to read with, in place of an identity and a location.
    pub par: Option<ParUrl>,
    /// Sees every request, for metrics.
    pub observer: Option<RequestObserver>,
}

impl Settings {
    /// The environment of this process, and defaults.
    pub fn new(auth: AuthMethod) -> Self {
        Self {
            auth,
            region: None,
            endpoint: None,
            namespace: None,
            ca_file: None,
            proxy: None,
            proxy_ca_file: None,
            source_addresses: Vec::new(),
            config_file: None,
            profile: None,
            retry: RetryPolicy::default(),
            timeouts: Timeouts::default(),
            metadata_base: None,
            federation_endpoint: None,
            oke_endpoint: None,
            oke_ca_file: None,
            oke_token_file: None,
            environment: Environment::process(),
            par: None,
            observer: None,
        }
    }

    /// Whether two names, or a name and a short code, mean one region.
    pub fn same_region(&self, one: &RegionName, other: &RegionName) -> bool {
        let of = |name: &RegionName| Region::resolve(name, &self.environment);
        one == other || of(one) == of(other)
    }

    /// `region`, else that of `OCI_CLI_REGION`.
    pub(crate) fn region_or_variable(&self) -> Result<Option<RegionName>, StorageError> {
        match &self.region {
            Some(region) => Ok(Some(region.clone())),
            None => self.or_variable(None, "OCI_CLI_REGION").map(|text| text.parse()).transpose(),
        }
    }

    /// `ca_file`, else the oci CLI's variable for the same.
    pub(crate) fn ca_file(&self) -> Option<PathBuf> {
        let variable =
            || Some(self.environment.expand(self.environment.get("OCI_CLI_CERT_BUNDLE")?));
        self.ca_file.clone().or_else(variable)
    }

    /// The connections to Object Storage and to Oracle's identity service. Blocks: it reads files.
    pub(crate) fn transport(&self) -> Result<Transport, StorageError> {
        let options = TransportOptions {
            ca_file: self.ca_file(),
            proxies: self.proxies()?,
            proxy_ca_file: self.proxy_ca_file.clone(),
            source_addresses: self.source_addresses.clone(),
        };
        Ok(Transport::new((&self.timeouts).into(), &options)?)
    }

    /// Which requests go through a proxy.
    fn proxies(&self) -> Result<ProxyRules, StorageError> {
        if let Some(proxy) = &self.proxy {
            return Ok(ProxyRules::always(proxy.clone()));
        }
        ProxyRules::of_variables(|name| self.environment.get(name)).map_err(|(name, why)| {
            StorageError::config(format!("reading the proxy of {name}"), why)
                .with_remedy("write it as http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")
        })
    }

    /// The configured value, else the variable's; blank counts as absent in both.
    pub(crate) fn or_variable(&self, chosen: Option<&String>, variable: &str) -> Option<String> {
        chosen
            .map(|text| text.trim())
            .filter(|text| !text.is_empty())
            .or_else(|| self.environment.get(variable))
            .map(str::to_owned)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new(AuthMethod::Auto)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("auth", &self.auth)
            .field("region", &self.region)
            .field("endpoint", &self.endpoint)
            .field("namespace", &self.namespace)
            .field("ca_file", &self.ca_file)
            .field("config_file", &self.config_file)
            .field("profile", &self.profile)
            .field("proxy", &self.proxy)
            .field("source_addresses", &self.source_addresses)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_value_of_the_environment() {
        let secrets = [("OCI_CLI_PASSPHRASE", "hunter2"), ("HTTPS_PROXY", "http://u:hunter2@p:1")];
        let environment = secrets.into_iter().collect();
        let proxy = Some(Proxy::parse("http://u:hunter2@p:1", "objectStorage.proxy").unwrap());
        let settings = Settings { proxy, environment, ..Settings::default() };
        assert!(!format!("{settings:?} {:?}", settings.environment).contains("hunter2"));
    }

    #[test]
    fn a_configured_value_wins_over_the_variable_and_a_blank_one_does_not() {
        let environment = [("OCI_CLI_PROFILE", "a")].into_iter().collect();
        let settings = Settings { environment, ..Settings::default() };
        let resolve = |chosen: &str| {
            settings.or_variable(Some(&chosen.to_owned()), "OCI_CLI_PROFILE").unwrap()
        };
        assert_eq!((resolve("b"), resolve(" ")), ("b".into(), "a".into()));
    }
}
