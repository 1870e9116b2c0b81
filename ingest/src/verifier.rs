//! Authenticates. Nothing is looked up on behalf of a request that fails here.
//!
//! Strangers can make this expensive: every key has to be tried on the whole body. What takes long is
//! done beside the threads that serve connections, on a part of the processors: small work does not wait
//! behind large, and large work does not starve.

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
    turns::Turns,
};

/// Bytes to be hashed, as [`Secrets::work`] counts them: about a millisecond. Less is done at once.
const AT_ONCE: usize = 1024 * 1024;

/// For a turn. Past it there is so much to do that the sender has to come again.
const TURN_WITHIN: Duration = Duration::from_secs(5);

/// Verifies all requests.
pub struct Verifier {
    secrets: watch::Receiver<Secrets>,
    metrics: Metrics,
    turns: Turns,
}

/// The secret that verified a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// Its configured name.
    pub secret_name: String,
    /// The companies that it is tied to, if it is.
    pub companies: Option<Companies>,
}

/// A whole request that claims to be a sender's.
#[derive(Debug)]
pub struct Claim {
    /// Its headers.
    pub headers: WebhookHeaders,
    /// The signatures among them, of which [`Verifier::check_form`] knows.
    pub signatures: Signatures,
    /// Its body.
    pub body: Bytes,
    /// When all of it was there.
    pub received_at: DateTime<Utc>,
}

impl Verifier {
    /// The secrets may change meanwhile.
    pub fn new(secrets: watch::Receiver<Secrets>, metrics: Metrics) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            secrets,
            metrics,
            // Half of them stay with the connections.
            turns: Turns::new((processors / 2).max(1)),
        }
    }

    /// The signatures, if one of them can be right at all. Known before a body is there.
    ///
    /// # Errors
    /// When none has the form of a signature under a configured secret.
    pub fn check_form(&self, headers: &WebhookHeaders) -> Result<Signatures, Answer> {
        let signatures = Signatures::of(headers);
        if self.secrets.borrow().fit(&signatures) {
            Ok(signatures)
        } else {
            Err(Answer::WrongSignature)
        }
    }

    /// The claim, and the secret that verifies it. Its body keeps its memory.
    ///
    /// # Errors
    /// When no secret verifies it, or there was no turn for it, or it had to make room.
    pub async fn verify(
        self: &Arc<Self>,
        claim: Claim,
        memory: &mut Share<'_>,
    ) -> Result<(Claim, Signer), Answer> {
        let work = self
            .secrets
            .borrow()
            .work(&claim.signatures, claim.body.len());
        let (claim, signer) = if work <= AT_ONCE {
            memory.keep().map_err(|Full| Answer::CrowdedOut)?;
            let signer = self.signer_of(&claim);
            (claim, signer)
        } else {
            self.verify_in_turn(claim, work, memory).await?
        };
        Ok((claim, signer.ok_or(Answer::WrongSignature)?))
    }

    async fn verify_in_turn(
        self: &Arc<Self>,
        claim: Claim,
        work: usize,
        memory: &mut Share<'_>,
    ) -> Result<(Claim, Option<Signer>), Answer> {
        let turn = tokio::select! {
            biased;
            () = memory.revoked() => return Err(Answer::CrowdedOut),
            turn = timeout(TURN_WITHIN, self.turns.take(work)) => turn,
        };
        let turn = turn.map_err(|_elapsed| Answer::CrowdedOut)?;
        memory.keep().map_err(|Full| Answer::CrowdedOut)?;
        let this = Arc::clone(self);
        // The turn moves into the task, so it lasts as long as the work, even if the request is dropped.
        let verifying = spawn_blocking(move || {
            let _turn = turn;
            let signer = this.signer_of(&claim);
            (claim, signer)
        });
        verifying.await.map_err(|error| {
            error!(%error, "a verification ended without a result");
            Answer::CrowdedOut
        })
    }

    /// The secret that verifies the webhook, counted before the list can be replaced, as the names that
    /// are gone leave the metric right after.
    fn signer_of(&self, claim: &Claim) -> Option<Signer> {
        let secrets = self.secrets.borrow();
        let name = secrets.matching(&claim.signatures, &claim.headers, &claim.body)?;
        self.metrics.secret_matched(name);
        Some(Signer {
            secret_name: name.to_owned(),
            companies: secrets.companies_of(name).cloned(),
        })
    }
}
