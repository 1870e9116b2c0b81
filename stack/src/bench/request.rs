//! The requests of a benchmark: real vendor events, each unique and signed when it is sent.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use chrono::Utc;
use hookctl::sample::VENDOR;
use ingest::secrets::DEVELOPMENT_SECRET;
use ingest::signature::Key;

/// The prefix of all `webhook-id`s of a benchmark, to count its events.
pub(super) const PREFIX: &str = "bench_";

/// Makes the requests for one address.
#[derive(Debug)]
pub(super) struct Requests {
    head: String,
    key: Key,
    next: AtomicU64,
}

impl Requests {
    /// Requests to `address`.
    pub(super) fn new(address: SocketAddr) -> Result<Self> {
        Ok(Self {
            head: format!(
                "POST /webhooks/pleo HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
            ),
            key: Key::parse(DEVELOPMENT_SECRET)?,
            next: AtomicU64::new(0),
        })
    }

    /// A number that no event has had so far.
    pub(super) fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes the request for an event into the cleared `buffer`.
    pub(super) fn write(&self, number: u64, buffer: &mut Vec<u8>) -> Result<()> {
        let (id, body) = (webhook_id(number), body(number));
        let timestamp = Utc::now().timestamp();
        let signature = self.key.sign(&id, timestamp, body.as_bytes())?;
        buffer.clear();
        write!(
            buffer,
            "{}content-length: {}\r\nwebhook-id: {id}\r\nwebhook-timestamp: {timestamp}\r\n\
             webhook-signature: {signature}\r\n\r\n{body}",
            self.head,
            body.len()
        )?;
        Ok(())
    }
}

/// The body of an event, as long as the sample's.
pub(super) fn body(number: u64) -> String {
    let uuid = format!("{:08x}-0000-4000-8000-{number:012x}", scatter(number) >> 32);
    VENDOR.body_with(&uuid, &uuid)
}

/// The `webhook-id` of an event.
pub(super) fn webhook_id(number: u64) -> String {
    format!("{PREFIX}{:016x}", scatter(number))
}

/// A one-to-one mapping to numbers in random order, like senders' random ids, which are hard on an index.
fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn events_are_unique_and_as_long_as_the_documented_one() {
        let requests = Requests::new(([127, 0, 0, 1], 1).into()).expect("a good key");
        let mut ids = HashSet::new();
        let mut bodies = HashSet::new();
        for _ in 0..1_000 {
            let number = requests.next();
            ids.insert(webhook_id(number));
            let body = body(number);
            assert_eq!(body.len(), VENDOR.body.len());
            bodies.insert(body);
        }
        assert_eq!((ids.len(), bodies.len()), (1_000, 1_000));
    }
}
