//! Which way a request goes; nothing here asks Object Storage.

use super::*;
use crate::error::ErrorKind;
use crate::model::{BucketName, Prefix};
use crate::oci::Environment;

const ASHBURN: &str = "us-ashburn-1";

/// Unsigned, in Ashburn, of the namespace `mytenancy`.
fn settings() -> Settings {
    Settings {
        region: Some(ASHBURN.to_owned()),
        namespace: Some("mytenancy".to_owned()),
        environment: Environment::empty(),
        ..Settings::new(AuthMethod::None)
    }
}

fn listed(name: &str, namespace: Option<&str>) -> ListedBucket {
    let (namespace, name) = (namespace.map(str::to_owned), name.to_owned());
    ListedBucket { name, namespace, region: None, endpoint: None, auth: None }
}

async fn stores(listed: &[ListedBucket]) -> ClientPool {
    ClientPool::connect(settings(), listed.to_vec()).await.unwrap()
}

fn request(bucket: &str, namespace: Option<&str>) -> ModelRequest {
    let namespace = namespace.map(|name| NamespaceName::parse(name).unwrap());
    ModelRequest::of(namespace, BucketName::parse(bucket).unwrap(), Prefix::parse("p/").unwrap())
}

fn chosen(region: Option<&str>, auth: Option<&str>) -> ModelRequest {
    let mut request = request("models", None);
    (request.region, request.auth) = (region.map(str::to_owned), auth.map(str::to_owned));
    request
}

#[tokio::test]
async fn a_bucket_is_the_listed_one_by_its_name_and_namespace() {
    let of_others =
        ListedBucket { region: Some("phx".to_owned()), ..listed("models", Some("othertenancy")) };
    let own = ListedBucket { region: Some("fra".to_owned()), ..listed("models", None) };
    let named =
        ListedBucket { region: Some("lhr".to_owned()), ..listed("named", Some("mytenancy")) };
    let stores = stores(&[of_others, own, named]).await;
    for (bucket, namespace, region) in [
        ("models", Some("othertenancy"), "us-phoenix-1"),
        ("models", None, "eu-frankfurt-1"),
        ("models", Some("mytenancy"), "eu-frankfurt-1"),
        ("models", Some("thirdtenancy"), ASHBURN),
        ("named", None, "uk-london-1"),
        ("named", Some("mytenancy"), "uk-london-1"),
        ("model", None, ASHBURN),
    ] {
        let route = stores.route(&request(bucket, namespace), "", Requester::Driver).await.unwrap();
        assert_eq!(route.location(), region, "{bucket} of {namespace:?}");
        assert_eq!(route.scope(), "", "its usual identity is nobody's exception");
    }
}

#[tokio::test]
async fn an_endpoint_stands_for_its_region() {
    let endpoint = "http://127.0.0.1:1";
    let entry = ListedBucket {
        region: Some("phx".to_owned()),
        endpoint: Some(endpoint.to_owned()),
        ..listed("models", None)
    };
    let stores = stores(&[entry]).await;
    for region in [None, Some("phx"), Some("us-phoenix-1")] {
        let route = stores.route(&chosen(region, None), "", Requester::Driver).await.unwrap();
        assert_eq!(route.location(), endpoint, "{region:?}");
    }
    let route = stores.route(&chosen(Some("fra"), None), "", Requester::Driver).await.unwrap();
    assert_eq!(route.location(), "eu-frankfurt-1");
}

#[tokio::test]
async fn a_region_of_the_administrator_is_asked_and_the_drivers_own_is_no_other() {
    let stores = stores(&[]).await;
    let here = stores.route(&chosen(None, None), "", Requester::Driver).await.unwrap();
    for same in [ASHBURN, "iad", "IAD"] {
        let route = stores.route(&chosen(Some(same), None), "", Requester::Driver).await.unwrap();
        assert!(route.client().is(here.client()), "{same}");
    }
    let there = stores.route(&chosen(Some("phx"), None), "", Requester::Driver).await.unwrap();
    assert_eq!(there.location(), "us-phoenix-1");
    let again = stores.route(&chosen(Some("phx"), None), "", Requester::Driver).await.unwrap();
    assert!(again.client().is(there.client()), "one client for each place");
    assert_ne!(here.digest(&chosen(None, None)), there.digest(&chosen(None, None)));
}

#[tokio::test]
async fn what_another_identity_brought_is_kept_apart() {
    let stores = stores(&[]).await;
    let usual = stores.route(&chosen(None, Some("none")), "", Requester::Driver).await.unwrap();
    assert_eq!(usual.scope(), "");
    let other = chosen(None, Some("instance_principal"));
    let route = stores.route(&other, "", Requester::Driver).await.unwrap();
    assert_eq!(route.scope(), "auth/instance_principal");
    assert_eq!(route.location(), ASHBURN);
    let route = stores.route(&other, "namespace/team-a", Requester::Driver).await.unwrap();
    assert_eq!(route.scope(), "namespace/team-a auth/instance_principal");
    assert_eq!(Route::auth_of_scope(route.scope()), Some("instance_principal"));
    assert_eq!(Route::auth_of_scope("namespace/auth"), None);
}

#[tokio::test]
async fn an_identity_that_cannot_be_had_is_the_fault_of_its_own_requests_only() {
    let broken = ListedBucket { auth: Some(AuthMethod::SecurityToken), ..listed("broken", None) };
    let stores = stores(&[broken]).await;
    for _ in 0..2 {
        let error =
            stores.route(&request("broken", None), "", Requester::Driver).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition);
        assert!(error.message().contains("reading as security_token"), "{error}");
    }
    stores.route(&request("models", None), "", Requester::Driver).await.unwrap();
    let error =
        stores.route(&chosen(None, Some("apikey")), "", Requester::Driver).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
