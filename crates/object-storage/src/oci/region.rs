//! Regions, realms, and the hosts that follow from them.
//!
//! The tables are those of the official Python SDK 2.189.0. New regions appear
//! several times a year, so an unknown one is not an error: it is assumed to be
//! in realm oc1, with a warning.

use std::fmt;

use super::environment::Environment;
use crate::source::RegionName;

/// Realm key to the domain of its services.
const REALMS: &[(&str, &str)] = &[
    ("oc1", "oraclecloud.com"),
    ("oc2", "oraclegovcloud.com"),
    ("oc3", "oraclegovcloud.com"),
    ("oc4", "oraclegovcloud.uk"),
    ("oc8", "oraclecloud8.com"),
    ("oc9", "oraclecloud9.com"),
    ("oc10", "oraclecloud10.com"),
    ("oc14", "oraclecloud14.com"),
    ("oc15", "oraclecloud15.com"),
    ("oc19", "oraclecloud.eu"),
    ("oc20", "oraclecloud20.com"),
    ("oc21", "oraclecloud21.com"),
    ("oc23", "oraclecloud23.com"),
    ("oc24", "oraclecloud24.com"),
    ("oc26", "oraclecloud26.com"),
    ("oc29", "oraclecloud29.com"),
    ("oc35", "oraclecloud35.com"),
    ("oc42", "oraclecloud42.com"),
    ("oc51", "oraclecloud51.com"),
    ("oc52", "oraclecloud52.com"),
];

/// Short code, region, realm key.
#[rustfmt::skip]
const REGIONS: &[(&str, &str, &str)] = &[
    ("aga", "us-saltlake-2", "oc1"), ("ams", "eu-amsterdam-1", "oc1"),
    ("arn", "eu-stockholm-1", "oc1"), ("auh", "me-abudhabi-1", "oc1"),
    ("bog", "sa-bogota-1", "oc1"), ("bom", "ap-mumbai-1", "oc1"), ("cdg", "eu-paris-1", "oc1"),
    ("cwl", "uk-cardiff-1", "oc1"), ("dxb", "me-dubai-1", "oc1"),
    ("fra", "eu-frankfurt-1", "oc1"), ("gru", "sa-saopaulo-1", "oc1"),
    ("hsg", "ap-batam-1", "oc1"), ("hyd", "ap-hyderabad-1", "oc1"),
    ("iad", "us-ashburn-1", "oc1"), ("icn", "ap-seoul-1", "oc1"), ("jbp", "ap-kulai-2", "oc1"),
    ("jed", "me-jeddah-1", "oc1"), ("jnb", "af-johannesburg-1", "oc1"),
    ("kix", "ap-osaka-1", "oc1"), ("lej", "af-casablanca-1", "oc1"),
    ("lhr", "uk-london-1", "oc1"), ("lin", "eu-milan-1", "oc1"), ("mad", "eu-madrid-1", "oc1"),
    ("mel", "ap-melbourne-1", "oc1"), ("mrs", "eu-marseille-1", "oc1"),
    ("mty", "mx-monterrey-1", "oc1"), ("mtz", "il-jerusalem-1", "oc1"),
    ("nrq", "eu-turin-1", "oc1"), ("nrt", "ap-tokyo-1", "oc1"), ("onm", "ap-delhi-1", "oc1"),
    ("ord", "us-chicago-1", "oc1"), ("orf", "eu-madrid-3", "oc1"), ("phx", "us-phoenix-1", "oc1"),
    ("qro", "mx-queretaro-1", "oc1"), ("ruh", "me-riyadh-1", "oc1"),
    ("scl", "sa-santiago-1", "oc1"), ("sin", "ap-singapore-1", "oc1"),
    ("sjc", "us-sanjose-1", "oc1"), ("syd", "ap-sydney-1", "oc1"),
    ("vap", "sa-valparaiso-1", "oc1"), ("vcp", "sa-vinhedo-1", "oc1"),
    ("xsp", "ap-singapore-2", "oc1"), ("yny", "ap-chuncheon-1", "oc1"),
    ("yul", "ca-montreal-1", "oc1"), ("yyz", "ca-toronto-1", "oc1"),
    ("zrh", "eu-zurich-1", "oc1"), ("lfi", "us-langley-1", "oc2"), ("luf", "us-luke-1", "oc2"),
    ("pia", "us-gov-chicago-1", "oc3"), ("ric", "us-gov-ashburn-1", "oc3"),
    ("tus", "us-gov-phoenix-1", "oc3"), ("brs", "uk-gov-cardiff-1", "oc4"),
    ("ltn", "uk-gov-london-1", "oc4"), ("nja", "ap-chiyoda-1", "oc8"),
    ("ukb", "ap-ibaraki-1", "oc8"), ("ibr", "me-ibri-1", "oc9"),
    ("mct", "me-dcc-muscat-1", "oc9"), ("wga", "ap-dcc-canberra-1", "oc10"),
    ("bgy", "eu-dcc-milan-1", "oc14"), ("dtm", "eu-dcc-rating-2", "oc14"),
    ("dus", "eu-dcc-rating-1", "oc14"), ("mxp", "eu-dcc-milan-2", "oc14"),
    ("ork", "eu-dcc-dublin-1", "oc14"), ("snn", "eu-dcc-dublin-2", "oc14"),
    ("dac", "ap-dcc-gazipur-1", "oc15"), ("str", "eu-frankfurt-2", "oc19"),
    ("vll", "eu-madrid-2", "oc19"), ("beg", "eu-jovanovac-1", "oc20"),
    ("doh", "me-dcc-doha-1", "oc21"), ("vve", "me-alrayyan-1", "oc21"),
    ("ebb", "us-somerset-1", "oc23"), ("ebl", "us-thames-1", "oc23"),
    ("avf", "eu-crissier-1", "oc24"), ("avz", "eu-dcc-zurich-1", "oc24"),
    ("ahu", "me-abudhabi-3", "oc26"), ("rba", "me-alain-1", "oc26"),
    ("rkt", "me-abudhabi-2", "oc29"), ("shj", "me-abudhabi-4", "oc29"),
    ("bno", "ap-chuncheon-2", "oc35"), ("dln", "ap-suwon-1", "oc35"),
    ("dtz", "ap-seoul-2", "oc35"), ("pgc", "us-newark-1", "oc42"),
    ("yxj", "us-ashburn-2", "oc42"), ("jsk", "eu-budapest-1", "oc51"),
    ("hnw", "sa-riodejaneiro-1", "oc52"),
];

/// The domain of the first realm, which is assumed for unknown regions.
const FIRST_REALM: &str = "oraclecloud.com";

/// A region with the domain of its realm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    name: String,
    /// What follows `objectstorage.` and `auth.` in a host.
    suffix: String,
}

impl Region {
    /// Resolves a region's name or short code.
    ///
    /// A region that is not in the table is looked up in `OCI_REGION_METADATA` (one
    /// JSON object); then a value with a `.` is used as the whole domain after
    /// the service's label; then `OCI_DEFAULT_REALM` gives the domain; then oc1.
    /// The order is that of the official SDKs.
    pub fn resolve(wanted: &RegionName, environment: &Environment) -> Self {
        let wanted = wanted.as_str();
        if let Some(known) = Self::known(wanted) {
            return known;
        }
        if let Some(metadata) = environment.get("OCI_REGION_METADATA")
            && let Some(region) = Self::from_metadata(metadata)
            && (region.name == wanted || has_key(metadata, wanted))
        {
            return region;
        }
        if wanted.contains('.') {
            return Self { suffix: wanted.to_owned(), name: wanted.to_owned() };
        }
        let domain = environment.get("OCI_DEFAULT_REALM").unwrap_or_else(|| {
            tracing::warn!(region = wanted, "unknown region, assumed to be in realm oc1");
            FIRST_REALM
        });
        Self::of(wanted, domain)
    }

    /// The region of a `regionInfo` document, as the metadata service and
    /// `OCI_REGION_METADATA` have it.
    pub fn from_metadata(json: &str) -> Option<Self> {
        let info: RegionInfo = serde_json::from_str(json).ok()?;
        let plain = |text: &str, more: &[u8]| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
        };
        let (name, domain) = (info.region_identifier, info.realm_domain_component);
        (plain(&name, b"-") && plain(&domain, b"-."))
            .then(|| Self::of(&name.to_ascii_lowercase(), &domain.to_ascii_lowercase()))
    }

    /// Looks a region up in the built-in table alone.
    pub fn known(text: &str) -> Option<Self> {
        let (_, name, realm) =
            REGIONS.iter().find(|(code, name, _)| *code == text || *name == text)?;
        let (_, domain) = REALMS.iter().find(|(key, _)| key == realm)?;
        Some(Self::of(name, domain))
    }

    fn of(name: &str, domain: &str) -> Self {
        Self { name: name.to_owned(), suffix: format!("{name}.{domain}") }
    }

    /// The region's identifier, such as `us-ashburn-1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URL of Object Storage.
    pub fn object_storage_url(&self) -> String {
        format!("https://objectstorage.{}", self.suffix)
    }

    /// The URL of Object Storage under a name that has addresses of IPv6, too.
    pub fn dual_stack_url(&self) -> String {
        let (region, domain) = self.suffix.split_once('.').unwrap_or((&self.suffix, FIRST_REALM));
        format!("https://objectstorage.{region}.ds.oci.{domain}")
    }

    /// The URL of Object Storage for one namespace; only the first realm has it.
    pub fn dedicated_url(&self, namespace: &str) -> Option<String> {
        let (region, domain) = self.suffix.split_once('.')?;
        (domain == FIRST_REALM)
            .then(|| format!("https://{namespace}.objectstorage.{region}.oci.customer-oci.com"))
    }

    /// The URL that exchanges an instance's certificate for a token.
    pub fn federation_url(&self) -> String {
        format!("https://auth.{}/v1/x509", self.suffix)
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegionInfo {
    realm_domain_component: String,
    region_identifier: String,
    region_key: Option<String>,
}

fn has_key(json: &str, key: &str) -> bool {
    let info: Option<RegionInfo> = serde_json::from_str(json).ok();
    info.and_then(|info| info.region_key).is_some_and(|own| own.eq_ignore_ascii_case(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str, environment: &[(&str, &str)]) -> String {
        let environment = environment.iter().copied().collect();
        Region::resolve(&text.parse().unwrap(), &environment).object_storage_url()
    }

    #[test]
    fn names_and_short_codes_of_any_case_give_the_host_of_their_realm() {
        for (text, expected) in [
            ("us-ashburn-1", "https://objectstorage.us-ashburn-1.oraclecloud.com"),
            ("IAD", "https://objectstorage.us-ashburn-1.oraclecloud.com"),
            ("ltn\n", "https://objectstorage.uk-gov-london-1.oraclegovcloud.uk"),
            ("eu-frankfurt-2", "https://objectstorage.eu-frankfurt-2.oraclecloud.eu"),
        ] {
            assert_eq!(url(text, &[]), expected);
        }
        assert_eq!(
            Region::resolve(&"phx".parse().unwrap(), &Environment::empty()).federation_url(),
            "https://auth.us-phoenix-1.oraclecloud.com/v1/x509"
        );
    }

    #[test]
    fn every_region_of_the_table_has_a_realm() {
        for (code, name, _) in REGIONS {
            assert_eq!(Region::known(code), Region::known(name));
            assert!(Region::known(code).is_some(), "{code}");
        }
    }

    #[test]
    fn an_unknown_region_is_of_the_first_realm_unless_the_environment_says_otherwise() {
        assert_eq!(url("xx-new-1", &[]), "https://objectstorage.xx-new-1.oraclecloud.com");
        assert_eq!(
            url("xx-new-1", &[("OCI_DEFAULT_REALM", "oraclecloud99.com")]),
            "https://objectstorage.xx-new-1.oraclecloud99.com"
        );
        let metadata = r#"{"realmKey":"OC99","realmDomainComponent":"example.cloud",
            "regionKey":"NEW","regionIdentifier":"xx-new-1"}"#;
        for text in ["xx-new-1", "new"] {
            assert_eq!(
                url(text, &[("OCI_REGION_METADATA", metadata)]),
                "https://objectstorage.xx-new-1.example.cloud"
            );
        }
    }

    #[test]
    fn a_value_with_a_dot_is_the_whole_domain_after_the_service() {
        assert_eq!(url("eu-x-1.example.org", &[]), "https://objectstorage.eu-x-1.example.org");
    }

    #[test]
    fn metadata_cannot_smuggle_another_host() {
        let smuggled = r#"{"realmDomainComponent":"x.com/@evil","regionIdentifier":"a-b-1"}"#;
        assert_eq!(Region::from_metadata(smuggled), None);
    }
}
