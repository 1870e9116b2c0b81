//! What went wrong with a page, and the page that says so.

use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use askama::Template;
use thiserror::Error;

use crate::{
    frame::{Frame, Section},
    store::StoreError,
};

/// Why a page cannot be shown.
#[derive(Clone, Debug, Error)]
pub enum PageError {
    /// There is nothing at this address, or nothing of this id.
    #[error("{0}")]
    NotFound(&'static str),
    /// The address says something that cannot be meant.
    #[error("{0}")]
    BadAddress(String),
    /// The request comes from another site, or for another host than this one.
    #[error("{0}")]
    Forbidden(&'static str),
    /// Only operators do this.
    #[error("Only operators may do this.")]
    NotOperator,
    /// Nobody can act here.
    #[error("Nobody can act here: the console has no account for it (OPERATOR_DATABASE_URL).")]
    NoOperatorAccount,
    /// Some of it was done at most.
    #[error("{0}")]
    NotDone(String),
    /// An action would take others than were shown.
    #[error("Meanwhile others match than were shown. Nothing was changed.")]
    Changed,
    /// Too many tries.
    #[error("Too many sign-ins have failed. Try again in a minute.")]
    TooManyTries,
    /// Too many live views.
    #[error("Too many live views are open.")]
    TooManyViews,
    /// Postgres gave nothing.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The page itself failed.
    #[error("This page could not be made: {0}")]
    Template(String),
}

impl From<askama::Error> for PageError {
    fn from(error: askama::Error) -> Self {
        Self::Template(error.to_string())
    }
}

impl ResponseError for PageError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::BadAddress(_) => StatusCode::BAD_REQUEST,
            Self::Forbidden(_) | Self::NotOperator => StatusCode::FORBIDDEN,
            Self::Changed => StatusCode::CONFLICT,
            Self::NoOperatorAccount | Self::NotDone(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooManyTries => StatusCode::TOO_MANY_REQUESTS,
            Self::TooManyViews => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store(StoreError::TooSlow) => StatusCode::GATEWAY_TIMEOUT,
            Self::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Template(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if matches!(self, Self::TooManyTries) {
            response.insert_header((header::RETRY_AFTER, "60"));
        }
        response
            .content_type("text/plain; charset=utf-8")
            .body(self.to_string())
    }
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage {
    frame: Frame,
    heading: &'static str,
    what: String,
    advice: &'static str,
}

impl PageError {
    /// The error as a page.
    pub fn page(&self, request: &HttpRequest) -> HttpResponse {
        let (heading, advice) = self.words();
        let page = ErrorPage {
            frame: Frame::new(request, heading, Section::None),
            heading,
            what: self.to_string(),
            advice,
        };
        let mut response = self.error_response();
        if let Ok(html) = page.render() {
            response = response.set_body(html).map_into_boxed_body();
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                header::HeaderValue::from_static("text/html; charset=utf-8"),
            );
        }
        response
    }

    /// A heading, and what to do.
    fn words(&self) -> (&'static str, &'static str) {
        match self {
            Self::NotFound(_) => (
                "Not found",
                "Check the address. An event may also have been swept: see EVENT_RETENTION of the other-worker.",
            ),
            Self::BadAddress(_) => (
                "This address cannot be read",
                "Go back and change what you filled in.",
            ),
            Self::Forbidden(_) => (
                "Refused",
                "Open the console by its own address and try again.",
            ),
            Self::NotOperator => (
                "Refused",
                "Ask for the role operator: in USERS_FILE, or in OPERATORS behind a proxy.",
            ),
            Self::NoOperatorAccount => (
                "Nobody can act here",
                "Set OPERATOR_DATABASE_URL to the account console-operator that hookctl setup makes, or use \
                 hookctl.",
            ),
            Self::NotDone(_) => (
                "It was not done",
                "What was done before is in the record. Go back and do the rest.",
            ),
            Self::Changed => (
                "It was not done",
                "Go back, load the page again and look at what is to be changed now.",
            ),
            Self::TooManyTries => ("Too many tries", "Everybody else can still sign in."),
            Self::TooManyViews => (
                "Too many live views",
                "Close one, or load the list again to see what is new.",
            ),
            Self::Store(StoreError::TooSlow) => (
                "Postgres took too long",
                "Narrow the time range, or try again when Postgres has less to do.",
            ),
            Self::Store(StoreError::Away(_)) => (
                "Postgres is away",
                "Events are still accepted while RabbitMQ is there. The overview shows what was known last. \
                 Try this page again when Postgres is back; hookctl doctor finds what is wrong.",
            ),
            Self::Store(_) => (
                "Postgres refused this",
                "hookctl doctor finds what is wrong with the account.",
            ),
            Self::Template(_) => ("This page failed", "Please report this."),
        }
    }
}
