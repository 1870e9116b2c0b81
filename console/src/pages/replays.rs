//! The replays that operators started: their progress and outcomes, and the form that stops one.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use askama::Template;
use chrono::{DateTime, Utc};
use operations::dead_letters::replay::Outcome;
use serde::Deserialize;
use serde_json::{Map, Value};
use sqlx::PgConnection;

use crate::{
    error::PageError,
    frame::{Frame, Section, html},
    operations::{Operations, Standing, person},
    store::Store,
    text, time,
};

/// Replays on a page.
const PAGE: i64 = 20;

/// Groups of outcomes, and remaining dead letters, on the page of a replay.
const MAX_GROUPS: i64 = 100;
const MAX_LEFT: i64 = 100;

const COLUMNS: &str = "j.id, j.created_at, j.account, j.person, j.filter::text as filter, j.letters, j.rate,
    j.tries, j.error, j.stop_requested_at, j.stop_requested_by, j.ended, j.ended_at,
    (select count(*) from replay_job_letters l where l.job = j.id and l.outcome is not null) as done,
    (select count(*) from replay_jobs before where before.id < j.id and before.ended is null) as waits_for";

/// The query string of the list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Query {
    before: String,
}

#[derive(sqlx::FromRow)]
struct Job {
    id: i64,
    created_at: DateTime<Utc>,
    account: String,
    person: Option<String>,
    filter: String,
    letters: i32,
    rate: i32,
    tries: i32,
    error: Option<String>,
    stop_requested_at: Option<DateTime<Utc>>,
    stop_requested_by: Option<String>,
    ended: Option<String>,
    ended_at: Option<DateTime<Utc>>,
    done: i64,
    waits_for: i64,
}

/// Dead letters with the same outcome and reason.
#[derive(sqlx::FromRow)]
struct Group {
    outcome: String,
    reason: Option<String>,
    events: i64,
}

/// A dead letter that the replay did not mend.
#[derive(sqlx::FromRow)]
struct Left {
    webhook_id: String,
    outcome: String,
    reason: Option<String>,
}

#[derive(Template)]
#[template(path = "replays.html")]
struct ReplaysPage {
    frame: Frame,
    jobs: Vec<Job>,
    older: Option<String>,
    is_first: bool,
}

#[derive(Template)]
#[template(path = "replay_job.html")]
struct JobPage {
    frame: Frame,
    progress: Progress,
}

/// The part of the page that refreshes itself.
#[derive(Template)]
#[template(path = "replay_progress.html")]
struct Progress {
    job: Job,
    groups: Vec<Group>,
    left: Vec<Left>,
    standing: Standing,
}

/// `GET /replays`
pub(crate) async fn list(
    request: HttpRequest,
    query: web::Query<Query>,
    store: web::Data<Store>,
) -> Result<HttpResponse, PageError> {
    let before: Option<i64> =
        match query.before.as_str() {
            "" => None,
            id => Some(id.parse().map_err(|_| {
                PageError::BadAddress("`before` is no place in the list.".to_owned())
            })?),
        };
    let mut jobs = store
        .look(async |connection| jobs(connection, before).await)
        .await?;
    let has_older = jobs.len() > PAGE as usize;
    jobs.truncate(PAGE as usize);
    let last = jobs.last().filter(|_| has_older);
    html(&ReplaysPage {
        frame: Frame::new(&request, "Replays", Section::Replays),
        older: last.map(|last| text::href("/replays", &[("before", &last.id.to_string())])),
        is_first: before.is_none(),
        jobs,
    })
}

/// `GET /replays/{id}`
pub(crate) async fn page(
    request: HttpRequest,
    id: web::Path<String>,
    store: web::Data<Store>,
    operations: web::Data<Operations>,
) -> Result<HttpResponse, PageError> {
    let progress = Progress::look(&store, number(&id)?, operations.standing(&request)).await?;
    let title = format!("Replay {}", progress.job.id);
    html(&JobPage {
        frame: Frame::new(&request, &title, Section::Replays),
        progress,
    })
}

/// `GET /replays/{id}/progress`
pub(crate) async fn progress(
    request: HttpRequest,
    id: web::Path<String>,
    store: web::Data<Store>,
    operations: web::Data<Operations>,
) -> Result<HttpResponse, PageError> {
    html(&Progress::look(&store, number(&id)?, operations.standing(&request)).await?)
}

/// `POST /replays/{id}/stop`
pub(crate) async fn stop(
    request: HttpRequest,
    id: web::Path<String>,
    operations: web::Data<Operations>,
) -> Result<HttpResponse, PageError> {
    operations.check(&request)?;
    let (job, person) = (number(&id)?, person(&request));
    let stopped = operations.stop_replay(job, person.as_deref()).await;
    let is_new = stopped.map_err(|error| {
        let error = shared::reason::one_line(&error);
        tracing::warn!(error, job, "a replay could not be stopped");
        PageError::NotDone(format!("The replay was not stopped: {error}"))
    })?;
    if is_new {
        tracing::info!(person, job, "an operator stopped a replay");
    }
    Ok(HttpResponse::SeeOther()
        .insert_header((header::LOCATION, format!("/replays/{job}")))
        .finish())
}

fn number(id: &str) -> Result<i64, PageError> {
    id.parse().map_err(|_| NOWHERE)
}

const NOWHERE: PageError =
    PageError::NotFound("There is no replay with this number, or it ended more than 30 days ago.");

async fn jobs(connection: &mut PgConnection, before: Option<i64>) -> Result<Vec<Job>, sqlx::Error> {
    let sql = format!(
        "select {COLUMNS} from replay_jobs j where $1::bigint is null or j.id < $1
          order by j.id desc limit $2"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(before)
        .bind(PAGE + 1)
        .fetch_all(connection)
        .await
}

impl Progress {
    async fn look(store: &Store, id: i64, standing: Standing) -> Result<Self, PageError> {
        let look = store.look(async |connection| Self::find(connection, id, standing).await);
        look.await?.ok_or(NOWHERE)
    }

    async fn find(
        connection: &mut PgConnection,
        id: i64,
        standing: Standing,
    ) -> Result<Option<Self>, sqlx::Error> {
        let sql = format!("select {COLUMNS} from replay_jobs j where j.id = $1");
        let job = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id);
        let Some(job) = job.fetch_optional(&mut *connection).await? else {
            return Ok(None);
        };
        let groups = sqlx::query_as(
            "select outcome, regexp_replace(reason, ' at line \\d+( column \\d+)?$', '') as reason,
                    count(*) as events
               from replay_job_letters where job = $1 and outcome is not null
              group by 1, 2 order by 3 desc, 1, 2 limit $2",
        )
        .bind(id)
        .bind(MAX_GROUPS)
        .fetch_all(&mut *connection)
        .await?;
        let good: Vec<&str> = (Outcome::ALL.into_iter())
            .filter(|outcome| outcome.is_good())
            .map(Outcome::name)
            .collect();
        let left = sqlx::query_as(
            "select webhook_id, outcome, reason from replay_job_letters
              where job = $1 and outcome <> all($2) order by position limit $3",
        )
        .bind(id)
        .bind(good)
        .bind(MAX_LEFT)
        .fetch_all(connection)
        .await?;
        Ok(Some(Self {
            job,
            groups,
            left,
            standing,
        }))
    }
}

impl Job {
    /// The parts of the selection. Its column may hold any JSON that the operators' account wrote.
    fn selection(&self) -> Vec<(String, String)> {
        let Ok(parts) = serde_json::from_str::<Map<String, Value>>(&self.filter) else {
            return vec![("filter".to_owned(), self.filter.clone())];
        };
        parts
            .into_iter()
            .map(|(name, value)| match value {
                Value::String(text) => (name, text),
                other => (name, other.to_string()),
            })
            .collect()
    }

    fn is_running(&self) -> bool {
        self.ended.is_none()
    }

    /// The state for people.
    fn state(&self) -> &'static str {
        match (self.ended.as_deref(), self.stop_requested_at) {
            (Some("done"), _) => "done",
            (Some("stopped"), _) => "stopped",
            (Some(_), _) => "failed",
            (None, Some(_)) => "stopping",
            (None, None) if self.waits_for > 0 => "waiting for an earlier replay",
            (None, None) if self.error.is_some() => "retrying",
            (None, None) => "running",
        }
    }

    /// The number of dead letters without an outcome.
    fn rest(&self) -> i64 {
        i64::from(self.letters) - self.done
    }

    fn href(&self) -> String {
        format!("/replays/{}", self.id)
    }
}

impl Group {
    fn words(&self) -> &str {
        words(&self.outcome)
    }

    fn is_good(&self) -> bool {
        Outcome::parse(&self.outcome).is_some_and(Outcome::is_good)
    }
}

impl Left {
    fn words(&self) -> &str {
        words(&self.outcome)
    }
}

/// An outcome for people. An outcome of a newer version is shown by its name.
fn words(outcome: &str) -> &str {
    Outcome::parse(outcome).map_or(outcome, |known| known.words())
}
