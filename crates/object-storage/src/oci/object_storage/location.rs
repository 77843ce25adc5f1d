//! Where Object Storage is: at a URL that an administrator wrote, or at a host of a region.

use std::sync::Arc;

use crate::oci::endpoint::Endpoint;
use crate::oci::environment::Environment;
use crate::oci::error::{StorageError, StorageErrorKind};
use crate::oci::identity::instance_principal::InstanceRegion;
use crate::oci::region::Region;

/// The location of Object Storage.
#[derive(Clone)]
pub(in crate::oci) enum ServiceLocation {
    /// At a URL that an administrator wrote, in a region that may be configured beside it.
    Url { endpoint: Endpoint, region: Option<ServiceRegion> },
    /// In a region.
    Region { region: ServiceRegion, host: RegionalHost },
}

/// A region, which may not be known yet.
#[derive(Clone)]
pub(in crate::oci) enum ServiceRegion {
    /// Known from the settings.
    Known(Region),
    /// The instance's own, known after a request to the metadata service.
    Instance(Arc<InstanceRegion>),
}

/// The host of a region that requests are sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::oci) enum RegionalHost {
    /// The one that all clients use.
    Public,
    /// One for each Object Storage namespace.
    Dedicated,
    /// The one with addresses of IPv6, too.
    DualStack,
}

/// What is configured as the endpoint.
pub(super) enum EndpointChoice {
    Url(Endpoint),
    Host(RegionalHost),
}

impl EndpointChoice {
    /// Reads a URL, or the word for a host of the region; without a text it is the public one.
    pub(super) fn parse(text: Option<&str>) -> Result<Self, StorageError> {
        Ok(match text {
            None => Self::Host(RegionalHost::Public),
            Some("dedicated") => Self::Host(RegionalHost::Dedicated),
            Some("dual-stack") => Self::Host(RegionalHost::DualStack),
            Some(url) => Self::Url(Endpoint::parse_bare(url, "the Object Storage endpoint")?),
        })
    }

    pub(super) fn is_url(&self) -> bool {
        matches!(self, Self::Url(_))
    }

    /// The location, of which only a URL needs no region.
    pub(super) fn at(
        &self,
        region: Option<ServiceRegion>,
    ) -> Result<ServiceLocation, StorageError> {
        let place = match (self, region) {
            (Self::Url(url), region) => {
                return Ok(ServiceLocation::Url { endpoint: url.clone(), region });
            }
            (Self::Host(host), Some(region)) => ServiceLocation::Region { region, host: *host },
            (Self::Host(_), None) => {
                return Err(StorageError::config(
                    "finding Object Storage",
                    "neither a region nor an endpoint is configured",
                )
                .with_remedy("set --region, OCI_CLI_REGION or region= in the profile"));
            }
        };
        // Whether the region has this host; its namespace does not matter.
        if let ServiceLocation::Region { region: ServiceRegion::Known(region), host } = &place {
            host.endpoint(region, Some("n"))?;
        }
        Ok(place)
    }
}

impl ServiceRegion {
    async fn get(&self) -> Result<&Region, StorageError> {
        match self {
            Self::Known(region) => Ok(region),
            Self::Instance(region) => region.get().await,
        }
    }
}

impl RegionalHost {
    /// The endpoint of requests for a namespace; those for none go to the public host, which
    /// answers what the tenancy's own namespace is.
    fn endpoint(self, region: &Region, namespace: Option<&str>) -> Result<Endpoint, StorageError> {
        let url = match (self, namespace) {
            (Self::Public, _) | (Self::Dedicated, None) => region.object_storage_url(),
            (Self::DualStack, _) => region.dual_stack_url(),
            (Self::Dedicated, Some(namespace)) => dedicated_url(region, namespace)?,
        };
        Endpoint::parse_bare(&url, "the endpoint of the region")
    }
}

fn dedicated_url(region: &Region, namespace: &str) -> Result<String, StorageError> {
    let attempted = format!("finding the dedicated endpoint of namespace {namespace:?}");
    // It becomes a label of a host name.
    let is_label = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if namespace.is_empty() || !namespace.bytes().all(is_label) {
        let why = "a namespace has only letters, digits, hyphens and underscores";
        return Err(StorageError::new(StorageErrorKind::Invalid, attempted, why));
    }
    region.dedicated_url(namespace).ok_or_else(|| {
        StorageError::config(attempted, format!("{region} is in a realm without such endpoints"))
            .with_remedy("leave the endpoint empty, or write its URL")
    })
}

impl ServiceLocation {
    /// The endpoint of requests for this namespace, or for none.
    pub(in crate::oci) async fn endpoint(
        &self,
        namespace: Option<&str>,
    ) -> Result<Endpoint, StorageError> {
        match self {
            Self::Url { endpoint, .. } => Ok(endpoint.clone()),
            Self::Region { region, host } => host.endpoint(region.get().await?, namespace),
        }
    }

    /// The location in stable words: all hosts of a region have the same objects.
    pub(super) async fn name(&self) -> Result<String, StorageError> {
        match self {
            Self::Url { endpoint, .. } => Ok(endpoint.origin()),
            Self::Region { region, .. } => Ok(region.get().await?.name().to_owned()),
        }
    }

    /// The name of the region, where it is known: Oracle's host names have it.
    pub(super) async fn region(&self) -> Result<Option<String>, StorageError> {
        match self {
            Self::Url { endpoint, region } => match (named_region(endpoint), region) {
                (Some(name), _) => Ok(Some(name)),
                (None, Some(region)) => Ok(Some(region.get().await?.name().to_owned())),
                (None, None) => Ok(None),
            },
            Self::Region { region, .. } => Ok(Some(region.get().await?.name().to_owned())),
        }
    }

    /// This location, if a URL of a user that begins with `origin` means it: at the
    /// administrator's URL, or at the host of the region that has this origin.
    pub(super) async fn at_host(
        &self,
        origin: &str,
        namespace: &str,
        environment: &Environment,
    ) -> Result<Option<Self>, StorageError> {
        if let Self::Url { endpoint, .. } = self
            && endpoint.origin() == origin
        {
            return Ok(Some(self.clone()));
        }
        let region = match self {
            Self::Region { region, .. } => Some(region.get().await?.clone()),
            Self::Url { .. } => {
                let name = self.region().await?.map(|name| name.parse()).transpose()?;
                name.map(|name| Region::resolve(&name, environment))
            }
        };
        let Some(region) = region else { return Ok(None) };
        let hosts = [RegionalHost::Public, RegionalHost::Dedicated, RegionalHost::DualStack];
        let is_at = |host: &RegionalHost| {
            // Not every realm has every host, nor every text one of its own.
            let endpoint = host.endpoint(&region, Some(namespace));
            endpoint.is_ok_and(|endpoint| endpoint.origin() == origin)
        };
        let Some(host) = hosts.into_iter().find(is_at) else { return Ok(None) };
        Ok(Some(match self {
            Self::Url { .. } => self.clone(),
            Self::Region { region, .. } => Self::Region { region: region.clone(), host },
        }))
    }

    /// The region at the same kind of host as this one, or as `endpoint` says; or that URL.
    pub(super) fn moved(
        &self,
        region: Option<Region>,
        endpoint: Option<&str>,
    ) -> Result<Self, StorageError> {
        let (own, host) = match self {
            Self::Url { .. } => (None, RegionalHost::Public),
            Self::Region { region, host } => (Some(region.clone()), *host),
        };
        let choice = match endpoint {
            Some(text) => EndpointChoice::parse(Some(text))?,
            None => EndpointChoice::Host(host),
        };
        let region = region.map(ServiceRegion::Known);
        // A URL may be of any region.
        choice.at(if choice.is_url() { region } else { region.or(own) })
    }
}

/// The region in a host name such as `objectstorage.us-ashburn-1.oraclecloud.com`, which may have
/// other labels before it.
fn named_region(endpoint: &Endpoint) -> Option<String> {
    let (_, rest) = endpoint.host().split_once("objectstorage.")?;
    let name = rest.split('.').next()?;
    name.contains('-').then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Environment;

    fn region(name: &str) -> Region {
        Region::resolve(&name.parse().unwrap(), &Environment::empty())
    }

    fn place(endpoint: Option<&str>, name: &str) -> Result<ServiceLocation, StorageError> {
        EndpointChoice::parse(endpoint)?.at(Some(ServiceRegion::Known(region(name))))
    }

    async fn origin(place: &ServiceLocation, namespace: Option<&str>) -> String {
        place.endpoint(namespace).await.unwrap().origin()
    }

    #[tokio::test]
    async fn the_dedicated_host_is_that_of_the_namespace_of_each_request() {
        let place = place(Some("dedicated"), "iad").unwrap();
        let of = async |namespace| origin(&place, namespace).await;
        let host = "objectstorage.us-ashburn-1.oci.customer-oci.com";
        assert_eq!(of(Some("axtenancy")).await, format!("https://axtenancy.{host}"));
        assert_eq!(of(Some("Other_1")).await, format!("https://other_1.{host}"));
        // The namespace of the tenancy is asked for where it need not be known.
        assert_eq!(of(None).await, "https://objectstorage.us-ashburn-1.oraclecloud.com");
        assert_eq!(place.name().await.unwrap(), "us-ashburn-1", "the cache stays as it is");
    }

    #[tokio::test]
    async fn the_region_of_a_url_is_in_its_name_or_configured_beside_it_or_unknown() {
        let of = async |url: &str, name: Option<&str>| {
            let known = name.map(|name| ServiceRegion::Known(region(name)));
            let place = EndpointChoice::parse(Some(url)).unwrap().at(known).unwrap();
            place.region().await.unwrap()
        };
        let private = "https://x.private.objectstorage.us-phoenix-1.oci.customer-oci.com";
        assert_eq!(of(private, Some("iad")).await.as_deref(), Some("us-phoenix-1"));
        assert_eq!(of("http://127.0.0.1:1", Some("iad")).await.as_deref(), Some("us-ashburn-1"));
        assert_eq!(of("http://127.0.0.1:1", None).await, None);
        let own = place(None, "iad").unwrap();
        assert_eq!(own.region().await.unwrap().as_deref(), Some("us-ashburn-1"));
        let moved = own.moved(None, Some("http://127.0.0.1:1")).unwrap();
        assert_eq!(moved.region().await.unwrap(), None, "an endpoint of any region");
    }

    #[tokio::test]
    async fn a_url_of_a_user_means_a_host_of_the_region_or_the_administrators() {
        let of = async |place: &ServiceLocation, origin: &str| {
            place.at_host(origin, "n", &Environment::empty()).await.unwrap()
        };
        let public = place(None, "iad").unwrap();
        for host in [
            "https://objectstorage.us-ashburn-1.oraclecloud.com",
            "https://n.objectstorage.us-ashburn-1.oci.customer-oci.com",
            "https://objectstorage.us-ashburn-1.ds.oci.oraclecloud.com",
        ] {
            let found = of(&public, host).await.unwrap();
            assert_eq!(origin(&found, Some("n")).await, host);
            assert_eq!(found.name().await.unwrap(), "us-ashburn-1");
        }
        let url = place(Some("http://10.0.0.1:80"), "iad").unwrap();
        for host in ["http://10.0.0.1", "https://objectstorage.us-ashburn-1.oraclecloud.com"] {
            let found = of(&url, host).await.unwrap();
            assert_eq!(origin(&found, Some("n")).await, "http://10.0.0.1", "{host}");
        }
        for host in [
            "http://objectstorage.us-ashburn-1.oraclecloud.com",
            "https://objectstorage.us-phoenix-1.oraclecloud.com",
            "https://m.objectstorage.us-ashburn-1.oci.customer-oci.com",
            "https://objectstorage.us-ashburn-1.oraclecloud.com:8443",
            "http://169.254.169.254",
        ] {
            for place in [&public, &url] {
                assert!(of(place, host).await.is_none(), "{host}");
            }
        }
    }

    #[tokio::test]
    async fn a_namespace_cannot_lead_to_another_host() {
        let place = place(Some("dedicated"), "iad").unwrap();
        for namespace in ["", "a.b", "evil.example.com/", "a@b", "a:1", "a/", "ä"] {
            let error = place.endpoint(Some(namespace)).await.unwrap_err();
            assert_eq!(error.kind(), StorageErrorKind::Invalid, "{namespace}");
        }
    }

    #[test]
    fn a_realm_without_dedicated_endpoints_is_an_error_at_the_start() {
        let Err(error) = place(Some("dedicated"), "eu-frankfurt-2") else { panic!("accepted") };
        assert_eq!(error.kind(), StorageErrorKind::Config);
        let text = error.to_string();
        assert!(text.contains("eu-frankfurt-2 is in a realm without such endpoints"), "{text}");
    }

    #[tokio::test]
    async fn a_dual_stack_host_is_that_of_any_realm() {
        for (name, host) in [
            ("iad", "objectstorage.us-ashburn-1.ds.oci.oraclecloud.com"),
            ("eu-frankfurt-2", "objectstorage.eu-frankfurt-2.ds.oci.oraclecloud.eu"),
        ] {
            let place = place(Some("dual-stack"), name).unwrap();
            assert_eq!(origin(&place, Some("n")).await, format!("https://{host}"));
        }
    }

    #[tokio::test]
    async fn another_region_has_the_same_kind_of_host_unless_its_own_is_named() {
        let own = place(Some("dedicated"), "iad").unwrap();
        let of = async |place: ServiceLocation| origin(&place, Some("n")).await;
        let moved = own.moved(Some(region("phx")), None).unwrap();
        assert_eq!(of(moved).await, "https://n.objectstorage.us-phoenix-1.oci.customer-oci.com");
        let moved = own.moved(Some(region("phx")), Some("dual-stack")).unwrap();
        assert_eq!(of(moved).await, "https://objectstorage.us-phoenix-1.ds.oci.oraclecloud.com");
        let moved = own.moved(None, Some("https://private.example.com")).unwrap();
        assert_eq!(of(moved.clone()).await, "https://private.example.com");
        assert!(moved.moved(None, Some("dedicated")).is_err(), "a URL has no region");
        let moved = moved.moved(Some(region("phx")), None).unwrap();
        assert_eq!(of(moved).await, "https://objectstorage.us-phoenix-1.oraclecloud.com");
    }
}
