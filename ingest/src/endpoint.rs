//! `POST /webhooks/pleo`: limits, headers, timestamp, body, signature, and only then the stores.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, header},
    web,
};
use bytes::{Bytes, BytesMut};
use chrono::Utc;
use futures_util::StreamExt;
use shared::{AcceptedEvent, EventType, envelope::Envelope, message};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, timeout},
};
use tracing::debug;

use crate::{
    acceptor::{Acceptor, Outcome},
    answer::Answer,
    headers::WebhookHeaders,
    metrics::Metrics,
    secrets::Secrets,
    unread::{self, HoldingUnread},
};

/// The path that Pleo is to be pointed at.
pub const PATH: &str = "/webhooks/pleo";

/// As people and proxies write it as well.
const PATH_AS_FOLDER: &str = "/webhooks/pleo/";

/// A body of the allowed size that takes longer than this is sent by a broken or hostile client.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of bodies that may be in memory at once. Senders' bodies are a few kilobytes and gone in
/// milliseconds; what adds up is what nobody signed.
const BODIES_IN_MEMORY: usize = 64 * 1024 * 1024;

/// What the endpoint works with.
pub struct Endpoint {
    secrets: watch::Receiver<Secrets>,
    metrics: Metrics,
    in_flight: Semaphore,
    body_bytes: Semaphore,
    body_limit: usize,
    timestamp_tolerance: Duration,
}

/// What there is on the public port.
pub fn routes(config: &mut web::ServiceConfig) {
    let webhooks = web::resource([PATH, PATH_AS_FOLDER])
        .route(web::post().to(receive))
        .route(
            web::method(Method::OPTIONS)
                .to(|endpoint, unread| refuse(Answer::Options, endpoint, unread)),
        )
        .default_service(web::to(|endpoint, unread| {
            refuse(Answer::WrongMethod, endpoint, unread)
        }));
    config
        .service(webhooks)
        .default_service(web::to(|endpoint, unread| {
            refuse(Answer::WrongPath, endpoint, unread)
        }));
}

/// Answers a request for what is not here.
async fn refuse(
    answer: Answer,
    endpoint: web::Data<Endpoint>,
    unread: web::Payload,
) -> HttpResponse<HoldingUnread> {
    let handling = Handling::start(&endpoint.metrics);
    debug!(outcome = answer.metric_label(), "refused");
    handling.finish(&answer);
    unread::hold(answer.into_response(), unread)
}

/// Handles one request.
async fn receive(
    endpoint: web::Data<Endpoint>,
    acceptor: web::Data<Acceptor>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> HttpResponse<HoldingUnread> {
    let handling = Handling::start(&endpoint.metrics);
    let answer = endpoint.handle(&request, &mut payload, &acceptor).await;
    handling.finish(&answer);
    unread::hold(answer.into_response(), payload)
}

/// Counts a request, also one whose client leaves in the middle.
struct Handling<'m> {
    metrics: &'m Metrics,
    started: Instant,
    label: &'static str,
}

impl<'m> Handling<'m> {
    fn start(metrics: &'m Metrics) -> Self {
        metrics.in_flight.inc();
        Self {
            metrics,
            started: Instant::now(),
            label: Answer::DISCONNECTED,
        }
    }

    fn finish(mut self, answer: &Answer) {
        self.label = answer.metric_label();
        if let Answer::Settled(Outcome::Duplicate(layer)) = answer {
            self.metrics.duplicate(*layer);
        }
    }
}

impl Drop for Handling<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        self.metrics.answered(self.label, self.started.elapsed());
    }
}

impl Endpoint {
    /// `body_limit` is in bytes; of verified events, at most `in_flight_limit` are settled at once.
    pub fn new(
        secrets: watch::Receiver<Secrets>,
        metrics: Metrics,
        in_flight_limit: usize,
        body_limit: usize,
        timestamp_tolerance: Duration,
    ) -> Self {
        metrics
            .in_flight_limit
            .set(i64::try_from(in_flight_limit).unwrap_or(i64::MAX));
        Self {
            secrets,
            metrics,
            in_flight: Semaphore::new(in_flight_limit),
            body_bytes: Semaphore::new(BODIES_IN_MEMORY),
            body_limit,
            timestamp_tolerance,
        }
    }

    async fn handle(
        &self,
        request: &HttpRequest,
        payload: &mut web::Payload,
        acceptor: &Acceptor,
    ) -> Answer {
        match self.verify_and_settle(request, payload, acceptor).await {
            Ok(outcome) => Answer::Settled(outcome),
            Err(refusal) => {
                debug!(outcome = refusal.metric_label(), "refused");
                refusal
            }
        }
    }

    async fn verify_and_settle(
        &self,
        request: &HttpRequest,
        payload: &mut web::Payload,
        acceptor: &Acceptor,
    ) -> Result<Outcome, Answer> {
        let headers = self.read_headers(request)?;
        let (body, _memory) = self.read_body(request, payload).await?;
        let event = self.verify(&headers, body)?;
        // Only now: requests that nobody signed must not use up the places of those that are.
        let _place = self
            .in_flight
            .try_acquire()
            .map_err(|_full| Answer::Overloaded)?;
        Ok(acceptor.accept(event).await)
    }

    fn read_headers(&self, request: &HttpRequest) -> Result<WebhookHeaders, Answer> {
        let headers = WebhookHeaders::parse(|name| {
            request
                .headers()
                .get_all(name)
                .map(header::HeaderValue::as_bytes)
        })
        .map_err(Answer::BadHeaders)?;
        headers
            .check_fresh(Utc::now(), self.timestamp_tolerance)
            .map_err(Answer::Stale)?;
        Ok(headers)
    }

    /// The whole body, and its share of the memory that bodies may take.
    async fn read_body(
        &self,
        request: &HttpRequest,
        payload: &mut web::Payload,
    ) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Answer> {
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > self.body_limit) {
            return Err(Answer::TooLarge(self.body_limit));
        }
        let read = async {
            let mut body = BytesMut::new();
            let mut memory: Option<SemaphorePermit<'_>> = None;
            while let Some(chunk) = payload.next().await {
                let chunk = chunk.map_err(|_broken| Answer::BrokenBody)?;
                if body.len() + chunk.len() > self.body_limit {
                    return Err(Answer::TooLarge(self.body_limit));
                }
                let bytes = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
                let share = self
                    .body_bytes
                    .try_acquire_many(bytes)
                    .map_err(|_full| Answer::Overloaded)?;
                match &mut memory {
                    Some(memory) => memory.merge(share),
                    None => memory = Some(share),
                }
                body.extend_from_slice(&chunk);
            }
            Ok((body.freeze(), memory))
        };
        timeout(BODY_DEADLINE, read)
            .await
            .unwrap_or(Err(Answer::SlowBody))
    }

    /// Authenticates. Nothing is looked up on behalf of a request that fails here.
    fn verify(&self, headers: &WebhookHeaders, body: Bytes) -> Result<AcceptedEvent, Answer> {
        let received_at = Utc::now();
        let secret_name = self.matching_secret(headers, &body)?;
        // A signed body that is no Pleo event is kept: refusing it would make the sender repeat it
        // for a day and then disable the endpoint.
        let event_type =
            Envelope::parse(&body).map_or_else(|_| EventType::unknown(), |e| e.event_type);
        Ok(AcceptedEvent {
            webhook_id: headers.id().to_owned(),
            event_type,
            body_sha256: message::body_sha256(&body),
            body,
            received_at,
            attempted_at: Some(headers.timestamp()),
            secret_name: Some(secret_name),
        })
    }

    /// The name of the secret that verifies the webhook, counted before the list can be replaced, as
    /// the names that are gone leave the metric right after.
    fn matching_secret(&self, headers: &WebhookHeaders, body: &[u8]) -> Result<String, Answer> {
        let secrets = self.secrets.borrow();
        let name = secrets
            .verify(headers, body)
            .ok_or(Answer::WrongSignature)?;
        self.metrics.secret_matched(name);
        Ok(name.to_owned())
    }
}
