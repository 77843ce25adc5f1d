//! Faults on demand: which rules hit a request, and what they do to it together.

mod connections;
mod rule;
mod throttle;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use serde::Serialize;

use connections::ConnectionSeats;
pub(crate) use connections::OpenConnection;
pub use rule::{Action, Match, Rule};
pub(crate) use throttle::Throttle;

use crate::error::ApiError;
use crate::glob;
use crate::range::RangeHeader;
use crate::route::Operation;
use crate::sync::RwLock;

/// The rules in force. Cheap to clone; all clones are the same rules.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    rules: RwLock<Vec<Arc<Active>>>,
    next_id: AtomicU64,
    listings: RwLock<HashMap<String, Vec<u8>>>,
}

#[derive(Debug)]
struct Active {
    id: u64,
    rule: Rule,
    matched: AtomicU64,
    throttle: Option<Arc<Throttle>>,
    seats: Option<ConnectionSeats>,
}

/// A rule and what it did so far.
#[derive(Debug, Clone, Serialize)]
pub struct RuleState {
    /// Given by [`Faults::add`].
    pub id: u64,
    /// The rule.
    pub rule: Rule,
    /// Requests that it matched.
    pub matched: u64,
    /// Of those, the ones that it hit.
    pub hits: u64,
}

impl Faults {
    /// Adds a rule; its id. All rules that match a request hit it.
    pub fn add(&self, rule: Rule) -> u64 {
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let throttle = match rule.action {
            Action::Bandwidth { bytes_per_sec } => Some(Arc::new(Throttle::new(bytes_per_sec))),
            Action::Crowding { bytes_per_sec, bodies } => {
                Some(Arc::new(Throttle::crowded(bytes_per_sec, bodies)))
            }
            _ => None,
        };
        let seats = match rule.action {
            Action::ConnectionLimit { connections } => Some(ConnectionSeats::new(connections)),
            _ => None,
        };
        let active = Active { id, rule, matched: AtomicU64::new(0), throttle, seats };
        self.0.rules.write().push(Arc::new(active));
        id
    }

    /// Removes one rule; false when there is none with this id.
    pub fn remove(&self, id: u64) -> bool {
        let mut rules = self.0.rules.write();
        let before = rules.len();
        rules.retain(|active| active.id != id);
        rules.len() < before
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.0.rules.write().clear();
    }

    /// The rules and their counts.
    pub fn list(&self) -> Vec<RuleState> {
        self.0.rules.read().iter().map(|active| active.state()).collect()
    }

    /// What happens to this request; counts it on every rule that matches.
    pub(crate) fn apply(&self, facts: &Facts<'_>) -> Effects {
        let mut effects = Effects::default();
        for active in self.0.rules.read().iter() {
            if active.matches(facts) && !active.seats(facts) && active.takes_its_turn() {
                effects.add(active, facts);
            }
        }
        effects
    }

    /// Answers every listing of this bucket with these bytes, whatever they are.
    pub fn list_as(&self, bucket: &str, answer: impl Into<Vec<u8>>) {
        self.0.listings.write().insert(bucket.to_owned(), answer.into());
    }

    pub(crate) fn listing_of(&self, bucket: &str) -> Option<Vec<u8>> {
        self.0.listings.read().get(bucket).cloned()
    }

    /// Whether a rule archives this object, without counting.
    pub(crate) fn archives(&self, bucket: &str, object: &str) -> bool {
        self.0.rules.read().iter().any(|active| {
            active.rule.action == Action::Archived
                && pattern_holds(active.rule.matching.bucket.as_ref(), bucket)
                && pattern_holds(active.rule.matching.object.as_ref(), object)
        })
    }
}

/// What rules can look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) operation: Operation,
    pub(crate) method: &'a str,
    pub(crate) bucket: &'a str,
    pub(crate) object: &'a str,
    /// The Range header; none is the whole object.
    pub(crate) range: Option<RangeHeader>,
    /// What the request came on.
    pub(crate) connection: &'a OpenConnection,
}

impl Active {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        let Match { operation, bucket, object, method, range_contains } = &self.rule.matching;
        let reaches = |offset: u64| facts.range.is_none_or(|range| range.may_contain(offset));
        let flipped = match self.rule.action {
            Action::FlipByte { offset } => Some(offset),
            _ => None,
        };
        (operation.is_empty() || operation.contains(&facts.operation))
            && pattern_holds(bucket.as_ref(), facts.bucket)
            && pattern_holds(object.as_ref(), facts.object)
            && method.as_ref().is_none_or(|method| method.eq_ignore_ascii_case(facts.method))
            && range_contains.is_none_or(reaches)
            && flipped.is_none_or(reaches)
            // Its own interface stays usable whatever the rules are.
            && facts.operation != Operation::Admin
    }

    /// Whether the rule limits connections and this one is within the limit: no hit.
    fn seats(&self, facts: &Facts<'_>) -> bool {
        self.seats.as_ref().is_some_and(|seats| seats.take(facts.connection))
    }

    fn takes_its_turn(&self) -> bool {
        let turn = self.matched.fetch_add(1, Ordering::Relaxed);
        let Some(turn) = turn.checked_sub(self.rule.skip) else { return false };
        let every = self.rule.every.unwrap_or(1).max(1);
        turn % every == 0 && self.rule.times.is_none_or(|times| turn / every < times)
    }

    fn state(&self) -> RuleState {
        let matched = self.matched.load(Ordering::Relaxed);
        let past_skip = matched.saturating_sub(self.rule.skip);
        let past_skip = past_skip.div_ceil(self.rule.every.unwrap_or(1).max(1));
        let hits = self.rule.times.map_or(past_skip, |times| times.min(past_skip));
        RuleState { id: self.id, rule: self.rule.clone(), matched, hits }
    }
}

fn pattern_holds(pattern: Option<&String>, text: &str) -> bool {
    pattern.is_none_or(|pattern| glob::matches(pattern, text))
}

/// What all rules together do to one request.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) latency: Duration,
    pub(crate) refusal: Option<ApiError>,
    /// The status of a page that is no answer of this API.
    pub(crate) page: Option<u16>,
    pub(crate) disconnect: bool,
    pub(crate) lost_answer: bool,
    pub(crate) date_offset_secs: i64,
    pub(crate) range: RangeFault,
    pub(crate) replace: Option<Replacement>,
    pub(crate) archived: bool,
    /// Headers that answers get, or lose.
    pub(crate) headers: Vec<(String, Option<String>)>,
    pub(crate) proxied: bool,
    pub(crate) body: BodyFaults,
}

/// What happens to the range that was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum RangeFault {
    #[default]
    None,
    Shifted,
    Ignored,
}

/// The object that takes the place of the one asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replacement {
    pub(crate) seed: u64,
    pub(crate) size: Option<u64>,
}

/// What happens to a body while it flows.
#[derive(Debug, Default)]
pub(crate) struct BodyFaults {
    pub(crate) throttles: Vec<Arc<Throttle>>,
    pub(crate) flips: Vec<u64>,
    pub(crate) cut: Option<Cut>,
}

/// Where and how a body ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    ResetAfter(u64),
    StallAfter(u64),
    /// Closed before the last bytes.
    Missing(u64),
}

impl Effects {
    fn add(&mut self, active: &Active, facts: &Facts<'_>) {
        match &active.rule.action {
            Action::Latency { ms } => self.latency += Duration::from_millis(*ms),
            Action::ConnectionBandwidth { bytes_per_sec } => {
                self.body.throttles.push(Arc::new(Throttle::new(*bytes_per_sec)));
            }
            Action::Bandwidth { .. } | Action::Crowding { .. } => {
                self.body.throttles.extend(active.throttle.clone());
            }
            Action::Status { code, oci_code, message, retry_after } => {
                let refusal = refusal(*code, oci_code.as_ref(), message.as_ref(), facts);
                self.refusal.get_or_insert(match retry_after {
                    Some(secs) => refusal.with_header("retry-after", secs.to_string()),
                    None => refusal,
                });
            }
            Action::Page { code } => self.page = Some(*code),
            Action::Disconnect | Action::ConnectionLimit { .. } => self.disconnect = true,
            Action::LostAnswer => self.lost_answer = true,
            Action::ResetAfter { bytes } => self.body.cut = Some(Cut::ResetAfter(*bytes)),
            Action::StallAfter { bytes } => self.body.cut = Some(Cut::StallAfter(*bytes)),
            Action::ShortBody { missing } => self.body.cut = Some(Cut::Missing(*missing)),
            Action::WrongRange => self.range = RangeFault::Shifted,
            Action::IgnoreRange => self.range = RangeFault::Ignored,
            Action::FlipByte { offset } => self.body.flips.push(*offset),
            Action::ReplaceObject { seed, size } => {
                self.replace = Some(Replacement { seed: *seed, size: *size });
            }
            Action::DateOffset { secs } => self.date_offset_secs += secs,
            Action::Archived => self.archived = true,
            Action::Header { name, value } => self.headers.push((name.clone(), value.clone())),
            Action::Proxied => self.proxied = true,
        }
    }
}

/// A status in OCI's words, as far as they are not given.
fn refusal(
    code: u16,
    oci_code: Option<&String>,
    message: Option<&String>,
    facts: &Facts<'_>,
) -> ApiError {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut refusal = match code {
        401 => ApiError::not_authenticated(),
        404 if !facts.object.is_empty() => ApiError::object_not_found(facts.object, facts.bucket),
        412 => ApiError::if_match_failed("(injected)"),
        _ => {
            let name = match code {
                400 => "InvalidParameter",
                403 => "NotAuthorized",
                404 => "NotAuthorizedOrNotFound",
                409 => "IncorrectState",
                429 => "TooManyRequests",
                503 => "ServiceUnavailable",
                _ => "InternalServerError",
            };
            ApiError::new(status, name, format!("Injected by a fault rule: {code}"))
        }
    };
    if let Some(oci_code) = oci_code {
        refusal.code = oci_code.clone().into();
    }
    if let Some(message) = message {
        refusal.message.clone_from(message);
    }
    refusal
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    fn get(object: &str) -> Facts<'_> {
        static CONNECTION: LazyLock<OpenConnection> = LazyLock::new(OpenConnection::default);
        let (operation, connection) = (Operation::Get, &*CONNECTION);
        Facts { operation, method: "GET", bucket: "models", object, range: None, connection }
    }

    #[test]
    fn a_rule_skips_then_hits_as_often_as_it_says() {
        let faults = Faults::default();
        faults.add(Rule::new(Action::status(503)).object("*.bin").skip(1).times(2));
        let hit = |object| faults.apply(&get(object)).refusal.is_some();
        assert!(!hit("x.json"), "does not match");
        assert_eq!([(); 4].map(|()| hit("x.bin")), [false, true, true, false]);
        let state = &faults.list()[0];
        assert_eq!((state.matched, state.hits), (4, 2));
    }

    #[test]
    fn a_rule_hits_each_of_so_many() {
        let faults = Faults::default();
        faults.add(Rule::new(Action::status(503)).skip(1).every(3).times(2));
        let hits = [(); 9].map(|()| faults.apply(&get("x")).refusal.is_some());
        assert_eq!(hits, [false, true, false, false, true, false, false, false, false]);
        assert_eq!(faults.list()[0].hits, 2);
    }

    #[test]
    fn a_flipped_byte_counts_only_where_it_is_read() {
        let faults = Faults::default();
        faults.add(Rule::new(Action::FlipByte { offset: 100 }).times(1));
        let flips = |header: &str| {
            let range = RangeHeader::parse(header);
            faults.apply(&Facts { range, ..get("x") }).body.flips
        };
        assert!(flips("bytes=0-99").is_empty());
        assert_eq!(flips("bytes=100-199"), [100]);
        assert!(flips("bytes=100-199").is_empty(), "only once");
    }

    #[test]
    fn the_admin_interface_is_out_of_reach_and_clear_ends_all() {
        let faults = Faults::default();
        let id = faults.add(Rule::new(Action::status(500)));
        let admin = Facts { operation: Operation::Admin, ..get("") };
        assert!(faults.apply(&admin).refusal.is_none());
        assert!(faults.remove(id) && !faults.remove(id));
        faults.add(Rule::new(Action::Archived).object("a*"));
        assert!(faults.archives("models", "abc") && !faults.archives("models", "b"));
        faults.clear();
        assert!(faults.list().is_empty());
    }

    #[test]
    fn a_throttle_spreads_its_rate_over_all_senders() {
        let throttle = Arc::new(Throttle::new(1000));
        let first = throttle.spend(100);
        let second = throttle.spend(100);
        assert!(first <= Duration::from_millis(100));
        assert!(second > first && second <= Duration::from_millis(200), "{second:?}");
    }

    #[test]
    fn a_crowded_throttle_loses_its_rate_to_bodies_beyond_its_number() {
        let throttle = Arc::new(Throttle::crowded(1000, 2));
        let bodies = vec![Arc::clone(&throttle); 2];
        assert!(throttle.spend(100) <= Duration::from_millis(100));
        let more = vec![Arc::clone(&throttle); 2];
        let crowded = throttle.spend(1000);
        assert!(crowded > Duration::from_secs(2) - Duration::from_millis(50), "{crowded:?}");
        drop((bodies, more));
    }

    #[test]
    fn connections_beyond_the_limit_are_hit_until_one_is_closed() {
        let faults = Faults::default();
        faults.add(Rule::new(Action::ConnectionLimit { connections: 1 }));
        let (first, second) = (OpenConnection::default(), OpenConnection::default());
        let hit = |connection: &OpenConnection| {
            faults.apply(&Facts { connection, ..get("x") }).disconnect
        };
        assert_eq!([hit(&first), hit(&second), hit(&first)], [false, true, false]);
        drop(first);
        assert!(!hit(&second));
        assert_eq!(faults.list()[0].hits, 1);
    }
}
