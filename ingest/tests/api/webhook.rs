//! Webhooks as a sender makes them.

use chrono::Utc;

/// The secret of the Standard Webhooks examples.
pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The parts of a request. To make a bad one, change a part after signing.
#[derive(Clone, Debug)]
pub(crate) struct Webhook {
    pub(crate) id: String,
    pub(crate) timestamp: String,
    pub(crate) signature: String,
    pub(crate) body: Vec<u8>,
}

impl Webhook {
    /// A vendor event under this id, signed now.
    pub(crate) fn vendor(id: &str) -> Self {
        Self::new(
            id,
            br#"{"eventType":"v1.vendor.created","eventId":"e","data":{"id":"v"}}"#,
        )
    }

    /// Any body under this id, signed now.
    pub(crate) fn new(id: &str, body: &[u8]) -> Self {
        Self::signed_at(id, body, Utc::now().timestamp())
    }

    /// Signed at another time, in unix seconds.
    pub(crate) fn signed_at(id: &str, body: &[u8], timestamp: i64) -> Self {
        Self::signed(SECRET, id, body, timestamp)
    }

    /// A new vendor event, signed now under another secret.
    pub(crate) fn under(secret: &str) -> Self {
        let vendor = Self::vendor(&Self::new_id());
        Self::signed(secret, &vendor.id, &vendor.body, Utc::now().timestamp())
    }

    fn signed(secret: &str, id: &str, body: &[u8], timestamp: i64) -> Self {
        Self {
            id: id.to_owned(),
            timestamp: timestamp.to_string(),
            signature: ingest::signature::sign(secret, id, timestamp, body).expect("a good secret"),
            body: body.to_vec(),
        }
    }

    /// A new id.
    pub(crate) fn new_id() -> String {
        format!("msg_{:032x}", rand::random::<u128>())
    }
}
