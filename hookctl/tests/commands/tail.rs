//! `hookctl tail`.

use std::process::Stdio;

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    time::timeout,
};

use crate::place::{Place, SOON, until};

/// A running tail.
struct Tail {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    notes: Lines<BufReader<ChildStderr>>,
}

impl Tail {
    fn start(place: &Place, flags: &[&str]) -> Self {
        let mut child = place
            .hookctl(&[&["tail", "--json"], flags].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("hookctl runs");
        let stdout = child.stdout.take().expect("a pipe");
        let stderr = child.stderr.take().expect("a pipe");
        Self {
            lines: BufReader::new(stdout).lines(),
            notes: BufReader::new(stderr).lines(),
            child,
        }
    }

    /// The ids of the next events that it shows.
    async fn next(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        while ids.len() < count {
            let line = timeout(SOON, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("only {ids:?}"));
            let line = line.expect("output").expect("it goes on");
            let event: Value = serde_json::from_str(&line).expect("JSON");
            ids.push(event["webhook_id"].as_str().expect("an id").to_owned());
        }
        ids
    }

    /// Waits until it says, beside the events, what begins so.
    async fn says(&mut self, beginning: &str) {
        let note = timeout(SOON, self.notes.next_line()).await;
        let note = note.unwrap_or_else(|_| panic!("never {beginning}"));
        let note = note.expect("output").expect("it goes on");
        assert!(note.starts_with(beginning), "{note}");
    }

    /// Ends it as Ctrl-C does; it must have shown nothing more.
    async fn interrupt(mut self) {
        let pid = self.child.id().expect("running").to_string();
        let kill = Command::new("kill").args(["-INT", &pid]).status().await;
        assert!(kill.expect("a signal").success());
        let more = timeout(SOON, self.lines.next_line())
            .await
            .expect("it ends");
        assert_eq!(more.expect("output"), None);
        let ended = self.child.wait().await.expect("a status");
        assert_eq!(ended.code(), Some(0));
    }
}

/// How many tails are connected to the test's database.
const TAILS: &str = "from pg_stat_activity
    where application_name = 'hookctl' and datname = current_database()";

async fn until_tails(pool: &PgPool, count: i64) {
    let tails = format!("select count(*) {TAILS}");
    until(&format!("{count} tails are connected"), async || {
        let found: i64 = sqlx::query_scalar(AssertSqlSafe(&*tails))
            .fetch_one(pool)
            .await
            .expect("a count");
        found == count
    })
    .await;
}

async fn store(connection: &mut PgConnection, id: &str, event_type: &str, rest: &str) {
    let sql = format!(
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256, stored_at, problem)
         values ('{id}', '{event_type}', now(), '', '', now() {rest})"
    );
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .expect("an insert");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn each_event_is_shown_once_also_one_that_is_committed_late(pool: PgPool) {
    let place = Place::new(&pool).await;
    let mut connection = pool.acquire().await.expect("a connection");
    for number in 1..=12 {
        let earlier = format!("- interval '{} minutes', null", 100 - number);
        store(
            &mut connection,
            &format!("old_{number}"),
            "v1.x.y",
            &earlier,
        )
        .await;
    }
    // Just before the start: among those that a tail looks at again.
    store(
        &mut connection,
        "recent_1",
        "v1.x.y",
        "- interval '1 second', null",
    )
    .await;
    store(&mut connection, "recent_2", "v1.x.y", ", null").await;

    let mut tail = Tail::start(&place, &["-n", "3"]);
    assert_eq!(tail.next(3).await, ["old_12", "recent_1", "recent_2"]);

    let mut late = pool.begin().await.expect("a transaction");
    store(&mut late, "late", "v1.x.y", ", null").await;
    store(&mut connection, "early", "v1.x.y", ", null").await;
    assert_eq!(tail.next(1).await, ["early"]);
    late.commit().await.expect("a commit");
    assert_eq!(tail.next(1).await, ["late"]);
    store(&mut connection, "last", "v1.x.y", ", null").await;
    assert_eq!(tail.next(1).await, ["last"]);
    tail.interrupt().await;
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn only_the_events_that_are_asked_for_are_shown(pool: PgPool) {
    let place = Place::new(&pool).await;
    let mut connection = pool.acquire().await.expect("a connection");
    let connection = &mut *connection;
    store(
        connection,
        "hours",
        "v1.vendor.created",
        "- interval '2 hours', null",
    )
    .await;
    store(
        connection,
        "vendor",
        "v1.vendor.created",
        "- interval '9 seconds', null",
    )
    .await;
    store(
        connection,
        "job",
        "v2.export-job.created",
        "- interval '8 seconds', null",
    )
    .await;
    store(
        connection,
        "long",
        "v1.vendor.created.twice",
        "- interval '7 seconds', null",
    )
    .await;
    store(
        connection,
        "bad",
        "v1.vendor.created",
        "- interval '6 seconds', 'a test'",
    )
    .await;
    for (flags, expected) in [
        (&["--since=1h"][..], &["vendor", "job", "long", "bad"][..]),
        (&["--since=1h", "--family=vendor"], &["vendor", "bad"]),
        (&["--family=vendor"], &["hours", "vendor", "bad"]),
        (&["--family=export-job"], &["job"]),
        (&["--family=other"], &["long"]),
        (&["--problems"], &["bad"]),
        (&["--problems", "--family=other"], &[]),
        (&["-n0"], &[]),
    ] {
        let mut tail = Tail::start(&place, flags);
        assert_eq!(tail.next(expected.len()).await, expected, "{flags:?}");
        // Connected, it also listens to signals.
        until_tails(&pool, 1).await;
        tail.interrupt().await;
        until_tails(&pool, 0).await;
    }
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn it_goes_on_after_postgres_was_away(pool: PgPool) {
    let place = Place::new(&pool).await;
    let mut owner = pool.acquire().await.expect("a connection");
    store(&mut owner, "before", "v1.x.y", ", null").await;
    let mut tail = Tail::start(&place, &["-n", "1"]);
    assert_eq!(tail.next(1).await, ["before"]);

    // Cut off, and refused for a while, as by a restart.
    let away = format!(
        "update pg_database set datallowconn = false where datname = current_database();
         select pg_terminate_backend(pid) {TAILS}"
    );
    let execute = async |owner: &mut PgConnection, sql: &str| {
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(owner).await;
        done.expect("the owner may");
    };
    execute(&mut owner, &away).await;
    store(&mut owner, "meanwhile", "v1.x.y", ", null").await;
    tail.says("postgres is away").await;
    let back = "update pg_database set datallowconn = true where datname = current_database()";
    execute(&mut owner, back).await;
    tail.says("postgres is back").await;
    assert_eq!(tail.next(1).await, ["meanwhile"]);
    store(&mut owner, "after", "v1.x.y", ", null").await;
    assert_eq!(tail.next(1).await, ["after"]);
    tail.interrupt().await;
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_database_that_was_never_there_is_an_error(pool: PgPool) {
    let place = Place::new(&pool).await;
    let mut command = place.hookctl(&["tail"]);
    command.env("DATABASE_URL", "postgres://127.0.0.1:1/d");
    let output = timeout(SOON, command.output()).await.expect("it ends");
    assert_eq!(output.expect("hookctl runs").status.code(), Some(1));
    place.clean_up().await;
}
