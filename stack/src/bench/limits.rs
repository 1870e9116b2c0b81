//! The limits of the parts on this machine, measured now.
//!
//! Each is the minimum of one step of the pipeline, without dedup, retries or anything else that makes it
//! safe.

mod broker;
mod database;
mod http;

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::stores::Stores;

/// How often one commit and one confirm are measured alone.
const LONE: u32 = 200;

/// Operations per second, except the last field.
#[derive(Debug, Clone, Serialize)]
pub struct Limits {
    /// actix-web reads the body and checks the HMAC; by number of connections.
    pub http_64: f64,
    /// As above.
    pub http_256: f64,
    /// lapin publishes, persistent, to a quorum queue, with 64 unconfirmed.
    pub confirms_64: f64,
    /// As above, with 256.
    pub confirms_256: f64,
    /// lapin consumes, with an ack for every 200 messages.
    pub consumed: f64,
    /// Rows of `webhook_receipts`, inserted 64 at a time without waiting for the disk.
    pub receipts: f64,
    /// Rows of `events` and `vendors`, inserted 500 at a time, on disk.
    pub stored: f64,
    /// Milliseconds of one confirm and one commit of a receipt, each alone, in sequence.
    pub lone_ms: f64,
}

impl Limits {
    /// The highest rate of acceptance if all parts share the processors: its time per event is the sum of
    /// the parts' times.
    pub fn acceptance(&self, connections: usize) -> f64 {
        let (http, confirms) = self.at(connections);
        combined(&[http, confirms, self.receipts])
    }

    /// The same from the request to the stored row.
    pub fn end_to_end(&self, connections: usize) -> f64 {
        let (http, confirms) = self.at(connections);
        combined(&[http, confirms, self.receipts, self.consumed, self.stored])
    }

    fn at(&self, connections: usize) -> (f64, f64) {
        if connections <= 64 {
            (self.http_64, self.confirms_64)
        } else {
            (self.http_256, self.confirms_256)
        }
    }
}

fn combined(rates: &[f64]) -> f64 {
    1.0 / rates.iter().map(|rate| 1.0 / rate).sum::<f64>()
}

/// Measures each for `slice`.
pub(super) async fn measure(stores: &Stores, slice: Duration) -> Result<Limits> {
    let [http_64, http_256] = http::measure(slice).await?;
    let url = stores.amqp_url();
    let (confirms_64, _) = broker::measure(&url, 64, slice).await?;
    let (confirms_256, consumed) = broker::measure(&url, 256, slice).await?;
    let lone_confirm = broker::lone(&url, LONE).await?;
    let database = database::Database::create(&stores.postgres).await?;
    let receipts = database.receipts(slice).await?;
    let stored = database.stored(slice).await?;
    let lone_commit = database.lone(LONE).await?;
    database.close().await;
    Ok(Limits {
        http_64,
        http_256,
        confirms_64,
        confirms_256,
        consumed,
        receipts,
        stored,
        lone_ms: (lone_confirm + lone_commit) * 1_000.0,
    })
}
