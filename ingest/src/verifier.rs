//! Verifies signatures. No store is asked before this has succeeded.
//!
//! Unauthenticated clients can make this expensive, because every key is tried on the whole body.
//! Expensive verifications run on blocking threads, on half of the processors, so that they do not
//! delay the threads that serve connections. [`WorkScheduler`] decides their order.

use std::{num::NonZero, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use shared::Companies;
use tokio::{sync::watch, task::spawn_blocking, time::timeout};
use tracing::error;

use crate::{
    answer::Answer,
    body::{Full, Share},
    headers::WebhookHeaders,
    metrics::Metrics,
    secrets::Secrets,
    signature::Signatures,
    work_scheduler::WorkScheduler,
};

/// Work up to this size is done inline: about a millisecond of hashing, in the unit of
/// [`Secrets::work`].
const INLINE_WORK_LIMIT: usize = 1024 * 1024;

/// The longest wait for a permit. After that the service is overloaded and the sender must retry.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Verifies the signatures of all requests.
pub struct Verifier {
    secrets: watch::Receiver<Secrets>,
    metrics: Metrics,
    scheduler: WorkScheduler,
}

/// The secret that verified a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// Its configured name.
    pub secret_name: String,
    /// The companies that it is tied to, if any.
    pub companies: Option<Companies>,
}

/// A complete request whose signature is not verified yet.
#[derive(Debug)]
pub struct Webhook {
    /// Its headers.
    pub headers: WebhookHeaders,
    /// The signatures of these headers, as [`Verifier::check_form`] returned them.
    pub signatures: Signatures,
    /// Its body.
    pub body: Bytes,
    /// When the request was complete.
    pub received_at: DateTime<Utc>,
}

impl Verifier {
    /// The secrets may be replaced while the service runs.
    pub fn new(secrets: watch::Receiver<Secrets>, metrics: Metrics) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            secrets,
            metrics,
            // The other half stays free for the threads that serve connections.
            scheduler: WorkScheduler::new((processors / 2).max(1)),
        }
    }

    /// Parses the signatures. This needs no body, so a hopeless request is refused early.
    ///
    /// # Errors
    /// If no signature has the form of one of the configured keys.
    pub fn check_form(&self, headers: &WebhookHeaders) -> Result<Signatures, Answer> {
        let signatures = Signatures::of(headers);
        if self.secrets.borrow().fit(&signatures) {
            Ok(signatures)
        } else {
            Err(Answer::WrongSignature)
        }
    }

    /// Returns the webhook with the secret that verifies it. From the start of the verification the
    /// body cannot be evicted.
    ///
    /// # Errors
    /// If no secret verifies it, if it waited too long for its permit, or if it was evicted.
    pub async fn verify(
        self: &Arc<Self>,
        webhook: Webhook,
        memory: &mut Share<'_>,
    ) -> Result<(Webhook, Signer), Answer> {
        let work = self
            .secrets
            .borrow()
            .work(&webhook.signatures, webhook.body.len());
        let (webhook, signer) = if work <= INLINE_WORK_LIMIT {
            memory.pin().map_err(|Full| Answer::CrowdedOut)?;
            let signer = self.signer_of(&webhook);
            (webhook, signer)
        } else {
            self.verify_as_scheduled(webhook, work, memory).await?
        };
        Ok((webhook, signer.ok_or(Answer::WrongSignature)?))
    }

    async fn verify_as_scheduled(
        self: &Arc<Self>,
        webhook: Webhook,
        work: usize,
        memory: &mut Share<'_>,
    ) -> Result<(Webhook, Option<Signer>), Answer> {
        let permit = tokio::select! {
            biased;
            () = memory.revoked() => return Err(Answer::CrowdedOut),
            permit = timeout(PERMIT_TIMEOUT, self.scheduler.acquire(work)) => permit,
        };
        let permit = permit.map_err(|_elapsed| Answer::CrowdedOut)?;
        memory.pin().map_err(|Full| Answer::CrowdedOut)?;
        let this = Arc::clone(self);
        // The permit moves into the task and so lasts until the work is done, even if the request is
        // dropped.
        let verifying = spawn_blocking(move || {
            let _permit = permit;
            let signer = this.signer_of(&webhook);
            (webhook, signer)
        });
        verifying.await.map_err(|error| {
            error!(%error, "a verification ended without a result");
            Answer::CrowdedOut
        })
    }

    /// The secret that verifies the webhook. It is counted while the list is borrowed, because the
    /// series of removed names are deleted right after the list is replaced.
    fn signer_of(&self, webhook: &Webhook) -> Option<Signer> {
        let secrets = self.secrets.borrow();
        let name = secrets.matching(&webhook.signatures, &webhook.headers, &webhook.body)?;
        self.metrics.secret_matched(name);
        Some(Signer {
            secret_name: name.to_owned(),
            companies: secrets.companies_of(name).cloned(),
        })
    }
}
