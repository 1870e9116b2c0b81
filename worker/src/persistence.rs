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
    database::{self, DeadlineTransaction, TransactionError},
    spool::{self, SpoolEntry},
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
    spool_reader::{ISOLATE_AFTER, LEASE},
    store::{self, Stored},
    work::{Source, Work},
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

/// For noting a deferral or renewing a claim.
const NOTE_DEADLINE: Duration = Duration::from_secs(10);

const BEGIN_DURABLE: &str = "begin;
    set local synchronous_commit = on;
    set local lock_timeout = '5s';
    set local statement_timeout = '10s'";

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

/// The claims on spool rows that a batch came with.
struct Claims<'b> {
    ids: Vec<&'b str>,
    hashes: Vec<&'b [u8]>,
}

impl<'b> Claims<'b> {
    fn of(works: impl IntoIterator<Item = &'b Work>) -> Self {
        let (ids, hashes) = works
            .into_iter()
            .filter(|work| work.source == Source::Spool)
            .map(|work| (work.event.webhook_id.as_str(), &work.event.body_sha256[..]))
            .unzip();
        Self { ids, hashes }
    }
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
        let claims = Claims::of(batch.iter().map(|(work, _)| work));
        // Halved until each offender is alone: a handful of transactions even for a big batch.
        let mut groups: Vec<&[(Work, Record)]> = vec![&batch];
        while let Some(group) = groups.pop() {
            let refused = self.complete(&Step::Store(group), &claims, abandon).await?;
            match (refused, group) {
                (Ok(()), _) => {}
                (Err(Refused(reason)), [(work, record)]) => {
                    self.set_aside(work, record, &reason, &claims, abandon)
                        .await?;
                }
                (Err(Refused(_)), _) => {
                    let (first, second) = group.split_at(group.len() / 2);
                    groups.extend([second, first]);
                }
            }
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
        let claims = Claims::of([]);
        let mut groups = vec![batch];
        let mut refused = false;
        while let Some(group) = groups.pop() {
            match self
                .complete(&Step::Isolate(group), &claims, abandon)
                .await?
            {
                Ok(()) => {}
                Err(Refused(_)) if group.len() > 1 => {
                    let (first, second) = group.split_at(group.len() / 2);
                    groups.extend([second, first]);
                }
                // What even the spool refuses stays with the broker.
                Err(Refused(_)) => {
                    error!(family = %self.family, "the spool refuses a message; it stays in the queue");
                    refused = true;
                }
            }
        }
        if refused { Err(Abandoned) } else { Ok(()) }
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
        let mut suspicions = 0;
        let mut hold = None;
        loop {
            let error = match self.attempt(step).await {
                Ok(()) => {
                    if hold.is_some() {
                        info!(family = %self.family, "postgres is back; going on");
                    }
                    return Ok(Ok(()));
                }
                Err(error) => error,
            };
            match blame(&error) {
                Blame::Row => return Ok(Err(Refused(error.to_string()))),
                Blame::Suspect if self.probe_database().await.is_ok() => suspicions += 1,
                Blame::Suspect | Blame::Environment => suspicions = 0,
            }
            if suspicions >= SUSPICIONS {
                return Ok(Err(Refused(error.to_string())));
            }
            if hold.is_none() {
                warn!(family = %self.family, %error, "postgres cannot store events now; holding them");
                hold = Some(Hold::new(self));
            }
            let reason = self.hold_reason.lock();
            *reason.unwrap_or_else(PoisonError::into_inner) = error.to_string();
            if started.elapsed() > HOLD_LIMIT {
                self.release(claims).await;
                return Err(Abandoned);
            }
            self.renew(claims).await;
            tokio::select! {
                () = abandon.cancelled() => {
                    self.release(claims).await;
                    return Err(Abandoned);
                }
                () = tokio::time::sleep(delays.next().unwrap_or(LEASE)) => {}
            }
        }
    }

    async fn attempt(&self, step: &Step<'_>) -> Result<(), TransactionError> {
        match *step {
            Step::Store(group) => self.store(group).await,
            Step::Isolate(works) => {
                let entries: Vec<_> = works
                    .iter()
                    .map(|work| SpoolEntry {
                        event: &work.event,
                        receipt: work.receipt,
                        attempts: work.attempts,
                        claims: ISOLATE_AFTER,
                        delay: Duration::ZERO,
                        reason: "was redelivered more than once",
                    })
                    .collect();
                let mut transaction = self.begin_durable().await?;
                transaction
                    .run(async |connection| spool::insert(connection, &entries).await)
                    .await?;
                transaction.commit().await
            }
            Step::Defer {
                work,
                reason,
                delay,
            } => {
                let mut transaction = self.begin_durable().await?;
                transaction
                    .run(async |connection| defer(connection, work, reason, delay).await)
                    .await?;
                transaction.commit().await
            }
        }
    }

    async fn begin_durable(&self) -> Result<DeadlineTransaction, TransactionError> {
        let deadline = Instant::now() + NOTE_DEADLINE;
        DeadlineTransaction::begin(&self.pool, BEGIN_DURABLE, deadline).await
    }

    /// Keeps claimed spool rows from being claimed again while they are held: a claim that runs out
    /// counts as a worker that was stopped. If Postgres is away nobody else can claim them either.
    /// Rows that were set aside meanwhile have no claim and keep their time.
    async fn renew(&self, claims: &Claims<'_>) {
        self.note(
            claims,
            "update webhook_spool s set due_at = now() + make_interval(secs => $3)
               from unnest($1::text[], $2::bytea[]) as held (webhook_id, body_sha256)
              where s.webhook_id = held.webhook_id and s.body_sha256 = held.body_sha256
                and s.claims > 0",
            LEASE,
        )
        .await;
    }

    /// Gives claimed spool rows back at once, uncounted.
    async fn release(&self, claims: &Claims<'_>) {
        self.note(
            claims,
            "update webhook_spool s
                set due_at = now() + make_interval(secs => $3), claims = s.claims - 1
               from unnest($1::text[], $2::bytea[]) as held (webhook_id, body_sha256)
              where s.webhook_id = held.webhook_id and s.body_sha256 = held.body_sha256
                and s.claims > 0",
            Duration::ZERO,
        )
        .await;
    }

    /// Best effort: without it the claims run out by themselves.
    async fn note(&self, claims: &Claims<'_>, sql: &'static str, due_in: Duration) {
        if claims.ids.is_empty() {
            return;
        }
        if let Err(error) = self.update_claims(claims, sql, due_in).await {
            warn!(family = %self.family, %error, "cannot note the state of spool rows");
        }
    }

    async fn update_claims(
        &self,
        claims: &Claims<'_>,
        sql: &'static str,
        due_in: Duration,
    ) -> Result<(), TransactionError> {
        let mut transaction = self.begin_durable().await?;
        transaction
            .run(async |connection| {
                sqlx::query(sql)
                    .bind(&claims.ids)
                    .bind(&claims.hashes)
                    .bind(due_in.as_secs_f64())
                    .execute(connection)
                    .await
                    .map(|_| ())
            })
            .await?;
        transaction.commit().await
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

async fn defer(
    connection: &mut sqlx::PgConnection,
    work: &Work,
    reason: &str,
    delay: Duration,
) -> Result<(), sqlx::Error> {
    let attempts = work.attempts.saturating_add(1);
    match work.source {
        Source::Queue => {
            let entry = SpoolEntry {
                event: &work.event,
                receipt: work.receipt,
                attempts,
                claims: 0,
                delay,
                reason,
            };
            spool::insert(connection, &[entry]).await
        }
        Source::Spool => {
            sqlx::query(
                "update webhook_spool
                    set attempts = $3, claims = 0, last_error = $4,
                        due_at = now() + make_interval(secs => $5)
                  where webhook_id = $1 and body_sha256 = $2",
            )
            .bind(&work.event.webhook_id)
            .bind(&work.event.body_sha256[..])
            .bind(attempts)
            .bind(reason)
            .bind(delay.as_secs_f64())
            .execute(connection)
            .await?;
            Ok(())
        }
    }
}
