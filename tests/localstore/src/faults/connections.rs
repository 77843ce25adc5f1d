//! Which connections a rule lets send requests, where it limits their number.

use std::sync::{Arc, Weak};

use crate::sync::Mutex;

/// A client's connection, until it is dropped. Clones are the same connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenConnection(Arc<()>);

/// The connections that a rule has admitted.
#[derive(Debug)]
pub(super) struct ConnectionSeats {
    most: usize,
    taken: Mutex<Vec<Weak<()>>>,
}

impl ConnectionSeats {
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: Mutex::new(Vec::new()) }
    }

    /// Whether this connection has a seat, or gets one now.
    pub(super) fn take(&self, connection: &OpenConnection) -> bool {
        let connection = Arc::downgrade(&connection.0);
        let mut taken = self.taken.lock();
        taken.retain(|open| open.strong_count() > 0);
        let seated = taken.iter().any(|open| open.ptr_eq(&connection));
        let admitted = seated || taken.len() < self.most;
        if !seated && admitted {
            taken.push(connection);
        }
        admitted
    }
}
