//! Every answer of the webhook endpoint, with its status, body and metric label.

use std::time::Duration;

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
};
use chrono::Utc;
use serde::Serialize;

use crate::{
    headers::{HeaderError, Stale},
    outcome::Outcome,
};

/// The path to configure at Pleo. A refusal of another path names it.
pub const PATH: &str = "/webhooks/pleo";

/// The Retry-After of a 503. Senders wait between one and two times as long.
const RETRY_AFTER: Duration = Duration::from_secs(5);

const PROBLEM_TYPE: &str = "application/problem+json";

const ALLOWED: &str = "POST, OPTIONS";

/// An answer to one request.
#[derive(Debug)]
pub enum Answer {
    /// The event was verified and went through dedup and publishing.
    Processed(Outcome),
    /// A webhook header is missing or malformed.
    BadHeaders(HeaderError),
    /// The body ended early or was badly framed.
    BrokenBody,
    /// The body did not arrive in time.
    SlowBody,
    /// The attempt's timestamp is too old or in the future.
    Stale(Stale),
    /// No configured secret verifies any of the signatures.
    WrongSignature,
    /// The body is larger than this limit, in bytes.
    TooLarge(usize),
    /// The limit of requests in flight is reached.
    Overloaded,
    /// Smaller requests took its memory or its work permit before it was verified.
    CrowdedOut,
    /// The path is not the webhook endpoint.
    WrongPath,
    /// The method is not POST.
    WrongMethod,
    /// An OPTIONS request for the allowed methods.
    Options,
    /// Not HTTP, so actix could not parse it.
    NotHttp,
    /// The request line and headers did not arrive in time.
    SlowHead,
    /// The request line and headers are larger than this limit, in bytes.
    HeadTooLarge(usize),
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
    /// The label of a request whose client disconnected before the answer.
    pub const DISCONNECTED: &'static str = "disconnected";

    /// Every label under which a request is counted.
    pub const METRIC_LABELS: [&'static str; 19] = [
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
        "crowded_out",
        "wrong_path",
        "wrong_method",
        "options",
        "not_http",
        "slow_head",
        "head_too_large",
        Self::DISCONNECTED,
    ];

    /// The answer as a metric label.
    pub fn metric_label(&self) -> &'static str {
        match self {
            Self::Processed(Outcome::Accepted) => "accepted",
            Self::Processed(Outcome::Duplicate(_)) => "duplicate",
            Self::Processed(Outcome::Conflict) => "conflict",
            Self::Processed(Outcome::Unavailable) => "unavailable",
            Self::BadHeaders(_) => "bad_headers",
            Self::BrokenBody => "broken_body",
            Self::SlowBody => "slow_body",
            Self::Stale(_) => "stale",
            Self::WrongSignature => "wrong_signature",
            Self::TooLarge(_) => "too_large",
            Self::Overloaded => "overloaded",
            Self::CrowdedOut => "crowded_out",
            Self::WrongPath => "wrong_path",
            Self::WrongMethod => "wrong_method",
            Self::Options => "options",
            Self::NotHttp => "not_http",
            Self::SlowHead => "slow_head",
            Self::HeadTooLarge(_) => "head_too_large",
        }
    }

    /// The HTTP status. 410, 429, 502 and 504 are never used, because senders disable or throttle
    /// an endpoint for them.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Processed(Outcome::Unavailable) | Self::Overloaded | Self::CrowdedOut => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            // A conflict as well: if it were refused, the sender would retry for a day and then
            // disable the endpoint.
            Self::Processed(_) => StatusCode::ACCEPTED,
            Self::BadHeaders(_) | Self::BrokenBody | Self::NotHttp => StatusCode::BAD_REQUEST,
            Self::SlowBody | Self::SlowHead => StatusCode::REQUEST_TIMEOUT,
            Self::Stale(_) | Self::WrongSignature => StatusCode::UNAUTHORIZED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::WrongPath => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::Options => StatusCode::NO_CONTENT,
            Self::HeadTooLarge(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }

    fn problem(&self) -> Option<Problem> {
        let (title, detail) = self.explanation()?;
        Some(Problem {
            title,
            status: self.status().as_u16(),
            detail,
        })
    }

    /// A short title, and a detail that says what to do.
    fn explanation(&self) -> Option<(&'static str, String)> {
        Some(match self {
            Self::Processed(Outcome::Unavailable) => (
                "not stored",
                "the event could not be made safe just now; send it again".to_owned(),
            ),
            Self::Processed(_) | Self::Options => return None,
            Self::Overloaded => ("too many requests at once", "send it again".to_owned()),
            Self::CrowdedOut => (
                "too large just now",
                "it made room for smaller requests; send it again".to_owned(),
            ),
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
            Self::WrongPath => (
                "nothing is here",
                format!("webhooks are taken at {PATH}, spelled like this"),
            ),
            Self::WrongMethod => (
                "webhooks come as POST",
                "this address takes a signed event by POST and has nothing to show".to_owned(),
            ),
            Self::NotHttp => (
                "not understood",
                "this is no HTTP/1 request that can be read without doubt".to_owned(),
            ),
            Self::SlowHead => (
                "slow request",
                "the request line and the headers did not arrive in time".to_owned(),
            ),
            Self::HeadTooLarge(limit) => (
                "headers too large",
                format!("the request line and the headers may take {limit} bytes"),
            ),
        })
    }

    /// The HTTP response: `{"status":"accepted"}`, `{"status":"duplicate"}` or
    /// `{"status":"conflict"}`, or a problem body.
    pub fn into_response(self) -> HttpResponse {
        let status = self.status();
        let mut response = HttpResponse::build(status);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.insert_header((header::RETRY_AFTER, RETRY_AFTER.as_secs()));
        }
        if matches!(self, Self::WrongMethod | Self::Options) {
            response.insert_header((header::ALLOW, ALLOWED));
        }
        if status == StatusCode::ACCEPTED {
            return response.json(Accepted {
                status: self.metric_label(),
            });
        }
        // Only a request with a good signature keeps its connection: actix applies its header
        // deadline only to the first request of a connection.
        response.force_close();
        match self.problem() {
            None => response.finish(),
            Some(problem) => response.content_type(PROBLEM_TYPE).json(problem),
        }
    }

    /// The response as bytes, for connections on which actix itself answered. It closes the
    /// connection.
    pub fn into_bytes(self) -> Vec<u8> {
        let status = self.status();
        let body = serde_json::to_string(&self.problem()).expect("texts are JSON");
        let date = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
        format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\ncontent-type: {PROBLEM_TYPE}\r\n\
             connection: close\r\ndate: {date}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}
