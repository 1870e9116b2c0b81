//! A batch of dead letters in one transaction: locked, read, stored, and no dead letters any more.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use migrations::Blocker;
use serde_json::{Value, json};
use shared::{
    AcceptedEvent,
    database::{DeadlineTransaction, Pool, TransactionError},
    message::Receipt,
};
use sqlx::PgConnection;
use tokio::time::{Instant, sleep};
use worker::{
    families::{self, Typed},
    judge::Class,
    problem::{self, Kind},
    record::Record,
    work::{Source, Work},
};

use super::{
    job::{self, OfJob},
    lease::LeaseLost,
    letter::{LOCK, Letter},
    mended::{Mended, clear, newest},
    outcome::{Outcome, Replayed},
    rounds::Host,
    trial::Trial,
};
use crate::{
    Run,
    database::{READING, STORING},
    lock_holders::{LATER_LOCK_WAIT, MOST_LOCKED_ALONE, Watch, said},
    stored_type,
};

const DEADLINE: Duration = Duration::from_secs(40);

/// After the deadline the statement that is under way keeps its locks until Postgres ends it, which it does by
/// the limit of [`STORING`].
const ENDING: Duration = Duration::from_secs(30);
const ENDING_INTERVAL: Duration = Duration::from_millis(500);

/// What the JSON has lost, by the parser's own words.
const DOUBLED: &str = "duplicate field";

/// How to replay.
pub struct Attempt {
    /// One connection is enough.
    pub pool: Pool,
    /// Sees who holds a lock.
    pub watch: Watch,
    /// Commit and write that down, or take everything back.
    pub run: Option<Run>,
    /// Also those that no replay takes without being asked for each by its id.
    pub include_withheld: bool,
    /// Accept events of companies that their secret does not speak for.
    pub any_company: bool,
    /// What was taken back of earlier batches.
    pub trial: Mutex<Trial>,
    /// The replay job that this belongs to. Its lease is then checked, and the outcomes are written, in the same
    /// transaction.
    pub job: Option<OfJob>,
}

/// Why a transaction did nothing, and who was seen to hold it up.
struct Failure {
    error: TransactionError,
    holders: Vec<Blocker>,
    /// It exceeded its deadline, and Postgres answers.
    took_too_long: bool,
}

impl Failure {
    fn class(&self) -> Class {
        match self.took_too_long {
            true => Class::Slow,
            false => Class::of(&self.error),
        }
    }

    fn reason(&self) -> String {
        match self.took_too_long {
            true => format!("took longer than {} s", DEADLINE.as_secs()),
            false => problem::refusal(&self.error),
        }
    }
}

/// How far a transaction got.
#[derive(Default)]
struct Progress {
    /// The backend in Postgres, once it has begun.
    backend: Option<i32>,
    holders: Vec<Blocker>,
}

/// What a dead letter becomes.
enum Judgement {
    Mended(Letter, Box<Record>),
    Left(String, Outcome, String),
}

impl Attempt {
    /// Replays these, and adds what became of each to `replayed`. An offender is found by halving, so that
    /// it costs the others nothing. An error that ends the replay leaves everything before it done. Halving
    /// may take minutes, so `host` is asked meanwhile whether to continue. Returns those that were not tried to the end.
    pub async fn batch(
        &self,
        ids: Vec<String>,
        lock_wait: Duration,
        host: &mut impl Host,
        replayed: &mut Vec<Replayed>,
    ) -> anyhow::Result<Vec<String>> {
        let mut groups = vec![(ids, lock_wait)];
        let mut suspects = Vec::new();
        let mut locked_alone = 0;
        let mut has_failed = false;
        while let Some((mut group, lock_wait)) = groups.pop() {
            if has_failed && !host.may_continue().await? {
                groups.push((group, lock_wait));
                break;
            }
            let failure = match self.transaction(&group, lock_wait, false).await? {
                Ok(done) => {
                    replayed.extend(done);
                    continue;
                }
                Err(failure) => failure,
            };
            has_failed = true;
            let class = failure.class();
            let is_lock = matches!(class, Class::Locked | Class::Contention);
            match (class, &group[..]) {
                // A lost connection is never taken for an event's fault: the proof would be more crashes.
                (Class::Lost | Class::Away, _) => return Err(failure.error.into()),
                (_, []) => {}
                (_, [id]) if is_lock => {
                    locked_alone += 1;
                    replayed.push(self.locked(id, &failure));
                }
                (Class::Environment, [_]) => suspects.push((group.remove(0), failure.error)),
                (_, [id]) => replayed.extend(self.again(id, &failure).await?),
                (_, _) if is_lock && locked_alone >= MOST_LOCKED_ALONE => {
                    replayed.extend(group.iter().map(|id| self.locked(id, &failure)));
                }
                (_, _) => groups.extend(halves(group)),
            }
        }
        self.judge_suspects(suspects, replayed)?;
        Ok(groups.into_iter().rev().flat_map(|(ids, _)| ids).collect())
    }

    /// Those that failed alone with an error that is usually everybody's. Where others got through beside
    /// them it is theirs after all, such as one that a trigger raises.
    fn judge_suspects(
        &self,
        suspects: Vec<(String, TransactionError)>,
        replayed: &mut Vec<Replayed>,
    ) -> anyhow::Result<()> {
        let got_through = (replayed.iter())
            .any(|replayed| replayed.outcome.is_good() && replayed.outcome != Outcome::Gone);
        for (id, error) in suspects {
            if !got_through {
                return Err(error.into());
            }
            let reason = problem::refusal(&error);
            replayed.push(self.replayed(&id, Outcome::Refused, Some(reason)));
        }
        Ok(())
    }

    /// Leaves the body as bytes, in case `jsonb` is what refuses it.
    async fn again(&self, id: &String, first: &Failure) -> anyhow::Result<Vec<Replayed>> {
        let ids = std::slice::from_ref(id);
        let keep_bytes = !first.took_too_long;
        let failure = match self.transaction(ids, LATER_LOCK_WAIT, keep_bytes).await? {
            Ok(done) => return Ok(done),
            Err(failure) => failure,
        };
        Ok(vec![match failure.class() {
            Class::Row | Class::Suspect | Class::Slow => {
                self.replayed(id, Outcome::Refused, Some(failure.reason()))
            }
            Class::Locked | Class::Contention => self.locked(id, &failure),
            Class::Environment | Class::Lost | Class::Away => return Err(failure.error.into()),
        }])
    }

    /// The outer error ends the replay.
    async fn transaction(
        &self,
        ids: &[String],
        lock_wait: Duration,
        keep_bytes: bool,
    ) -> anyhow::Result<Result<Vec<Replayed>, Failure>> {
        if let Some(job) = &self.job
            && !job.lease.renew(&self.pool).await?
        {
            return Err(LeaseLost.into());
        }
        let mut progress = Progress::default();
        let done = self
            .try_transaction(ids, lock_wait, keep_bytes, &mut progress)
            .await;
        let error = match done {
            Ok(Some(done)) => return Ok(Ok(done)),
            Ok(None) => return Err(LeaseLost.into()),
            Err(error) => error,
        };
        let took_too_long = match (&error, progress.backend) {
            (TransactionError::Deadline, Some(backend)) => self.has_ended(backend).await,
            _ => false,
        };
        Ok(Err(Failure {
            error,
            holders: progress.holders,
            took_too_long,
        }))
    }

    /// Returns `None` if the lease of the job is lost.
    async fn try_transaction(
        &self,
        ids: &[String],
        lock_wait: Duration,
        keep_bytes: bool,
        progress: &mut Progress,
    ) -> Result<Option<Vec<Replayed>>, TransactionError> {
        let mut transaction = self.begin(lock_wait).await?;
        let (backend, is_ours) = transaction
            .run(async |connection| self.start(connection).await)
            .await?;
        if !is_ours {
            return Ok(None);
        }
        progress.backend = Some(backend);
        let (replayed, mended) = transaction
            .run(async |connection| {
                let work =
                    async |connection: &mut _| self.replay(connection, ids, keep_bytes).await;
                (self.watch)
                    .during(connection, &mut progress.holders, work)
                    .await
            })
            .await?;
        if self.run.is_some() {
            transaction.commit().await?;
        } else {
            // What would fail only with the commit is to fail now.
            transaction.execute("set constraints all immediate").await?;
            transaction.rollback().await?;
            self.trial()
                .add(mended.into_iter().map(|(_, record)| *record));
        }
        Ok(Some(replayed))
    }

    /// The transaction's backend, and whether the lease of the job still counts, which it then does until the
    /// transaction ends.
    async fn start(&self, connection: &mut PgConnection) -> Result<(i32, bool), sqlx::Error> {
        let is_ours = match &self.job {
            Some(job) => job.lease.hold(connection).await?,
            None => true,
        };
        let backend = sqlx::query_scalar("select pg_backend_pid()")
            .fetch_one(connection)
            .await?;
        Ok((backend, is_ours))
    }

    /// Waits until the backend of a transaction that exceeded its deadline has ended. Returns `false` if
    /// Postgres does not answer.
    async fn has_ended(&self, backend: i32) -> bool {
        let deadline = Instant::now() + ENDING;
        while Instant::now() < deadline {
            match self.runs(backend, deadline).await {
                Ok(true) => sleep(ENDING_INTERVAL).await,
                Ok(false) => return true,
                Err(_) => return false,
            }
        }
        false
    }

    async fn runs(&self, backend: i32, deadline: Instant) -> Result<bool, TransactionError> {
        let mut transaction = DeadlineTransaction::begin(&self.pool, &READING, deadline).await?;
        let runs = transaction
            .run(async |connection| {
                sqlx::query_scalar("select exists (select from pg_stat_activity where pid = $1)")
                    .bind(backend)
                    .fetch_one(connection)
                    .await
            })
            .await?;
        transaction.rollback().await?;
        Ok(runs)
    }

    async fn begin(&self, lock_wait: Duration) -> Result<DeadlineTransaction, TransactionError> {
        let deadline = Instant::now() + DEADLINE;
        DeadlineTransaction::begin(&self.pool, &STORING.lock_timeout(lock_wait), deadline).await
    }

    fn locked(&self, id: &str, failure: &Failure) -> Replayed {
        let reason = match failure.class() {
            Class::Locked => said(&failure.holders),
            _ => failure.reason(),
        };
        self.replayed(id, Outcome::Locked, Some(reason))
    }

    async fn replay(
        &self,
        connection: &mut PgConnection,
        ids: &[String],
        keep_bytes: bool,
    ) -> Result<(Vec<Replayed>, Vec<Mended>), sqlx::Error> {
        let rows = sqlx::query(LOCK)
            .bind(ids)
            .fetch_all(&mut *connection)
            .await?;
        let mut replayed = Vec::new();
        let mut mended = Vec::new();
        for row in &rows {
            match self.judge(Letter::read(row)?, keep_bytes) {
                Judgement::Mended(letter, record) => mended.push((letter, record)),
                Judgement::Left(id, outcome, reason) => {
                    replayed.push(self.replayed(&id, outcome, Some(reason)));
                }
            }
        }
        // Of a resource of two companies the first one keeps it, in one batch or in two.
        let places: HashMap<&str, usize> = ids.iter().map(String::as_str).zip(0..).collect();
        mended.sort_by_key(|(_, record)| places.get(record.webhook_id.as_str()));
        let typed: Vec<&Typed> = mended
            .iter()
            .filter_map(|(_, r)| r.typed.as_ref())
            .collect();
        let strangers = families::upsert(connection, &typed).await?;
        let strangers: HashSet<String> = strangers.into_iter().map(str::to_owned).collect();
        mended.retain(|(_, record)| !strangers.contains(&record.webhook_id));
        replayed.extend(strangers.iter().map(|id| self.of_another_company(id)));
        clear(connection, &mended, self.any_company).await?;
        let newest = newest(&mut *connection, &mended).await?;
        let mut changes = Vec::new();
        for (letter, record) in &mended {
            let outcome = if record.typed.is_none() {
                Outcome::Untyped
            } else if newest.contains(&record.webhook_id) && !self.trial().has_newer(record) {
                Outcome::Newest
            } else {
                Outcome::Superseded
            };
            changes.push(change(letter, outcome));
            replayed.push(self.replayed(&record.webhook_id, outcome, None));
        }
        if let Some(run) = &self.run {
            run.record(connection, changes).await?;
        }
        let found: HashSet<String> = replayed.iter().map(|r| r.webhook_id.clone()).collect();
        let gone = ids.iter().filter(|id| !found.contains(*id));
        replayed.extend(gone.map(|id| self.replayed(id, Outcome::Gone, None)));
        if let Some(job) = &self.job {
            job::write_outcomes(connection, job.id, &replayed).await?;
        }
        Ok((replayed, mended))
    }

    fn trial(&self) -> MutexGuard<'_, Trial> {
        self.trial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of_another_company(&self, webhook_id: &str) -> Replayed {
        let reason = problem::COMPANY_CHANGE.to_owned();
        self.replayed(webhook_id, Outcome::StillWrong, Some(reason))
    }

    /// What this version makes of it.
    fn judge(&self, letter: Letter, keep_bytes: bool) -> Judgement {
        // Where the kind is not known, the event may be one that nobody should trust.
        let is_withheld =
            letter.kind.is_none_or(Kind::is_withheld) || problem::known_of(&letter.event).is_some();
        if is_withheld && !self.include_withheld {
            return Judgement::Left(letter.event.webhook_id, Outcome::Withheld, letter.problem);
        }
        if !letter.has_bytes && letter.problem.contains(DOUBLED) {
            let reason = "a doubled key, of which the stored JSON has only the last value";
            return Judgement::Left(
                letter.event.webhook_id,
                Outcome::StillWrong,
                reason.to_owned(),
            );
        }
        let work = Work {
            event: AcceptedEvent {
                secret_companies: (letter.event.secret_companies.clone())
                    .filter(|_| !self.any_company),
                ..letter.event.clone()
            },
            receipt: Receipt::Recorded,
            attempts: 0,
            problem: None,
            source: Source::Queue,
        };
        let mut record = Record::new(&work);
        if keep_bytes {
            record = record.as_bytes(&work);
        }
        let left = match (record.problem.take(), self.disagreement(&letter, &record)) {
            (Some(problem), _) => Some((Outcome::StillWrong, problem.text)),
            (None, Some(left)) => Some(left),
            (None, None) => (self.trial().makes_a_stranger(&record))
                .then(|| (Outcome::StillWrong, problem::COMPANY_CHANGE.to_owned())),
        };
        match left {
            Some((outcome, reason)) => Judgement::Left(letter.event.webhook_id, outcome, reason),
            None => Judgement::Mended(letter, Box::new(record)),
        }
    }

    /// Why it is not replayed as an event of the family that its body names. Somebody may decide so only
    /// where no type was known when it was stored.
    fn disagreement(&self, letter: &Letter, record: &Record) -> Option<(Outcome, String)> {
        let reason = stored_type::disagreement(&letter.stored_type, record)?;
        match (
            self.include_withheld,
            stored_type::is_unknown(&letter.stored_type),
        ) {
            (false, _) => Some((Outcome::Withheld, reason)),
            (true, false) => Some((Outcome::StillWrong, reason)),
            (true, true) => None,
        }
    }

    fn replayed(&self, webhook_id: &str, outcome: Outcome, reason: Option<String>) -> Replayed {
        Replayed {
            webhook_id: webhook_id.to_owned(),
            outcome,
            kept: self.run.is_some() && outcome.is_good(),
            reason,
        }
    }
}

/// Two groups, of which the first is taken next.
fn halves(mut group: Vec<String>) -> [(Vec<String>, Duration); 2] {
    let second = group.split_off(group.len() / 2);
    [(second, LATER_LOCK_WAIT), (group, LATER_LOCK_WAIT)]
}

/// What is written down of it.
fn change(letter: &Letter, outcome: Outcome) -> Value {
    json!({
        "webhook_id": letter.event.webhook_id,
        "before": {"problem": letter.problem},
        "after": {"problem": null, "replayed_problem": letter.problem},
        "outcome": outcome,
    })
}
