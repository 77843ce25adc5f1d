//! This process's own service account as a principal, in a pod of an enhanced OKE cluster: that of
//! commands, and that of the driver for what it reads without a pod.
//!
//! kubelet renews the token's file, so it is read again for each exchange.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::oke_service::{Exchange, TokenOwner};
use super::token::Claims;
use super::{Credential, CredentialSource, lock};
use crate::oci::error::{StorageError, StorageErrorKind};
use crate::oci::settings::Settings;
use crate::text;

/// The token of the service account, in every pod that has one. Oracle's SDKs read this file too.
pub(crate) const TOKEN_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

const EXPIRED: &str =
    "kubelet renews the file of a running pod: name that file with --oke-token-file, not a copy";
const REFUSED: &str = "the token has to be of this cluster and for its API server: use the pod's \
    own (automountServiceAccountToken), or a projected one without `audience`";
const ABSENT: &str = "oke_workload_identity works in pods: run it in one whose service account's \
    token is mounted, name the token with --oke-token-file, or choose another auth";

/// A service account, as policies name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceAccount {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl ServiceAccount {
    /// The account of a token; `None` for anything but a Kubernetes JWT.
    fn of_token(jwt: &str) -> Option<Self> {
        let subject = Claims::of_jwt(jwt).subject()?;
        let (namespace, name) = subject.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        let is_name = |text: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
            (1..=253).contains(&text.len()) && text.chars().all(plain)
        };
        let [namespace, name] = [namespace, name].map(str::to_owned);
        (is_name(&namespace) && is_name(&name)).then_some(Self { namespace, name })
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service account {}/{}", self.namespace, self.name)
    }
}

/// The service account that this process runs as.
pub(crate) struct OwnAccount {
    exchange: Arc<Exchange>,
    token_file: PathBuf,
    /// Known once its token was read.
    name: Mutex<Option<ServiceAccount>>,
}

impl OwnAccount {
    pub(super) fn new(settings: &Settings, exchange: Arc<Exchange>) -> Self {
        let named = settings.oke_token_file.clone();
        let token_file = named.unwrap_or_else(|| Path::new(TOKEN_FILE).to_owned());
        Self { exchange, token_file, name: Mutex::default() }
    }

    /// Whether there is a token to read.
    pub(crate) fn is_there(&self) -> bool {
        self.token_file.exists()
    }

    /// The account; one without names until its token was read.
    pub(crate) fn name(&self) -> ServiceAccount {
        let unknown = || ServiceAccount { namespace: "…".to_owned(), name: "…".to_owned() };
        lock(&self.name).clone().unwrap_or_else(unknown)
    }

    async fn token(&self) -> Result<String, StorageError> {
        let attempted = "reading the token of this process's own service account";
        let file = self.token_file.clone();
        let read =
            tokio::task::spawn_blocking(move || text::read(&file)).await.map_err(|error| {
                StorageError::new(StorageErrorKind::Identity, attempted, error.to_string())
            })?;
        let refuse = |why: String| {
            let attempted = format!("{attempted}, {}", self.token_file.display());
            StorageError::config(attempted, why).with_remedy(ABSENT)
        };
        match read.map_err(refuse)?.trim() {
            "" => Err(refuse("the file is empty".to_owned())),
            token => Ok(token.to_owned()),
        }
    }
}

impl CredentialSource for Arc<OwnAccount> {
    fn fetch(&self) -> BoxFuture<'_, Result<Credential, StorageError>> {
        async {
            let token = self.token().await?;
            let account = ServiceAccount::of_token(&token);
            let who = account.as_ref().map_or_else(
                || format!("this process's own service account, {},", self.token_file.display()),
                ToString::to_string,
            );
            *lock(&self.name) = account;
            let owner = TokenOwner { who: &who, expired: EXPIRED, refused: REFUSED };
            self.exchange.credential(&owner, &token).await
        }
        .boxed()
    }

    fn is_renewed_ahead(&self) -> bool {
        // The driver may read nothing for days.
        false
    }
}

#[cfg(test)]
#[path = "own_account_tests.rs"]
mod tests;
