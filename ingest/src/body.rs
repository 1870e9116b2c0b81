//! Reads request bodies. Size, time and memory are limited, and large bodies must keep a minimum
//! rate.

mod memory;

use std::time::Duration;

use actix_web::{HttpRequest, http::header, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use crate::answer::Answer;

pub use memory::{BodyMemory, Full, Share};

/// The limit for a whole body. A client that needs longer for an allowed size is broken or hostile.
const DEADLINE: Duration = Duration::from_secs(10);

/// A body of at most this size has until [`DEADLINE`] without a minimum rate: it takes little
/// memory, and a good sender may have a slow connection.
const SMALL: usize = 64 * 1024;

/// The minimum rate of a larger body: `MIN_BYTES` bytes in each `PERIOD`, until the body ends. TCP
/// retransmits a lost packet within a second or two.
const MIN_BYTES: usize = 16 * 1024;
const PERIOD: Duration = Duration::from_secs(3);

/// The memory for all bodies together. Good senders' bodies have a few kilobytes and are handled
/// within milliseconds, so only unsigned bodies can fill it.
const MEMORY_BUDGET: usize = 64 * 1024 * 1024;

/// Reads the bodies of all requests.
#[derive(Debug)]
pub struct Bodies {
    memory: BodyMemory,
    limit: usize,
}

impl Bodies {
    /// `limit` is the largest body, in bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            memory: BodyMemory::new(MEMORY_BUDGET),
            limit,
        }
    }

    /// Reads the whole body and returns it with its share of the memory.
    ///
    /// # Errors
    /// If the body is too large, too slow or broken, or had to make room for smaller ones.
    pub async fn read(
        &self,
        request: &HttpRequest,
        payload: &mut web::Payload,
    ) -> Result<(Bytes, Share<'_>), Answer> {
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > self.limit) {
            return Err(Answer::TooLarge(self.limit));
        }
        let mut share = self.memory.share();
        let mut body = BytesMut::new();
        let mut pace = Pace::start(announced, Instant::now());
        loop {
            let chunk = tokio::select! {
                biased;
                () = share.revoked() => return Err(Answer::CrowdedOut),
                chunk = timeout_at(pace.due(), payload.next()) => chunk,
            };
            let Some(chunk) = chunk.map_err(|_elapsed| Answer::SlowBody)? else {
                return Ok((body.freeze(), share));
            };
            let chunk = chunk.map_err(|_broken| Answer::BrokenBody)?;
            if body.len() + chunk.len() > self.limit {
                return Err(Answer::TooLarge(self.limit));
            }
            share.grow(chunk.len()).map_err(|Full| Answer::CrowdedOut)?;
            pace.advance(chunk.len(), Instant::now());
            body.extend_from_slice(&chunk);
        }
    }
}

/// Checks that a body arrives fast enough.
#[derive(Debug)]
struct Pace {
    end: Instant,
    /// When the current period ends.
    next: Instant,
    missing: usize,
}

impl Pace {
    /// A body without a Content-Length counts as small until more than [`SMALL`] bytes came.
    fn start(announced: Option<usize>, now: Instant) -> Self {
        let end = now + DEADLINE;
        let (next, missing) = if announced.is_some_and(|length| length > SMALL) {
            (now + PERIOD, MIN_BYTES)
        } else {
            (end, SMALL + 1)
        };
        Self { end, next, missing }
    }

    /// The time by which more of the body must arrive.
    fn due(&self) -> Instant {
        self.next.min(self.end)
    }

    fn advance(&mut self, bytes: usize, now: Instant) {
        self.missing = self.missing.saturating_sub(bytes);
        if self.missing == 0 {
            self.missing = MIN_BYTES;
            self.next = now + PERIOD;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // As docs/siege.md says.
    const SMALL: usize = 65_536;
    const MIN_BYTES: usize = 16_384;

    #[test]
    fn a_large_body_that_stalls_is_due_soon_and_a_steady_one_at_the_deadline() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::start(Some(SMALL + 1), start);
        assert_eq!(pace.due(), after(3));
        pace.advance(MIN_BYTES - 1, after(2));
        assert_eq!(pace.due(), after(3));
        pace.advance(1, after(2));
        assert_eq!(pace.due(), after(5));
        for second in 3..10 {
            pace.advance(MIN_BYTES, after(second));
        }
        assert_eq!(pace.due(), after(10));
    }

    #[test]
    fn a_small_body_is_due_at_the_deadline_and_soon_once_it_is_larger() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        for announced in [None, Some(0), Some(SMALL)] {
            let mut pace = Pace::start(announced, start);
            pace.advance(1, after(1));
            pace.advance(SMALL - 1, after(4));
            assert_eq!(pace.due(), after(10));
            pace.advance(1, after(5));
            assert_eq!(pace.due(), after(8));
        }
    }
}
