//! From settings to a client: identity and location.

use std::sync::Arc;

use super::location::{EndpointChoice, ServiceRegion};
use super::{ObjectStorage, ObjectStorageInner};
use crate::oci::clock::Clock;
use crate::oci::environment::Environment;
use crate::oci::error::StorageError;
use crate::oci::identity::Identity;
use crate::oci::identity::api_key::ApiKey;
use crate::oci::identity::imds::Imds;
use crate::oci::identity::instance_principal::{InstancePrincipal, InstanceRegion};
use crate::oci::identity::pod_key::PodKeys;
use crate::oci::identity::profile::ProfileSource;
use crate::oci::identity::resource_principal::{ResourcePrincipal, TOKEN, VERSION};
use crate::oci::identity::session::Session;
use crate::oci::identity::workload::Workloads;
use crate::oci::region::Region;
use crate::oci::settings::Settings;
use crate::source::{AuthMethod, RegionName};

/// The variable that is set in every pod.
const CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

impl ObjectStorage {
    /// Checks everything that can be checked without the network.
    ///
    /// An API key is loaded here; the instance principal contacts its services with
    /// the first request, so that a node plugin starts even while they are unreachable.
    pub async fn connect(settings: Settings) -> Result<Self, StorageError> {
        // Reads the system's certificates, the CA file and the config file.
        let inner = tokio::task::spawn_blocking(move || prepare(settings, Clock::system()))
            .await
            .map_err(|error| StorageError::config("preparing the client", error.to_string()))??;
        if let Some(identity) = inner.identity.as_ref().filter(|_| inner.load_at_once) {
            identity.credentials().await.map_err(|error| inner.of_chosen(error))?;
        }
        Ok(Self(Arc::new(inner)))
    }
}

impl ObjectStorage {
    /// The same identity at another location: at `endpoint` if that is a URL, else in `region`, or
    /// at another host of it, else unchanged.
    ///
    /// # Errors
    /// `Config` when the endpoint is invalid, or the region does not have it.
    pub fn at(
        &self,
        region: Option<&RegionName>,
        endpoint: Option<&str>,
    ) -> Result<Self, StorageError> {
        if endpoint.is_none() && region.is_none() {
            return Ok(self.clone());
        }
        let region = region.map(|region| Region::resolve(region, &self.0.environment));
        let place = self.0.place.moved(region, endpoint)?;
        Ok(Self(Arc::new(ObjectStorageInner { place, ..ObjectStorageInner::clone(&self.0) })))
    }

    /// The same identity at the location of `other`.
    #[must_use]
    pub fn beside(&self, other: &Self) -> Self {
        let place = other.0.place.clone();
        Self(Arc::new(ObjectStorageInner { place, ..ObjectStorageInner::clone(&self.0) }))
    }

    /// Whether `region` is this client's.
    pub async fn is_in(&self, region: &RegionName) -> Result<bool, StorageError> {
        let named = Region::resolve(region, &self.0.environment);
        Ok(self.location().await? == named.name())
    }
}

fn prepare(settings: Settings, clock: Clock) -> Result<ObjectStorageInner, StorageError> {
    let transport = settings.transport()?;
    let endpoint = match &settings.par {
        Some(par) => Some(par.origin()),
        None => settings.or_variable(settings.endpoint.as_ref(), "OCI_CLI_ENDPOINT"),
    };
    let endpoint = EndpointChoice::parse(endpoint.as_deref())?;
    let region = settings.region_or_variable()?;
    let profile = ProfileSource::new(&settings);
    let (method, chosen) = match &settings.par {
        Some(_) => (AuthMethod::None, None),
        None => resolve_auto(&settings, &profile)?,
    };
    let environment = &settings.environment;
    let fixed = |region: Option<RegionName>| {
        let region = region.map(|region| Region::resolve(&region, environment));
        endpoint.at(region.map(ServiceRegion::Known))
    };
    let mut workloads = None;
    let par = settings.par.clone().map(Arc::new);
    let (place, identity) = match method {
        _ if par.is_some() => (fixed(region)?, None),
        AuthMethod::ApiKey | AuthMethod::SecurityToken => {
            let region = match region {
                Some(region) => Some(region),
                None => profile.region(&profile.read()?)?,
            };
            let identity = match method {
                AuthMethod::ApiKey => Identity::new(ApiKey(profile), clock.clone()),
                _ => Identity::new(Session { profile, clock: clock.clone() }, clock.clone()),
            };
            (fixed(region)?, Some(identity))
        }
        AuthMethod::ResourcePrincipal => {
            let region = resource_region(region, environment)?;
            let source =
                ResourcePrincipal { environment: environment.clone(), clock: clock.clone() };
            (fixed(region)?, Some(Identity::new(source, clock.clone())))
        }
        AuthMethod::InstancePrincipal => {
            let imds = Arc::new(Imds::new(&settings)?);
            let instance = Arc::new(InstanceRegion::new(
                region.clone(),
                environment.clone(),
                Arc::clone(&imds),
            ));
            let place = if endpoint.is_url() || region.is_some() {
                fixed(region)?
            } else {
                endpoint.at(Some(ServiceRegion::Instance(Arc::clone(&instance))))?
            };
            let source = InstancePrincipal::new(
                &settings,
                transport.clone(),
                imds,
                instance,
                clock.clone(),
            )?;
            (place, Some(Identity::new(source, clock.clone())))
        }
        AuthMethod::None => (fixed(region)?, None),
        AuthMethod::OkeWorkloadIdentity => {
            let region = resource_region(region, environment)?;
            let place = if endpoint.is_url() || region.is_some() {
                fixed(region)?
            } else {
                let imds = Arc::new(Imds::new(&settings)?);
                let region = InstanceRegion::new(None, environment.clone(), imds);
                endpoint.at(Some(ServiceRegion::Instance(Arc::new(region))))?
            };
            workloads = Some(Workloads::new(&settings, clock.clone())?);
            (place, None)
        }
        // `resolve_auto` never returns it.
        AuthMethod::Auto => {
            return Err(StorageError::config("choosing an identity", "none was chosen"));
        }
    };
    let par_namespace = par.as_ref().map(|par| par.bucket().namespace.clone());
    Ok(ObjectStorageInner {
        method,
        chosen,
        environment: settings.environment,
        transport,
        place,
        identity,
        workloads,
        pod_keys: PodKeys::new(),
        par,
        principal: None,
        own_account: None,
        load_at_once: matches!(
            method,
            AuthMethod::ApiKey | AuthMethod::SecurityToken | AuthMethod::ResourcePrincipal
        ),
        configured_namespace: par_namespace
            .or(settings.namespace)
            .filter(|namespace| !namespace.trim().is_empty()),
        namespace: Arc::default(),
        retry: settings.retry,
        clock,
        observer: settings.observer,
    })
}

impl ObjectStorageInner {
    /// The error of a credential. Where the identity was not configured, it says which one was
    /// chosen and why, since its user did not name it.
    pub(super) fn of_chosen(&self, error: StorageError) -> StorageError {
        let Some(why) = &self.chosen else { return error };
        let chosen = format!("{} was chosen because {why}", self.method);
        let remedy = match error.remedy() {
            Some(remedy) => format!("{remedy}; {chosen}"),
            None => chosen,
        };
        error.with_remedy(remedy)
    }
}

/// The method, and why it was chosen unless it is configured.
fn resolve_auto(
    settings: &Settings,
    profile: &ProfileSource,
) -> Result<(AuthMethod, Option<String>), StorageError> {
    if settings.auth != AuthMethod::Auto {
        return Ok((settings.auth, None));
    }
    match settings.environment.get("OCI_CLI_AUTH").map(str::parse).transpose()? {
        None | Some(AuthMethod::Auto) => {}
        Some(method) => {
            let why = "OCI_CLI_AUTH says so".to_owned();
            tracing::info!(%method, %why, "chose an identity");
            return Ok((method, Some(why)));
        }
    }
    let file = profile.path();
    let file = file.display();
    let environment = &settings.environment;
    let has = |variable| environment.get(variable).is_some();
    let (method, why) = if profile.is_session() {
        let why = format!("the profile {} of {file} is a session's", profile.name());
        (AuthMethod::SecurityToken, why)
    } else if profile.is_there() {
        (AuthMethod::ApiKey, format!("{file} or OCI_CLI_USER is there"))
    } else if has(VERSION) && !has(TOKEN) && has(CLUSTER) {
        // What Oracle's SDKs need in a pod that reads as its service account.
        let why = format!("{file} is not there; {VERSION} is set without {TOKEN}, in a cluster");
        (AuthMethod::OkeWorkloadIdentity, why)
    } else if has(VERSION) {
        (AuthMethod::ResourcePrincipal, format!("{file} is not there, and {VERSION} is set"))
    } else if has(CLUSTER) {
        let why = format!(
            "neither {file} nor OCI_CLI_USER nor {VERSION} is there; set the last to 2.2 for the \
             service account of this pod"
        );
        (AuthMethod::InstancePrincipal, why)
    } else {
        let why = format!("neither {file} nor OCI_CLI_USER nor {VERSION} is there");
        (AuthMethod::InstancePrincipal, why)
    };
    tracing::info!(%method, %why, "chose an identity");
    Ok((method, Some(why)))
}

/// The region, else that of the resource that this process is part of.
fn resource_region(
    region: Option<RegionName>,
    environment: &Environment,
) -> Result<Option<RegionName>, StorageError> {
    match (region, environment.get("OCI_RESOURCE_PRINCIPAL_REGION")) {
        (None, Some(text)) => Ok(Some(text.parse()?)),
        (region, _) => Ok(region),
    }
}
