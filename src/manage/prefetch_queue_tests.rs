use std::collections::BTreeMap;

use super::*;
use crate::model::ModelUri;

fn models(prefixes: &[&str]) -> Vec<PrefetchModel> {
    let parse = |prefix: &&str| model(prefix, &[]);
    prefixes.iter().map(parse).collect()
}

fn model(prefix: &str, selector: &[(&str, &str)]) -> PrefetchModel {
    PrefetchModel {
        uri: ModelUri::parse(&format!("oci://b/{prefix}")).unwrap(),
        node_selector: labels(selector),
        keep_revisions: None,
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn known(pairs: &[(&str, &str)]) -> NodeLabels {
    NodeLabels::Known(labels(pairs))
}

fn order(scheduled: &[ScheduledPrefetch]) -> Vec<&str> {
    scheduled.iter().map(|one| one.entry.uri.as_str()).collect()
}

fn key() -> ModelKey {
    ModelKey::parse(&"0".repeat(64)).unwrap()
}

fn at_once(known: Vec<ScheduledPrefetch>, list: &[PrefetchModel]) -> Vec<ScheduledPrefetch> {
    merge(known, list, &NodeLabels::Unread, Duration::ZERO)
}

#[tokio::test(start_paused = true)]
async fn a_new_list_keeps_the_state_of_known_entries_and_sets_a_new_order() {
    let mut scheduled = at_once(Vec::new(), &models(&["a", "b", "a"]));
    assert_eq!(order(&scheduled), ["oci://b/a/", "oci://b/b/"]);
    scheduled[1].record(Some(Ok(key())));
    let scheduled = at_once(scheduled, &models(&["c", "b"]));
    assert_eq!(order(&scheduled), ["oci://b/c/", "oci://b/b/"]);
    assert_eq!(scheduled[1].entry.state, PrefetchState::Complete);
    assert_eq!(scheduled[0].entry.state, PrefetchState::Waiting);
}

#[tokio::test(start_paused = true)]
async fn due_entries_run_in_the_order_of_the_list_and_failed_ones_wait() {
    let mut scheduled = at_once(Vec::new(), &models(&["a", "b"]));
    assert_eq!(next(&mut scheduled).unwrap().entry.uri, "oci://b/a/");
    let failed = || Some(Err(crate::error::Error::internal("no")));
    scheduled[0].record(failed());
    assert_eq!(next(&mut scheduled).unwrap().entry.uri, "oci://b/b/");
    scheduled[1].record(Some(Ok(key())));
    let again = next(&mut scheduled).unwrap();
    assert_eq!(
        (again.entry.uri.as_str(), again.entry.error.as_deref()),
        ("oci://b/a/", Some("no"))
    );
    assert!(again.due.unwrap() > Instant::now());
}

#[tokio::test(start_paused = true)]
async fn what_is_new_in_a_list_waits_for_the_delay_of_the_node_and_nothing_else_does() {
    const DELAY: Duration = Duration::from_secs(20);
    let start = Instant::now();
    let mut scheduled = at_once(Vec::new(), &models(&["a"]));
    scheduled[0].record(Some(Err(crate::error::Error::internal("no"))));
    let retry = scheduled[0].due;
    let list = [models(&["new", "a"]), vec![model("gpu", &[("pool", "gpu")])]].concat();
    scheduled = merge(scheduled, &list, &NodeLabels::Unread, DELAY);
    assert_eq!((scheduled[0].due, scheduled[1].due), (Some(start + DELAY), retry));
    // Labels that are read a moment later do not cut the delay short.
    assert_eq!(scheduled[2].due, None);
    tokio::time::advance(Duration::from_secs(1)).await;
    scheduled = merge(scheduled, &list, &known(&[("pool", "gpu")]), DELAY);
    assert_eq!(scheduled[2].due, Some(start + DELAY));
    // A label that is set an hour later causes no further delay.
    tokio::time::advance(Duration::from_secs(3600)).await;
    scheduled = merge(scheduled, &list, &known(&[]), DELAY);
    assert_eq!((scheduled[2].due, scheduled[2].entry.state), (None, PrefetchState::NotSelected));
    scheduled = merge(scheduled, &list, &known(&[("pool", "gpu")]), DELAY);
    assert_eq!(scheduled[2].due, Some(Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn an_entry_follows_the_labels_of_the_node() {
    let list = vec![model("gpu", &[("pool", "gpu")]), model("all", &[])];
    let states = |scheduled: &[ScheduledPrefetch]| -> Vec<(PrefetchState, bool)> {
        scheduled.iter().map(|one| (one.entry.state, one.due.is_some())).collect()
    };
    let all = (PrefetchState::Waiting, true);
    let mut scheduled = at_once(Vec::new(), &list);
    assert_eq!(states(&scheduled), [(PrefetchState::Waiting, false), all], "not read yet");
    let unknown = NodeLabels::Unknown("no API server".to_owned());
    scheduled = merge(scheduled, &list, &unknown, Duration::ZERO);
    assert_eq!(states(&scheduled), [(PrefetchState::LabelsUnknown, false), all]);
    assert_eq!(scheduled[0].entry.error.as_deref(), Some("no API server"));
    for (node, expected) in [
        (known(&[("pool", "cpu")]), (PrefetchState::NotSelected, false)),
        (known(&[("pool", "gpu")]), (PrefetchState::Waiting, true)),
    ] {
        scheduled = merge(scheduled, &list, &node, Duration::ZERO);
        assert_eq!(states(&scheduled), [expected, all]);
        assert_eq!(scheduled[0].entry.error, None);
    }
    // A download that ended because the labels changed begins again with them.
    scheduled[0].entry.state = PrefetchState::Running;
    scheduled[0].record(None);
    scheduled = merge(scheduled, &list, &known(&[]), Duration::ZERO);
    assert_eq!(states(&scheduled)[0], (PrefetchState::NotSelected, false));
    scheduled = merge(scheduled, &list, &known(&[("pool", "gpu")]), Duration::ZERO);
    assert_eq!(states(&scheduled)[0], (PrefetchState::Waiting, true));
    // What is complete stays complete while it is selected.
    scheduled[0].record(Some(Ok(key())));
    scheduled = merge(scheduled, &list, &known(&[("pool", "gpu"), ("new", "x")]), Duration::ZERO);
    assert_eq!(states(&scheduled)[0], (PrefetchState::Complete, false));
}

#[tokio::test(start_paused = true)]
async fn one_model_may_be_listed_for_several_pools() {
    let list = vec![model("m", &[("pool", "a")]), model("m", &[("pool", "b")])];
    let scheduled = merge(Vec::new(), &list, &known(&[("pool", "b")]), Duration::ZERO);
    let states: Vec<_> = scheduled.iter().map(|one| one.entry.state).collect();
    assert_eq!(states, [PrefetchState::NotSelected, PrefetchState::Waiting]);
}

#[tokio::test(start_paused = true)]
async fn revisions_are_kept_where_the_entry_applies_or_might() {
    let keeping = |model: PrefetchModel| PrefetchModel { keep_revisions: Some(2), ..model };
    let gpu = keeping(model("gpu", &[("pool", "gpu")]));
    let list = [gpu.clone(), keeping(model("all", &[])), model("none", &[])];
    let prefixes = |labels: &NodeLabels| -> Vec<String> {
        kept(&list, labels, None).into_iter().map(|kept| kept.uri.to_string()).collect()
    };
    let both = ["oci://b/gpu/", "oci://b/all/"];
    assert_eq!(prefixes(&NodeLabels::Unread), both);
    assert_eq!(prefixes(&NodeLabels::Unknown("why".to_owned())), both);
    assert_eq!(prefixes(&known(&[("pool", "gpu")])), both);
    assert_eq!(prefixes(&known(&[])), ["oci://b/all/"]);
    // An entry without a namespace means the driver's own, once that is known.
    let own = NamespaceName::parse("mytenancy").unwrap();
    let theirs = ModelUri::parse("oci://b@theirs/all/").unwrap();
    let listed = [list[1].clone(), PrefetchModel { uri: theirs, ..list[1].clone() }];
    let uris = |own| -> Vec<String> {
        let kept = kept(&listed, &NodeLabels::Unread, own);
        kept.into_iter().map(|kept| kept.uri.to_string()).collect()
    };
    assert_eq!(uris(Some(&own)), ["oci://b@mytenancy/all/", "oci://b@theirs/all/"]);
    assert_eq!(uris(None), ["oci://b/all/", "oci://b@theirs/all/"]);
    // Another number of revisions is no new download.
    let mut scheduled = at_once(Vec::new(), &list[1..2]);
    scheduled[0].record(Some(Ok(key())));
    scheduled = at_once(scheduled, &[model("all", &[])]);
    assert_eq!(scheduled[0].entry.state, PrefetchState::Complete);
    assert!(!gpu.is_same(&model("gpu", &[])));
}
