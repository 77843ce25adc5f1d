//! The compute instance as a principal: no key has to be stored on a node.
//!
//! The metadata service gives the instance a certificate that lives about two
//! hours; the federation endpoint exchanges it for a token bound to a session
//! key that is generated here. Every refresh reads and generates all of it again.

use std::sync::{Arc, OnceLock};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use super::certificate::InstanceCertificate;
use super::federation::{Federation, InstanceDocuments};
use super::imds::{Imds, NOT_THE_SERVICE};
use super::token::Lifetime;
use super::{Credential, CredentialSource};
use crate::oci::clock::Clock;
use crate::oci::endpoint::Endpoint;
use crate::oci::environment::Environment;
use crate::oci::error::{StorageError, StorageErrorKind};
use crate::oci::key::KeyPair;
use crate::oci::region::Region;
use crate::oci::settings::Settings;
use crate::source::RegionName;
use crate::transport::Transport;

/// Certificate and key are two reads; if a rotation comes in between, both are read again.
const READS_UNTIL_THEY_MATCH: usize = 3;

/// The region: the configured one, or the instance's own, requested once.
pub(crate) struct InstanceRegion {
    chosen: Option<RegionName>,
    environment: Environment,
    imds: Arc<Imds>,
    found: OnceCell<Region>,
}

impl InstanceRegion {
    pub(crate) fn new(
        chosen: Option<RegionName>,
        environment: Environment,
        imds: Arc<Imds>,
    ) -> Self {
        Self { chosen, environment, imds, found: OnceCell::new() }
    }

    pub(crate) async fn get(&self) -> Result<&Region, StorageError> {
        self.found
            .get_or_try_init(|| async {
                if let Some(chosen) = &self.chosen {
                    return Ok(Region::resolve(chosen, &self.environment));
                }
                let name = self.imds.get("/instance/region").await?;
                let not_the_service = |error: StorageError| error.with_remedy(NOT_THE_SERVICE);
                let name: RegionName = name.parse().map_err(not_the_service)?;
                if let Some(known) = Region::known(name.as_str()) {
                    return Ok(known);
                }
                // Newer than the built-in table: the instance knows its realm's domain.
                let info = self.imds.get("/instance/regionInfo").await.ok();
                Ok(info
                    .and_then(|json| Region::from_metadata(&json))
                    .unwrap_or_else(|| Region::resolve(&name, &self.environment)))
            })
            .await
    }
}

/// Gets credentials for the instance's certificate.
pub(crate) struct InstancePrincipal {
    imds: Arc<Imds>,
    region: Arc<InstanceRegion>,
    federation: Federation,
    federation_endpoint: Option<Endpoint>,
    tenancy: OnceLock<String>,
    clock: Clock,
}

impl InstancePrincipal {
    pub(crate) fn new(
        settings: &Settings,
        transport: Transport,
        imds: Arc<Imds>,
        region: Arc<InstanceRegion>,
        clock: Clock,
    ) -> Result<Self, StorageError> {
        let whole_url = settings
            .or_variable(settings.federation_endpoint.as_ref(), "OCI_CLI_FEDERATION_ENDPOINT")
            .or_else(|| {
                // The Go SDK's variable names the host only.
                let base = settings.environment.get("OCI_SDK_AUTH_CLIENT_REGION_URL")?;
                Some(format!("{}/v1/x509", base.trim_end_matches('/')))
            });
        let federation_endpoint =
            whole_url.map(|url| Endpoint::parse(&url, "the federation endpoint")).transpose()?;
        let federation =
            Federation { transport, retry: settings.retry.clone(), clock: clock.clone() };
        Ok(Self { imds, region, federation, federation_endpoint, tenancy: OnceLock::new(), clock })
    }

    async fn documents(&self) -> Result<InstanceDocuments, StorageError> {
        let attempted = "reading the instance's certificate and key";
        let broken = |why: String| StorageError::new(StorageErrorKind::Identity, attempted, why);
        for _ in 0..READS_UNTIL_THEY_MATCH {
            let leaf = self.imds.get("/identity/cert.pem").await?;
            let key = self.imds.get("/identity/key.pem").await?;
            let intermediate = self.imds.get("/identity/intermediate.pem").await?;
            let garbage = |why| broken(why).with_remedy(NOT_THE_SERVICE);
            let leaf = InstanceCertificate::from_pem(&leaf).map_err(garbage)?;
            let leaf_key =
                KeyPair::from_pem(&key, None).map_err(|error| garbage(error.to_string()))?;
            if leaf.public_der() != leaf_key.public_der().ok() {
                continue;
            }
            let intermediate = InstanceCertificate::from_pem(&intermediate).map_err(garbage)?;
            let tenancy = leaf.tenancy().ok_or_else(|| {
                broken("the certificate's subject names no tenancy (opc-tenant:)".into())
            })?;
            let first = self.tenancy.get_or_init(|| tenancy.clone());
            if *first != tenancy {
                return Err(StorageError::config(
                    attempted,
                    format!("the instance's tenancy changed from {first} to {tenancy}"),
                )
                .with_remedy("restart the process if that is meant"));
            }
            return Ok(InstanceDocuments { leaf, leaf_key, intermediate, tenancy });
        }
        Err(broken(format!(
            "certificate and key did not belong together in {READS_UNTIL_THEY_MATCH} reads"
        )))
    }

    async fn endpoint(&self) -> Result<Endpoint, StorageError> {
        if let Some(chosen) = &self.federation_endpoint {
            return Ok(chosen.clone());
        }
        Endpoint::parse(&self.region.get().await?.federation_url(), "the federation endpoint")
    }

    async fn exchange(&self) -> Result<Credential, StorageError> {
        let attempted = "refreshing the instance principal's credential";
        let endpoint = self.endpoint().await?;
        let documents = self.documents().await?;
        let session_key = tokio::task::spawn_blocking(KeyPair::generate)
            .await
            .map_err(|error| {
                StorageError::new(StorageErrorKind::Identity, attempted, error.to_string())
            })?
            .map_err(|error| {
                StorageError::new(StorageErrorKind::Identity, attempted, error.to_string())
            })?;
        let token = self.federation.exchange(&endpoint, &documents, &session_key).await?;
        let lifetime = Lifetime::of_jwt(&token.jwt, self.clock.now(), token.server_time)
            .map_err(|why| StorageError::new(StorageErrorKind::Protocol, attempted, why))?;
        Ok(Credential::of_token(&token.jwt, session_key, lifetime))
    }
}

impl CredentialSource for InstancePrincipal {
    fn fetch(&self) -> BoxFuture<'_, Result<Credential, StorageError>> {
        async {
            match self.exchange().await {
                // The certificate may have been rotated during the request.
                Err(error) if error.kind() == StorageErrorKind::Unauthenticated => {
                    self.exchange().await
                }
                other => other,
            }
        }
        .boxed()
    }
}

#[cfg(test)]
#[path = "instance_principal_tests.rs"]
mod tests;
