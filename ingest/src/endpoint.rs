//! `POST /webhooks/pleo`: checks headers, timestamp, body and signature, in this order, before any
//! store is asked.

use std::{sync::Arc, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, header},
    web,
};
use chrono::Utc;
use shared::{AcceptedEvent, EventType, envelope::Envelope, message};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tracing::debug;

use crate::{
    answer::{Answer, PATH},
    batcher::Submitter,
    body::Bodies,
    headers::WebhookHeaders,
    metrics::Metrics,
    outcome::Outcome,
    secrets::Secrets,
    unread_body::{self, WithUnreadBody},
    verifier::{Signer, Verifier, Webhook},
};

/// Also accepted, because people and proxies add the slash.
const PATH_AS_FOLDER: &str = "/webhooks/pleo/";

/// The state shared by all requests.
pub struct Endpoint {
    verifier: Arc<Verifier>,
    bodies: Bodies,
    metrics: Metrics,
    in_flight: Semaphore,
    timestamp_tolerance: Duration,
}

/// The routes of the public port.
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

/// Answers a request with a wrong path or method.
async fn refuse(
    answer: Answer,
    endpoint: web::Data<Endpoint>,
    unread: web::Payload,
) -> HttpResponse<WithUnreadBody> {
    let handling = Handling::start(&endpoint.metrics);
    debug!(outcome = answer.metric_label(), "refused");
    handling.finish(&answer);
    unread_body::hold(answer.into_response(), unread)
}

async fn receive(
    endpoint: web::Data<Endpoint>,
    submitter: web::Data<Submitter>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> HttpResponse<WithUnreadBody> {
    let handling = Handling::start(&endpoint.metrics);
    let answer = endpoint.handle(&request, &mut payload, &submitter).await;
    handling.finish(&answer);
    unread_body::hold(answer.into_response(), payload)
}

/// Counts a request, even if its client disconnects before the answer.
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
        if let Answer::Processed(Outcome::Duplicate(layer)) = answer {
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
    /// `body_limit` is in bytes. At most `in_flight_limit` verified events are processed at once.
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
            verifier: Arc::new(Verifier::new(secrets, metrics.clone())),
            bodies: Bodies::new(body_limit),
            metrics,
            in_flight: Semaphore::new(in_flight_limit),
            timestamp_tolerance,
        }
    }

    async fn handle(
        &self,
        request: &HttpRequest,
        payload: &mut web::Payload,
        submitter: &Submitter,
    ) -> Answer {
        match self.verify_and_submit(request, payload, submitter).await {
            Ok(outcome) => Answer::Processed(outcome),
            Err(refusal) => {
                debug!(outcome = refusal.metric_label(), "refused");
                refusal
            }
        }
    }

    async fn verify_and_submit(
        &self,
        request: &HttpRequest,
        payload: &mut web::Payload,
        submitter: &Submitter,
    ) -> Result<Outcome, Answer> {
        let headers = self.read_headers(request)?;
        let signatures = self.verifier.check_form(&headers)?;
        let (body, mut memory) = self.bodies.read(request, payload).await?;
        let webhook = Webhook {
            headers,
            signatures,
            body,
            received_at: Utc::now(),
        };
        let (webhook, signer) = self.verifier.verify(webhook, &mut memory).await?;
        let event = event(webhook, signer);
        // Only after verification: unsigned requests must not take the places of signed ones.
        let _place = self
            .in_flight
            .try_acquire()
            .map_err(|_full| Answer::Overloaded)?;
        Ok(submitter.submit(event).await)
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
}

/// A signed body that is not a Pleo event is kept as an event of unknown type. If it were refused,
/// the sender would retry for a day and then disable the endpoint.
fn event(webhook: Webhook, signer: Signer) -> AcceptedEvent {
    let Webhook {
        headers,
        body,
        received_at,
        ..
    } = webhook;
    let event_type = Envelope::parse(&body).map_or_else(|_| EventType::unknown(), |e| e.event_type);
    AcceptedEvent {
        webhook_id: headers.id().to_owned(),
        event_type,
        body_sha256: message::body_sha256(&body),
        body,
        received_at,
        attempted_at: Some(headers.timestamp()),
        secret_name: Some(signer.secret_name),
        secret_companies: signer.companies,
    }
}
