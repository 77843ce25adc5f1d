use std::sync::atomic::AtomicUsize;

use futures_util::FutureExt as _;
use tokio::sync::Semaphore;

use super::token::Lifetime;
use super::*;
use crate::oci::sign::tests::vectors;

/// Counts fetches; each takes a permit, fails while `broken`, and returns a new token.
struct Script {
    key: KeyPair,
    life: Duration,
    clock: Clock,
    fetches: AtomicUsize,
    broken: AtomicUsize,
    permits: Semaphore,
    same_id: bool,
    on_demand: bool,
}

#[derive(Clone)]
struct Scripted(Arc<Script>);

impl CredentialSource for Scripted {
    fn fetch(&self) -> BoxFuture<'_, Result<Credential, StorageError>> {
        async {
            let script = &self.0;
            script.permits.acquire().await.unwrap().forget();
            let number = script.fetches.fetch_add(1, Ordering::SeqCst);
            let broken = script.broken.load(Ordering::SeqCst);
            if broken > 0 {
                script.broken.store(broken - 1, Ordering::SeqCst);
                return Err(StorageError::new(StorageErrorKind::Identity, "fetching", "scripted"));
            }
            let id = if script.same_id { "same".into() } else { format!("token-{number}") };
            let expires_at = script.clock.now() + script.life;
            let refresh_at = expires_at - script.life / 3;
            let lifetime = Lifetime { expires_at, refresh_at };
            Ok(Credential::expiring(id, script.key.clone(), lifetime))
        }
        .boxed()
    }

    fn is_renewed_ahead(&self) -> bool {
        !self.0.on_demand
    }
}

fn identity(life: Duration, permits: usize) -> (Identity, Scripted) {
    identity_with(life, permits, |_| {})
}

fn identity_with(
    life: Duration,
    permits: usize,
    adapt: impl FnOnce(&mut Script),
) -> (Identity, Scripted) {
    let pem = vectors()["private_key_pkcs8"].as_str().unwrap().to_owned();
    let clock = Clock::tokio();
    let mut script = Script {
        key: KeyPair::from_pem(&pem, None).unwrap(),
        life,
        clock: clock.clone(),
        fetches: AtomicUsize::new(0),
        broken: AtomicUsize::new(0),
        permits: Semaphore::new(permits),
        same_id: false,
        on_demand: false,
    };
    adapt(&mut script);
    let source = Scripted(Arc::new(script));
    (Identity::new(source.clone(), clock), source)
}

impl Scripted {
    fn fetches(&self) -> usize {
        self.0.fetches.load(Ordering::SeqCst)
    }

    fn break_next(&self, times: usize) {
        self.0.broken.store(times, Ordering::SeqCst);
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const PLENTY: usize = 1000;

#[tokio::test(start_paused = true)]
async fn many_callers_share_one_refresh_and_its_outcome() {
    let (identity, source) = identity(HOUR, 0);
    source.break_next(1);
    let ask = || async {
        let asking = (0..50).map(|_| identity.credentials());
        let release = async { source.0.permits.add_permits(1) };
        futures_util::future::join(futures_util::future::join_all(asking), release).await.0
    };
    assert!(ask().await.iter().all(Result::is_err));
    assert_eq!((source.fetches(), identity.refresh_failures()), (1, 1));
    let ids: Vec<_> =
        ask().await.into_iter().map(|result| result.unwrap().key_id.clone()).collect();
    assert!(ids.iter().all(|id| id == "token-1"), "{ids:?}");
    assert_eq!((source.fetches(), identity.refreshes()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_outlives_the_caller_that_began_it() {
    let (identity, source) = identity(HOUR, 0);
    let impatient = tokio::time::timeout(Duration::from_millis(1), identity.credentials()).await;
    assert!(impatient.is_err());
    source.0.permits.add_permits(1);
    assert_eq!(identity.credentials().await.unwrap().key_id, "token-0");
    assert_eq!(source.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_credential_is_replaced_before_it_expires_without_a_request() {
    let (identity, source) = identity(HOUR, PLENTY);
    let first = identity.credentials().await.unwrap();
    tokio::time::sleep(Duration::from_secs(2399)).await;
    assert_eq!(source.fetches(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(source.fetches(), 2);
    assert!(!Arc::ptr_eq(&first, &identity.credentials().await.unwrap()));
    tokio::time::sleep(HOUR * 10).await;
    assert!((15..=17).contains(&source.fetches()), "{}", source.fetches());
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_keeps_the_old_credential_and_is_tried_again_with_backoff() {
    let (identity, source) = identity(HOUR, PLENTY);
    identity.credentials().await.unwrap();
    source.break_next(5);
    for _ in 0..59 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        identity.credentials().await.unwrap();
    }
    assert_eq!(identity.refresh_failures(), 5);
    assert_eq!(identity.refreshes(), 2);
}

#[tokio::test(start_paused = true)]
async fn requests_during_an_outage_renew_a_good_credential_only_now_and_then() {
    let (identity, source) = identity_with(HOUR, PLENTY, |script| script.on_demand = true);
    identity.credentials().await.unwrap();
    source.break_next(usize::MAX);
    tokio::time::sleep(HOUR * 2 / 3).await;
    for _ in 0..10_000 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        identity.credentials().await.unwrap();
    }
    assert!((3..200).contains(&source.fetches()), "{} in ten minutes", source.fetches());
    source.break_next(0);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        identity.credentials().await.unwrap();
    }
    assert_eq!(identity.refreshes(), 2, "the next one is fetched when the service is back");
}

#[tokio::test(start_paused = true)]
async fn an_expired_credential_is_not_returned() {
    let (identity, source) = identity(HOUR, PLENTY);
    identity.credentials().await.unwrap();
    source.break_next(usize::MAX);
    tokio::time::sleep(HOUR).await;
    let error = identity.credentials().await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Identity);
}

#[tokio::test(start_paused = true)]
async fn after_a_401_all_callers_get_the_one_new_credential() {
    let (identity, source) = identity(HOUR, PLENTY);
    let seen = identity.credentials().await.unwrap();
    let others = (0..20).map(|_| identity.invalidate(&seen));
    let others = futures_util::future::join_all(others).await;
    assert!(others.into_iter().all(|other| other.unwrap().unwrap().key_id == "token-1"));
    assert_eq!(source.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn refusals_that_no_credential_fixes_do_not_refresh_again_and_again() {
    let (identity, source) = identity(HOUR, PLENTY);
    let first = identity.credentials().await.unwrap();
    let second = identity.invalidate(&first).await.unwrap().unwrap();
    identity.repeat_was_futile();
    for _ in 0..10 {
        assert!(identity.invalidate(&second).await.unwrap().is_none());
    }
    assert_eq!(source.fetches(), 2);
    tokio::time::sleep(FUTILE_PAUSE).await;
    assert!(identity.invalidate(&second).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_the_same_after_being_read_again_is_no_other_credential() {
    let (identity, _) = identity_with(HOUR, PLENTY, |script| script.same_id = true);
    let seen = identity.credentials().await.unwrap();
    assert!(identity.invalidate(&seen).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_is_dropped_is_no_longer_refreshed() {
    let (identity, source) = identity(HOUR, PLENTY);
    identity.credentials().await.unwrap();
    drop(identity);
    tokio::time::sleep(HOUR * 3).await;
    assert_eq!(source.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn neither_identity_nor_credential_prints_the_token() {
    let (identity, _) = identity(HOUR, PLENTY);
    let credential = identity.credentials().await.unwrap();
    assert!(!format!("{identity:?} {credential:?}").contains("token-0"));
}

#[test]
fn only_an_api_key_names_a_tenancy_whose_buckets_it_may_list() {
    let key = KeyPair::from_pem(vectors()["private_key_pkcs8"].as_str().unwrap(), None).unwrap();
    for (key_id, tenancy) in [
        ("ocid1.tenancy.oc1..a/ocid1.user.b/12:34", Some("ocid1.tenancy.oc1..a")),
        ("t/u/12:34", None),
        ("ocid1.tenancy.oc1..a", None),
        ("ST$ocid1.tenancy.oc1..a/b/c", None),
    ] {
        let credential = Credential::permanent(key_id.to_owned(), key.clone());
        assert_eq!(credential.listable_tenancy(), tenancy, "{key_id}");
    }
}
