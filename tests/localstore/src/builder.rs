//! How a server is set up and started.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tempfile::TempDir;

use crate::auth::config_file::{self, ApiKey};
use crate::auth::{Access, Cluster, Identity, Instance, Keys, Pars};
use crate::faults::Faults;
use crate::objects::Catalog;
use crate::server::{Buffers, Tls};
use crate::state::State;
use crate::stats::Counters;
use crate::store::{LocalStore, Running};

/// The namespace unless another is chosen.
pub const DEFAULT_NAMESPACE: &str = "axlocalstore";

/// Settings of a [`LocalStore`]; each has a default that suits tests.
#[derive(Debug, Clone)]
pub struct Builder {
    root: Option<PathBuf>,
    listen: SocketAddr,
    allow_non_loopback: bool,
    namespace: String,
    region: String,
    tenancy: String,
    verify: bool,
    tls: bool,
    tls_names: Vec<String>,
    ca_file: Option<PathBuf>,
    certificate_years: Option<(i32, i32)>,
    api_keys: Vec<String>,
    config_files: Vec<PathBuf>,
    hidden: Vec<(String, String)>,
    granted: Vec<(String, String)>,
    cluster_tokens: Vec<(String, String, String)>,
    cluster_keys: Vec<PathBuf>,
    token_ttl: Duration,
    rotate_leaf_every: u64,
    max_page: usize,
    workers: usize,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            root: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            allow_non_loopback: false,
            namespace: DEFAULT_NAMESPACE.to_owned(),
            region: "us-ashburn-1".to_owned(),
            tenancy: "ocid1.tenancy.oc1..localstore".to_owned(),
            verify: true,
            tls: false,
            tls_names: Vec::new(),
            ca_file: None,
            certificate_years: None,
            api_keys: Vec::new(),
            config_files: Vec::new(),
            hidden: Vec::new(),
            granted: Vec::new(),
            cluster_tokens: Vec::new(),
            cluster_keys: Vec::new(),
            token_ttl: Duration::from_secs(20 * 60),
            rotate_leaf_every: 0,
            max_page: crate::api::MAX_PAGE,
            workers: 4,
        }
    }
}

impl Builder {
    /// The directory whose sub directories are the buckets. Without one, a
    /// temporary directory that ends with the server.
    #[must_use]
    pub fn root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = Some(root.into());
        self
    }

    /// Address and port; a free port of 127.0.0.1 unless given.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Allows addresses that others can reach. The admin interface has no authentication.
    #[must_use]
    pub fn allow_non_loopback(mut self, allow: bool) -> Self {
        self.allow_non_loopback = allow;
        self
    }

    /// The Object Storage namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// The region of the instance and of written config files.
    #[must_use]
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = region.into();
        self
    }

    /// The tenancy's OCID.
    #[must_use]
    pub fn tenancy(mut self, tenancy: impl Into<String>) -> Self {
        self.tenancy = tenancy.into();
        self
    }

    /// Whether requests must be signed, by a key or token that is known here. Default true.
    #[must_use]
    pub fn verify_signatures(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Serves https (and http on the same port, for the metadata service).
    #[must_use]
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// Adds a name to the certificate of [`Builder::tls`], for clients that find the server by it.
    #[must_use]
    pub fn tls_name(mut self, name: impl Into<String>) -> Self {
        self.tls_names.push(name.into());
        self
    }

    /// Where to write the CA certificate of [`Builder::tls`].
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// The certificate of [`Builder::tls`] is valid from the first day of one year to that of
    /// another. Unless given, always.
    #[must_use]
    pub fn certificate_years(mut self, first: i32, last: i32) -> Self {
        self.certificate_years = Some((first, last));
        self
    }

    /// Registers a public key: `tenancy/user/fingerprint=public.pem`.
    #[must_use]
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.api_keys.push(key.into());
        self
    }

    /// Registers the API keys of all profiles of an oci CLI config file.
    #[must_use]
    pub fn cli_config(mut self, path: impl Into<PathBuf>) -> Self {
        self.config_files.push(path.into());
        self
    }

    /// Hides buckets from callers, as missing permission does: 404 BucketNotFound.
    /// Both are patterns with `*`; a caller is an API key's
    /// `tenancy/user/fingerprint` or a token's subject.
    #[must_use]
    pub fn hide(mut self, caller: impl Into<String>, bucket: impl Into<String>) -> Self {
        self.hidden.push((caller.into(), bucket.into()));
        self
    }

    /// Lets callers read buckets. Callers that are named here may do nothing in
    /// all other buckets; the patterns are those of [`Builder::hide`].
    #[must_use]
    pub fn allow(mut self, caller: impl Into<String>, bucket: impl Into<String>) -> Self {
        self.granted.push((caller.into(), bucket.into()));
        self
    }

    /// Makes OKE's identity service accept this token for that service account.
    #[must_use]
    pub fn cluster_token(
        mut self,
        token: impl Into<String>,
        namespace: impl Into<String>,
        name: impl Into<String>,
    ) -> Self {
        self.cluster_tokens.push((token.into(), namespace.into(), name.into()));
        self
    }

    /// Makes OKE's identity service trust service-account tokens that are signed by
    /// the RSA keys of this file: a public key in PEM, or a JWKS.
    #[must_use]
    pub fn cluster_keys(mut self, path: impl Into<PathBuf>) -> Self {
        self.cluster_keys.push(path.into());
        self
    }

    /// How long tokens from federation live. Default 20 minutes.
    #[must_use]
    pub fn token_ttl(mut self, ttl: Duration) -> Self {
        self.token_ttl = ttl;
        self
    }

    /// Serves a new instance certificate after this many fetches; 0, the default, never.
    #[must_use]
    pub fn rotate_leaf_every(mut self, fetches: u64) -> Self {
        self.rotate_leaf_every = fetches;
        self
    }

    /// The most entries of one page of a listing, whatever the client's limit. Default 1000.
    #[must_use]
    pub fn max_page(mut self, entries: usize) -> Self {
        self.max_page = entries.clamp(1, crate::api::MAX_PAGE);
        self
    }

    /// Threads that serve. Default 4.
    #[must_use]
    pub fn workers(mut self, threads: usize) -> Self {
        self.workers = threads.max(1);
        self
    }

    /// Starts the server on threads of its own; it ends when the returned value is dropped.
    ///
    /// Fails when the root cannot be read, a key is not one, the address is
    /// taken, or it is not loopback and that was not allowed.
    pub fn start(self) -> anyhow::Result<LocalStore> {
        if !self.listen.ip().is_loopback() && !self.allow_non_loopback {
            bail!(
                "refusing to listen on {}: anyone who reaches it could use the admin interface; \
                 choose a loopback address, or allow it explicitly (--allow-non-loopback)",
                self.listen
            );
        }
        let scratch =
            TempDir::with_prefix("localstore-").context("creating a temporary directory")?;
        let root = self.root.clone().unwrap_or_else(|| scratch.path().join("root"));
        let catalog = Catalog::open(&root, &self.namespace)
            .with_context(|| format!("opening the root directory {}", root.display()))?;
        let tls = self.tls.then(|| self.make_tls(scratch.path())).transpose()?;
        let state = State {
            namespace: self.namespace.clone(),
            verify: self.verify,
            max_page: self.max_page,
            catalog,
            keys: self.keys()?,
            pars: Pars::default(),
            tls: self.tls,
            identity: Identity::new(self.instance(), self.token_ttl, self.rotate_leaf_every),
            cluster: self.cluster()?,
            faults: Faults::default(),
            counters: Arc::new(Counters::default()),
            buffers: Buffers::default(),
        };
        let running = Running::start(self.listen, self.workers, Arc::new(state), tls)?;
        Ok(LocalStore::new(running, scratch))
    }

    fn make_tls(&self, scratch: &Path) -> anyhow::Result<Tls> {
        let default = scratch.join("ca.pem");
        let ca_file = self.ca_file.as_deref().unwrap_or(&default);
        Tls::generate(ca_file, self.listen.ip(), &self.tls_names, self.certificate_years)
    }

    fn keys(&self) -> anyhow::Result<Keys> {
        let keys = Keys::default();
        let mut api_keys: Vec<ApiKey> =
            self.api_keys.iter().map(|text| ApiKey::parse(text)).collect::<Result<_, _>>()?;
        for path in &self.config_files {
            api_keys.extend(config_file::read(path)?);
        }
        for key in api_keys {
            let key_id = key.key_id();
            keys.add_api_key(&key_id, &key.public).with_context(|| {
                format!("the key of {key_id} is not an RSA key of at least 2048 bits")
            })?;
        }
        for (caller, bucket) in &self.hidden {
            keys.hide(caller, bucket);
        }
        for (caller, bucket) in &self.granted {
            keys.grant(caller, bucket, Access::Read);
        }
        Ok(keys)
    }

    fn cluster(&self) -> anyhow::Result<Cluster> {
        let cluster = Cluster::default();
        for (token, namespace, name) in &self.cluster_tokens {
            cluster.list(token, namespace, name);
        }
        for path in &self.cluster_keys {
            cluster.trust(path)?;
        }
        Ok(cluster)
    }

    fn instance(&self) -> Instance {
        Instance {
            tenancy: self.tenancy.clone(),
            compartment: "ocid1.compartment.oc1..localstore".to_owned(),
            id: "ocid1.instance.oc1.iad.localstore".to_owned(),
            // Older regions are known to the metadata service by their short codes.
            region_key: match self.region.as_str() {
                "us-ashburn-1" => "iad",
                "us-phoenix-1" => "phx",
                other => other,
            }
            .to_owned(),
            region: self.region.clone(),
        }
    }
}

/// Where a client reaches a listener: never an address that means "all".
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    SocketAddr::new(ip, address.port())
}
