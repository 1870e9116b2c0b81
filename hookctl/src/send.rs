//! `hookctl send`: sends signed events as Pleo does.

use std::{
    io::{self, Read},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use hyper::Uri;
use ingest::signature::Key;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    delivery::{Answer, Client, Delivery, Outcome},
    http::UrlParser,
    output::{OutputArgs, Row},
    sample::{self, Sample},
    secrets::SigningArgs,
    verdict::{Verdict, WrongSettings},
};

/// The wait between requests if the receiver asks for no other time: doubled from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// If a receiver asks for more, there is no retry: an earlier one would be impolite, and nobody waits that
/// long.
const MOST_PATIENCE: Duration = Duration::from_secs(300);

/// Send signed events to an ingest service.
///
/// Without --type or --body it sends the two events that Pleo documents, each under a new
/// webhook-id.
///
/// Exit codes: 0 all are safe, 2 wrong settings, 3 some were refused or not answered.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where to
    #[arg(long, default_value = "http://127.0.0.1:8080/webhooks/pleo", value_parser = UrlParser)]
    pub url: Uri,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub signing: SigningArgs,

    /// The sample of this type: v1.export-job.created or v1.vendor.created
    #[arg(long = "type", value_name = "TYPE", value_parser = Sample::parse)]
    pub sample: Option<Sample>,

    /// A file with the body to send instead, byte for byte; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "sample")]
    pub body: Option<PathBuf>,

    /// The webhook-id [default: a new one for each event]
    #[arg(long)]
    pub id: Option<String>,

    /// How often to send each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,

    /// Sign for a time before (-10m) or after (+10m) now
    #[arg(long, value_name = "OFFSET", default_value = "+0s", value_parser = parse_offset, allow_hyphen_values = true)]
    pub at: TimeDelta,

    /// Try again up to so many times what was refused with 408, 429 or 5xx, or not answered
    #[arg(long, value_name = "TIMES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000))]
    pub retry: u32,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,
}

/// The result for one event.
#[derive(Debug, Serialize)]
struct Sent {
    webhook_id: String,
    #[serde(rename = "type")]
    what: String,
    outcome: Outcome,
    status: Option<u16>,
    detail: String,
    attempts: u32,
    /// From the first request to the last answer.
    took_ms: u64,
}

impl Row for Sent {
    const HEADER: &'static [&'static str] =
        &["webhook-id", "event", "answer", "attempts", "took", "why"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.webhook_id.clone(),
            self.what.clone(),
            match self.status {
                Some(status) if self.outcome.is_safe() => format!("{status} {}", self.outcome),
                _ => self.outcome.to_string(),
            },
            self.attempts.to_string(),
            format!("{} ms", self.took_ms),
            self.detail.clone(),
        ]
    }
}

/// Runs the subcommand.
pub async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let key = args.signing.key().map_err(WrongSettings::new)?;
    let events = args.events().map_err(WrongSettings::new)?;
    let client = Client::default();
    let mut sent = Vec::new();
    for _ in 0..args.count {
        for (what, body) in &events {
            let webhook_id = args.id.clone().unwrap_or_else(sample::new_webhook_id);
            sent.push(args.deliver(&client, &key, webhook_id, what, body).await?);
        }
    }
    args.output.print_rows(&sent)?;
    Ok(Verdict::of(sent.iter().all(|sent| sent.outcome.is_safe())))
}

impl Args {
    /// What to send, each with a name for people.
    fn events(&self) -> anyhow::Result<Vec<(String, Bytes)>> {
        let sample = |sample: Sample| (sample.event_type.to_owned(), sample.body.into());
        Ok(match (&self.body, self.sample) {
            (Some(path), _) if path.as_os_str() == "-" => {
                vec![("standard input".to_owned(), read(path)?)]
            }
            (Some(path), _) => vec![(path.display().to_string(), read(path)?)],
            (None, Some(one)) => vec![sample(one)],
            (None, None) => Sample::ALL.map(sample).into(),
        })
    }

    async fn deliver(
        &self,
        client: &Client,
        key: &Key,
        webhook_id: String,
        what: &str,
        body: &Bytes,
    ) -> anyhow::Result<Sent> {
        let started = Instant::now();
        let mut attempts = 0;
        let answer = loop {
            // Each request is signed again, because its timestamp has to be recent.
            let timestamp_s = (Utc::now() + self.at).timestamp();
            let delivery = Delivery::sign(key, &self.url, &webhook_id, timestamp_s, body.clone())
                .map_err(WrongSettings::new)?;
            let answer = client.post(delivery).await;
            let pause = pause(&answer, attempts);
            attempts += 1;
            match pause {
                Some(pause) if attempts <= self.retry => sleep(pause).await,
                _ => break answer,
            }
        };
        Ok(Sent {
            webhook_id,
            what: what.to_owned(),
            outcome: answer.outcome,
            status: answer.status,
            detail: answer.detail,
            attempts,
            took_ms: started.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
        })
    }
}

/// How long to wait before the next request, after this many; `None` if another one makes no sense.
fn pause(answer: &Answer, attempts_before: u32) -> Option<Duration> {
    if !matches!(
        answer.outcome,
        Outcome::NoAnswer | Outcome::Refused(408 | 429 | 500..)
    ) {
        return None;
    }
    let own = FIRST_PAUSE.saturating_mul(1 << attempts_before.min(10));
    match answer.retry_after {
        Some(asked) => (asked <= MOST_PATIENCE).then_some(asked),
        None => Some(own.min(LONGEST_PAUSE)),
    }
}

fn read(path: &PathBuf) -> anyhow::Result<Bytes> {
    let body = if path.as_os_str() == "-" {
        let mut body = Vec::new();
        io::stdin().lock().read_to_end(&mut body).map(|_| body)
    } else {
        std::fs::read(path)
    };
    let body = body.with_context(|| format!("cannot read the body from {}", path.display()))?;
    Ok(body.into())
}

/// A duration with a sign.
fn parse_offset(text: &str) -> Result<TimeDelta, String> {
    let (sign, length) = match text.strip_prefix('-') {
        Some(length) => (-1, length),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let length = humantime::parse_duration(length)
        .map_err(|error| format!("{error}; write it as -10m or +30s"))?;
    let length = TimeDelta::from_std(length).map_err(|error| error.to_string())?;
    // Time itself would end first.
    if length > TimeDelta::days(365_000) {
        return Err("must be less than a thousand years".to_owned());
    }
    Ok(length * sign)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Outcome::Refused(503), Some(7), 0, Some(7))]
    #[case(Outcome::Refused(503), Some(301), 0, None)]
    #[case(Outcome::Refused(503), None, 0, Some(1))]
    #[case(Outcome::NoAnswer, None, 3, Some(8))]
    #[case(Outcome::NoAnswer, None, 40, Some(30))]
    #[case(Outcome::Refused(401), Some(7), 0, None)]
    #[case(Outcome::Accepted, None, 0, None)]
    fn another_attempt_waits_as_asked_and_only_where_it_may_help(
        #[case] outcome: Outcome,
        #[case] retry_after_s: Option<u64>,
        #[case] attempts_before: u32,
        #[case] expected_s: Option<u64>,
    ) {
        let answer = Answer {
            outcome,
            status: None,
            detail: String::new(),
            retry_after: retry_after_s.map(Duration::from_secs),
        };
        let expected = expected_s.map(Duration::from_secs);
        assert_eq!(pause(&answer, attempts_before), expected);
    }

    #[rstest]
    #[case("-10m", Ok(-600))]
    #[case("+30s", Ok(30))]
    #[case("1h", Ok(3_600))]
    #[case("yesterday", Err(()))]
    #[case("-2000years", Err(()))]
    fn offsets_have_a_sign_and_a_unit(#[case] text: &str, #[case] seconds: Result<i64, ()>) {
        let parsed = parse_offset(text);
        assert_eq!(
            parsed.map(|delta| delta.num_seconds()).map_err(drop),
            seconds
        );
    }
}
