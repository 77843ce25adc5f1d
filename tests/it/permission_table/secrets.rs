//! The worlds in which pods read with their own Secrets: API keys and pre-authenticated requests. A
//! pod without a Secret reads as the driver there, which may not see the buckets.

use super::*;
use crate::support::answers::TeamSecret;
use crate::support::pod_keys;

/// Who asks, and what it may find out.
type Requesters<'a> = &'a [(&'static str, May)];

/// A store with both buckets, whose driver may read none.
fn store_of_others() -> LocalStore {
    let store = LocalStore::builder().start().unwrap();
    for bucket in [BUCKET, VAULT, "another-bucket"] {
        store.put(bucket, "x", "x").unwrap();
    }
    store.hide("*/ocid1.user.oc1..localstore/*", "*");
    store
}

/// Asks everything for these requesters, of which each but one has a Secret, and reports on them.
async fn ask_with(
    (scratch, store): (&Path, LocalStore),
    secrets: BTreeMap<&'static str, TeamSecret>,
    mut tally: Tally,
    (name, requesters): (&str, Requesters<'_>),
) {
    let setup = pod_keys::setup(scratch, &store);
    let mut world = World::start(store, setup, scratch).await;
    world.elsewhere = ENDLESS;
    world.secrets = secrets;
    let revision = arrange(&world).await;
    for &(team, may) in requesters {
        assert_eq!(world.secrets.contains_key(team), team != "without", "the premise: {team}");
        ask_all(&world, &Who { team, asks: Asks::Pod, may }, &revision, &mut tally).await;
    }
    look_around(&world, &mut tally).await;
    tally.report(name);
}

#[test]
fn nothing_discloses_a_model_that_a_pods_api_key_may_not_read() {
    end_to_end_within(Duration::from_secs(400), async |scratch| {
        let store = store_of_others();
        let requesters = [
            ("stranger", May::Nothing),
            ("revoked", May::Nothing),
            ("without", May::Nothing),
            ("lister", May::List),
            ("half", May::ReadSome),
            ("control", May::Everything),
        ];
        let (mut secrets, mut tally) = (BTreeMap::new(), Tally::default());
        let named = requesters.into_iter().map(|(team, _)| team).filter(|team| *team != "without");
        for team in named.chain([HOLDER]) {
            let key = pod_keys::key(&store, team);
            let caller = key.caller();
            match team {
                "stranger" => store.allow(&caller, "another-bucket"),
                "revoked" => store.revoke_api_key(&caller),
                "lister" => store.allow_inspect(&caller, BUCKET),
                "half" => store.withhold(&caller, BUCKET, "falcon/*/shards/*"),
                HOLDER => tally.secrets.push(key.fingerprint.clone()),
                _ => {}
            }
            secrets.insert(team, TeamSecret { content: pod_keys::secret(&key), caller });
        }
        ask_with((scratch, store), secrets, tally, ("API keys of pods", &requesters)).await;
    });
}

#[test]
fn nothing_discloses_a_model_that_a_pods_pre_authenticated_request_does_not_read() {
    end_to_end_within(Duration::from_secs(400), async |scratch| {
        let store = store_of_others();
        let par = |prefix: &str, ttl| store.make_par(BUCKET, prefix, true, ttl).unwrap();
        let holders = par("falcon/", HOUR);
        let tally =
            Tally { secrets: vec![pod_keys::token(&holders).to_owned()], ..Tally::default() };
        let secrets = [
            // Of the same objects as the holder's, as far as its URL says.
            ("expired", par("falcon/", Duration::ZERO), "par/expired"),
            ("unknown", par("", HOUR).replace("/p/", "/p/x"), "par/unknown"),
            ("elsewhere", par("open/", HOUR), "par/open/"),
            ("control", par("", HOUR), "par/"),
            (HOLDER, holders, "par/falcon/"),
        ];
        let secrets = secrets.into_iter().map(|(team, url, caller)| {
            let content = [("par".to_owned(), url)].into();
            (team, TeamSecret { content, caller: caller.to_owned() })
        });
        let requesters = [
            ("expired", May::NothingInItsBucket),
            ("unknown", May::NothingInItsBucket),
            ("elsewhere", May::NothingInItsBucket),
            ("without", May::Nothing),
            ("control", May::Everything),
        ];
        let (secrets, named) = (secrets.collect(), "pre-authenticated requests of pods");
        ask_with((scratch, store), secrets, tally, (named, &requesters)).await;
    });
}
