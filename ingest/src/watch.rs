//! Monitors the stores for readiness, the breakers' metric and the log.
//!
//! Batches report to the breakers how each store works. If none has reported for a while, the watch
//! probes the store itself and reports to the breaker. So the breaker is open before the first
//! event waits for a broker that confirms nothing, and it closes without an event once the broker
//! works again.

use std::{fmt::Display, sync::Arc, time::Duration};

use shared::{
    database::{self, Pool},
    private_port::{Check, Readiness, ReadinessProbe},
};
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::{
    breaker::Breaker,
    metrics::{Metrics, POSTGRES, RABBITMQ},
    publisher::Publisher,
    receipts,
};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long the last batch's report is valid.
const SILENCE: Duration = Duration::from_secs(3);

/// How many probes in a row have to fail.
const TRIES: usize = 3;

/// The breaker of each store.
#[derive(Clone, Default)]
pub struct Breakers {
    /// Of Postgres.
    pub postgres: Arc<Breaker>,
    /// Of RabbitMQ.
    pub rabbitmq: Arc<Breaker>,
}

impl Breakers {
    /// Sets the metric that shows which breaker is open.
    pub fn show(&self, metrics: &Metrics) {
        for (store, breaker) in [(POSTGRES, &self.postgres), (RABBITMQ, &self.rabbitmq)] {
            metrics
                .breaker_open
                .with_label_values(&[store])
                .set(breaker.is_open().into());
        }
    }
}

/// Probes both stores.
#[derive(Clone)]
pub struct Watch {
    /// Postgres.
    pub pool: Pool,
    /// RabbitMQ.
    pub publisher: Publisher,
    /// The breakers that batches and probes report to.
    pub breakers: Breakers,
    /// Shows the breakers' states.
    pub metrics: Metrics,
}

impl Watch {
    /// Probes until it is dropped.
    pub async fn run(self) {
        let mut told = String::new();
        loop {
            sleep(LOOK_EVERY).await;
            tokio::join!(self.ask_postgres(&mut told), self.ask_rabbitmq());
            self.breakers.show(&self.metrics);
        }
    }

    /// Logs an error only if it differs from the last one.
    async fn ask_postgres(&self, told: &mut String) {
        let asked = ask(&self.breakers.postgres, || self.probe_postgres());
        let Err(error) = asked.await else {
            told.clear();
            return;
        };
        let error = error.to_string();
        if *told != error {
            warn!(
                error,
                "postgres is away; events are published without dedup meanwhile"
            );
            *told = error;
        }
    }

    async fn ask_rabbitmq(&self) {
        // The publisher logs its own errors.
        let asked = ask(&self.breakers.rabbitmq, || self.publisher.probe());
        asked.await.ok();
    }

    async fn probe_postgres(&self) -> Result<(), database::TransactionError> {
        database::probe(&self.pool, receipts::PROBE).await
    }

    /// The readiness check: ready if ingest can accept an event, for which one store is enough.
    /// Each call probes both.
    pub fn readiness(&self) -> ReadinessProbe {
        let watch = self.clone();
        Arc::new(move || {
            let watch = watch.clone();
            Box::pin(async move {
                let (postgres, rabbitmq) =
                    tokio::join!(watch.probe_postgres(), watch.publisher.probe());
                judge(
                    well(postgres, &watch.breakers.postgres),
                    well(rabbitmq, &watch.breakers.rabbitmq),
                )
            })
        })
    }
}

/// Probes the store and reports to the breaker, if no batch has reported for a while. It reports a
/// failure only after several failed probes, as one late answer of a busy store is no failure.
async fn ask<E, P: Future<Output = Result<(), E>>>(
    breaker: &Breaker,
    probe: impl Fn() -> P,
) -> Result<(), E> {
    let Some(permit) = breaker.permit_if_silent(Instant::now(), SILENCE) else {
        return Ok(());
    };
    let mut tries = 1;
    loop {
        match probe().await {
            Ok(()) => {
                permit.succeeded();
                return Ok(());
            }
            Err(error) if tries >= TRIES => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

/// A store is well if the probe succeeds and the last batch did not fail.
fn well(probe: Result<(), impl Display>, breaker: &Breaker) -> Result<(), String> {
    probe.map_err(|error| error.to_string())?;
    if breaker.is_open() {
        return Err("failed a moment ago; it is tried again by itself".to_owned());
    }
    Ok(())
}

fn judge(postgres: Result<(), String>, rabbitmq: Result<(), String>) -> Readiness {
    let note = match (&postgres, &rabbitmq) {
        (Ok(()), Ok(())) => None,
        (Ok(()), Err(_)) => Some("events are spooled in Postgres"),
        (Err(_), Ok(())) => Some("events are published without dedup"),
        (Err(_), Err(_)) => Some("events are refused with 503"),
    };
    Readiness {
        ready: postgres.is_ok() || rabbitmq.is_ok(),
        note,
        checks: vec![
            Check::new(POSTGRES, postgres),
            Check::new(RABBITMQ, rabbitmq),
        ],
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(true, true, true, None)]
    #[case(true, false, true, Some("spooled"))]
    #[case(false, true, true, Some("without dedup"))]
    #[case(false, false, false, Some("refused"))]
    fn one_store_is_enough_and_the_way_that_events_take_is_said(
        #[case] postgres: bool,
        #[case] rabbitmq: bool,
        #[case] ready: bool,
        #[case] note: Option<&str>,
    ) {
        let outcome = |well: bool| well.then_some(()).ok_or_else(|| "away".to_owned());
        let readiness = judge(outcome(postgres), outcome(rabbitmq));
        assert_eq!(readiness.ready, ready);
        match (readiness.note, note) {
            (Some(said), Some(expected)) => assert!(said.contains(expected), "{said}"),
            (said, expected) => assert_eq!(said, expected),
        }
    }

    #[test]
    fn a_store_that_failed_the_last_batch_is_not_well_whatever_the_probe_says() {
        let breaker = Breaker::default();
        assert_eq!(well(Ok::<_, String>(()), &breaker), Ok(()));
        drop(breaker.permit(Instant::now()).expect("closed"));
        well(Ok::<_, String>(()), &breaker).expect_err("it failed");
        assert_eq!(well(Err("gone"), &breaker), Err("gone".to_owned()));
    }
}
