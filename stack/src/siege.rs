//! What strangers do to shut good senders out, and what good senders see of it meanwhile. Tests and
//! `cargo stack siege` share these attacks.
//!
//! Strangers know no secret. They have one address, and good senders have another one.

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

/// For strangers to take up their positions before good senders are looked at.
const BEFORE: Duration = Duration::from_secs(2);
/// Good events a second, each on a connection of its own.
const RATE: f64 = 50.0;

const SYMMETRIC_KEYS: u8 = 99;
const PUBLIC_KEYS: u8 = 20;

/// What an ingest service that is besieged has as `WEBHOOK_SECRETS`: 100 shared secrets and 20 public
/// keys. That of good senders is the last one.
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

/// What good senders see in this time, while strangers attack, if any do.
///
/// # Errors
/// When good events cannot be made.
pub async fn besiege(target: Target, attack: Option<Attack>, during: Duration) -> Result<Seen> {
    let stop = CancellationToken::new();
    // However this ends, the strangers go.
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
