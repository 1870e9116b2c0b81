//! Denial-of-service attacks, and what legitimate senders notice meanwhile. Tests and `cargo stack siege`
//! share these attacks.
//!
//! Attackers know no secret. They have one address, and legitimate senders have another one.

mod attack;
mod client;
mod command;
mod good;
mod report;

use std::time::Duration;

use anyhow::Result;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::SigningKey;
use ingest::secrets::DEVELOPMENT_SECRET;
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::attack::Attack;
pub use self::client::{Entrance, Target};
pub use self::command::{Plan, run};
pub use self::good::Seen;
pub use self::report::{Line, Report};

/// Time for the attackers to connect before the senders are measured.
const BEFORE: Duration = Duration::from_secs(2);
/// Legitimate events per second, each on a connection of its own.
const RATE: f64 = 50.0;

const SYMMETRIC_KEYS: u8 = 99;
const PUBLIC_KEYS: u8 = 20;

/// `WEBHOOK_SECRETS` of the attacked ingest service: 100 shared secrets and 20 public keys. The legitimate
/// senders use the last one.
pub fn secrets() -> String {
    let symmetric = (0..SYMMETRIC_KEYS)
        .map(|number| format!("shared-{number}=whsec_{}", BASE64.encode([number; 32])));
    let public = (0..PUBLIC_KEYS).map(|number| {
        let key = SigningKey::from_bytes(&[number; 32]).verifying_key();
        format!("public-{number}=whpk_{}", BASE64.encode(key.as_bytes()))
    });
    let good = format!("development={DEVELOPMENT_SECRET}");
    symmetric
        .chain(public)
        .chain([good])
        .collect::<Vec<_>>()
        .join("\n")
}

/// Measures what legitimate senders notice during this time, with or without an attack.
///
/// # Errors
/// When the senders' events cannot be made.
pub async fn besiege(target: Target, attack: Option<Attack>, during: Duration) -> Result<Seen> {
    let stop = CancellationToken::new();
    // The attack ends in any case.
    let _stopping = stop.clone().drop_guard();
    let strangers = TaskTracker::new();
    if let Some(attack) = attack {
        attack.start(target, &stop, &strangers);
        sleep(BEFORE).await;
    }
    let seen = good::observe(target, RATE, during).await;
    stop.cancel();
    strangers.close();
    strangers.wait().await;
    seen
}
