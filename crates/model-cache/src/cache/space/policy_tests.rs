use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

fn key(n: usize) -> ModelKey {
    ModelKey::parse(&format!("{n:064x}")).unwrap()
}

fn at(second: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(second)
}

fn bytes(bytes: u64) -> Space {
    Space { bytes, inodes: 0 }
}

/// A model last used at `second`, with one directory of one inode.
fn model(n: usize, second: u64, blobs: &[usize]) -> EvictionCandidate {
    let own = Space { bytes: 0, inodes: 1 };
    EvictionCandidate {
        key: key(n),
        last_used: at(second),
        keep: None,
        newer_kept: None,
        blobs: blobs.to_vec(),
        own,
    }
}

fn blob(bytes: u64) -> Blob {
    Blob { space: Space { bytes, inodes: 1 }, busy: false }
}

#[test]
fn the_least_recently_used_models_go_until_it_is_enough() {
    let models = vec![model(0, 30, &[0]), model(1, 10, &[1]), model(2, 20, &[2])];
    let input = EvictionInput { models, blobs: vec![blob(10), blob(10), blob(10)] };
    let choice = choose(&input, &EvictionGoal::Need(bytes(15)), None);
    assert_eq!((choice.models, choice.blobs), (vec![1, 2], vec![1, 2]));
    assert_eq!((choice.freed, choice.reached), (Space { bytes: 20, inodes: 4 }, true));
}

#[test]
fn a_need_that_cannot_be_met_evicts_nothing_and_a_best_effort_all_it_can() {
    let models = vec![
        model(0, 10, &[0]),
        EvictionCandidate { keep: Some(RetentionReason::Leased), ..model(1, 5, &[1]) },
    ];
    let input = EvictionInput { models, blobs: vec![blob(10), blob(90)] };
    let choice = choose(&input, &EvictionGoal::Need(bytes(50)), None);
    assert_eq!(choice, EvictionChoice::default());
    let choice = choose(&input, &EvictionGoal::BestEffort(bytes(50)), None);
    assert_eq!((choice.models, choice.freed.bytes, choice.reached), (vec![0], 10, false));
}

#[test]
fn kept_revisions_go_after_all_others_the_oldest_first_and_are_never_idle() {
    let kept = |newer, model| EvictionCandidate { newer_kept: Some(newer), ..model };
    let input = EvictionInput {
        models: vec![
            kept(0, model(0, 1, &[0])),
            kept(1, model(1, 50, &[1])),
            model(2, 90, &[2]),
            kept(2, model(3, 99, &[3])),
        ],
        blobs: vec![blob(10); 4],
    };
    let order = |need| choose(&input, &EvictionGoal::Need(bytes(need)), None).models;
    assert_eq!(order(10), [2]);
    assert_eq!(order(20), [2, 3]);
    assert_eq!(order(40), [2, 3, 1, 0], "no pod waits for the space of a kept revision");
    let idle = choose(&input, &EvictionGoal::BestEffort(bytes(0)), Some(at(95)));
    assert_eq!(idle.models, [2]);
    assert_eq!(choose(&input, &EvictionGoal::All, None).models.len(), 4);
}

#[test]
fn a_shared_blob_is_freed_once_with_the_last_of_its_models() {
    let models = vec![model(0, 1, &[0, 1]), model(1, 2, &[0])];
    let input = EvictionInput { models, blobs: vec![blob(70), blob(1)] };
    assert_eq!(evictable(&input), Space { bytes: 71, inodes: 4 });
    let choice = choose(&input, &EvictionGoal::Need(bytes(1)), None);
    assert_eq!((choice.models, choice.blobs), (vec![0], vec![1]));
    let choice = choose(&input, &EvictionGoal::Need(bytes(2)), None);
    assert_eq!((choice.models, choice.freed.bytes), (vec![0, 1], 71));
}

#[test]
fn orphans_go_before_any_model_and_only_when_space_is_needed() {
    let input = EvictionInput {
        models: vec![model(0, 1, &[0])],
        blobs: vec![blob(10), blob(10), blob(10)],
    };
    let choice = choose(&input, &EvictionGoal::BestEffort(bytes(15)), None);
    assert_eq!((choice.models, choice.blobs), (vec![], vec![1, 2]));
    assert_eq!(
        choose(&input, &EvictionGoal::BestEffort(bytes(0)), None),
        EvictionChoice { reached: true, ..EvictionChoice::default() }
    );
    assert_eq!(
        choose(&input, &EvictionGoal::Need(bytes(31)), None),
        EvictionChoice::default(),
        "in vain"
    );
}

#[test]
fn a_blob_that_is_being_downloaded_stays_with_or_without_a_model() {
    let busy = Blob { busy: true, ..blob(10) };
    let input = EvictionInput { models: vec![model(0, 1, &[0])], blobs: vec![busy, busy] };
    let choice = choose(&input, &EvictionGoal::All, None);
    assert_eq!((choice.models, choice.blobs, choice.freed.bytes), (vec![0], vec![], 0));
}

#[test]
fn an_old_model_that_does_not_help_stays_if_a_later_one_is_enough() {
    let input = EvictionInput {
        models: vec![model(0, 1, &[0]), model(1, 2, &[1])],
        blobs: vec![blob(1), blob(50)],
    };
    let choice = choose(&input, &EvictionGoal::Need(bytes(50)), None);
    assert_eq!((choice.models, choice.reached), (vec![1], true));
}

#[test]
fn inodes_are_freed_when_inodes_are_missing() {
    let input =
        EvictionInput { models: vec![model(0, 1, &[0]), model(1, 2, &[])], blobs: vec![blob(1)] };
    let choice = choose(&input, &EvictionGoal::Need(Space { bytes: 0, inodes: 3 }), None);
    assert_eq!((choice.models, choice.freed.inodes), (vec![0, 1], 3));
}

#[test]
fn an_idle_model_goes_even_when_no_space_is_needed_unless_it_is_kept() {
    let pinned = EvictionCandidate { keep: Some(RetentionReason::Pinned), ..model(1, 1, &[]) };
    let input = EvictionInput {
        models: vec![model(0, 1, &[0]), pinned, model(2, 9, &[])],
        blobs: vec![blob(1)],
    };
    for goal in [
        EvictionGoal::BestEffort(bytes(0)),
        EvictionGoal::Need(bytes(0)),
        EvictionGoal::Need(bytes(1000)),
    ] {
        assert_eq!(choose(&input, &goal, Some(at(9))).models, [0], "{goal:?}");
    }
}

#[test]
fn models_of_the_same_last_use_go_by_their_keys() {
    let models = vec![model(2, 1, &[]), model(0, 1, &[]), model(1, 1, &[])];
    let choice = choose(&EvictionInput { models, blobs: vec![] }, &EvictionGoal::All, None);
    assert_eq!(choice.models, [1, 2, 0]);
}

#[test]
fn a_choice_among_two_thousand_models_is_fast() {
    // Ten times per kind of goal: a quadratic algorithm would take minutes.
    let blobs = vec![blob(4096); 20_000];
    let refers = |n: usize| (0..20).map(|i| (n * 10 + i * 7) % 20_000).collect::<BTreeSet<_>>();
    let models = (0..2_000).map(|n| {
        let blobs: Vec<usize> = refers(n).into_iter().collect();
        model(n, (n as u64 * 7919) % 1_000, &blobs)
    });
    let input = EvictionInput { models: models.collect(), blobs };
    let all = evictable(&input);
    let half = Space { bytes: all.bytes / 2, inodes: all.inodes / 2 };
    for _ in 0..10 {
        assert_eq!(choose(&input, &EvictionGoal::All, None).freed, all);
        assert!(choose(&input, &EvictionGoal::Need(half), Some(at(100))).reached);
        let least = choose(&input, &EvictionGoal::BestEffort(bytes(u64::MAX)), None);
        assert_eq!((least.models.len(), least.reached), (2_000, false));
    }
}

/// The same choice, made the obvious way: everything is recounted at each step.
struct Naive<'a>(&'a EvictionInput);

impl Naive<'_> {
    fn may_go(&self) -> BTreeSet<usize> {
        (0..self.0.models.len()).filter(|&m| self.0.models[m].keep.is_none()).collect()
    }

    fn leaving(&self, victims: &BTreeSet<usize>, orphans: bool) -> BTreeSet<usize> {
        let has = |m: usize, b: usize| self.0.models[m].blobs.contains(&b);
        let all = 0..self.0.models.len();
        let leaves = |&b: &usize| {
            let stays = all.clone().any(|m| has(m, b) && !victims.contains(&m));
            let orphan = !all.clone().any(|m| has(m, b));
            !self.0.blobs[b].busy && !stays && (orphans || !orphan)
        };
        (0..self.0.blobs.len()).filter(leaves).collect()
    }

    fn freed(&self, victims: &BTreeSet<usize>, orphans: bool) -> Space {
        let own = victims.iter().map(|&m| self.0.models[m].own);
        let leaving = self.leaving(victims, orphans);
        let blobs = leaving.iter().map(|&b| self.0.blobs[b].space);
        own.chain(blobs).fold(Space::default(), Space::saturating_add)
    }

    /// What goes first is less than what goes later.
    fn age(&self, m: usize) -> (bool, Reverse<usize>, SystemTime, &ModelKey) {
        let model = &self.0.models[m];
        let newer = model.newer_kept.unwrap_or_default();
        (model.newer_kept.is_some(), Reverse(newer), model.last_used, &model.key)
    }

    fn idle(&self, before: Option<SystemTime>) -> BTreeSet<usize> {
        let is_idle = |&m: &usize| {
            let model = &self.0.models[m];
            model.newer_kept.is_none() && before.is_some_and(|t| model.last_used < t)
        };
        self.may_go().into_iter().filter(is_idle).collect()
    }

    fn choose(&self, goal: &EvictionGoal, idle_before: Option<SystemTime>) -> EvictionChoice {
        let idle = self.idle(idle_before);
        let (mut victims, mut orphans) = (idle.clone(), false);
        let enough = |freed: Space| match *goal {
            EvictionGoal::Need(space) | EvictionGoal::BestEffort(space) => freed.covers(space),
            EvictionGoal::All => false,
        };
        let hopeless =
            matches!(goal, EvictionGoal::Need(_)) && !enough(self.freed(&self.may_go(), true));
        while !hopeless && !enough(self.freed(&victims, orphans)) {
            let left: BTreeSet<usize> = &self.may_go() - &victims;
            match left.into_iter().min_by_key(|&m| self.age(m)) {
                _ if !orphans => orphans = true,
                Some(oldest) => _ = victims.insert(oldest),
                None => break,
            }
        }
        let mut again: Vec<usize> = (&victims - &idle).into_iter().collect();
        again.sort_by_key(|&m| Reverse(self.age(m)));
        for m in again {
            let without: BTreeSet<usize> = &victims - &BTreeSet::from([m]);
            if enough(self.freed(&without, orphans)) {
                victims = without;
            }
        }
        let freed = self.freed(&victims, orphans);
        let mut models: Vec<usize> = victims.iter().copied().collect();
        models.sort_by_key(|&m| self.age(m));
        let blobs = self.leaving(&victims, orphans).into_iter().collect();
        EvictionChoice {
            models,
            blobs,
            freed,
            reached: *goal == EvictionGoal::All || enough(freed),
        }
    }
}

fn space(most_bytes: u64, most_inodes: u64) -> impl Strategy<Value = Space> {
    (0..=most_bytes, 0..=most_inodes).prop_map(|(bytes, inodes)| Space { bytes, inodes })
}

/// A small subset of sixteen bits.
fn subset() -> impl Strategy<Value = u16> {
    (any::<u16>(), any::<u16>()).prop_map(|(a, b)| a & b)
}

fn inputs() -> impl Strategy<Value = EvictionInput> {
    let keeps = vec![
        RetentionReason::Leased,
        RetentionReason::Mounted,
        RetentionReason::Pinned,
        RetentionReason::Busy,
    ];
    let keeps = prop::option::weighted(0.3, select(keeps));
    let blobs = vec((space(40, 2), prop::bool::weighted(0.1)), 0..12);
    let newer = prop::option::weighted(0.3, 0usize..3);
    let models = vec((0u64..10, keeps, newer, subset(), space(3, 2)), 0..12);
    (blobs, models, any::<u64>()).prop_map(|(blobs, models, salt)| {
        let blobs: Vec<Blob> =
            blobs.into_iter().map(|(space, busy)| Blob { space, busy }).collect();
        let models = models.into_iter().enumerate().map(|(n, one)| {
            let (second, keep, newer_kept, refers, own) = one;
            // The order of keys is neither that of the list nor that of use.
            let key = key(n ^ usize::try_from(salt % 16).unwrap());
            let blobs = (0..blobs.len()).filter(|b| refers >> b & 1 == 1).collect();
            EvictionCandidate { key, last_used: at(second), keep, newer_kept, blobs, own }
        });
        EvictionInput { models: models.collect(), blobs: blobs.clone() }
    })
}

/// An input, a goal near what is reachable, and the limit of idle models.
fn cases() -> impl Strategy<Value = (EvictionInput, EvictionGoal, Option<SystemTime>)> {
    let kind = prop_oneof![4 => Just(EvictionGoal::Need as fn(Space) -> EvictionGoal), 4 => Just(EvictionGoal::BestEffort as _), 1 => Just((|_| EvictionGoal::All) as _)];
    let idle = prop::option::weighted(0.3, (0u64..8).prop_map(at));
    (inputs(), kind, (0u64..=120, 0u64..=120), idle).prop_map(|(input, kind, percent, idle)| {
        let all = evictable(&input);
        let bytes = all.bytes * percent.0 / 100;
        (input, kind(Space { bytes, inodes: all.inodes * percent.1 / 100 }), idle)
    })
}

fn set(indices: &[usize]) -> BTreeSet<usize> {
    indices.iter().copied().collect()
}

proptest! {
    #![proptest_config(seeded::cases(20_000))]

    #[test]
    fn the_choice_is_that_of_the_obvious_algorithm(
        (input, goal, idle) in cases()
    ) {
        prop_assert_eq!(choose(&input, &goal, idle), Naive(&input).choose(&goal, idle));
    }
}

proptest! {
    #![proptest_config(seeded::cases(5_000))]

    #[test]
    fn kept_models_and_busy_blobs_stay_and_blobs_go_with_their_last_model(
        (input, goal, idle) in cases()
    ) {
        let choice = choose(&input, &goal, idle);
        prop_assert!(choice.models.iter().all(|&m| input.models[m].keep.is_none()));
        let (gone, leaving) = (set(&choice.models), set(&choice.blobs));
        prop_assert_eq!(gone.len(), choice.models.len(), "each once");
        prop_assert_eq!(leaving.len(), choice.blobs.len(), "each once");
        let mut orphans = Vec::new();
        for (b, blob) in input.blobs.iter().enumerate() {
            let users: Vec<usize> =
                (0..input.models.len()).filter(|&m| input.models[m].blobs.contains(&b)).collect();
            if users.is_empty() && !blob.busy {
                orphans.push(leaving.contains(&b));
            } else {
                let unused = users.iter().all(|m| gone.contains(m));
                prop_assert_eq!(leaving.contains(&b), unused && !blob.busy, "blob {}", b);
            }
        }
        orphans.dedup();
        prop_assert!(orphans.len() <= 1, "orphans leave together");
        let idle = Naive(&input).idle(idle);
        prop_assert!(gone.is_superset(&idle));
        if gone.len() > idle.len() {
            prop_assert!(orphans.iter().all(|&left| left), "before any model that is not idle");
        }
    }

    #[test]
    fn the_freed_space_is_that_of_the_choice_and_enough_whenever_possible(
        (input, goal, idle) in cases()
    ) {
        let choice = choose(&input, &goal, idle);
        let own = choice.models.iter().map(|&m| input.models[m].own);
        let blobs = choice.blobs.iter().map(|&b| input.blobs[b].space);
        let sum = own.chain(blobs).fold(Space::default(), Space::saturating_add);
        prop_assert_eq!(choice.freed, sum);
        let naive = Naive(&input);
        let all = naive.freed(&naive.may_go(), true);
        prop_assert_eq!(evictable(&input), all);
        match goal {
            EvictionGoal::Need(space) | EvictionGoal::BestEffort(space) => {
                prop_assert_eq!(choice.reached, all.covers(space));
                prop_assert_eq!(choice.reached, choice.freed.covers(space));
            }
            EvictionGoal::All => prop_assert!(choice.reached && choice.freed == all),
        }
        if !choice.reached {
            match goal {
                EvictionGoal::Need(_) => prop_assert_eq!(set(&choice.models), naive.idle(idle)),
                _ => prop_assert_eq!(choice.freed, all),
            }
        }
    }

    #[test]
    fn no_model_goes_that_could_stay(
        (input, goal, idle) in cases()
    ) {
        let choice = choose(&input, &goal, idle);
        let (EvictionGoal::Need(space) | EvictionGoal::BestEffort(space), true) = (goal, choice.reached) else {
            return Ok(());
        };
        let naive = Naive(&input);
        let gone = set(&choice.models);
        for m in &gone - &naive.idle(idle) {
            let without = &gone - &BTreeSet::from([m]);
            prop_assert!(!naive.freed(&without, true).covers(space), "{m} could stay");
        }
    }

    /// Defines "least recently used" where older models may stay because they do not
    /// help: for each victim, all newer victims and all older models together do not
    /// reach the goal without it.
    #[test]
    fn a_model_goes_only_if_all_older_ones_are_not_enough(
        (input, goal, idle) in cases()
    ) {
        let choice = choose(&input, &goal, idle);
        let naive = Naive(&input);
        let ages: Vec<_> = choice.models.iter().map(|&m| naive.age(m)).collect();
        prop_assert!(ages.is_sorted(), "least recently used first");
        let (EvictionGoal::Need(space) | EvictionGoal::BestEffort(space), true) = (goal, choice.reached) else {
            return Ok(());
        };
        let gone = set(&choice.models);
        for m in &gone - &naive.idle(idle) {
            let older = naive.may_go().into_iter().filter(|&o| naive.age(o) < naive.age(m));
            let newer = gone.iter().copied().filter(|&v| naive.age(v) > naive.age(m));
            let instead: BTreeSet<usize> = older.chain(newer).collect();
            prop_assert!(!naive.freed(&instead, true).covers(space), "{m} is newer than enough");
        }
    }

    #[test]
    fn the_order_of_the_input_does_not_matter(
        (input, goal, idle) in cases(), turn in any::<Index>()
    ) {
        let keys = |input: &EvictionInput| {
            let choice = choose(input, &goal, idle);
            let keys = choice.models.iter().map(|&m| input.models[m].key.clone());
            (keys.collect::<Vec<_>>(), choice.freed, choice.reached)
        };
        let mut turned = input.clone();
        if !turned.models.is_empty() {
            let by = turn.index(turned.models.len());
            turned.models.rotate_left(by);
            turned.models.reverse();
        }
        prop_assert_eq!(keys(&input), keys(&turned));
    }
}
