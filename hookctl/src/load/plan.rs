//! What a load consists of. The plan and an event's number determine the event.

use std::time::Duration;

use chrono::Utc;
use hyper::Uri;
use ingest::signature::Key;

use crate::{delivery::Delivery, sample::Sample};

/// What to send, where and how fast.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The address.
    pub url: Uri,
    /// The key that signs.
    pub key: Key,
    /// Requests per second; more than 0.
    pub rate: f64,
    /// The number of requests.
    pub requests: u64,
    /// How many requests are under way at once, each on a connection of its own.
    pub connections: usize,
    /// The share of requests that repeat an earlier event under its id, 0 to 1.
    pub duplicates: f64,
    /// The samples that the events are made from, in turn; not empty.
    pub samples: Vec<Sample>,
    /// Part of every id, so that the events of two loads are never the same.
    pub name: u64,
}

impl Plan {
    /// The prefix of the ids of all its events.
    pub fn id_prefix(&self) -> String {
        format!("msg_load_{:016x}_", self.name)
    }

    /// When a request is due, from the start.
    pub(super) fn due(&self, request: u64) -> Duration {
        Duration::try_from_secs_f64(lossy(request) / self.rate).unwrap_or(Duration::MAX)
    }

    /// An event, signed for now.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub(super) fn delivery(&self, event: u64) -> anyhow::Result<Delivery> {
        let webhook_id = format!("{}{event}", self.id_prefix());
        let now = Utc::now().timestamp();
        Delivery::sign(&self.key, &self.url, &webhook_id, now, self.body(event))
    }

    /// A sample with its own resource and event id, of the same length.
    fn body(&self, event: u64) -> String {
        let which = usize::try_from(event).unwrap_or_default() % self.samples.len();
        self.samples[which].body_with(&uuid(self.name, event), &uuid(!self.name, event))
    }
}

/// How many requests a rate makes in a time, at least one.
pub(super) fn requests(rate: f64, duration: Duration) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "such a cast saturates"
    )]
    let requests = (rate * duration.as_secs_f64()).round() as u64;
    requests.max(1)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts this high are never reached"
)]
pub(super) fn lossy(count: u64) -> f64 {
    count as f64
}

fn uuid(high: u64, low: u64) -> String {
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn plan(name: u64) -> Plan {
        Plan {
            url: Uri::from_static("http://localhost/"),
            key: Key::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a key"),
            rate: 1_000.0,
            requests: 10,
            connections: 1,
            duplicates: 0.0,
            samples: Sample::ALL.into(),
            name,
        }
    }

    #[test]
    fn every_body_is_unique_and_as_long_as_the_sample() {
        let mut bodies = HashSet::new();
        for name in [0, 1, u64::MAX] {
            for event in 0..1_000 {
                let body = plan(name).body(event);
                let which = usize::try_from(event).expect("few") % 2;
                assert_eq!(body.len(), Sample::ALL[which].body.len());
                serde_json::from_str::<serde_json::Value>(&body).expect("JSON");
                assert!(bodies.insert(body));
            }
        }
    }

    #[test]
    fn requests_are_due_at_the_rate() {
        assert_eq!(plan(0).due(0), Duration::ZERO);
        assert_eq!(plan(0).due(2_500), Duration::from_millis(2_500));
        assert_eq!(requests(0.5, Duration::from_secs(10)), 5);
        assert_eq!(requests(0.5, Duration::from_millis(1)), 1);
    }
}
