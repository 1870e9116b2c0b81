//! The two events that Pleo's documentation shows, signed afresh for each sending.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::Utc;

pub use ingest::secrets::DEVELOPMENT_SECRET;

/// Above ingest's own deadline, so that its answer arrives.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// An event of the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Its type, as in the body.
    pub event_type: &'static str,
    /// The table that holds its resource once stored.
    pub table: &'static str,
    /// Id of its resource, as in the body.
    pub resource_id: &'static str,
    /// The request body: minified JSON, keys in the order of the documentation.
    pub body: &'static str,
}

/// `v1.export-job.created`.
pub const EXPORT_JOB: Sample = Sample {
    event_type: "v1.export-job.created",
    table: "export_jobs",
    resource_id: "b4c4d068-ebbe-45b7-b562-2f16f0deb8b9",
    body: include_str!("../samples/export-job-created.json"),
};

/// `v1.vendor.created`.
pub const VENDOR: Sample = Sample {
    event_type: "v1.vendor.created",
    table: "vendors",
    resource_id: "c27ed4d6-3d3d-458e-8f3f-735fdf32a3bc",
    body: include_str!("../samples/vendor-created.json"),
};

/// A new `webhook-id`, as random as the sender's own.
pub fn new_webhook_id() -> String {
    format!("msg_{:032x}", rand::random::<u128>())
}

/// The address that webhooks are posted to, on an ingest service that listens on `address`.
pub fn webhook_url(address: SocketAddr) -> String {
    format!("http://{address}/webhooks/pleo")
}

/// Posts a body to `url`, signed with `secret` and the current time under this id; returns the
/// status and the body of the answer, whatever the status is.
///
/// # Errors
/// When the secret is malformed, nobody listens, or no answer comes within 15 s.
pub async fn post(
    url: &str,
    secret: &str,
    webhook_id: &str,
    body: &str,
) -> Result<(reqwest::StatusCode, String)> {
    let client = reqwest::Client::builder().timeout(ANSWER_WITHIN).build()?;
    let response = request(&client, url, secret, webhook_id, body)?
        .send()
        .await
        .with_context(|| format!("cannot post to {url}"))?;
    let status = response.status();
    Ok((status, response.text().await?))
}

/// A body for `url`, signed with `secret` and the current time under this id, ready to be sent.
///
/// # Errors
/// When the secret is malformed.
pub fn request(
    client: &reqwest::Client,
    url: &str,
    secret: &str,
    webhook_id: &str,
    body: &str,
) -> Result<reqwest::RequestBuilder> {
    let timestamp = Utc::now().timestamp();
    let signature = sign(secret, webhook_id, timestamp, body)?;
    Ok(client
        .post(url)
        .header("content-type", "application/json")
        .header("webhook-id", webhook_id)
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", signature)
        .body(body.to_owned()))
}

impl Sample {
    /// Sends the sample under a new id, which is returned.
    ///
    /// # Errors
    /// When the answer is not a 2xx; see also [`post`].
    pub async fn send(&self, url: &str) -> Result<String> {
        let webhook_id = new_webhook_id();
        let (status, answer) = post(url, DEVELOPMENT_SECRET, &webhook_id, self.body).await?;
        ensure!(
            status.is_success(),
            "{} was answered {status}: {answer}",
            self.event_type
        );
        Ok(webhook_id)
    }
}

fn sign(secret: &str, webhook_id: &str, timestamp: i64, body: &str) -> Result<String> {
    ingest::signature::sign(secret, webhook_id, timestamp, body.as_bytes())
        .context("cannot sign the event")
}

#[cfg(test)]
mod tests {
    use super::{DEVELOPMENT_SECRET, EXPORT_JOB, Sample, VENDOR, sign};

    /// Of the Standard Webhooks specification.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn signature(sample: &Sample) -> String {
        sign(
            SECRET,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            sample.body,
        )
        .expect("a key")
    }

    #[test]
    fn the_samples_are_the_documented_events_byte_for_byte() {
        assert_eq!(EXPORT_JOB.body.len(), 330);
        assert_eq!(
            signature(&EXPORT_JOB),
            "v1,ZXewLkf69m5Xprhi5L9XWWTcHccPVDVZoNzyf5SNWfI="
        );
        assert_eq!(VENDOR.body.len(), 504);
        assert_eq!(
            signature(&VENDOR),
            "v1,xMimQUp+M0QlfiZRE2AxhJdOgejDszlshxf7pgad95c="
        );
    }

    #[test]
    fn the_samples_say_what_their_bodies_say() {
        for sample in [EXPORT_JOB, VENDOR] {
            assert!(
                sample.body.contains(sample.event_type) && sample.body.contains(sample.resource_id)
            );
        }
    }

    #[test]
    fn the_development_secret_can_sign() {
        sign(DEVELOPMENT_SECRET, "msg_1", 1, "").expect("a key");
    }
}
