//! Every answer that the webhook endpoint can give, with its status, body and metric label.

use std::time::Duration;

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
};
use serde::Serialize;

use crate::{
    acceptor::Outcome,
    headers::{HeaderError, Stale},
};

/// What a sender should wait after a 503; senders honour it within one to two times the delay.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// An answer to one request.
#[derive(Debug)]
pub enum Answer {
    /// The event went through dedup and publishing.
    Settled(Outcome),
    /// Headers missing or malformed.
    BadHeaders(HeaderError),
    /// The body broke off or was badly framed.
    BrokenBody,
    /// The body did not arrive in time.
    SlowBody,
    /// The attempt is too old or from the future.
    Stale(Stale),
    /// No configured secret verifies any of the signatures.
    WrongSignature,
    /// The body is over the limit, given in bytes.
    TooLarge(usize),
    /// As many requests as allowed are being handled.
    Overloaded,
}

#[derive(Serialize)]
struct Accepted {
    status: &'static str,
}

/// A problem body, RFC 9457.
#[derive(Serialize)]
struct Problem {
    title: &'static str,
    status: u16,
    detail: String,
}

impl Answer {
    /// The label of a request whose client left before it was answered.
    pub const DISCONNECTED: &'static str = "disconnected";

    /// Every label under which a request is counted.
    pub const METRIC_LABELS: [&'static str; 12] = [
        "accepted",
        "duplicate",
        "conflict",
        "unavailable",
        "bad_headers",
        "broken_body",
        "slow_body",
        "stale",
        "wrong_signature",
        "too_large",
        "overloaded",
        Self::DISCONNECTED,
    ];

    /// The answer as a metric label.
    pub fn metric_label(&self) -> &'static str {
        match self {
            Self::Settled(Outcome::Accepted) => "accepted",
            Self::Settled(Outcome::Duplicate(_)) => "duplicate",
            Self::Settled(Outcome::Conflict) => "conflict",
            Self::Settled(Outcome::Unavailable) => "unavailable",
            Self::BadHeaders(_) => "bad_headers",
            Self::BrokenBody => "broken_body",
            Self::SlowBody => "slow_body",
            Self::Stale(_) => "stale",
            Self::WrongSignature => "wrong_signature",
            Self::TooLarge(_) => "too_large",
            Self::Overloaded => "overloaded",
        }
    }

    /// The HTTP status. 410, 429, 502 and 504 are never given: senders disable or throttle an
    /// endpoint for them.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Settled(Outcome::Accepted | Outcome::Duplicate(_)) => StatusCode::ACCEPTED,
            Self::Settled(Outcome::Conflict) => StatusCode::CONFLICT,
            Self::Settled(Outcome::Unavailable) | Self::Overloaded => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::BadHeaders(_) | Self::BrokenBody => StatusCode::BAD_REQUEST,
            Self::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Self::Stale(_) | Self::WrongSignature => StatusCode::UNAUTHORIZED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }

    /// What happened, in a few words, and what to do about it.
    fn problem(&self) -> Option<(&'static str, String)> {
        Some(match self {
            Self::Settled(Outcome::Accepted | Outcome::Duplicate(_)) => return None,
            Self::Settled(Outcome::Conflict) => (
                "webhook id reused",
                "this webhook id was accepted before with another body; send a new event under \
                 a new id"
                    .to_owned(),
            ),
            Self::Settled(Outcome::Unavailable) => (
                "not stored",
                "the event could not be made safe just now; send it again".to_owned(),
            ),
            Self::Overloaded => ("too many requests at once", "send it again".to_owned()),
            Self::BadHeaders(error) => ("bad webhook headers", error.to_string()),
            Self::BrokenBody => (
                "broken body",
                "the body ended early or is badly framed".to_owned(),
            ),
            Self::SlowBody => ("slow body", "the body did not arrive in time".to_owned()),
            Self::Stale(error) => (
                "stale timestamp",
                format!("{error}; sign each attempt afresh, and check both clocks"),
            ),
            Self::WrongSignature => (
                "wrong signature",
                "no configured secret verifies it over `id.timestamp.body`; check that the \
                 endpoint's secret is configured here and that nothing in between changes the body"
                    .to_owned(),
            ),
            Self::TooLarge(limit) => (
                "body too large",
                format!("the limit is {limit} bytes (BODY_LIMIT)"),
            ),
        })
    }

    /// The HTTP response: `{"status":"accepted"}` or `{"status":"duplicate"}`, or a problem body.
    pub fn into_response(self) -> HttpResponse {
        let status = self.status();
        let mut response = HttpResponse::build(status);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.insert_header((header::RETRY_AFTER, RETRY_AFTER.as_secs()));
        }
        match self.problem() {
            None => response.json(Accepted {
                status: self.metric_label(),
            }),
            Some((title, detail)) => {
                response
                    // Only who has shown a good signature may keep a connection: actix guards the
                    // headers of its first request with a deadline, and of later ones not.
                    .force_close()
                    .content_type("application/problem+json")
                    .json(Problem {
                        title,
                        status: status.as_u16(),
                        detail,
                    })
            }
        }
    }
}
