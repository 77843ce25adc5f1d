//! Statistics of the server: counts by operation and status, bytes, tokens, and the
//! last requests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::auth::Refusal;
use crate::route::Operation;
use crate::sync::Mutex;

/// How many requests are recorded individually.
const RECORDS: usize = 20_000;

/// Counters; reset by tests, never by the server.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    tables: Mutex<Tables>,
    body_bytes: AtomicU64,
    received_bytes: AtomicU64,
    connections: AtomicU64,
    in_flight: AtomicU64,
    in_flight_max: AtomicU64,
    tokens_issued: AtomicU64,
}

#[derive(Debug, Default)]
struct Tables {
    requests: BTreeMap<Operation, BTreeMap<u16, u64>>,
    object_bytes: BTreeMap<String, Arc<AtomicU64>>,
    refusals: BTreeMap<&'static str, u64>,
    records: VecDeque<RequestRecord>,
}

/// One answered request. Carries no credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestRecord {
    /// The operation.
    pub operation: Operation,
    /// HTTP method.
    pub method: String,
    /// The raw path and query.
    pub target: String,
    /// The answer's status.
    pub status: u16,
    /// The Range header.
    pub range: Option<String>,
    /// The If-Match header.
    pub if_match: Option<String>,
    /// Who signed: an API key's `tenancy/user/fingerprint`, a token's subject.
    pub caller: Option<String>,
}

/// A snapshot of the counters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Answered requests by operation and HTTP status.
    pub requests: BTreeMap<Operation, BTreeMap<u16, u64>>,
    /// Bytes of objects sent, all together.
    pub body_bytes: u64,
    /// Bytes of objects and parts received, those of refused and broken uploads included.
    pub received_bytes: u64,
    /// Bytes of objects sent, by `bucket/object`.
    pub object_bytes: BTreeMap<String, u64>,
    /// Connections accepted.
    pub connections: u64,
    /// The most requests that were in progress at once, until the last byte of their bodies.
    pub concurrent_requests_max: u64,
    /// Security tokens issued by federation or by the Rust API.
    pub tokens_issued: u64,
    /// Requests refused because their token had expired.
    pub expired_token_refusals: u64,
    /// Requests refused as not authenticated, by cause.
    pub refusals: BTreeMap<String, u64>,
}

impl Stats {
    /// Answered requests of one operation, whatever their status.
    pub fn requests_of(&self, operation: Operation) -> u64 {
        self.requests.get(&operation).map_or(0, |by_status| by_status.values().sum())
    }

    /// Answered requests of one operation with one status.
    pub fn answered(&self, operation: Operation, status: u16) -> u64 {
        self.requests.get(&operation).and_then(|by_status| by_status.get(&status)).map_or(0, |n| *n)
    }

    /// Bytes of one object that were sent.
    pub fn bytes_of(&self, bucket: &str, object: &str) -> u64 {
        self.object_bytes.get(&format!("{bucket}/{object}")).map_or(0, |bytes| *bytes)
    }
}

impl Counters {
    pub(crate) fn connection_accepted(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes of an upload.
    pub(crate) fn received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn token_issued(&self) {
        self.tokens_issued.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        *self.tables.lock().refusals.entry(refusal.name()).or_default() += 1;
    }

    pub(crate) fn answered(&self, record: RequestRecord) {
        let mut tables = self.tables.lock();
        *tables.requests.entry(record.operation).or_default().entry(record.status).or_default() +=
            1;
        if tables.records.len() == RECORDS {
            tables.records.pop_front();
        }
        tables.records.push_back(record);
    }

    /// Counts a request as in progress until the returned guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.in_flight_max.fetch_max(now, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Where the bytes of one object are counted.
    pub(crate) fn sent_bytes(self: &Arc<Self>, bucket: &str, object: &str) -> SentBytes {
        let mut tables = self.tables.lock();
        let of_object = tables.object_bytes.entry(format!("{bucket}/{object}")).or_default();
        SentBytes { all: Arc::clone(self), of_object: Arc::clone(of_object) }
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let tables = self.tables.lock();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            requests: tables.requests.clone(),
            body_bytes: load(&self.body_bytes),
            received_bytes: load(&self.received_bytes),
            object_bytes: tables
                .object_bytes
                .iter()
                .map(|(name, bytes)| (name.clone(), load(bytes)))
                .collect(),
            connections: load(&self.connections),
            concurrent_requests_max: load(&self.in_flight_max),
            tokens_issued: load(&self.tokens_issued),
            expired_token_refusals: tables
                .refusals
                .get(Refusal::ExpiredToken.name())
                .copied()
                .unwrap_or_default(),
            refusals: tables.refusals.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect(),
        }
    }

    pub(crate) fn records(&self) -> Vec<RequestRecord> {
        self.tables.lock().records.iter().cloned().collect()
    }

    /// Resets all counts; requests in progress stay counted as such.
    pub(crate) fn reset(&self) {
        *self.tables.lock() = Tables::default();
        for counter in
            [&self.body_bytes, &self.received_bytes, &self.connections, &self.tokens_issued]
        {
            counter.store(0, Ordering::Relaxed);
        }
        self.in_flight_max.store(self.in_flight.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// A request in progress.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Counters>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts bytes of one object.
#[derive(Debug)]
pub(crate) struct SentBytes {
    all: Arc<Counters>,
    of_object: Arc<AtomicU64>,
}

impl SentBytes {
    pub(crate) fn add(&self, bytes: u64) {
        self.all.body_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.of_object.fetch_add(bytes, Ordering::Relaxed);
    }
}
