//! An operator during the drill, who has the console open and replays dead letters.
//!
//! Dead letters of a drill stay dead letters, because their bodies are wrong. So this operator turns healthy
//! events into dead letters, as the tables' owner, and the console's replays have to make all of them healthy
//! again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use reqwest::header::{HOST, ORIGIN};
use reqwest::{Client, StatusCode};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// The pages of the console that stay open, in turn.
const PAGES: [&str; 7] = [
    "/",
    "/overview/figures",
    "/events",
    "/events?company=c&q=data.name&value=n",
    "/dead-letters",
    "/receipts",
    "/record",
];
const NEXT_PAGE_AFTER: Duration = Duration::from_millis(500);
const NEXT_REPLAY_AFTER: Duration = Duration::from_secs(10);
/// For a page, also while Postgres hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// For the replays at the end.
const REPLAYED_WITHIN: Duration = Duration::from_secs(120);

const SPOIL: &str = "
    update events set problem = 'the drill has taken its row away', problem_kind = 'refused'
     where webhook_id in (select webhook_id from events
                           where problem is null and event_type like '%.vendor.%'
                           order by received_at desc limit 100)";

const SPOILED: &str =
    "select count(*) from events where problem = 'the drill has taken its row away'";

/// Dead letters that one replay has changed more than once.
const TWICE: &str = "
    select count(*)
      from (select run, change->>'webhook_id'
              from operator_actions, jsonb_array_elements(changes) as change
             where action = 'dead-letters replay'
             group by 1, 2 having count(*) > 1) as twice";

/// A running operator.
#[derive(Debug)]
pub(super) struct Operator {
    desk: Arc<Desk>,
    stop: CancellationToken,
    /// Ends the tasks however the drill ends.
    _stopping: DropGuard,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Desk {
    console: SocketAddr,
    client: Client,
    /// As the tables' owner, by a way that no fault touches.
    pool: PgPool,
    pages: AtomicU64,
    pages_without_answer: AtomicU64,
    replays: AtomicU64,
    spoiled: AtomicU64,
}

impl Operator {
    /// Opens the console at this address, until [`Operator::finish`].
    pub(super) fn start(console: SocketAddr, owner_url: &str) -> Result<Self> {
        let desk = Arc::new(Desk {
            console,
            client: Client::builder()
                .timeout(PATIENCE)
                .redirect(reqwest::redirect::Policy::none())
                .build()?,
            pool: PgPoolOptions::new()
                .acquire_timeout(PATIENCE)
                .connect_lazy(owner_url)?,
            pages: AtomicU64::default(),
            pages_without_answer: AtomicU64::default(),
            replays: AtomicU64::default(),
            spoiled: AtomicU64::default(),
        });
        let stop = CancellationToken::new();
        let operator = Self {
            desk,
            _stopping: stop.clone().drop_guard(),
            stop,
            tasks: TaskTracker::new(),
        };
        let (desk, stop) = (Arc::clone(&operator.desk), operator.stop.clone());
        operator
            .tasks
            .spawn(async move { stop.run_until_cancelled(desk.look()).await });
        let (desk, stop) = (Arc::clone(&operator.desk), operator.stop.clone());
        operator.tasks.spawn(async move {
            while !stop.is_cancelled() {
                // With Postgres or the console away, the next one has to do.
                desk.spoil_and_replay().await.ok();
                stop.run_until_cancelled(sleep(NEXT_REPLAY_AFTER)).await;
            }
        });
        Ok(operator)
    }

    /// Replays what is still spoiled, and says in one line what was done.
    ///
    /// # Errors
    /// When something stays a dead letter, or was replayed twice.
    pub(super) async fn finish(&self) -> Result<String> {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let desk = &self.desk;
        let end = Instant::now() + REPLAYED_WITHIN;
        loop {
            let left: i64 = sqlx::query_scalar(SPOILED).fetch_one(&desk.pool).await?;
            if left == 0 {
                break;
            }
            ensure!(
                Instant::now() < end,
                "{left} dead letters were not replayed by the console"
            );
            // One that is under way has changed some of those that are shown.
            let started = desk.replay().await;
            sleep(Duration::from_secs(1)).await;
            if let Err(error) = started {
                ensure!(Instant::now() < end, "no replay can be started: {error:#}");
            }
        }
        let twice: i64 = sqlx::query_scalar(TWICE).fetch_one(&desk.pool).await?;
        ensure!(twice == 0, "{twice} dead letters were replayed twice");
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(format!(
            "console: {} pages, {} of them without an answer; {} replays of {} dead letters, none twice",
            count(&desk.pages),
            count(&desk.pages_without_answer),
            count(&desk.replays),
            count(&desk.spoiled)
        ))
    }
}

impl Desk {
    async fn look(&self) {
        for path in PAGES.iter().cycle() {
            self.pages.fetch_add(1, Ordering::Relaxed);
            let answered = self.client.get(self.url(path)).send().await;
            if !answered.is_ok_and(|response| response.status() == StatusCode::OK) {
                self.pages_without_answer.fetch_add(1, Ordering::Relaxed);
            }
            sleep(NEXT_PAGE_AFTER).await;
        }
    }

    async fn spoil_and_replay(&self) -> Result<()> {
        let spoiled = sqlx::query(SPOIL).execute(&self.pool).await?;
        self.spoiled
            .fetch_add(spoiled.rows_affected(), Ordering::Relaxed);
        self.replay().await
    }

    /// Opens the page and posts its form, as a browser does.
    async fn replay(&self) -> Result<()> {
        let url = self.url("/dead-letters/replay");
        let page = self.client.get(format!("{url}?kind=refused")).send();
        let page = page.await?.error_for_status()?.text().await?;
        let response = self
            .client
            .post(url)
            .header(HOST, self.console.to_string())
            .header(ORIGIN, format!("http://{}", self.console))
            .form(&hidden_fields(&page))
            .send()
            .await?;
        ensure!(
            response.status() == StatusCode::SEE_OTHER,
            "the console answered {}",
            response.status()
        );
        self.replays.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.console)
    }
}

/// Names and values of a form. None of the values needs an escape in HTML.
fn hidden_fields(page: &str) -> Vec<(&str, &str)> {
    let fields = page.split(r#"<input type="hidden" name=""#).skip(1);
    fields
        .filter_map(|field| {
            let (name, rest) = field.split_once(r#"" value=""#)?;
            let (value, _) = rest.split_once('"')?;
            Some((name, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::hidden_fields;

    #[test]
    fn the_fields_of_a_form_are_found() {
        let page = r#"<form><input type="hidden" name="kind" value="refused">
                      <input type="hidden" name="id" value=""><button>Replay</button></form>"#;
        assert_eq!(hidden_fields(page), [("kind", "refused"), ("id", "")]);
    }
}
