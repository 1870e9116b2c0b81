//! Replays as background jobs: a row of `replay_jobs` for each job, and a row of `replay_job_letters` for each
//! of its dead letters. So a job can continue after the program was restarted.
//!
//! The process that has the [`Lease`] runs the jobs, and each of its transactions checks that it still has it.

use serde_json::{Value, json};
use sqlx::PgConnection;
use worker::problem::Kind;

use super::{
    ACTION, Replayed,
    lease::{Lease, LeaseLost},
};
use crate::{
    Run,
    database::{CHANGING, Connection, READING, STORING},
};

/// A job that is to be created.
#[derive(Debug)]
pub struct NewJob<'a> {
    /// The dead letters, in the order in which they are replayed.
    pub ids: &'a [String],
    /// A hash of the ids.
    pub set_sha256: &'a [u8],
    /// How the dead letters were selected.
    pub filter: Value,
    /// The limit of events per second.
    pub rate: u32,
    /// The person who starts it.
    pub person: Option<&'a str>,
}

/// An unfinished job.
#[derive(Debug)]
pub struct Job {
    /// Its number.
    pub id: i64,
    /// Writes its changes to `operator_actions`.
    pub run: Run,
    /// The limit of events per second.
    pub rate: u32,
    /// How often it was started or continued since the last dead letter was finished, including now.
    pub tries: i32,
    /// The error that interrupted it last.
    pub error: Option<String>,
    lease: Lease,
}

/// What a batch of a job needs of it.
#[derive(Clone, Debug)]
pub struct OfJob {
    pub(super) id: i64,
    pub(super) lease: Lease,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Each dead letter has an outcome.
    Done,
    /// An operator stopped it.
    Stopped,
    /// It was interrupted too often.
    Failed,
}

impl End {
    /// The name in `replay_jobs`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

impl NewJob<'_> {
    /// Creates the job, or finds the unfinished job with the same dead letters. Returns its number. Also
    /// deletes jobs that ended long ago.
    pub async fn create(&self, connection: &mut Connection) -> anyhow::Result<i64> {
        connection
            .change(&CHANGING, async |c| self.insert(c).await)
            .await
    }

    async fn insert(&self, connection: &mut PgConnection) -> anyhow::Result<i64> {
        sqlx::query("delete from replay_jobs where ended_at < now() - interval '720 hours'")
            .execute(&mut *connection)
            .await?;
        let made: Option<i64> = sqlx::query_scalar(
            "insert into replay_jobs (person, filter, letters, set_sha256, rate)
             values ($1, $2, $3, $4, $5)
             on conflict (set_sha256) where ended is null do nothing
             returning id",
        )
        .bind(self.person)
        .bind(Run::described(self.filter.clone()))
        .bind(i32::try_from(self.ids.len())?)
        .bind(self.set_sha256)
        .bind(i32::try_from(self.rate)?)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(id) = made else {
            let other = "select id from replay_jobs where set_sha256 = $1 order by id desc limit 1";
            let other = sqlx::query_scalar(other).bind(self.set_sha256);
            return Ok(other.fetch_one(connection).await?);
        };
        sqlx::query(
            "insert into replay_job_letters (job, webhook_id, position)
             select $1, id, place from unnest($2::text[]) with ordinality as letter (id, place)",
        )
        .bind(id)
        .bind(self.ids)
        .execute(connection)
        .await?;
        Ok(id)
    }
}

impl Job {
    /// Takes the oldest unfinished job, if the lease is not lost. `counts` says whether this is another try. `error` is the job that
    /// was interrupted last, and why.
    pub async fn take(
        connection: &mut Connection,
        lease: &Lease,
        counts: bool,
        error: Option<(i64, &str)>,
    ) -> anyhow::Result<Option<Self>> {
        type Row = (i64, String, Option<String>, Value, i32, i32, Option<String>);
        let row: Option<Row> = connection
            .change(&STORING, async |connection| {
                if !lease.hold(connection).await? {
                    return Err(LeaseLost.into());
                }
                let job = sqlx::query_as(
                    "update replay_jobs
                        set tries = tries + $1, error = case when id = $2 then $3 else error end
                      where id = (select min(id) from replay_jobs where ended is null)
                        and ended is null
                     returning id, run::text, person, filter, rate, tries, error",
                )
                .bind(i32::from(counts))
                .bind(error.map(|(job, _)| job))
                .bind(error.map(|(_, error)| error));
                Ok(job.fetch_optional(connection).await?)
            })
            .await?;
        Ok(
            row.map(|(id, run, person, mut filter, rate, tries, error)| {
                if let Value::Object(fields) = &mut filter {
                    fields.insert("job".to_owned(), id.into());
                }
                Self {
                    id,
                    run: Run::new(ACTION, filter, person.as_deref()).part_of(Some(&run)),
                    rate: rate.unsigned_abs(),
                    tries,
                    error,
                    lease: lease.clone(),
                }
            }),
        )
    }

    /// What its batches need.
    pub fn share(&self) -> OfJob {
        OfJob {
            id: self.id,
            lease: self.lease.clone(),
        }
    }

    /// Changes the job, unless the lease is lost.
    async fn change(
        &self,
        connection: &mut Connection,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<(), sqlx::Error>,
    ) -> anyhow::Result<()> {
        connection
            .change(&STORING, async |connection| {
                if !self.lease.hold(connection).await? {
                    return Err(LeaseLost.into());
                }
                Ok(work(connection).await?)
            })
            .await
    }

    /// The dead letters without an outcome, in their order, each with whether it is a poison message.
    pub async fn unfinished(
        &self,
        connection: &mut Connection,
    ) -> anyhow::Result<Vec<(String, bool)>> {
        let mut transaction = connection.begin(&READING).await?;
        let undone = sqlx::query_as(
            "select l.webhook_id, coalesce(e.problem_kind = $2, false)
               from replay_job_letters l
               left join events e on e.webhook_id = l.webhook_id
              where l.job = $1 and l.outcome is null
              order by l.position",
        )
        .bind(self.id)
        .bind(Kind::StoppedWorker.name())
        .fetch_all(&mut *transaction)
        .await?;
        transaction.rollback().await?;
        Ok(undone)
    }

    /// Whether an operator has asked to stop it.
    pub async fn is_stop_requested(&self, connection: &mut Connection) -> anyhow::Result<bool> {
        let mut transaction = connection.begin(&READING).await?;
        let is_to_stop = sqlx::query_scalar(
            "select stop_requested_at is not null from replay_jobs where id = $1",
        )
        .bind(self.id)
        .fetch_one(&mut *transaction)
        .await?;
        transaction.rollback().await?;
        Ok(is_to_stop)
    }

    /// Starts to count tries anew, after a dead letter was finished.
    pub async fn reset_tries(&self, connection: &mut Connection) -> anyhow::Result<()> {
        self.change(connection, async |connection| {
            sqlx::query("update replay_jobs set tries = 0, error = null where id = $1")
                .bind(self.id)
                .execute(connection)
                .await?;
            Ok(())
        })
        .await
    }

    /// Ends the job.
    pub async fn end(&self, connection: &mut Connection, end: End) -> anyhow::Result<()> {
        self.change(connection, async |connection| {
            sqlx::query("update replay_jobs set ended = $2, ended_at = now() where id = $1")
                .bind(self.id)
                .bind(end.name())
                .execute(connection)
                .await?;
            Ok(())
        })
        .await
    }

    /// Writes the outcomes of dead letters that were not changed.
    pub async fn write_outcomes(
        &self,
        connection: &mut Connection,
        replayed: &[Replayed],
    ) -> anyhow::Result<()> {
        self.change(connection, async |connection| {
            write_outcomes(connection, self.id, replayed).await
        })
        .await
    }
}

/// Asks to stop a job. Returns `false` if it has ended, or if somebody has asked before.
pub async fn request_stop(
    connection: &mut Connection,
    id: i64,
    person: Option<&str>,
) -> anyhow::Result<bool> {
    let run = Run::new("dead-letters replay stop", json!({"job": id}), person);
    connection
        .change(&STORING, async |connection| {
            let change: Option<Value> = sqlx::query_scalar(
                "update replay_jobs set stop_requested_at = now(), stop_requested_by = $2
                  where id = $1 and ended is null and stop_requested_at is null
                 returning jsonb_build_object(
                     'table', 'replay_jobs', 'id', id, 'before', jsonb_build_object('stop_requested_at', null),
                     'after', jsonb_build_object('stop_requested_at', stop_requested_at))",
            )
            .bind(id)
            .bind(person)
            .fetch_optional(&mut *connection)
            .await?;
            let is_new = change.is_some();
            run.record(connection, change.into_iter().collect()).await?;
            Ok(is_new)
        })
        .await
}

/// Writes outcomes that are not written yet.
pub(super) async fn write_outcomes(
    connection: &mut PgConnection,
    job: i64,
    replayed: &[Replayed],
) -> Result<(), sqlx::Error> {
    fn column<'r, T>(replayed: &'r [Replayed], pick: impl Fn(&'r Replayed) -> T) -> Vec<T> {
        replayed.iter().map(pick).collect()
    }
    sqlx::query(
        "update replay_job_letters l
            set outcome = done.outcome, reason = done.reason, done_at = now()
           from unnest($2::text[], $3::text[], $4::text[]) as done (webhook_id, outcome, reason)
          where l.job = $1 and l.webhook_id = done.webhook_id and l.outcome is null",
    )
    .bind(job)
    .bind(column(replayed, |one| one.webhook_id.as_str()))
    .bind(column(replayed, |one| one.outcome.name()))
    .bind(column(replayed, |one| one.reason.as_deref()))
    .execute(connection)
    .await?;
    Ok(())
}
