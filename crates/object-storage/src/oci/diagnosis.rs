//! What a diagnosis asks of Oracle's services beyond the calls that read models.

use std::time::SystemTime;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use serde::Deserialize;

use super::ObjectStorage;
use super::error::{StorageError, StorageErrorKind, unanswered};
use super::identity::api_key_of;
use super::identity::imds::Imds;
use super::identity::token::Claims;
use super::settings::Settings;
use crate::http_error::server_time;
use crate::source::Bucket;
use crate::transport::ProxyChoice;

/// Who signs the requests of a client, as far as this machine knows, by OCIDs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Principal {
    /// The tenancy.
    pub tenancy: Option<String>,
    /// The user of an API key.
    pub user: Option<String>,
    /// The fingerprint of an API key.
    pub fingerprint: Option<String>,
    /// The instance.
    pub instance: Option<String>,
    /// The instance's compartment, by which dynamic groups match.
    pub compartment: Option<String>,
    /// The instance's shape, such as `BM.GPU.H100.8`. Not an OCID.
    pub shape: Option<String>,
    /// The service account, with its Kubernetes namespace.
    pub service_account: Option<String>,
    /// When its token expires.
    pub expires_at: Option<SystemTime>,
}

impl Principal {
    /// What the key id of a signature says: that of a token is the token.
    pub(crate) fn of_key_id(key_id: &str) -> Self {
        if let Some(jwt) = key_id.strip_prefix("ST$") {
            return Self { tenancy: Claims::of_jwt(jwt).tenancy(), ..Self::default() };
        }
        let [tenancy, user, fingerprint] = api_key_of(key_id)
            .map(|parts| parts.map(|part| Some(part.to_owned())))
            .unwrap_or_default();
        Self { tenancy, user, fingerprint, ..Self::default() }
    }
}

/// An answer of Object Storage to a request that needs no permission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// `scheme://host[:port]`.
    pub endpoint: String,
    /// The service's clock, in whole seconds; `None` if the answer has none.
    pub time: Option<SystemTime>,
}

/// How requests reach Object Storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceWay {
    /// `scheme://host[:port]`.
    pub endpoint: String,
    /// The proxy between here and there.
    pub proxy: ProxyUse,
}

/// Whether a proxy is used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyUse {
    /// No key and no variable names one.
    None,
    /// It is used.
    Through {
        /// `host:port`.
        proxy: String,
        /// The key or the variable that names it.
        named_by: String,
    },
    /// `NO_PROXY` exempts the endpoint.
    Exempt {
        /// The key or the variable that names the proxy.
        named_by: String,
        /// The entry of `NO_PROXY`.
        entry: String,
    },
}

/// What a bucket says of itself to an identity that may read it (`BUCKET_READ`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BucketFacts {
    /// The OCID of its compartment.
    pub compartment_id: Option<String>,
    /// The OCID of its Vault key; `None` when Oracle's keys encrypt it.
    pub kms_key_id: Option<String>,
}

impl ObjectStorage {
    /// The principal that signs the requests; gets a credential where there is none yet.
    ///
    /// # Errors
    /// Those of getting the credential.
    pub async fn principal(&self) -> Result<Principal, StorageError> {
        let Some(identity) = self.identity() else { return Ok(Principal::default()) };
        let credential = identity.credentials().await.map_err(StorageError::of_identity)?;
        let expires_at = credential.expires_at();
        let account = self.0.own_account();
        let service_account = account.map(|one| format!("{}/{}", one.namespace, one.name));
        let principal = Principal::of_key_id(credential.key_id());
        Ok(Principal { service_account, expires_at, ..principal })
    }

    /// How requests reach Object Storage.
    ///
    /// # Errors
    /// Where the region is not known.
    pub async fn way(&self) -> Result<ServiceWay, StorageError> {
        let endpoint = self.0.place.endpoint(self.known_namespace()).await?;
        let uri = endpoint.uri("/").map_err(|error| {
            StorageError::config("finding the way to Object Storage", error.to_string())
        })?;
        let proxy = match self.0.transport.choose(&uri) {
            ProxyChoice::Direct => ProxyUse::None,
            ProxyChoice::Through(proxy) => ProxyUse::Through {
                proxy: proxy.to_string(),
                named_by: proxy.named_by().to_owned(),
            },
            ProxyChoice::Exempt(proxy, entry) => {
                ProxyUse::Exempt { named_by: proxy.named_by().to_owned(), entry: entry.to_owned() }
            }
        };
        Ok(ServiceWay { endpoint: endpoint.origin(), proxy })
    }

    /// Asks the endpoint for its root, unsigned: every answer shows that it can be reached.
    ///
    /// # Errors
    /// `Unavailable` without an answer.
    pub async fn reach(&self) -> Result<Reached, StorageError> {
        let endpoint = self.0.place.endpoint(self.known_namespace()).await?;
        let attempted = match self.0.proxy(&endpoint) {
            Some(proxy) => {
                format!("reaching Object Storage at {} through {proxy}", endpoint.origin())
            }
            None => format!("reaching Object Storage at {}", endpoint.origin()),
        };
        let request = endpoint
            .uri("/")
            .and_then(|uri| {
                Request::get(uri)
                    .header(header::HOST, endpoint.host())
                    .body(Full::new(Bytes::new()))
            })
            .map_err(|error| StorageError::config(attempted.clone(), error.to_string()))?;
        let answer = self
            .0
            .transport
            .send(request)
            .await
            .map_err(|failure| unanswered(StorageErrorKind::Unavailable, attempted, failure))?;
        Ok(Reached { endpoint: endpoint.origin(), time: server_time(answer.headers()) })
    }

    /// Reads what the bucket says of itself (`GetBucket`).
    ///
    /// # Errors
    /// `NotFound` and `Forbidden` also where the identity may only read objects.
    pub async fn bucket_facts(&self, bucket: &Bucket) -> Result<BucketFacts, StorageError> {
        let call = Self::bucket_request("GetBucket", bucket, Method::GET);
        let (_, body) = self.0.read_retrying(&call, 64 * 1024).await?;
        serde_json::from_slice(&body)
            .map_err(|error| call.error(StorageErrorKind::Protocol, error.to_string()))
    }

    /// Why this method was chosen, where that was left to the client.
    pub fn why_chosen(&self) -> Option<&str> {
        self.0.chosen.as_deref()
    }
}

/// The instance that this process runs on, as the metadata service names it.
///
/// # Errors
/// `Identity` when the service does not answer.
pub async fn own_instance(settings: &Settings) -> Result<Principal, StorageError> {
    let imds = Imds::new(settings)?;
    let instance = Some(imds.get("/instance/id").await?);
    let compartment = Some(imds.get("/instance/compartmentId").await?);
    // Only the speed of the network follows from it.
    let shape = imds.get("/instance/shape").await.ok().map(|shape| shape.trim().to_owned());
    Ok(Principal { instance, compartment, shape, ..Principal::default() })
}

/// The matching rule of a dynamic group that contains the instances of this compartment.
/// Source: Oracle's "Writing Matching Rules to Define Dynamic Groups".
pub fn matching_rule(compartment: &str) -> String {
    format!("ALL {{instance.compartment.id = '{compartment}'}}")
}

/// The statement that lets Object Storage use a bucket's Vault key. Source: Oracle's "Let Object
/// Storage, Block Volume, File Storage ... services decrypt and encrypt".
pub fn key_statement(region: &str, key: &str) -> String {
    format!(
        "Allow service objectstorage-{region} to use keys in compartment <the key's> where \
         target.key.id='{key}'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_id_of_an_api_key_names_tenancy_user_and_fingerprint() {
        let principal = Principal::of_key_id("ocid1.tenancy.a/ocid1.user.b/12:34");
        assert_eq!(principal.tenancy.as_deref(), Some("ocid1.tenancy.a"));
        assert_eq!(principal.user.as_deref(), Some("ocid1.user.b"));
        assert_eq!(principal.fingerprint.as_deref(), Some("12:34"));
    }

    #[test]
    fn a_token_that_cannot_be_read_names_nothing() {
        assert_eq!(Principal::of_key_id("ST$x.y.z"), Principal::default());
    }

    #[test]
    fn the_matching_rule_names_the_compartment() {
        assert_eq!(matching_rule("c"), "ALL {instance.compartment.id = 'c'}");
    }
}
