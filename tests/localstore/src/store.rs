//! The handle of a running server, for tests and the binary.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::api::pars::access_uri;
use crate::auth::config_file::{self, ApiKey};
use crate::auth::{Access, AccessType, AccountToken, Par, from_pem};
use crate::builder::{Builder, reachable};
use crate::error::ApiError;
use crate::faults::Faults;
use crate::objects::{Precondition, PublicAccess, PutOptions, Source, put};
use crate::server::{self, Tls};
use crate::state::State;
use crate::stats::{RequestRecord, Stats};

/// An API key that the server accepts. `Debug` does not print the private half.
#[derive(Clone)]
pub struct UserKey {
    /// OCID of the tenancy.
    pub tenancy: String,
    /// OCID of the user.
    pub user: String,
    /// Fingerprint of the key.
    pub fingerprint: String,
    /// The private half, unencrypted PKCS#8 in PEM.
    pub pem: String,
}

impl UserKey {
    /// The caller of its requests, for permissions and records.
    pub fn caller(&self) -> String {
        format!("{}/{}/{}", self.tenancy, self.user, self.fingerprint)
    }
}

impl std::fmt::Debug for UserKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.caller())
    }
}

/// A local OCI Object Storage that serves until it is dropped.
///
/// All methods may be called from synchronous and asynchronous code; those that
/// read or write files block for as long as that takes.
#[derive(Debug)]
pub struct LocalStore {
    running: Running,
    /// The key of [`LocalStore::write_cli_config`], made when first asked for.
    own_key: OnceLock<(ApiKey, String)>,
    /// Holds the root directory, unless one was given, and the CA certificate.
    _scratch: TempDir,
}

impl LocalStore {
    /// The settings to start from.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(running: Running, scratch: TempDir) -> Self {
        Self { running, own_key: OnceLock::new(), _scratch: scratch }
    }

    fn state(&self) -> &State {
        &self.running.state
    }

    /// `http://127.0.0.1:PORT`, or https with TLS.
    pub fn endpoint(&self) -> String {
        let scheme = if self.running.ca_file.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.running.address)
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.running.address
    }

    /// The namespace of all buckets.
    pub fn namespace(&self) -> &str {
        &self.state().namespace
    }

    /// The tenancy of the instance and of the written config.
    pub fn tenancy(&self) -> &str {
        &self.state().identity.instance.tenancy
    }

    /// Base of the metadata service, as `OCI_METADATA_BASE_URL` takes it; plain http always.
    pub fn imds_base(&self) -> String {
        format!("http://{}/opc/v2", self.running.address)
    }

    /// The identity service's certificate exchange, as the oci CLI's `--federation-endpoint` takes it.
    pub fn federation_endpoint(&self) -> String {
        format!("{}/v1/x509", self.endpoint())
    }

    /// The CA certificate that https clients must trust; none without TLS.
    pub fn ca_file(&self) -> Option<&Path> {
        self.running.ca_file.as_deref()
    }

    /// The fault rules.
    pub fn faults(&self) -> &Faults {
        &self.state().faults
    }

    /// The current counters.
    pub fn stats(&self) -> Stats {
        self.state().counters.snapshot()
    }

    /// Resets the counters.
    pub fn reset_stats(&self) {
        self.state().counters.reset();
    }

    /// The last 20 000 answered requests, oldest first.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.state().counters.records()
    }

    /// Creates a bucket; one that exists already is left as it is.
    pub fn create_bucket(&self, name: &str) -> anyhow::Result<()> {
        self.state().bucket_or_create(name).map(drop).map_err(|error| explain(&error))
    }

    /// What anonymous callers may do in a bucket.
    pub fn set_public_access(&self, bucket: &str, access: PublicAccess) -> anyhow::Result<()> {
        let bucket = self.state().bucket_or_create(bucket).map_err(|error| explain(&error))?;
        Ok(bucket.update_info(|info| info.public_access = access)?)
    }

    /// Says that a Vault key encrypts the bucket; objects stay as they are.
    pub fn set_key(&self, bucket: &str, key: &str) -> anyhow::Result<()> {
        let bucket = self.state().bucket_or_create(bucket).map_err(|error| explain(&error))?;
        Ok(bucket.update_info(|info| info.kms_key_id = Some(key.to_owned()))?)
    }

    /// Puts an object as one PutObject would; the bucket is created when there is none.
    /// Returns the ETag.
    pub fn put(&self, bucket: &str, name: &str, bytes: impl AsRef<[u8]>) -> anyhow::Result<String> {
        self.put_with(bucket, name, bytes, PutOptions::default())
    }

    /// Puts an object from any source in any form. Returns the ETag.
    pub fn put_with(
        &self,
        bucket: &str,
        name: &str,
        source: impl Into<Source>,
        options: PutOptions,
    ) -> anyhow::Result<String> {
        let bucket = self.state().bucket_or_create(bucket).map_err(|error| explain(&error))?;
        put(&bucket, name, &source.into(), options).map_err(|error| explain(&error))
    }

    /// Deletes an object.
    pub fn delete(&self, bucket: &str, name: &str) -> anyhow::Result<()> {
        let bucket = self.state().catalog.bucket(bucket).map_err(|error| explain(&error))?;
        bucket.delete(name, &Precondition::default()).map(drop).map_err(|error| explain(&error))
    }

    /// The ETag of an object's present version.
    pub fn etag(&self, bucket: &str, name: &str) -> anyhow::Result<String> {
        let bucket = self.state().catalog.bucket(bucket).map_err(|error| explain(&error))?;
        Ok(bucket.get(name).map_err(|error| explain(&error))?.meta.etag.clone())
    }

    /// The multipart uploads of a bucket that are neither committed nor aborted: object and id.
    pub fn uploads(&self, bucket: &str) -> anyhow::Result<Vec<(String, String)>> {
        let bucket = self.state().catalog.bucket(bucket).map_err(|error| explain(&error))?;
        let all = bucket.uploads.all();
        Ok(all.iter().map(|upload| (upload.object.clone(), upload.id.clone())).collect())
    }

    /// Hides buckets from callers from now on; see [`Builder::hide`].
    pub fn hide(&self, caller: &str, bucket: &str) {
        self.state().keys.hide(caller, bucket);
    }

    /// Lets callers read buckets from now on; see [`Builder::allow`].
    pub fn allow(&self, caller: &str, bucket: &str) {
        self.state().keys.grant(caller, bucket, Access::Read);
    }

    /// As [`LocalStore::allow`], but objects may only be listed, not read.
    pub fn allow_inspect(&self, caller: &str, bucket: &str) {
        self.state().keys.grant(caller, bucket, Access::Inspect);
    }

    /// As [`LocalStore::allow`], but objects may only be read by name, not listed.
    pub fn allow_read_known(&self, caller: &str, bucket: &str) {
        self.state().keys.grant(caller, bucket, Access::ReadKnown);
    }

    /// Keeps callers from reading objects of these names from now on, as a policy
    /// does whose condition is about `target.object.name`; they stay listed.
    pub fn withhold(&self, caller: &str, bucket: &str, object: &str) {
        self.state().keys.withhold(caller, bucket, object);
    }

    /// The token of a service account of this server's own cluster, as kubelet
    /// gives it to a CSI driver. OKE's identity service is at
    /// [`LocalStore::endpoint`], and the account's caller is
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub fn service_account_token(
        &self,
        namespace: &str,
        name: &str,
        pod_uid: Option<&str>,
        ttl: Duration,
    ) -> anyhow::Result<String> {
        let wanted = AccountToken { namespace, name, pod_uid, audience: None, ttl };
        self.state().cluster.issue(wanted, SystemTime::now())
    }

    /// As [`LocalStore::service_account_token`] for one hour, projected for another audience than
    /// the cluster's own API server.
    pub fn service_account_token_for(
        &self,
        audience: &str,
        namespace: &str,
        name: &str,
        pod_uid: Option<&str>,
    ) -> anyhow::Result<String> {
        let (audience, ttl) = (Some(audience), Duration::from_secs(3600));
        let wanted = AccountToken { namespace, name, pod_uid, audience, ttl };
        self.state().cluster.issue(wanted, SystemTime::now())
    }

    /// Deletes a service account and creates another one with its name, which has
    /// another UID in its tokens.
    pub fn make_service_account_again(&self, namespace: &str, name: &str) {
        self.state().cluster.make_again(namespace, name);
    }

    /// Registers an API key by the PEM of its public half.
    pub fn register_api_key(
        &self,
        tenancy: &str,
        user: &str,
        fingerprint: &str,
        public_pem: &str,
    ) -> anyhow::Result<()> {
        let key_id = format!("{tenancy}/{user}/{fingerprint}");
        let (_, public) = from_pem(public_pem).context("no PEM block in the public key")?;
        self.state().keys.add_api_key(&key_id, &public).context("not an RSA key")
    }

    /// Makes an API key of a user, `ocid1.user.oc1..NAME`, and accepts it from now on.
    pub fn make_api_key(&self, name: &str) -> anyhow::Result<UserKey> {
        let (pem, public) = config_file::generate_key()?;
        let key = UserKey {
            tenancy: self.tenancy().to_owned(),
            user: format!("ocid1.user.oc1..{name}"),
            fingerprint: config_file::fingerprint(&public),
            pem,
        };
        self.state().keys.add_api_key(&key.caller(), &public).context("a generated key")?;
        Ok(key)
    }

    /// Refuses an API key from now on, as if it had been deleted.
    pub fn revoke_api_key(&self, caller: &str) {
        self.state().keys.remove(caller);
    }

    /// Makes a pre-authenticated request that reads all objects whose names begin with `prefix`,
    /// and lists them if `lists`; returns its URL.
    pub fn make_par(
        &self,
        bucket: &str,
        prefix: &str,
        lists: bool,
        ttl: Duration,
    ) -> anyhow::Result<String> {
        self.state().bucket_or_create(bucket).map_err(|error| explain(&error))?;
        let created = SystemTime::now();
        let par = Par {
            id: prefix.to_owned(),
            name: prefix.to_owned(),
            bucket: bucket.to_owned(),
            access: AccessType::AnyObjectRead,
            object: prefix.to_owned(),
            lists,
            created,
            expires: created + ttl,
        };
        let token = self.state().pars.add(par.clone());
        let uri = access_uri(self.namespace(), &par, &token);
        Ok(format!("{}{uri}", self.endpoint()))
    }

    /// Issues a token as an identity service would, for the DER of a session
    /// key's SubjectPublicKeyInfo: what workload identities and sessions get.
    pub fn issue_token(
        &self,
        subject: &str,
        session_spki: &[u8],
        ttl: Duration,
    ) -> anyhow::Result<String> {
        self.state().issue_token(subject, session_spki, ttl)
    }

    /// Accepts a foreign token, until it expires.
    pub fn register_token(
        &self,
        token: &str,
        subject: &str,
        session_spki: &[u8],
        expires: SystemTime,
    ) -> anyhow::Result<()> {
        let added = self.state().keys.add_token(token, subject, session_spki, expires);
        added.context("the session key is not an RSA key of at least 2048 bits")
    }

    /// Refuses all tokens issued so far.
    pub fn expire_tokens(&self) {
        self.state().keys.expire_tokens();
    }

    /// Gives the metadata service another certificate and key.
    pub fn rotate_leaf(&self) -> anyhow::Result<()> {
        self.state().identity.rotate()
    }

    /// Writes an oci CLI config file with a key of its own that this server
    /// accepts, and returns its path. The profiles are `DEFAULT` (API key) and
    /// `SESSION` (a security token, valid for an hour).
    pub fn write_cli_config(&self, dir: &Path) -> anyhow::Result<PathBuf> {
        let (key, pem) = self.own_key()?;
        let session = self.issue_token(&key.user, &key.public, Duration::from_secs(3600))?;
        let region = &self.state().identity.instance.region;
        config_file::write(dir, key, pem, region, &session)
    }

    fn own_key(&self) -> anyhow::Result<&(ApiKey, String)> {
        if let Some(own) = self.own_key.get() {
            return Ok(own);
        }
        let (pem, public) = config_file::generate_key()?;
        let key = ApiKey {
            tenancy: self.tenancy().to_owned(),
            user: "ocid1.user.oc1..localstore".to_owned(),
            fingerprint: config_file::fingerprint(&public),
            public,
        };
        self.state().keys.add_api_key(&key.key_id(), &key.public).context("a generated key")?;
        Ok(self.own_key.get_or_init(|| (key, pem)))
    }
}

fn explain(error: &ApiError) -> anyhow::Error {
    anyhow::anyhow!("{} {}: {}", error.status.as_u16(), error.code, error.message)
}

/// The threads of a server.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) state: Arc<State>,
    pub(crate) address: SocketAddr,
    pub(crate) ca_file: Option<PathBuf>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start(
        listen: SocketAddr,
        workers: usize,
        state: Arc<State>,
        tls: Option<Tls>,
    ) -> anyhow::Result<Self> {
        // Bound here, so that the port is known and taken when this returns.
        let listener = std::net::TcpListener::bind(listen)
            .with_context(|| format!("listening on {listen}"))?;
        listener.set_nonblocking(true)?;
        let address = reachable(listener.local_addr()?);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name("localstore")
            .enable_all()
            .build()
            .context("starting a runtime")?;
        let (stop, stopped) = oneshot::channel();
        let (acceptor, ca_file) = match tls {
            Some(tls) => (Some(tls.acceptor), Some(tls.ca_file)),
            None => (None, None),
        };
        let serving = Arc::clone(&state);
        // A thread of its own, since a runtime must not be dropped inside another.
        let thread =
            std::thread::Builder::new().name("localstore-main".to_owned()).spawn(move || {
                runtime.block_on(async move {
                    match tokio::net::TcpListener::from_std(listener) {
                        Ok(listener) => {
                            tokio::select! {
                                () = server::serve(listener, serving, acceptor) => {}
                                _ = stopped => {}
                            }
                        }
                        Err(error) => tracing::error!(%error, "the listener cannot be served"),
                    }
                });
                runtime.shutdown_timeout(Duration::from_secs(1));
            })?;
        Ok(Self { state, address, ca_file, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // There is no receiver when the thread has ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the server's thread panicked");
        }
    }
}
