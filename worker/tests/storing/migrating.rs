//! Migrates the schema while a pipeline is running.

use std::{path::Path, process::Stdio, sync::mpsc, time::Duration};

use migrations::Error;
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::{process::Command, time::Instant};
use worker::problem::{COMPANY_CHANGE, CONFLICT, FOREIGN_COMPANY, Kind, NO_DATA, UNIDENTIFIED};

use crate::sample::{SOON, count, event, export_job_body, persist, sql, until_count, vendor_body};

/// The next migration changes `events` and needs an exclusive lock on it.
const BEFORE_A_CHANGE_OF_EVENTS: i64 = 5;

const SEARCH: &str = "set local search_path = public, pg_temp";

/// Reads `events` in a transaction that stays open, like a session that a user forgot.
async fn forgotten_session(pool: &PgPool) -> PgConnection {
    let options = pool.connect_options();
    let options = options.as_ref().clone().application_name("forgotten");
    let mut session = options.connect().await.expect("a session");
    sqlx::raw_sql("begin; select from events")
        .execute(&mut session)
        .await
        .expect("a transaction that reads events");
    session
}

/// Stores an event as a worker does, with a worker's lock timeout.
async fn insert_event(pool: &PgPool) {
    let mut worker = pool.begin().await.expect("a transaction");
    sqlx::raw_sql(
        "set local lock_timeout = '10s';
         insert into events (webhook_id, event_type, received_at, raw, body_sha256)
         values (gen_random_uuid()::text, 'v1.x.y', now(), '', '')",
    )
    .execute(&mut *worker)
    .await
    .expect("nothing holds up an insert");
    worker.commit().await.expect("committed");
}

#[sqlx::test(migrations = false)]
async fn a_killed_migrator_leaves_nothing_that_others_wait_for(pool: PgPool) {
    migrations::MIGRATOR
        .run_to(BEFORE_A_CHANGE_OF_EVENTS, &pool)
        .await
        .expect("an older schema");
    let session = forgotten_session(&pool).await;
    let waiting = "select count(*) from pg_stat_activity
                    where datname = current_database() and wait_event_type = 'Lock'";
    let database = pool.connect_options().to_url_lossy();
    let mut worker = Command::new(Path::new(env!("CARGO_BIN_EXE_vendor-worker")))
        .env("DATABASE_URL", database.as_str())
        .env("AMQP_URL", "amqp://127.0.0.1:1")
        .env("PRIVATE_LISTEN", "127.0.0.1:0")
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("a worker");
    until_count(&pool, waiting, 1).await;
    worker
        .kill()
        .await
        .expect("killed while its migration waits");

    insert_event(&pool).await;
    until_count(&pool, waiting, 0).await;
    drop(session);
}

#[sqlx::test(migrations = false)]
async fn a_migration_that_waits_says_for_whom_and_goes_on_when_it_can(pool: PgPool) {
    migrations::MIGRATOR
        .run_to(BEFORE_A_CHANGE_OF_EVENTS, &pool)
        .await
        .expect("an older schema");
    let session = forgotten_session(&pool).await;
    let (told, waits) = mpsc::channel();
    let migrating = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut connection = pool.acquire().await.expect("a connection").detach();
            let mut observer = pool.acquire().await.expect("a connection").detach();
            let on_wait = |error: &Error| told.send(error.to_string()).expect("a listener");
            migrations::run(
                &mut connection,
                &mut observer,
                SEARCH,
                Instant::now() + 3 * SOON,
                on_wait,
            )
            .await
        }
    });
    let deadline = Instant::now() + SOON;
    let said = loop {
        insert_event(&pool).await;
        match waits.try_recv() {
            Ok(said) => break said,
            Err(_) => assert!(Instant::now() < deadline, "it never says that it waits"),
        }
    };
    for expected in [
        "a migration waits for a lock that others hold: pid ",
        "application forgotten, state idle in transaction, transaction since 20",
    ] {
        assert!(said.contains(expected), "{said}");
    }
    assert!(!said.contains("select"), "no text of a query: {said}");

    session.close().await.expect("the end of the session");
    migrating.await.expect("no panic").expect("migrated");
    let missing = migrations::MIGRATOR.iter().count() as i64
        - count(&pool, "select count(*) from _sqlx_migrations where success").await;
    assert_eq!(missing, 0);
}

#[sqlx::test(migrations = false)]
async fn a_migration_gives_up_at_its_deadline_with_nothing_half_done(pool: PgPool) {
    migrations::MIGRATOR
        .run_to(BEFORE_A_CHANGE_OF_EVENTS, &pool)
        .await
        .expect("an older schema");
    let _session = forgotten_session(&pool).await;
    let mut connection = pool.acquire().await.expect("a connection");
    let mut observer = pool.acquire().await.expect("a connection");
    let deadline = Instant::now() + Duration::from_secs(2);
    let outcome = migrations::run(&mut connection, &mut observer, SEARCH, deadline, |_| {}).await;
    assert!(
        matches!(&outcome, Err(Error::Blocked(blockers)) if blockers.len() == 1),
        "{outcome:?}"
    );
    insert_event(&pool).await;
    let half_done = "select count(*) from pg_attribute
                      where attrelid = 'events'::regclass and attname = 'dismissed_at'";
    assert_eq!(count(&pool, half_done).await, 0);
}

/// It waits for its lock longer than all these limits, and only then gives up.
#[sqlx::test(migrations = false)]
async fn time_limits_of_a_database_end_no_migration(pool: PgPool) {
    migrations::MIGRATOR
        .run_to(BEFORE_A_CHANGE_OF_EVENTS, &pool)
        .await
        .expect("an older schema");
    let _session = forgotten_session(&pool).await;
    let mut connection = pool.acquire().await.expect("a connection");
    let mut observer = pool.acquire().await.expect("a connection");
    // Older servers do not have all of these settings.
    sqlx::raw_sql(
        "select set_config(name, '300ms', false) from pg_settings
          where name in ('statement_timeout', 'transaction_timeout',
                         'idle_in_transaction_session_timeout')",
    )
    .execute(&mut *connection)
    .await
    .expect("set for the session");
    let outcome = migrations::run(
        &mut connection,
        &mut observer,
        SEARCH,
        Instant::now(),
        |_| {},
    )
    .await;
    assert!(matches!(&outcome, Err(Error::Blocked(_))), "{outcome:?}");
}

/// Earlier versions used the role's search path. New tables would hide theirs.
#[sqlx::test(migrations = false)]
async fn tables_in_another_schema_are_not_made_a_second_time(pool: PgPool) {
    const BOOKS: &str = "set local search_path = \"The books\", pg_temp";
    sql(&pool, "create schema \"The books\"").await;
    let mut connection = pool.acquire().await.expect("a connection");
    let mut observer = pool.acquire().await.expect("a connection");
    let deadline = Instant::now() + 3 * SOON;
    migrations::run(&mut connection, &mut observer, BOOKS, deadline, |_| {})
        .await
        .expect("migrated");
    sqlx::raw_sql("set search_path = \"The books\"")
        .execute(&mut *connection)
        .await
        .expect("as an account may have it");
    let outcome = migrations::run(&mut connection, &mut observer, SEARCH, deadline, |_| {}).await;
    assert!(
        matches!(&outcome, Err(Error::Elsewhere(schema)) if schema == "The books"),
        "{outcome:?}"
    );
    let in_public = "select count(*) from pg_class where relnamespace = 'public'::regnamespace";
    assert_eq!(count(&pool, in_public).await, 0);
    migrations::run(&mut connection, &mut observer, BOOKS, deadline, |_| {})
        .await
        .expect("nothing to do");
}

/// Otherwise the tables would become temporary ones.
#[sqlx::test(migrations = false)]
async fn a_schema_that_does_not_exist_gets_no_tables(pool: PgPool) {
    let mut connection = pool.acquire().await.expect("a connection");
    let mut observer = pool.acquire().await.expect("a connection");
    let nowhere = "set local search_path = \"nowhere\", pg_temp";
    let deadline = Instant::now() + 3 * SOON;
    let outcome = migrations::run(&mut connection, &mut observer, nowhere, deadline, |_| {}).await;
    assert!(matches!(outcome, Err(Error::NoSchema)), "{outcome:?}");
    let ours = "select count(*) from pg_class where relname = 'webhook_receipts'";
    assert_eq!(count(&pool, ours).await, 0);
}

#[sqlx::test(migrations = false)]
async fn many_may_migrate_an_empty_database_at_once(pool: PgPool) {
    let migrate = async || {
        let mut connection = pool.acquire().await.expect("a connection").detach();
        let mut observer = pool.acquire().await.expect("a connection").detach();
        migrations::run(
            &mut connection,
            &mut observer,
            SEARCH,
            Instant::now() + 3 * SOON,
            |_| {},
        )
        .await
    };
    let outcomes = tokio::join!(migrate(), migrate(), migrate());
    assert!(matches!(outcomes, (Ok(()), Ok(()), Ok(()))), "{outcomes:?}");
}

/// The last migration before `events` has the kinds of problems.
const BEFORE_PROBLEM_KINDS: i64 = 25;

#[sqlx::test(migrations = false)]
async fn problems_of_earlier_versions_get_their_kinds(pool: PgPool) {
    const KINDS: [(&str, Kind); 14] = [
        (
            "the body is not a JSON object: duplicate field `data`",
            Kind::NotAnEvent,
        ),
        ("the body has no `eventType`", Kind::NotAnEvent),
        ("`eventType` is not a type", Kind::NotAnEvent),
        ("`data` is not that of the vendor: x", Kind::WrongData),
        (NO_DATA, Kind::WrongData),
        (
            "error returned from database: violates the body is",
            Kind::Refused,
        ),
        ("", Kind::Refused),
        ("stopped the worker 3 times", Kind::StoppedWorker),
        (CONFLICT, Kind::Conflict),
        (UNIDENTIFIED, Kind::Unidentified),
        (
            "signed with a secret that is distrusted: x; before that: the body is empty",
            Kind::Distrusted,
        ),
        (FOREIGN_COMPANY, Kind::ForeignCompany),
        (COMPANY_CHANGE, Kind::CompanyChange),
        (
            "it came by the queue of other, whose worker has no right",
            Kind::Misrouted,
        ),
    ];
    migrations::MIGRATOR
        .run_to(BEFORE_PROBLEM_KINDS, &pool)
        .await
        .expect("an older schema");
    insert_event(&pool).await;
    sqlx::query(
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256, problem,
                             replayed_problem)
         select gen_random_uuid(), 'v1.x.y', now(), '', '', case when is_open then text end,
                case when not is_open then text end
           from unnest($1::text[]) text, unnest(array[true, false]) is_open",
    )
    .bind(KINDS.map(|(text, _)| text))
    .execute(&pool)
    .await
    .expect("dead letters, and some that were replayed");
    migrations::MIGRATOR.run(&pool).await.expect("migrated");
    let mut found: Vec<(String, String, i64)> = sqlx::query_as(
        "select coalesce(problem, replayed_problem), problem_kind, count(*)
           from events where problem_kind is not null group by 1, 2",
    )
    .fetch_all(&pool)
    .await
    .expect("kinds");
    let mut expected = KINDS.map(|(text, kind)| (text.to_owned(), kind.name().to_owned(), 2));
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    let without = "select count(*) from events where problem_kind is null";
    assert_eq!(count(&pool, without).await, 1, "the healthy one");
}

/// The sort keys by the earlier rule: the time of the last update, or of the creation.
const OLDER_KEYS: &str = r"
    update vendors
       set sort_key = int8send((extract(epoch from coalesce(updated_at, created_at)) * 1000000000)::bigint
                               # (-9223372036854775808)::bigint) || substr(sort_key, 9);
    update export_jobs
       set sort_key = int8send((extract(epoch from coalesce(last_updated_at, created_at)) * 1000000000)::bigint
                               # (-9223372036854775808)::bigint) || substr(sort_key, 9)";

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn stored_sort_keys_follow_the_newer_rule_to_the_nanosecond(pool: PgPool) {
    const AT: &str = "2025-02-21T10:05:43.530450Z";
    let with = |body: String, fields: &str| {
        body.replacen(r#""data":{"#, &format!(r#""data":{{{fields},"#), 1)
    };
    let vendor = |id, fields| event(id, with(vendor_body(id, "n", "DRAFT", AT), fields));
    let job = |id, fields| event(id, with(export_job_body(id, "pending", AT), fields));
    persist(
        &pool,
        [
            vendor("v1", r#""deletedAt":"2025-02-21T10:05:43.530450712Z""#),
            vendor("v2", r#""deletedAt":"2025-02-22T11:00:00+05:30""#),
            vendor("v3", r#""deletedAt":"2025-06-16T15:06:39.999999Z""#),
            vendor("v4", r#""createdAt":"2025-02-21T10:05:43.5304509Z""#),
            vendor("v5", r#""createdAt":"2024-01-01T00:00:00.123456789Z""#),
            job("j1", r#""completedAt":"2025-02-21T10:05:43.530450001Z""#),
            job(
                "j2",
                r#""startedAt":"2025-02-21T10:05:50Z","expiredAt":"2025-02-21T10:05:44.1Z""#,
            ),
        ],
    )
    .await;
    sql(
        &pool,
        "create table expected as
                select id, sort_key from vendors union all select id, sort_key from export_jobs",
    )
    .await;
    sql(&pool, OLDER_KEYS).await;
    let differing = "select count(*) from expected e
        join (select id, sort_key from vendors union all select id, sort_key from export_jobs) now
       using (id) where now.sort_key <> e.sort_key";
    assert_eq!(count(&pool, differing).await, 6, "all but v5");
    sql(
        &pool,
        include_str!("../../../migrations/0009_latest_times.sql"),
    )
    .await;
    // v4 has a creation time after its last update, within one microsecond, which the columns
    // cannot store.
    assert_eq!(count(&pool, differing).await, 1);

    // Without their events, only the microseconds of the columns remain.
    sql(&pool, OLDER_KEYS).await;
    sql(&pool, "delete from events").await;
    sql(
        &pool,
        include_str!("../../../migrations/0009_latest_times.sql"),
    )
    .await;
    assert_eq!(count(&pool, differing).await, 3, "v1, v4 and j1");
}
