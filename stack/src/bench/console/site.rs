//! A running console, and how long its answers take.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Client, Url};
use tokio::time::{Instant, sleep};

use super::Page;
use super::pages::{self, ADDRESSES, Promise};

/// Receipts are looked at slice by slice, some hundred thousand a minute.
const KNOWN_WITHIN: Duration = Duration::from_secs(3_600);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a page says that was not looked for to the end.
const STOPPED: &str = "and then stopped";
/// What the list of events says that could not be made, although its status is 200.
const FAILED: &str = "Postgres took too long";

/// A console, by its public address.
#[derive(Debug)]
pub(super) struct Site {
    client: Client,
    url: Url,
}

/// One answer.
struct Answer {
    took: Duration,
    /// Of a file only its beginning.
    text: String,
}

impl Site {
    pub(super) fn new(address: SocketAddr) -> Result<Self> {
        Ok(Self {
            client: Client::new(),
            url: format!("http://{address}/").parse()?,
        })
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// Waits until the overview has counted everything once, after which it looks less often.
    pub(super) async fn until_known(&self) -> Result<()> {
        let end = Instant::now() + KNOWN_WITHIN;
        loop {
            let overview = self.ask(&self.url, Promise::Page).await?.text;
            let unknown = [
                "not counted yet",
                "at least",
                "appear here",
                "Nothing is known",
            ];
            if overview.contains("Open dead letters")
                && !unknown.iter().any(|words| overview.contains(words))
            {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "the console does not know its figures within {KNOWN_WITHIN:?}"
            );
            sleep(LOOK_EVERY).await;
        }
    }

    /// Asks for a page again and again, by all of its addresses.
    pub(super) async fn measure(&self, page: &pages::Page, requests: u32) -> Result<Page> {
        let addresses = || page.addresses.iter().cycle();
        for address in addresses().take(ADDRESSES) {
            self.ask(address, page.promise).await?;
        }
        let (mut took, mut stopped) = (Vec::new(), 0_u32);
        for address in addresses().take(requests as usize) {
            let answer = self.ask(address, page.promise).await?;
            took.push(answer.took.as_secs_f64() * 1_000.0);
            stopped += u32::from(answer.text.contains(STOPPED));
        }
        took.sort_by(f64::total_cmp);
        let promise_ms = page.promise.p95_ms();
        let p95_ms = percentile(&took, 95);
        Ok(Page {
            name: page.name.clone(),
            p50_ms: percentile(&took, 50),
            p95_ms,
            max_ms: percentile(&took, 100),
            promise_ms,
            is_kept: p95_ms <= promise_ms,
            stopped: f64::from(stopped) / f64::from(requests),
        })
    }

    /// Asks once. The answer must be a page, and one that could be made.
    async fn ask(&self, address: &Url, promise: Promise) -> Result<Answer> {
        let started = Instant::now();
        let answer = self.client.get(address.clone()).send().await;
        let mut answer = answer.with_context(|| format!("no answer from {address}"))?;
        let status = answer.status();
        let body = match promise {
            Promise::FirstByte => answer.chunk().await?.unwrap_or_default(),
            Promise::Page | Promise::LongSearch => answer.bytes().await?,
        };
        let took = started.elapsed();
        let text = String::from_utf8_lossy(&body).into_owned();
        ensure!(status == 200, "{address} is answered {status}: {text}");
        ensure!(!text.contains(FAILED), "{address}: {FAILED}");
        Ok(Answer { took, text })
    }
}

/// Of sorted figures, the least that so many of a hundred are not above.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(place).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn a_percentile_is_the_least_that_so_many_are_not_above() {
        let figures: Vec<f64> = (1..=200).map(f64::from).collect();
        let at = |percent| percentile(&figures, percent);
        assert_eq!((at(50), at(95), at(100)), (100.0, 190.0, 200.0));
        assert_eq!(percentile(&[7.0], 50), 7.0);
        assert!(percentile(&[], 95).is_nan());
    }
}
