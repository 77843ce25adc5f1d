//! The routes of requests; no test here sends a request to Object Storage.

use std::fmt::Debug;
use std::str::FromStr;

use super::*;
use crate::error::ErrorKind;
use crate::model::{BucketName, Prefix};
use crate::oci::{Environment, Settings, StorageConnector};

const ASHBURN: &str = "us-ashburn-1";

fn parsed<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// Unsigned, in Ashburn, with the namespace `mytenancy`.
fn settings() -> Settings {
    Settings {
        region: Some(parsed(ASHBURN)),
        namespace: Some("mytenancy".to_owned()),
        environment: Environment::empty(),
        ..Settings::new(AuthMethod::None)
    }
}

fn listed(name: &str, namespace: Option<&str>) -> ListedBucket {
    let (namespace, name) = (namespace.map(str::to_owned), name.to_owned());
    ListedBucket { name, namespace, region: None, endpoint: None, auth: None }
}

async fn pool(listed: &[ListedBucket]) -> ClientPool {
    let connector = StorageConnector::connect(settings()).await.unwrap();
    ClientPool::new(Arc::new(connector), listed.to_vec())
}

fn request(bucket: &str, namespace: Option<&str>) -> ModelRequest {
    let namespace = namespace.map(|name| NamespaceName::parse(name).unwrap());
    ModelRequest::of(namespace, BucketName::parse(bucket).unwrap(), Prefix::parse("p/").unwrap())
}

fn request_with(region: Option<&str>, auth: Option<&str>) -> ModelRequest {
    let mut request = request("models", None);
    (request.region, request.auth) = (region.map(parsed), auth.map(parsed));
    request
}

#[tokio::test]
async fn a_listed_bucket_is_found_by_its_name_and_namespace() {
    let of_others =
        ListedBucket { region: Some(parsed("phx")), ..listed("models", Some("othertenancy")) };
    let own = ListedBucket { region: Some(parsed("fra")), ..listed("models", None) };
    let named = ListedBucket { region: Some(parsed("lhr")), ..listed("named", Some("mytenancy")) };
    let pool = pool(&[of_others, own, named]).await;
    for (bucket, namespace, region) in [
        ("models", Some("othertenancy"), "us-phoenix-1"),
        ("models", None, "eu-frankfurt-1"),
        ("models", Some("mytenancy"), "eu-frankfurt-1"),
        ("models", Some("thirdtenancy"), ASHBURN),
        ("named", None, "uk-london-1"),
        ("named", Some("mytenancy"), "uk-london-1"),
        ("model", None, ASHBURN),
    ] {
        let route = pool.route(&request(bucket, namespace), "", Requester::Driver).await.unwrap();
        assert_eq!(route.location(), region, "{bucket} of {namespace:?}");
        assert_eq!(route.scope(), "", "the usual identity needs no scope");
    }
}

#[tokio::test]
async fn an_endpoint_replaces_its_region() {
    let endpoint = "http://127.0.0.1:1";
    let entry = ListedBucket {
        region: Some(parsed("phx")),
        endpoint: Some(endpoint.to_owned()),
        ..listed("models", None)
    };
    let pool = pool(&[entry]).await;
    for region in [None, Some("phx"), Some("us-phoenix-1")] {
        let route = pool.route(&request_with(region, None), "", Requester::Driver).await.unwrap();
        assert_eq!(route.location(), endpoint, "{region:?}");
    }
    let route = pool.route(&request_with(Some("fra"), None), "", Requester::Driver).await.unwrap();
    assert_eq!(route.location(), "eu-frankfurt-1");
}

#[tokio::test]
async fn a_configured_region_has_its_own_client_and_the_drivers_region_does_not() {
    let pool = pool(&[]).await;
    let here = pool.route(&request_with(None, None), "", Requester::Driver).await.unwrap();
    for same in [ASHBURN, "iad", "IAD"] {
        let route =
            pool.route(&request_with(Some(same), None), "", Requester::Driver).await.unwrap();
        assert!(route.client().is(&**here.client()), "{same}");
    }
    let there = pool.route(&request_with(Some("phx"), None), "", Requester::Driver).await.unwrap();
    assert_eq!(there.location(), "us-phoenix-1");
    let again = pool.route(&request_with(Some("phx"), None), "", Requester::Driver).await.unwrap();
    assert!(again.client().is(&**there.client()), "one client per location");
    assert_ne!(here.digest(&request_with(None, None)), there.digest(&request_with(None, None)));
}

#[tokio::test]
async fn copies_of_another_identity_have_their_own_scope() {
    let pool = pool(&[]).await;
    let usual = pool.route(&request_with(None, Some("none")), "", Requester::Driver).await.unwrap();
    assert_eq!(usual.scope(), "");
    let other = request_with(None, Some("instance_principal"));
    let route = pool.route(&other, "", Requester::Driver).await.unwrap();
    assert_eq!(route.scope(), "auth/instance_principal");
    assert_eq!(route.location(), ASHBURN);
    let route = pool.route(&other, "namespace/team-a", Requester::Driver).await.unwrap();
    assert_eq!(route.scope(), "namespace/team-a auth/instance_principal");
    assert_eq!(Route::auth_of_scope(route.scope()).unwrap(), Some(AuthMethod::InstancePrincipal));
    assert_eq!(Route::auth_of_scope("namespace/auth").unwrap(), None);
}

#[tokio::test]
async fn an_unavailable_identity_fails_only_its_own_requests() {
    let broken = ListedBucket { auth: Some(AuthMethod::SecurityToken), ..listed("broken", None) };
    let pool = pool(&[broken]).await;
    for _ in 0..2 {
        let error = pool.route(&request("broken", None), "", Requester::Driver).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition);
        assert!(error.message().contains("reading as security_token"), "{error}");
    }
    pool.route(&request("models", None), "", Requester::Driver).await.unwrap();
}
