//! Storing a batch whatever happens: Postgres' troubles are waited out, and a row that Postgres
//! refuses is found and set aside, so that it costs its neighbours nothing.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::Utc;
use shared::{
    Family,
    database::{self, TransactionError},
};
use sqlx::PgPool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    blame::{Blame, blame},
    families,
    metrics::Metrics,
    record::Record,
    rehearsal,
    spool_reader::LEASE,
    spool_writer::{self, Claims},
    store::{self, Stored},
    work::Work,
};

/// The waits before the second and further attempts at an event that Postgres refused.
const RETRY_DELAYS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(3_600),
];

/// A suspect failure counts against a row after so many in a row with Postgres otherwise well.
const SUSPICIONS: u32 = 3;

/// How long a batch is held while Postgres is away. RabbitMQ closes a channel whose messages stay
/// unacknowledged for 30 minutes; long before that they are better off in the queue.
const HOLD_LIMIT: Duration = Duration::from_secs(600);

/// The batch was given up before it was stored: it must not be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abandoned;

/// Stores batches for one family's worker.
pub struct Persistence {
    pool: PgPool,
    family: Family,
    metrics: Metrics,
    holding: AtomicUsize,
    hold_reason: Mutex<String>,
}

/// Postgres refuses the step over one of its rows, with its reason.
struct Refused(String);

/// One thing to be done in one transaction, and done again while Postgres is away.
enum Step<'b> {
    /// Store these.
    Store(&'b [(Work, Record)]),
    /// Spool these, unread, to be handled alone.
    Isolate(&'b [Work]),
    /// Spool this one for its next attempt.
    Defer {
        work: &'b Work,
        reason: &'b str,
        delay: Duration,
    },
}

impl<'b> Step<'b> {
    /// The step's event, if it is only one.
    fn alone(&self) -> Option<&'b Work> {
        match *self {
            Self::Store([(work, _)]) | Self::Isolate([work]) | Self::Defer { work, .. } => {
                Some(work)
            }
            Self::Store(_) | Self::Isolate(_) => None,
        }
    }
}

/// How one attempt at a step went.
enum Tried {
    Done,
    Refused(Refused),
    /// For a reason that will pass, or that is not yet known for a row's fault.
    Held(TransactionError),
}

/// What speaks against a step so far.
#[derive(Default)]
struct Suspicion<'b> {
    /// How often in a row it failed with Postgres otherwise well.
    count: u32,
    /// The event over which the connection was just lost.
    lost: Option<&'b Work>,
}

impl Persistence {
    /// Stores through `pool`.
    pub fn new(pool: PgPool, family: Family, metrics: Metrics) -> Self {
        Self {
            pool,
            family,
            metrics,
            holding: AtomicUsize::new(0),
            hold_reason: Mutex::default(),
        }
    }

    /// Whether everything needed can be written now; nothing is held.
    pub async fn probe(&self) -> Result<(), String> {
        if self.holding.load(Ordering::Relaxed) > 0 {
            let reason = self.hold_reason.lock();
            let reason = reason.unwrap_or_else(PoisonError::into_inner);
            return Err(format!("holding events: {reason}"));
        }
        self.probe_database().await.map_err(|e| e.to_string())
    }

    async fn probe_database(&self) -> Result<(), TransactionError> {
        database::probe(&self.pool, store::PROBE).await?;
        database::probe(&self.pool, families::PROBE).await
    }

    /// Brings every event of the batch to `events` or back to the spool, however long Postgres is
    /// away; gives up only on `abandon` or past the hold limit.
    pub async fn persist(
        &self,
        batch: Vec<Work>,
        abandon: &CancellationToken,
    ) -> Result<(), Abandoned> {
        let batch: Vec<(Work, Record)> = batch
            .into_iter()
            .map(|work| {
                let record = Record::new(&work);
                (work, record)
            })
            .collect();
        // All of them are kept while any is held; those that are done have no row any more.
        let claims = Claims::of(&self.pool, batch.iter().map(|(work, _)| work));
        let refused = self
            .complete_or_halve(&batch, Step::Store, &claims, abandon)
            .await?;
        for ((work, record), Refused(reason)) in refused {
            self.set_aside(work, record, &reason, &claims, abandon)
                .await?;
        }
        Ok(())
    }

    /// Moves events that were redelivered too often into the spool, unread, where each is handled
    /// alone and its tries are counted.
    pub async fn isolate(
        &self,
        batch: &[Work],
        abandon: &CancellationToken,
    ) -> Result<(), Abandoned> {
        let claims = Claims::of(&self.pool, []);
        let refused = self
            .complete_or_halve(batch, Step::Isolate, &claims, abandon)
            .await?;
        if refused.is_empty() {
            return Ok(());
        }
        // What even the spool refuses stays with the broker.
        for _ in refused {
            error!(family = %self.family, "the spool refuses a message; it stays in the queue");
        }
        Err(Abandoned)
    }

    /// Completes the step for all but the offenders, each of which is answered with the reason. To
    /// find them what is refused is halved until it is one event: a handful of transactions even
    /// for a big batch.
    async fn complete_or_halve<'b, T>(
        &self,
        batch: &'b [T],
        step: impl Fn(&'b [T]) -> Step<'b>,
        claims: &Claims<'_>,
        abandon: &CancellationToken,
    ) -> Result<Vec<(&'b T, Refused)>, Abandoned> {
        let mut offenders = Vec::new();
        let mut groups = vec![batch];
        while let Some(group) = groups.pop() {
            match (self.complete(&step(group), claims, abandon).await?, group) {
                (Ok(()), _) => {}
                (Err(refused), [offender]) => offenders.push((offender, refused)),
                (Err(_), _) => {
                    let (first, second) = group.split_at(group.len() / 2);
                    groups.extend([second, first]);
                }
            }
        }
        Ok(offenders)
    }

    async fn store(&self, group: &[(Work, Record)]) -> Result<(), TransactionError> {
        let started = Instant::now();
        let rows: Vec<_> = group.iter().map(|(work, record)| (work, record)).collect();
        let stored = store::store(&self.pool, &rows).await?;
        self.metrics.batch_stored(group.len(), started.elapsed());
        let now = Utc::now();
        for ((work, record), stored) in rows.into_iter().zip(stored) {
            self.metrics
                .event_stored(stored, now - work.event.received_at);
            if stored == Stored::WithProblem {
                // Not the problem itself: a parser's words may quote the body.
                error!(
                    family = %self.family,
                    webhook_id = record.webhook_id,
                    event_type = %record.event_type,
                    "stored with a problem; see dead_letters"
                );
            }
        }
        Ok(())
    }

    /// One event that Postgres refuses: back to the spool for its next attempt, or, with its
    /// attempts spent, into `events` with the reason as its problem.
    async fn set_aside(
        &self,
        work: &Work,
        record: &Record,
        reason: &str,
        claims: &Claims<'_>,
        abandon: &CancellationToken,
    ) -> Result<(), Abandoned> {
        let spent = usize::try_from(work.attempts).unwrap_or(0);
        let last_delay = RETRY_DELAYS[RETRY_DELAYS.len() - 1];
        let delay = match RETRY_DELAYS.get(spent) {
            Some(&delay) => delay,
            None => {
                let problem = record.clone().with_problem(reason.to_owned());
                let dead = [(work.clone(), problem)];
                match self.complete(&Step::Store(&dead), claims, abandon).await? {
                    Ok(()) => return Ok(()),
                    // Not even as a dead letter: it stays in the spool rather than getting lost.
                    Err(Refused(_)) => last_delay,
                }
            }
        };
        warn!(
            family = %self.family,
            webhook_id = work.event.webhook_id,
            attempt = work.attempts.saturating_add(1),
            retry_in_s = delay.as_secs(),
            "postgres refuses the event; trying again later, see webhook_spool"
        );
        let defer = Step::Defer {
            work,
            reason,
            delay,
        };
        match self.complete(&defer, claims, abandon).await? {
            Ok(()) => {
                self.metrics.deferred();
                Ok(())
            }
            Err(Refused(_)) => {
                error!(
                    family = %self.family,
                    webhook_id = work.event.webhook_id,
                    "the spool refuses the event; it stays where it is"
                );
                Err(Abandoned)
            }
        }
    }

    /// Repeats `step` while its failures are Postgres' own, with growing pauses, and keeps the
    /// claims on spool rows meanwhile. No attempt is spent.
    async fn complete(
        &self,
        step: &Step<'_>,
        claims: &Claims<'_>,
        abandon: &CancellationToken,
    ) -> Result<Result<(), Refused>, Abandoned> {
        let mut delays = shared::broker::reconnect_delays();
        let started = Instant::now();
        let mut suspicion = Suspicion::default();
        let mut hold = None;
        loop {
            let error = match self.try_once(step, &mut suspicion).await {
                Tried::Done => {
                    if hold.is_some() {
                        info!(family = %self.family, "postgres is back; going on");
                    }
                    return Ok(Ok(()));
                }
                Tried::Refused(refused) => return Ok(Err(refused)),
                Tried::Held(error) => error,
            };
            if hold.is_none() {
                warn!(family = %self.family, %error, "postgres cannot store events now; holding them");
                hold = Some(Hold::new(self));
            }
            let reason = self.hold_reason.lock();
            *reason.unwrap_or_else(PoisonError::into_inner) = error.to_string();
            if started.elapsed() > HOLD_LIMIT {
                claims.release().await;
                return Err(Abandoned);
            }
            claims.renew().await;
            tokio::select! {
                () = abandon.cancelled() => {
                    claims.release().await;
                    return Err(Abandoned);
                }
                () = tokio::time::sleep(delays.next().unwrap_or(LEASE)) => {}
            }
        }
    }

    /// One attempt, and the judgement on its failure.
    ///
    /// A lost connection counts only if a rehearsal went through right before. Whatever ends
    /// connections at random spares the one and hits the other in at most a quarter of the cases,
    /// and hardly ever several times in a row.
    async fn try_once<'b>(&self, step: &Step<'b>, suspicion: &mut Suspicion<'b>) -> Tried {
        if let Some(work) = suspicion.lost
            && let Err(error) = rehearsal::rehearse(&self.pool, work).await
        {
            // Not begun says nothing: Postgres may still be recovering from the step's own crash.
            if !matches!(error, TransactionError::NotBegun(_)) {
                suspicion.count = 0;
            }
            return Tried::Held(error);
        }
        let Err(error) = self.attempt(step).await else {
            return Tried::Done;
        };
        let refused = |error: TransactionError| Tried::Refused(Refused(error.to_string()));
        let rehearsed = suspicion.lost.take().is_some();
        match (blame(&error), step.alone()) {
            (Blame::Row, _) => return refused(error),
            // Halving blames nobody, and each further proof could be a crash of Postgres.
            (Blame::Lost, None) => return refused(error),
            (Blame::Lost, Some(work)) => {
                suspicion.lost = Some(work);
                suspicion.count += u32::from(rehearsed);
            }
            (Blame::Suspect, _) if self.probe_database().await.is_ok() => suspicion.count += 1,
            (Blame::Suspect | Blame::Environment, _) => suspicion.count = 0,
        }
        if suspicion.count >= SUSPICIONS {
            return refused(error);
        }
        Tried::Held(error)
    }

    async fn attempt(&self, step: &Step<'_>) -> Result<(), TransactionError> {
        match *step {
            Step::Store(group) => self.store(group).await,
            Step::Isolate(works) => spool_writer::isolate(&self.pool, works).await,
            Step::Defer {
                work,
                reason,
                delay,
            } => spool_writer::defer(&self.pool, work, reason, delay).await,
        }
    }
}

/// Shows that events are held, for as long as it lives.
struct Hold<'p>(&'p Persistence);

impl<'p> Hold<'p> {
    fn new(persistence: &'p Persistence) -> Self {
        persistence.holding.fetch_add(1, Ordering::Relaxed);
        persistence.metrics.holding.inc();
        Self(persistence)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.holding.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.holding.dec();
    }
}
