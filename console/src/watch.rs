//! The figures of the overview: looked at again and again, and remembered.
//!
//! The overview asks Postgres for nothing. So it is there while Postgres is away, and looking at it
//! costs the same with ten events as with ten million. Events are counted in minutes; each look counts
//! the newest ones and one older stretch of the day, so that what was stored late is seen as well.

mod looks;

pub use looks::MOST_COUNTED;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use chrono::{DateTime, Utc};
use shared::Family;
use tokio::time::sleep;
use worker::{ledger::receipts::Receipts, problem::Kind};

use crate::store::{Store, StoreError};

/// Between two looks at the traffic, and at everything else.
const EVERY: Duration = Duration::from_secs(5);
const EVERY_LEDGER: Duration = Duration::from_secs(10);

/// Minutes of a day, for so long they are remembered.
pub const DAY: i64 = 24 * 60;

/// Receipts on the page about them.
const MOST_RECEIPTS: usize = 200;

/// Events of a minute by family, in the order of [`Family::ALL`].
pub type Counts = [u64; Family::ALL.len()];

/// From receipt to row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delays {
    /// Half of the events took at most so long, in seconds.
    pub p50: f64,
    /// All but one of a hundred did.
    pub p99: f64,
    /// Of how many events.
    pub events: i64,
}

/// What happens now.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// By minutes since the epoch; a minute without an entry was not counted yet.
    pub minutes: BTreeMap<i64, Counts>,
    /// When the newest event was received.
    pub last_event: Option<DateTime<Utc>>,
    /// Of the last hour; `None` without an event.
    pub delays: Option<Delays>,
    /// By the clock of the database.
    pub now: DateTime<Utc>,
}

/// Events that wait in the spool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spooled {
    /// How many, up to the limit of a look.
    pub events: i64,
    /// For how long the oldest has waited, in seconds.
    pub oldest: f64,
}

/// What is not where it belongs.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Receipts without an event, and the age of the oldest in seconds.
    pub unstored: usize,
    /// As above.
    pub oldest_unstored: f64,
    /// Whether these are the figures of all receipts.
    pub of_all: bool,
    /// The ids of the oldest of them that are older than a minute.
    pub receipts: Vec<String>,
    /// In the spool.
    pub spooled: Option<Spooled>,
    /// Open dead letters by kind, up to the limit of a look.
    pub dead_letters: BTreeMap<Kind, i64>,
}

/// What was found last, when, and why nothing newer is known.
#[derive(Clone, Debug)]
pub struct Known<T> {
    /// `None` before the first look is through.
    pub found: Option<Arc<T>>,
    /// When it was found.
    pub at: Option<DateTime<Utc>>,
    /// Why the last look failed.
    pub failure: Option<StoreError>,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self {
            found: None,
            at: None,
            failure: None,
        }
    }
}

/// Everything that is known.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// What happens now.
    pub traffic: Known<Traffic>,
    /// What is not where it belongs.
    pub ledger: Known<Ledger>,
}

/// Looks, and remembers. Clones share what they know.
#[derive(Clone)]
pub struct Watch {
    store: Store,
    figures: Arc<RwLock<Figures>>,
}

impl Watch {
    /// Knows nothing yet.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            figures: Arc::default(),
        }
    }

    /// What is known.
    pub fn figures(&self) -> Figures {
        self.figures
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Looks again and again, for ever. It may be cancelled anywhere.
    pub async fn run(self) {
        tokio::join!(self.watch_traffic(), self.watch_ledger());
    }

    async fn watch_traffic(&self) {
        let mut traffic = Traffic::default();
        let mut stretches = looks::Stretches::default();
        loop {
            let outcome = looks::traffic(&self.store, &mut traffic, &mut stretches).await;
            let is_filling = outcome.is_ok() && !stretches.is_first_round_through();
            self.note(
                |figures| &mut figures.traffic,
                outcome.map(|()| traffic.clone()),
            );
            if !is_filling {
                sleep(EVERY).await;
            }
        }
    }

    async fn watch_ledger(&self) {
        let mut receipts = Receipts::unknown();
        loop {
            let outcome = looks::ledger(&self.store, &mut receipts).await;
            self.note(|figures| &mut figures.ledger, outcome);
            sleep(EVERY_LEDGER).await;
        }
    }

    fn note<T>(
        &self,
        part: impl FnOnce(&mut Figures) -> &mut Known<T>,
        outcome: Result<T, StoreError>,
    ) {
        let mut figures = self.figures.write().unwrap_or_else(PoisonError::into_inner);
        let known = part(&mut figures);
        match outcome {
            Ok(found) => {
                *known = Known {
                    found: Some(Arc::new(found)),
                    at: Some(Utc::now()),
                    failure: None,
                }
            }
            Err(failure) => {
                if known.failure.is_none() {
                    tracing::warn!(%failure, "cannot look; the overview shows what was known before");
                }
                known.failure = Some(failure);
            }
        }
    }
}
