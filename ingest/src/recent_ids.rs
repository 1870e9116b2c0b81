//! Recently answered ids, so that a burst of repetitions needs no query. It only saves work:
//! receipts decide about duplicates.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quick_cache::sync::Cache;

/// The number of ids; the repetition of an older id needs a query.
const CAPACITY: usize = 8_192;

/// Short, because this memory does not notice if the queue is purged.
const LIFE: Duration = Duration::from_secs(30);

/// The hashes of bodies by `webhook-id`. Clones share the memory.
#[derive(Clone)]
pub struct RecentIds(Arc<Cache<String, Answered>>);

#[derive(Clone, Copy)]
struct Answered {
    body_sha256: [u8; 32],
    at: Instant,
}

impl Default for RecentIds {
    fn default() -> Self {
        Self(Arc::new(Cache::new(CAPACITY)))
    }
}

impl RecentIds {
    /// The hash of the body that was answered 2xx under this id.
    pub fn get(&self, webhook_id: &str) -> Option<[u8; 32]> {
        let answered = self.0.get(webhook_id)?;
        (answered.at.elapsed() < LIFE).then_some(answered.body_sha256)
    }

    /// Remembers an event that was just answered 2xx.
    pub fn insert(&self, webhook_id: String, body_sha256: [u8; 32]) {
        let at = Instant::now();
        self.0.insert(webhook_id, Answered { body_sha256, at });
    }
}
