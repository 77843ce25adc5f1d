//! Who reads: a driver, its commands and its pods with one identity, and all that they hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use localstore::LocalStore;

use super::URI;
use crate::support::access::Access;
use crate::support::api_server::ApiServer;
use crate::support::collector::Collector;
use crate::support::driver::{Driver, Setup};
use crate::support::fetch::Fetched;
use crate::support::models::{BUCKET, put};
use crate::support::pod_keys::{self, ALLOWED};
use crate::support::proxy::{Behaviour, TestProxy};
use crate::support::workloads::HOUR;

/// The token of a pod, which the store accepts whatever its content.
pub(super) const POD_TOKEN: &str = "pods-own-token-5e0f9c";

/// The passphrase in the Secret of a pod, whose key is not encrypted with it.
pub(super) const PASSPHRASE: &str = "pods-own-passphrase-77d1";

/// The login of the proxy, `me:proxys-own-5c1e@` in a URL.
pub(super) const LOGIN: &str = "me:proxys-own-5c1e%40";

/// Who reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// The driver and its commands, by the name of `--auth`; pods where that says so.
    As(&'static str),
    /// The same with an API key, through a proxy that wants a login.
    ThroughProxy,
    /// A pod, with the API key in its Secret.
    AsKeyOfPod,
    /// A pod, and commands, with a pre-authenticated request.
    WithPar,
}

impl Reads {
    pub(super) fn auth(self) -> &'static str {
        if let Self::As(auth) = self { auth } else { "api_key" }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::As(auth) => auth,
            Self::ThroughProxy => "through a proxy",
            Self::AsKeyOfPod => "API key of a pod",
            Self::WithPar => "pre-authenticated request",
        }
    }
}

/// A driver and commands with one identity, all at trace level.
pub(super) struct Subject<'a> {
    pub(super) scratch: &'a Path,
    pub(super) store: &'a LocalStore,
    pub(super) reads: Reads,
    /// The Secret of its pods.
    pub(super) secret: BTreeMap<String, String>,
    pub(super) proxy: TestProxy,
    /// Gets the traces of its driver.
    pub(super) collector: Collector,
}

impl<'a> Subject<'a> {
    pub(super) async fn new(scratch: &'a Path, store: &'a LocalStore, reads: Reads) -> Self {
        let proxy = TestProxy::start(Behaviour::Forward, None);
        let (secret, collector) = (secret_of_pods(reads, store), Collector::start().await);
        Self { scratch, store, reads, secret, proxy, collector }
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.scratch.join(name).to_str().unwrap().to_owned()
    }

    /// The flags of this identity.
    pub(super) fn flags(&self) -> Vec<String> {
        let mut flags = vec!["--region".to_owned(), "us-ashburn-1".to_owned()];
        match self.reads.auth() {
            "security_token" => flags.extend(["--profile", "SESSION"].map(str::to_owned)),
            "oke_workload_identity" => {
                flags.extend(["--oke-endpoint".to_owned(), self.store.endpoint()]);
                flags.extend(["--oke-token-file".to_owned(), self.path("account/token")]);
            }
            _ => {}
        }
        flags
    }

    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        match self.reads.auth() {
            _ if self.reads == Reads::ThroughProxy => {
                vec![("http_proxy", self.proxy.url_with(LOGIN))]
            }
            "resource_principal" => vec![
                ("OCI_RESOURCE_PRINCIPAL_VERSION", "2.2".to_owned()),
                ("OCI_RESOURCE_PRINCIPAL_RPST", self.path("oci/token")),
                ("OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM", self.path("oci/api_key.pem")),
            ],
            "instance_principal" => vec![
                ("OCI_METADATA_BASE_URL", self.store.imds_base()),
                ("OCI_CLI_FEDERATION_ENDPOINT", self.store.federation_endpoint()),
            ],
            _ => Vec::new(),
        }
    }

    pub(super) async fn driver(&self, api: &ApiServer) -> Driver {
        let mut setup = Setup::new(self.scratch, self.store);
        setup.auth = self.reads.auth();
        setup.environment = self.environment();
        setup.environment.extend(self.collector.environment());
        setup.arguments = self.flags();
        setup.arguments.extend(["--kubernetes-api", &api.url].map(str::to_owned));
        setup.arguments.extend(["--service-account-dir".to_owned(), self.path("account")]);
        setup.arguments.extend(["--log-level", "trace"].map(str::to_owned));
        let allowed = if self.secret.is_empty() { "" } else { ALLOWED };
        setup.with_config(&format!("{allowed}prefetch: [\"{URI}\"]\n")).start().await
    }

    /// A command with this identity, and all that it printed.
    pub(super) async fn command(&self, words: &[&str]) -> String {
        let mut command = Access::new(self.scratch, self.store).command(words[0]);
        command.args(&words[1..]).args(["--auth", self.reads.auth(), "--log-level", "trace"]);
        command.args(self.flags()).envs(self.environment());
        let ran = Fetched::of(command.spawn().unwrap()).await;
        format!("exit code {}\n{}{}", ran.code, ran.stdout, ran.stderr)
    }
}

/// A store that knows the pod's token, and the files of all identities.
pub(super) fn prepared(scratch: &Path, reads: Reads) -> LocalStore {
    // Tokens are replaced again and again, so that their services are asked in each failure.
    let builder = LocalStore::builder().token_ttl(Duration::from_secs(4));
    let store = builder.cluster_token(POD_TOKEN, "team-a", "default").start().unwrap();
    for name in ["config.json", "tokenizer/vocab.txt", "model.safetensors"] {
        put(&store, name, name);
    }
    if reads == Reads::As("none") {
        store.set_public_access(BUCKET, localstore::PublicAccess::ObjectRead).unwrap();
    }
    let account = scratch.join("account");
    fs::create_dir(&account).unwrap();
    let token = store.service_account_token("kube-system", "driver", None, HOUR).unwrap();
    fs::write(account.join("token"), token).unwrap();
    store
}

/// The Secret of the pods of a reader.
pub(super) fn secret_of_pods(reads: Reads, store: &LocalStore) -> BTreeMap<String, String> {
    match reads {
        Reads::AsKeyOfPod => {
            let mut secret = pod_keys::secret(&pod_keys::key(store, "pod"));
            secret.insert("passphrase".to_owned(), PASSPHRASE.to_owned());
            secret
        }
        Reads::WithPar => {
            let url = store.make_par(BUCKET, "", true, HOUR).unwrap();
            [("par".to_owned(), url)].into()
        }
        Reads::As(_) | Reads::ThroughProxy => BTreeMap::new(),
    }
}

/// The key of a Secret that is none.
pub(super) fn broken_key(pem: &str) -> String {
    pem.replace('A', "B")
}

/// Secrets with a mistake in each part of this one.
pub(super) fn broken_secrets(secret: &BTreeMap<String, String>) -> Vec<BTreeMap<String, String>> {
    let with = |key: &str, value: String| {
        let mut broken = secret.clone();
        broken.insert(key.to_owned(), value);
        broken
    };
    if let Some(url) = secret.get("par") {
        let (host, path) = url.split_once("/p/").unwrap();
        return vec![
            with("par", format!("http://127.0.0.1:1/p/{path}")),
            with("par", format!("{host}/p/{path}?x=y")),
            with("par", format!("{host}/p/{path}x/\n/p/{path}")),
            with("par", url.replace(BUCKET, "other")),
            with("url", url.clone()),
        ];
    }
    let Some(key) = secret.get("key") else { return Vec::new() };
    let keys = ["key", "user", "tenancy", "fingerprint", "region", "other"];
    keys.map(|name| with(name, broken_key(key))).to_vec()
}
