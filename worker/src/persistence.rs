//! Stores a batch in spite of failures: it waits while Postgres is down, and it finds rows that
//! Postgres refuses and defers them, so that they do not affect other events.

mod groups;

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
    database::{self, Pool, TransactionError},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use self::groups::{BatchRun, Failure, Task};
use crate::{
    families,
    metrics::Metrics,
    problem::Kind,
    record::{Body, Record},
    rehearsal,
    spool_writer::{self, Claims, Deferral},
    store::{self, Stored, Timeouts},
    work::Work,
};

/// The backoff of an event that Postgres refused.
const RETRY_DELAYS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(3_600),
];

const LOCKED_DELAY: Duration = Duration::from_secs(2);

/// The batch was abandoned before it was stored, so it must not be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abandoned;

/// Stores batches for one family's worker.
pub struct Persistence {
    pool: Pool,
    family: Family,
    metrics: Metrics,
    holding: AtomicUsize,
    hold_reason: Mutex<String>,
}

impl Persistence {
    /// Stores events through `pool`.
    pub fn new(pool: impl Into<Pool>, family: Family, metrics: Metrics) -> Self {
        Self {
            pool: pool.into(),
            family,
            metrics,
            holding: AtomicUsize::new(0),
            hold_reason: Mutex::default(),
        }
    }

    pub(crate) fn family(&self) -> Family {
        self.family
    }

    /// Checks that events can be stored now and that none are held.
    pub async fn probe(&self) -> Result<(), String> {
        if self.holding.load(Ordering::Relaxed) > 0 {
            let reason = self.hold_reason.lock();
            let reason = reason.unwrap_or_else(PoisonError::into_inner);
            return Err(format!("holding events: {reason}"));
        }
        let probe = async {
            database::probe(&self.pool, store::PROBE).await?;
            match families::probe(self.family) {
                Some(probe) => database::probe(&self.pool, probe).await,
                None => Ok(()),
            }
        };
        probe.await.map_err(|e| e.to_string())
    }

    pub(crate) fn note_reason(&self, reason: String) {
        let noted = self.hold_reason.lock();
        *noted.unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Stores every event of the batch in `events` or returns it to the spool. It waits while
    /// Postgres is down, until `abandon` or the hold limit.
    pub async fn persist(
        &self,
        batch: Vec<Work>,
        abandon: &CancellationToken,
    ) -> Result<(), Abandoned> {
        let batch: Vec<(Work, Record)> = batch
            .into_iter()
            .map(|work| {
                let record = Record::new(&work).taken_by(self.family);
                (work, record)
            })
            .collect();
        // All claims are renewed while any event is held; stored events have no row any more.
        let claims = Claims::of(&self.pool, batch.iter().map(|(work, _)| work));
        let mut run = BatchRun::new(self, &claims, abandon);
        let tasks = batch.iter().map(|(w, r)| Task::Store(w, r)).collect();
        let rest = run.complete(tasks).await?;
        self.set_aside(&mut run, rest).await
    }

    /// Moves suspected poison messages to the spool without parsing them. There each is handled
    /// alone, and its claims are counted.
    pub async fn isolate(
        &self,
        batch: &[Work],
        abandon: &CancellationToken,
    ) -> Result<(), Abandoned> {
        let claims = Claims::of(&self.pool, []);
        let mut run = BatchRun::new(self, &claims, abandon);
        let rest = run
            .complete(batch.iter().map(Task::Isolate).collect())
            .await?;
        self.must_be_empty(&rest)
    }

    /// Stores the remaining events in a simpler form, if there is one, and returns the others to
    /// the spool: locked ones until the lock is released, refused ones until their next attempt.
    async fn set_aside(
        &self,
        run: &mut BatchRun<'_>,
        rest: Vec<(Task<'_>, Failure)>,
    ) -> Result<(), Abandoned> {
        let mut deferrals = Vec::new();
        let mut simpler = Vec::new();
        for (task, failure) in &rest {
            let &Task::Store(work, record) = task else {
                continue;
            };
            match failure {
                Failure::Locked => deferrals.push(locked(work)),
                Failure::Refused(reason) => match self.simpler(work, record, reason).await {
                    Some(record) => simpler.push((work, record, reason)),
                    None => deferrals.push(refused(work, reason)),
                },
            }
        }
        if !simpler.is_empty() {
            let tasks = simpler.iter().map(|(w, r, _)| Task::Store(w, r)).collect();
            for (task, failure) in run.complete(tasks).await? {
                let Task::Store(work, _) = task else {
                    continue;
                };
                let first = simpler.iter().find(|(w, ..)| std::ptr::eq(*w, work));
                deferrals.push(match (failure, first) {
                    (Failure::Refused(_), Some((.., reason))) => refused(work, reason),
                    _ => locked(work),
                });
            }
        }
        self.defer(run, &deferrals).await
    }

    /// A form of a refused event that Postgres may accept: with its body as bytes if Postgres
    /// refuses the body as JSON, or as a dead letter if all attempts are spent.
    async fn simpler(&self, work: &Work, record: &Record, reason: &str) -> Option<Record> {
        if delay(work).is_none() {
            return Some(record.clone().with_refusal(work, reason));
        }
        match &record.body {
            Body::Json(json) if !store::takes_as_json(&self.pool, json).await => {
                Some(record.clone().as_bytes(work))
            }
            _ => None,
        }
    }

    async fn defer(
        &self,
        run: &mut BatchRun<'_>,
        deferrals: &[Deferral<'_>],
    ) -> Result<(), Abandoned> {
        if deferrals.is_empty() {
            return Ok(());
        }
        for Deferral {
            work,
            attempts,
            delay,
            reason: _,
        } in deferrals
        {
            // The reason is not logged, because Postgres may quote the body.
            warn!(
                family = %self.family,
                webhook_id = work.event.webhook_id,
                attempts,
                retry_in_s = delay.as_secs(),
                "the event cannot be stored now; trying again later, see webhook_spool"
            );
        }
        let tasks = deferrals.iter().copied().map(Task::Defer).collect();
        let rest = run.complete(tasks).await?;
        self.must_be_empty(&rest)?;
        for _ in deferrals {
            self.metrics.deferred();
        }
        Ok(())
    }

    /// Events that even the spool refuses stay where they came from.
    fn must_be_empty(&self, rest: &[(Task<'_>, Failure)]) -> Result<(), Abandoned> {
        if rest.is_empty() {
            return Ok(());
        }
        let (family, events) = (self.family, rest.len());
        error!(%family, events, "the spool refuses events; they stay where they are");
        Err(Abandoned)
    }

    pub(crate) async fn attempt(
        &self,
        group: &[Task<'_>],
        timeouts: Timeouts,
    ) -> Result<(), TransactionError> {
        match group {
            [Task::Store(..), ..] => self.store(&to_be_stored(group), timeouts).await,
            [Task::Isolate(_), ..] => {
                let works: Vec<&Work> = group
                    .iter()
                    .filter_map(|task| match task {
                        Task::Isolate(work) => Some(*work),
                        Task::Store(..) | Task::Defer(_) => None,
                    })
                    .collect();
                spool_writer::isolate(&self.pool, self.family, &works).await
            }
            [Task::Defer(_), ..] => {
                let deferrals: Vec<Deferral<'_>> = group
                    .iter()
                    .filter_map(|task| match task {
                        Task::Defer(deferral) => Some(*deferral),
                        Task::Store(..) | Task::Isolate(_) => None,
                    })
                    .collect();
                spool_writer::defer(&self.pool, self.family, &deferrals).await
            }
            [] => Ok(()),
        }
    }

    /// Fails unless a harmless event as large as the group's largest could be stored now.
    pub(crate) async fn rehearse(&self, group: &[Task<'_>]) -> Result<(), TransactionError> {
        let rows = to_be_stored(group);
        let Some(size) = rows.iter().map(|(work, _)| work.event.body.len()).max() else {
            return spool_writer::rehearse(&self.pool, self.family).await;
        };
        rehearsal::rehearse(&self.pool, self.family, size).await
    }

    /// Which of the group's events change a row that another session has locked. If this cannot be
    /// found out, none is reported.
    pub(crate) async fn locked(&self, group: &[Task<'_>]) -> Vec<bool> {
        let rows = to_be_stored(group);
        if rows.len() != group.len() {
            return vec![false; group.len()];
        }
        match store::locked(&self.pool, self.family, &rows).await {
            Ok(locked) => locked,
            Err(error) => {
                warn!(family = %self.family, %error, "cannot find out which rows are locked");
                vec![false; group.len()]
            }
        }
    }

    async fn store(
        &self,
        rows: &[(&Work, &Record)],
        timeouts: Timeouts,
    ) -> Result<(), TransactionError> {
        let started = Instant::now();
        let stored = store::store(&self.pool, rows, timeouts).await?;
        self.metrics.batch_stored(rows.len(), started.elapsed());
        let now = Utc::now();
        for (&(work, record), stored) in rows.iter().zip(stored) {
            self.metrics
                .event_stored(stored, now - work.event.received_at);
            if stored == Stored::WithProblem {
                if record.problem.as_ref().map(|p| p.kind) == Some(Kind::Misrouted) {
                    self.metrics.misrouted.inc();
                }
                // The problem is not logged, because a parser may quote the body.
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
}

fn to_be_stored<'t>(group: &[Task<'t>]) -> Vec<(&'t Work, &'t Record)> {
    group
        .iter()
        .filter_map(|task| match *task {
            Task::Store(work, record) => Some((work, record)),
            Task::Isolate(_) | Task::Defer(_) => None,
        })
        .collect()
}

/// The delay until an event's next attempt; `None` if all are spent.
fn delay(work: &Work) -> Option<Duration> {
    let spent = usize::try_from(work.attempts).unwrap_or(0);
    RETRY_DELAYS.get(spent).copied()
}

/// Defers a refused event to its next attempt. If it is refused even as a dead letter, it stays in
/// the spool and is not lost.
fn refused<'w>(work: &'w Work, reason: &'w str) -> Deferral<'w> {
    Deferral {
        work,
        reason,
        delay: delay(work).unwrap_or(RETRY_DELAYS[RETRY_DELAYS.len() - 1]),
        attempts: work.attempts.saturating_add(1),
    }
}

fn locked(work: &Work) -> Deferral<'_> {
    Deferral {
        work,
        reason: "somebody holds a lock on a row that it changes",
        delay: LOCKED_DELAY,
        attempts: work.attempts,
    }
}

/// While this exists, readiness and a metric show that events are held.
pub(crate) struct Hold<'p>(&'p Persistence);

impl<'p> Hold<'p> {
    pub(crate) fn new(persistence: &'p Persistence) -> Self {
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
