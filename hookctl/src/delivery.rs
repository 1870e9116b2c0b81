//! A webhook request as its sender makes it: signed by Standard Webhooks, posted, its answer read.

use std::{fmt, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use chrono::Utc;
use http_body_util::Full;
use hyper::{HeaderMap, Request, Response, Uri, header};
use ingest::signature::Key;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::http::{self, Http};

/// Longer than ingest's own deadline, so that its answer arrives.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// How many characters of a body are shown that is not a problem description.
const SHOWN: usize = 200;

/// A signed request.
#[derive(Clone, Debug)]
pub struct Delivery(Request<Full<Bytes>>);

impl Delivery {
    /// A body for `url` under this id, signed for a request at this time (Unix seconds).
    ///
    /// # Errors
    /// When the key cannot sign, or the id cannot be sent in a header.
    pub fn sign(
        key: &Key,
        url: &Uri,
        webhook_id: &str,
        timestamp_s: i64,
        body: impl Into<Bytes>,
    ) -> Result<Self> {
        let body = body.into();
        let signature = key
            .sign(webhook_id, timestamp_s, &body)
            .context("the secret")?;
        let request = Request::post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header("webhook-id", webhook_id)
            .header("webhook-timestamp", timestamp_s)
            .header("webhook-signature", signature)
            .body(Full::new(body))
            .context("not the id of a webhook")?;
        Ok(Self(request))
    }
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// 2xx: the event is safe.
    Accepted,
    /// 2xx: the event was safe already.
    Duplicate,
    /// 2xx: the event is stored as a dead letter, because its id was accepted with another body before.
    Conflict,
    /// Any other status.
    Refused(u16),
    /// No answer: the connection was refused or lost, or it took too long.
    NoAnswer,
}

impl Outcome {
    /// Whether the sender can stop retrying.
    pub fn is_safe(self) -> bool {
        matches!(self, Self::Accepted | Self::Duplicate | Self::Conflict)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted => f.write_str("accepted"),
            Self::Duplicate => f.write_str("duplicate"),
            Self::Conflict => f.write_str("conflict"),
            Self::Refused(status) => write!(f, "refused ({status})"),
            Self::NoAnswer => f.write_str("no answer"),
        }
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::Refused(_) => "refused",
            Self::NoAnswer => "no_answer",
        })
    }
}

/// An answer, or the reason why there is none.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The outcome of the request.
    pub outcome: Outcome,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// Why it was not accepted, from the receiver's answer; empty if it was.
    pub detail: String,
    /// How long the receiver asks to wait before the next request.
    pub retry_after: Option<Duration>,
}

/// Posts requests over connections that stay open. Clones share them.
#[derive(Clone, Debug)]
pub struct Client(Http);

impl Default for Client {
    fn default() -> Self {
        Self(Http::new())
    }
}

impl Client {
    /// Posts a request once and waits for its answer, at most 15 s.
    pub async fn post(&self, delivery: Delivery) -> Answer {
        match self.0.send(delivery.0, ANSWER_WITHIN).await {
            Ok(response) => Answer::read(&response),
            Err(error) => Answer {
                outcome: Outcome::NoAnswer,
                status: None,
                detail: http::reason(&error),
                retry_after: None,
            },
        }
    }
}

impl Answer {
    fn read(response: &Response<Bytes>) -> Self {
        let status = response.status();
        let body: Value = serde_json::from_slice(response.body()).unwrap_or_default();
        let outcome = match body["status"].as_str() {
            _ if !status.is_success() => Outcome::Refused(status.as_u16()),
            Some("duplicate") => Outcome::Duplicate,
            Some("conflict") => Outcome::Conflict,
            // Only the status counts, whatever the body says and whether or not it arrives.
            _ => Outcome::Accepted,
        };
        let detail = match (outcome.is_safe(), body["detail"].as_str()) {
            (true, _) => String::new(),
            (false, Some(detail)) => detail.to_owned(),
            (false, None) => {
                let text = String::from_utf8_lossy(response.body());
                text.chars().take(SHOWN).collect()
            }
        };
        Self {
            outcome,
            status: Some(status.as_u16()),
            detail,
            retry_after: retry_after(response.headers()),
        }
    }
}

/// Only seconds: no known receiver of webhooks sends a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

/// Posts one body, signed with a `whsec_…` secret and the current time, over a connection of its own.
///
/// # Errors
/// When the secret or the address is malformed.
pub async fn post(url: &str, secret: &str, webhook_id: &str, body: &str) -> Result<Answer> {
    let key = Key::parse(secret).context("the secret")?;
    let url: Uri = url.parse().context("the address")?;
    let now = Utc::now().timestamp();
    let delivery = Delivery::sign(&key, &url, webhook_id, now, body.to_owned())?;
    Ok(Client::default().post(delivery).await)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn answer(status: u16, body: &'static str) -> Answer {
        let response = Response::builder()
            .status(status)
            .header("retry-after", "7")
            .body(Bytes::from(body));
        Answer::read(&response.expect("a response"))
    }

    #[rstest]
    #[case(202, r#"{"status":"accepted"}"#, Outcome::Accepted, "")]
    #[case(202, r#"{"status":"duplicate"}"#, Outcome::Duplicate, "")]
    #[case(202, r#"{"status":"conflict"}"#, Outcome::Conflict, "")]
    #[case(200, "", Outcome::Accepted, "")]
    #[case(409, r#"{"title":"t","detail":"why"}"#, Outcome::Refused(409), "why")]
    #[case(502, "bad gateway", Outcome::Refused(502), "bad gateway")]
    #[case(301, "", Outcome::Refused(301), "")]
    fn an_answer_is_classified_by_its_status_first(
        #[case] status: u16,
        #[case] body: &'static str,
        #[case] outcome: Outcome,
        #[case] detail: &str,
    ) {
        let answer = answer(status, body);
        assert_eq!((answer.outcome, &*answer.detail), (outcome, detail));
        assert_eq!(answer.retry_after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn an_id_that_is_no_header_is_refused() {
        let key = Key::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a key");
        let url = Uri::from_static("http://localhost/");
        Delivery::sign(&key, &url, "a\nb", 0, "").expect_err("a line end");
    }
}
