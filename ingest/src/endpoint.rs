//! `POST /webhooks/pleo`: limits, headers, timestamp, body, signature, and only then the stores.

use std::{sync::Arc, time::Duration};

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use bytes::Bytes;
use chrono::Utc;
use shared::{AcceptedEvent, EventType, envelope::Envelope, message};
use tokio::{sync::Semaphore, time::timeout};
use tracing::debug;

use crate::{
    acceptor::Acceptor, answer::Answer, headers::WebhookHeaders, metrics::Metrics, secrets::Secrets,
};

/// The path that Pleo is to be pointed at.
pub const PATH: &str = "/webhooks/pleo";

/// A body of the allowed size that takes longer than this is sent by a broken or hostile client.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// What the endpoint works with.
pub struct Endpoint {
    /// Verifies.
    pub secrets: Secrets,
    /// Dedups and publishes.
    pub acceptor: Acceptor,
    /// Counts.
    pub metrics: Metrics,
    /// A permit for each request that may be handled at once.
    pub in_flight: Arc<Semaphore>,
    /// Bytes.
    pub body_limit: usize,
    /// Between the webhook's timestamp and this server's clock.
    pub timestamp_tolerance: Duration,
}

/// Handles one request.
pub async fn receive(
    endpoint: web::Data<Endpoint>,
    request: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    let metrics = &endpoint.metrics;
    let timer = metrics.request_seconds.start_timer();
    metrics.in_flight.inc();
    let answer = endpoint.handle(&request, payload).await;
    metrics.in_flight.dec();
    timer.observe_duration();
    metrics.answered(&answer);
    answer.into_response()
}

impl Endpoint {
    async fn handle(&self, request: &HttpRequest, payload: web::Payload) -> Answer {
        let Ok(_in_flight) = self.in_flight.try_acquire() else {
            return Answer::Overloaded;
        };
        match self.verify(request, payload).await {
            Ok(event) => Answer::Settled(self.acceptor.accept(event).await),
            Err(refusal) => {
                debug!(outcome = refusal.metric_label(), "refused");
                refusal
            }
        }
    }

    /// Reads and authenticates the request. Nothing is looked up on behalf of a request that fails
    /// here.
    async fn verify(
        &self,
        request: &HttpRequest,
        payload: web::Payload,
    ) -> Result<AcceptedEvent, Answer> {
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
        let body = self.read_body(payload).await?;
        let received_at = Utc::now();
        let secret_name = self
            .secrets
            .verify(&headers, &body)
            .ok_or(Answer::WrongSignature)?;
        self.metrics.secret_matched(secret_name);
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
            secret_name: Some(secret_name.to_owned()),
        })
    }

    async fn read_body(&self, payload: web::Payload) -> Result<Bytes, Answer> {
        match timeout(BODY_DEADLINE, payload.to_bytes_limited(self.body_limit)).await {
            Ok(Ok(Ok(body))) => Ok(body),
            Ok(Ok(Err(_broken))) => Err(Answer::BrokenBody),
            Ok(Err(_limit)) => Err(Answer::TooLarge(self.body_limit)),
            Err(_elapsed) => Err(Answer::SlowBody),
        }
    }
}
