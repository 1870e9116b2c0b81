//! Ids answered a moment ago, so that a burst of repetitions costs no query.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quick_cache::sync::Cache;

/// Repetitions of older ones cost a query.
const CAPACITY: usize = 8_192;

/// Short, as this knows nothing of a queue that was purged since.
const LIFE: Duration = Duration::from_secs(30);

/// The bodies' hashes by `webhook-id`. Clones are the same memory.
#[derive(Clone)]
pub struct Recent(Arc<Cache<String, Answered>>);

#[derive(Clone, Copy)]
struct Answered {
    body_sha256: [u8; 32],
    at: Instant,
}

impl Default for Recent {
    fn default() -> Self {
        Self(Arc::new(Cache::new(CAPACITY)))
    }
}

impl Recent {
    /// The hash of the body that was answered 2xx under this id.
    pub fn get(&self, webhook_id: &str) -> Option<[u8; 32]> {
        let answered = self.0.get(webhook_id)?;
        (answered.at.elapsed() < LIFE).then_some(answered.body_sha256)
    }

    /// Remembers what was just answered 2xx.
    pub fn insert(&self, webhook_id: String, body_sha256: [u8; 32]) {
        let at = Instant::now();
        self.0.insert(webhook_id, Answered { body_sha256, at });
    }
}
