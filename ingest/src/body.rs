//! Reads bodies: within a size and a time, large ones at a minimum rate, and in memory that all share.

mod memory;

use std::time::Duration;

use actix_web::{HttpRequest, http::header, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use crate::answer::Answer;

pub use memory::{BodyMemory, Full, Share};

/// A body of the allowed size that takes longer than this is sent by a broken or hostile client.
const DEADLINE: Duration = Duration::from_secs(10);

/// A body of at most this many bytes has until [`DEADLINE`], at any rate: it takes little memory, and a
/// good sender may have a slow line.
const SMALL: usize = 64 * 1024;

/// So many bytes of a larger one have to come in each such time, unless it ends before. A sender whose
/// packet is lost sends it again within a second or two.
const LEAST: usize = 16 * 1024;
const WITHIN: Duration = Duration::from_secs(3);

/// Bytes of bodies that may be in memory at once. Senders' bodies have a few kilobytes and are handled
/// within milliseconds, so only unsigned bodies add up.
const BUDGET: usize = 64 * 1024 * 1024;

/// What reads the bodies of all requests.
#[derive(Debug)]
pub struct Bodies {
    memory: BodyMemory,
    limit: usize,
}

impl Bodies {
    /// `limit` is the most bytes of one body.
    pub fn new(limit: usize) -> Self {
        Self {
            memory: BodyMemory::new(BUDGET),
            limit,
        }
    }

    /// The whole body, and its share of the memory.
    ///
    /// # Errors
    /// When it is too large, too slow, broken, or had to make room for smaller ones.
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

/// Whether a body comes fast enough.
#[derive(Debug)]
struct Pace {
    end: Instant,
    /// Until when the missing bytes have to be there.
    next: Instant,
    missing: usize,
}

impl Pace {
    /// A body without an announced length is small until more has come.
    fn start(announced: Option<usize>, now: Instant) -> Self {
        let end = now + DEADLINE;
        let (next, missing) = if announced.is_some_and(|length| length > SMALL) {
            (now + WITHIN, LEAST)
        } else {
            (end, SMALL + 1)
        };
        Self { end, next, missing }
    }

    /// When the body is too slow, unless more of it comes.
    fn due(&self) -> Instant {
        self.next.min(self.end)
    }

    fn advance(&mut self, bytes: usize, now: Instant) {
        self.missing = self.missing.saturating_sub(bytes);
        if self.missing == 0 {
            self.missing = LEAST;
            self.next = now + WITHIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_body_that_stalls_is_due_soon_and_a_steady_one_at_the_deadline() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::start(Some(SMALL + 1), start);
        assert_eq!(pace.due(), after(3));
        pace.advance(LEAST - 1, after(2));
        assert_eq!(pace.due(), after(3));
        pace.advance(1, after(2));
        assert_eq!(pace.due(), after(5));
        for second in 3..10 {
            pace.advance(LEAST, after(second));
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
