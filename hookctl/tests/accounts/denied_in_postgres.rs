//! What an account cannot do in Postgres.

use operations::{
    dead_letters::replay::{
        Attempt, Host, Outcome, Replayed,
        job::{self, End, Job, NewJob},
        lease::{Lease, LeaseLost},
    },
    lock_holders::Watch,
};
use shared::{Family, Program, database::DatabaseUrl};
use sqlx::{Connection, PgConnection, PgPool};
use worker::problem::Kind;

use crate::place::{Place, SOON, text};

const VENDOR: Program = Program::Worker(Family::Vendor);
const OTHER: Program = Program::Worker(Family::Other);

/// Nobody but the owner.
const OWNERS_ONLY: [&str; 30] = [
    "truncate events",
    "truncate webhook_receipts",
    "truncate webhook_spool",
    "truncate export_jobs",
    "truncate vendors",
    "drop table events",
    "drop table webhook_spool cascade",
    "drop view dead_letters",
    "alter table events add column extra text",
    "alter table webhook_receipts disable trigger all",
    "create index on events (event_id)",
    "create table extra ()",
    "create schema extra",
    "create role extra",
    "grant select on events to public",
    "select * from _sqlx_migrations",
    "copy events to '/tmp/events'",
    "select pg_read_file('postgresql.conf')",
    "create temporary table extra ()",
    "select lo_create(0)",
    "select lo_creat(0)",
    "select lo_from_bytea(0, '')",
    "alter table events disable row level security",
    "drop policy everybody on webhook_spool",
    "select * from sweeps",
    "select note_sweep(now(), 1)",
    "select note_sweep('vendors', now(), 1)",
    "select is_indexed('events', 'resource_id')",
    "select is_typed_table('vendors')",
    "select sweep_typed_rows('vendors', null, '-infinity', 1)",
];

/// Events never change, and what operators did is theirs alone.
const HISTORY: [&str; 7] = [
    "delete from events",
    "update events set problem = 'none'",
    "delete from vendors",
    "delete from export_jobs",
    "select account from operator_actions",
    "delete from operator_actions",
    "insert into operator_actions (run, action, filter, changed, changes)
     values (gen_random_uuid(), '', '{}', 0, '[]')",
];

async fn assert_denied(connection: &mut PgConnection, who: &str, statements: &[&'static str]) {
    const INSUFFICIENT_PRIVILEGE: &str = "42501";
    for &statement in statements {
        let mut transaction = connection.begin().await.expect("a transaction");
        let outcome = sqlx::raw_sql(statement).execute(&mut *transaction).await;
        let code = outcome
            .as_ref()
            .err()
            .and_then(|error| error.as_database_error()?.code());
        assert_eq!(
            code.as_deref(),
            Some(INSUFFICIENT_PRIVILEGE),
            "{who}: {statement}: {outcome:?}"
        );
        transaction.rollback().await.expect("a rollback");
    }
}

#[sqlx::test(migrations = false)]
async fn ingest_can_read_no_event_and_take_nothing_back(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    let mut ingest = place.postgres(Program::Ingest).await.expect("it logs in");
    assert_denied(&mut ingest, "ingest", &OWNERS_ONLY).await;
    assert_denied(&mut ingest, "ingest", &HISTORY).await;
    assert_denied(
        &mut ingest,
        "ingest",
        &[
            "select payload from events",
            "select raw from events",
            "select event_type from events",
            "select * from events",
            "copy events (payload) to stdout",
            "select body from webhook_spool",
            "select last_error from webhook_spool",
            "select * from latest_events",
            "select * from dead_letters",
            "select * from unstored_receipts",
            "select sweep_events('-infinity', 1)",
            "select sweep_events(null, '-infinity', 1)",
            "select sweep_receipts(null, '-infinity', 1)",
            "select id from vendors",
            "select id from export_jobs",
            "insert into events (webhook_id) values ('m')",
            "insert into vendors (id) values ('v')",
            "update webhook_receipts set body_sha256 = ''",
            "update webhook_spool set due_at = now()",
            "delete from webhook_receipts",
            "delete from webhook_spool",
        ],
    )
    .await;
    place.clean_up().await;
}

/// Events of a vendor that a replay can store.
const LETTERS: &str = r#"
    insert into events (webhook_id, event_type, received_at, raw, body_sha256, problem,
                        problem_kind, attempts)
    select id, 'v1.vendor.created', now(), body, sha256(body), problem,
           case when problem is not null then 'wrong-data' end, 1
      from (values ('m', 'wrong'), ('replayed', 'wrong'), ('healthy', null)) as event (id, problem)
     cross join convert_to('{"eventType": "v1.vendor.created", "data": {"id": "v", "companyId": "c",
                             "name": "Acme", "state": "DRAFT"}}', 'utf8') as body"#;

#[sqlx::test(migrations = false)]
async fn for_operators_the_console_can_change_dead_letters_and_nothing_else(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    let (program, who) = (Program::ConsoleOperator, "the console for operators");
    let mut operator = place.postgres(program).await.expect("it logs in");
    assert_denied(&mut operator, who, &OWNERS_ONLY).await;
    let denied = HISTORY.into_iter().filter(|sql| {
        !sql.starts_with("insert into operator_actions") && !sql.starts_with("update events")
    });
    assert_denied(&mut operator, who, &denied.collect::<Vec<_>>()).await;
    place.sql(LETTERS).await;
    place
        .sql(
            "insert into replay_jobs (filter, letters, set_sha256, rate) values ('{}', 1, '', 1);
             insert into replay_job_letters (job, webhook_id, position) values (1, 'm', 1)",
        )
        .await;
    assert_denied(
        &mut operator,
        who,
        &[
            "select erased_at from events",
            "select body from webhook_spool",
            "select body_sha256 from webhook_receipts",
            "insert into events (webhook_id) values ('m')",
            "update events set body_sha256 = ''",
            "update events set stored_at = now()",
            // A cleared problem leaves a trace, and a healthy event cannot be dismissed: it would be no dead
            // letter when it gets a problem.
            "update events set problem = null",
            "update events set problem = null, replayed_problem = problem, dismissed_at = now()",
            "insert into operator_actions (account) values ('another')",
            "update webhook_receipts set written_off_at = now()",
            "insert into replay_jobs (account) values ('another')",
            "update replay_jobs set person = 'another'",
            "delete from replay_jobs",
            "delete from replay_job_letters",
            "update replay_job_letters set webhook_id = ''",
            "insert into replay_runner default values",
            "delete from replay_runner",
            "update replay_runner set until = 'infinity'",
            "select sweep_receipts(null, '-infinity', 1)",
        ],
    )
    .await;
    sqlx::raw_sql(
        "update replay_job_letters set outcome = 'newest';
         update replay_jobs set ended = 'done', ended_at = now()",
    )
    .execute(&mut operator)
    .await
    .expect("a right on a running job");
    assert_denied(
        &mut operator,
        who,
        &[
            "update replay_job_letters set outcome = 'gone'",
            "update replay_job_letters set outcome = null",
            "update replay_job_letters set reason = 'another'",
            "insert into replay_job_letters (job, webhook_id, position) values (1, 'n', 2)",
            "update replay_jobs set error = 'another'",
            "update replay_jobs set ended = null, ended_at = null",
            "update replay_jobs set stop_requested_by = 'another'",
            "delete from replay_jobs",
        ],
    )
    .await;
    let seen: Vec<String> = sqlx::query_scalar("select webhook_id from events order by 1")
        .fetch_all(&mut operator)
        .await
        .expect("a right on some rows");
    assert_eq!(seen, ["m", "replayed"]);
    let dismissed = sqlx::query("update events set dismissed_at = now()")
        .execute(&mut operator)
        .await
        .expect("a right on some rows");
    assert_eq!(dismissed.rows_affected(), 2);
    place.sql("update events set dismissed_at = null").await;
    for (command, id, note) in [
        ("dismiss", "--id=m", &["--note=why"][..]),
        ("restore", "--id=m", &[]),
        ("replay", "--id=replayed", &[]),
    ] {
        let said = hookctl(
            &place,
            program,
            &["dead-letters", command, id, "--yes"],
            note,
        )
        .await;
        assert!(said.contains("1 "), "{said}");
    }
    let changed = sqlx::query("update events set payload = null where webhook_id = 'replayed'")
        .execute(&mut operator)
        .await
        .expect("a right on some rows");
    assert_eq!(changed.rows_affected(), 0, "it is healthy now");
    let rows: i64 =
        sqlx::query_scalar("select count(*) from vendors where webhook_id = 'replayed'")
            .fetch_one(&pool)
            .await
            .expect("the row");
    assert_eq!(rows, 1);
    let accounts: Vec<String> = sqlx::query_scalar(
        "select account from operator_actions where action like 'dead-letters %'",
    )
    .fetch_all(&pool)
    .await
    .expect("the record");
    assert_eq!(
        accounts,
        [
            place.name(program),
            place.name(program),
            place.name(program)
        ]
    );
    place.clean_up().await;
}

/// Runs hookctl with the account, which must succeed, and returns its output.
async fn hookctl(place: &Place, program: Program, arguments: &[&str], more: &[&str]) -> String {
    use sqlx::ConnectOptions;
    let url = place.database(program).to_url_lossy();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_hookctl"))
        .env_clear()
        .env("DATABASE_URL", url.as_str())
        .args(arguments)
        .args(more)
        .output()
        .await
        .expect("hookctl runs");
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    said
}

/// The steps of the console, from the start of a replay to its end.
#[sqlx::test(migrations = false)]
async fn for_operators_the_console_can_run_a_replay_as_a_job(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    place.sql(LETTERS).await;
    let url = DatabaseUrl::from(place.database(Program::ConsoleOperator));
    let mut connection = operations::database::connect(&url)
        .await
        .expect("it logs in");
    let new = NewJob {
        ids: &["replayed".to_owned()],
        set_sha256: b"set",
        filter: serde_json::json!({}),
        rate: 1,
        person: Some("grace"),
    };
    let id = new.create(&mut connection).await.expect("a job");
    let again = new.create(&mut connection).await.expect("the same job");
    assert_eq!(again, id);
    let (lease, other) = (Lease::default(), Lease::default());
    assert!(lease.take(&mut connection).await.expect("a right"));
    assert!(!other.take(&mut connection).await.expect("a right"));
    Job::take(&mut connection, &other, true, None)
        .await
        .expect_err("it has no lease");
    let job = Job::take(&mut connection, &lease, true, None)
        .await
        .expect("a right");
    let job = job.expect("a job");
    let undone = job.unfinished(&mut connection).await.expect("a right");
    assert_eq!(undone, [("replayed".to_owned(), false)]);
    let attempt = Attempt {
        pool: shared::database::pool(url.clone(), "test", 1),
        watch: Watch::new(&url),
        run: Some(job.run.clone()),
        include_withheld: false,
        any_company: false,
        trial: Default::default(),
        job: Some(job.share()),
    };
    let mut replayed = Vec::new();
    let ids = vec!["replayed".to_owned()];
    attempt
        .batch(ids, SOON, &mut Unattended, &mut replayed)
        .await
        .expect("all rights");
    assert_eq!(replayed[0].outcome, Outcome::Newest);
    assert_eq!(job.unfinished(&mut connection).await.expect("a right"), []);
    job.write_outcomes(&mut connection, &replayed)
        .await
        .expect("a right");
    job.reset_tries(&mut connection).await.expect("a right");
    let stops = job::request_stop(&mut connection, id, Some("grace")).await;
    assert!(stops.expect("a right"));
    assert!(
        job.is_stop_requested(&mut connection)
            .await
            .expect("a right")
    );
    job.end(&mut connection, End::Done).await.expect("a right");
    lease.release(&mut connection).await.expect("a right");
    assert!(other.take(&mut connection).await.expect("a right"));
    // It was frozen meanwhile, and wakes.
    let ids = vec!["m".to_owned()];
    let lost = attempt
        .batch(ids, SOON, &mut Unattended, &mut replayed)
        .await
        .expect_err("another one has the lease");
    assert!(lost.is::<LeaseLost>(), "{lost:#}");
    for lost in [
        job.write_outcomes(&mut connection, &replayed).await,
        job.reset_tries(&mut connection).await,
        job.end(&mut connection, End::Done).await,
    ] {
        assert!(lost.expect_err("no lease").is::<LeaseLost>());
    }
    place.clean_up().await;
}

/// A replay that nobody stops, of no poison message.
struct Unattended;

impl Host for Unattended {
    async fn may_continue(&mut self) -> anyhow::Result<bool> {
        Ok(true)
    }

    async fn dangerous(&mut self, webhook_id: String) -> anyhow::Result<Replayed> {
        anyhow::bail!("{webhook_id} is a poison message")
    }

    async fn finished(&mut self, _replayed: Vec<Replayed>) -> anyhow::Result<()> {
        Ok(())
    }

    fn retrying(&mut self, _locked: usize) -> anyhow::Result<()> {
        Ok(())
    }
}

#[sqlx::test(migrations = false)]
async fn the_console_can_change_nothing(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    let mut console = place.postgres(Program::Console).await.expect("it logs in");
    // Of one who may read the whole table, Postgres only warns that nothing was granted.
    const GRANT: &str = "grant select on events to public";
    let denied = OWNERS_ONLY.into_iter().filter(|sql| *sql != GRANT);
    assert_denied(&mut console, "console", &denied.collect::<Vec<_>>()).await;
    sqlx::raw_sql(GRANT)
        .execute(&mut console)
        .await
        .expect("a warning");
    let granted: bool =
        sqlx::query_scalar("select has_table_privilege('public', 'events', 'select')")
            .fetch_one(&pool)
            .await
            .expect("the owner may ask");
    assert!(!granted);
    const RECORD: &str = "select account from operator_actions";
    let denied = HISTORY.into_iter().filter(|sql| *sql != RECORD);
    assert_denied(&mut console, "console", &denied.collect::<Vec<_>>()).await;
    for allowed in [RECORD, "select * from replay_jobs, replay_job_letters"] {
        sqlx::raw_sql(allowed)
            .execute(&mut console)
            .await
            .expect("who did what");
    }
    assert_denied(
        &mut console,
        "console",
        &[
            "select body from webhook_spool",
            "select body_sha256 from webhook_receipts",
            "insert into events (webhook_id) values ('m')",
            "insert into vendors (id) values ('v')",
            "update events set dismissed_at = now()",
            "update vendors set name = ''",
            "update export_jobs set status = ''",
            "insert into webhook_receipts (webhook_id) values ('m')",
            "update webhook_receipts set written_off_at = now()",
            "delete from webhook_receipts",
            "update webhook_spool set due_at = now()",
            "delete from webhook_spool",
            "insert into replay_jobs (rate) values (1)",
            "update replay_jobs set stop_requested_at = now()",
            "delete from replay_jobs",
            "update replay_job_letters set outcome = null",
            "select sweep_receipts(null, '-infinity', 1)",
            "select sweep_events('-infinity', 1)",
            "select sweep_events(null, '-infinity', 1)",
        ],
    )
    .await;
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn workers_can_change_no_event_and_forget_no_receipt(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    for program in [VENDOR, Program::Worker(Family::ExportJob), OTHER] {
        let mut worker = place.postgres(program).await.expect("it logs in");
        assert_denied(&mut worker, program.name(), &OWNERS_ONLY).await;
        assert_denied(&mut worker, program.name(), &HISTORY).await;
        assert_denied(
            &mut worker,
            program.name(),
            &[
                "select payload from events",
                "select raw from events",
                "select * from latest_events",
                "update webhook_receipts set webhook_id = ''",
                "update webhook_spool set body = ''",
                "select body_sha256 from webhook_receipts",
                "delete from webhook_receipts",
                "update webhook_receipts set published_at = now()",
                "update webhook_receipts set received_at = now()",
                "update webhook_receipts set written_off_at = now()",
                "select from webhook_receipts for update",
                "select webhook_id from stored_receipts",
            ],
        )
        .await;
    }
    // Only the one that keeps house sweeps, no young receipt, and events only where they are not kept for
    // ever.
    let mut vendor = place.postgres(VENDOR).await.expect("it logs in");
    assert_denied(
        &mut vendor,
        "vendor-worker",
        &[
            "select webhook_id from webhook_receipts",
            "select * from unstored_receipts",
            "select event_type from dead_letters",
            "select sweep_receipts(null, '-infinity', 1)",
            "select sweep_events('-infinity', 1)",
            "select sweep_events(null, '-infinity', 1)",
        ],
    )
    .await;
    let mut other = place.postgres(OTHER).await.expect("it logs in");
    assert_denied(
        &mut other,
        "other-worker",
        &[
            "select payload from dead_letters",
            "select sweep_receipts(null, now(), 1)",
            "select sweep_receipts(null, now() - interval '95 hours', 1)",
            "select sweep_receipts(null, 'infinity', 1)",
            "select sweep_events('-infinity', 1)",
            "select sweep_events(null, '-infinity', 1)",
        ],
    )
    .await;
    place.clean_up().await;
}

/// An event was accepted and is nowhere. Other-worker's account stores something else under its id, and
/// sweeps.
#[sqlx::test(migrations = false)]
async fn no_worker_hides_a_receipt_whose_event_is_not_stored(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    place
        .sql(
            "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
             select id, sha256(id::bytea), now() - interval '9 days', now() - interval '9 days'
               from unnest(array['lost', 'stored']) id;
             insert into events (webhook_id, event_type, received_at, raw, body_sha256)
             values ('stored', 'v1.vendor.created', now(), 'stored', sha256('stored'))",
        )
        .await;
    let mut other = place.postgres(OTHER).await.expect("it logs in");
    for statement in [
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
         select id, 'unknown', now(), '', sha256('')
           from unnest(array['lost', 'lost#conflict-0123456789abcdef']) id",
        "insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                                    has_receipt, due_at)
         values ('lost', sha256(''), 'other', 'unknown', '', now(), true, now())",
        "select sweep_receipts(null, now() - interval '96 hours', 1000)",
    ] {
        sqlx::raw_sql(statement)
            .execute(&mut other)
            .await
            .expect("its right");
    }
    let unstored: Vec<String> = sqlx::query_scalar("select webhook_id from unstored_receipts")
        .fetch_all(&mut other)
        .await
        .expect("the ledger");
    assert_eq!(unstored, ["lost"]);
    let left: Vec<String> = sqlx::query_scalar("select webhook_id from webhook_receipts")
        .fetch_all(&pool)
        .await
        .expect("the receipts");
    assert_eq!(left, ["lost"]);
    let recorded: Vec<(String, String, i64)> =
        sqlx::query_as("select account, table_name, swept from sweeps")
            .fetch_all(&pool)
            .await
            .expect("the sweeps");
    assert_eq!(
        recorded,
        [(place.name(OTHER), "webhook_receipts".to_owned(), 1)]
    );
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn no_sweep_takes_a_young_event_and_each_is_on_record(pool: PgPool) {
    let place = Place::new(&pool);
    let output = place.set_up(&["--event-retention", "400d"]).await;
    assert!(output.status.success(), "{}", text(&output));
    place
        .sql(
            "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
             select 'old_' || n, 'unknown', now() - interval '500 days', '', ''
               from generate_series(1, 3) n",
        )
        .await;
    let mut other = place.postgres(OTHER).await.expect("it logs in");
    assert_denied(
        &mut other,
        "other-worker",
        &[
            "select sweep_events(now(), 1)",
            "select sweep_events(null, now(), 1)",
            "select sweep_events('infinity', 1)",
            "select sweep_events(null, 'infinity', 1)",
            "delete from events",
        ],
    )
    .await;
    // Each of the two functions, and once with nothing to sweep.
    for statement in [
        "select sweep_events(null, now() - interval '400 days', 2)",
        "select sweep_events(now() - interval '401 days', 2)",
        "select sweep_events(null, now() - interval '400 days', 2)",
    ] {
        sqlx::raw_sql(statement)
            .execute(&mut other)
            .await
            .expect("its right");
    }
    let recorded: Vec<(String, i64, bool)> = sqlx::query_as(
        "select account, swept, older_than < now() - interval '399 days' from sweeps",
    )
    .fetch_all(&pool)
    .await
    .expect("the sweeps");
    assert_eq!(recorded, [(place.name(OTHER), 3, true)]);

    // Without retention the right goes again.
    let output = place.set_up(&[]).await;
    assert!(output.status.success(), "{}", text(&output));
    assert_denied(
        &mut other,
        "other-worker",
        &["select sweep_events(null, '-infinity', 1)"],
    )
    .await;
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn no_sweep_takes_a_young_typed_row_and_each_is_on_record(pool: PgPool) {
    let place = Place::new(&pool);
    let flags = ["--event-retention", "400d", "--typed-row-retention", "400d"];
    let output = place.set_up(&flags[2..]).await;
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("needs EVENT_RETENTION"));
    // A second time, as its indexes are there by then.
    for _ in 0..2 {
        let output = place.set_up(&flags).await;
        assert!(output.status.success(), "{}", text(&output));
    }
    place
        .sql(
            "insert into vendors (id, company_id, name, state, sort_key, webhook_id, stored_at)
             select 'v' || n, 'c', 'n', 'DRAFT', '', 'm', now() - n * interval '200 days'
               from generate_series(1, 4) n",
        )
        .await;
    let mut other = place.postgres(OTHER).await.expect("it logs in");
    assert_denied(
        &mut other,
        "other-worker",
        &[
            "select sweep_typed_rows('vendors', null, now(), 1)",
            "select sweep_typed_rows('vendors', null, 'infinity', 1)",
            "select sweep_typed_rows('events', null, now() - interval '400 days', 1)",
            "delete from vendors",
            "select from vendors",
        ],
    )
    .await;
    sqlx::raw_sql("select sweep_typed_rows('vendors', null, now() - interval '500 days', 1000)")
        .execute(&mut other)
        .await
        .expect("its right");
    let recorded: Vec<(String, String, i64)> =
        sqlx::query_as("select account, table_name, swept from sweeps")
            .fetch_all(&pool)
            .await
            .expect("the sweeps");
    assert_eq!(recorded, [(place.name(OTHER), "vendors".to_owned(), 2)]);
    let indexes: i64 = sqlx::query_scalar(
        "select count(*) from pg_indexes
          where indexname in ('events_resource_id_idx', 'export_jobs_stored_at_idx',
                              'vendors_stored_at_idx')",
    )
    .fetch_one(&pool)
    .await
    .expect("the catalog");
    assert_eq!(indexes, 3);

    // Without retention the right goes again.
    let output = place.set_up(&flags[..2]).await;
    assert!(output.status.success(), "{}", text(&output));
    assert_denied(
        &mut other,
        "other-worker",
        &["select sweep_typed_rows('vendors', null, '-infinity', 1)"],
    )
    .await;
    place.clean_up().await;
}

/// An infinite time would end every program that computes with it.
#[sqlx::test(migrations = false)]
async fn no_account_writes_a_time_that_is_none(pool: PgPool) {
    const CHECK_VIOLATION: &str = "23514";
    let place = Place::prepared(&pool).await;
    let mut vendor = place.postgres(VENDOR).await.expect("it logs in");
    for time in ["infinity", "-infinity", "10000-01-01", "0044-03-15 BC"] {
        for statement in [
            "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
             values ('m', 'v1.vendor.created', $1::text::timestamptz, '', '')",
            "insert into events (webhook_id, event_type, received_at, attempted_at, raw, body_sha256)
             values ('m', 'v1.vendor.created', now(), $1::text::timestamptz, '', '')",
            "insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                                        has_receipt, due_at)
             values ('m', '', 'vendor', 'unknown', '', now(), true, $1::text::timestamptz)",
            "insert into webhook_receipts (webhook_id, body_sha256, received_at)
             values ('m', '', $1::text::timestamptz)",
            "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
             values ('m', '', now(), $1::text::timestamptz)",
        ] {
            let refused = sqlx::query(statement).bind(time).execute(&mut vendor).await;
            let refused = refused.expect_err(statement);
            let code = refused.as_database_error().and_then(|error| error.code());
            assert_eq!(code.as_deref(), Some(CHECK_VIOLATION), "{time}: {statement}");
        }
    }
    place.clean_up().await;
}

/// One event of each family, stored and spooled.
const ROWS_OF_ALL: &str = "
    insert into events (webhook_id, event_type, received_at, raw, body_sha256)
    select 'stored-' || type, type, now(), '', sha256('')
      from unnest(array['v1.export-job.created', 'v1.vendor.created', 'v1.card.created']) type;
    insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                               has_receipt, due_at)
    select 'spooled', sha256(family::bytea), family, 'unknown', family::bytea, now(), true, now()
      from unnest(array['export-job', 'vendor', 'other']) family;
    insert into export_jobs (id, company_id, status, sort_key, webhook_id)
    values ('j', 'c', 'pending', '', 'm');
    insert into vendors (id, company_id, name, state, sort_key, webhook_id)
    values ('v', 'c', 'n', 'DRAFT', '', 'm')";

#[sqlx::test(migrations = false)]
async fn a_worker_touches_no_spool_row_of_another_family(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    place.sql(ROWS_OF_ALL).await;
    for family in Family::ALL {
        let mut worker = place
            .postgres(Program::Worker(family))
            .await
            .expect("a login");
        let bodies: Vec<Vec<u8>> = sqlx::query_scalar("select body from webhook_spool")
            .fetch_all(&mut worker)
            .await
            .expect("its own rows");
        assert_eq!(bodies, [family.name().as_bytes()]);
        for statement in [
            "update webhook_spool set due_at = now() + interval '1 year', claims = 99",
            "select from webhook_spool for update",
            "delete from webhook_spool",
        ] {
            let mut transaction = worker.begin().await.expect("a transaction");
            let done = sqlx::raw_sql(statement).execute(&mut *transaction).await;
            assert_eq!(done.expect("its right").rows_affected(), 1, "{statement}");
            transaction.rollback().await.expect("a rollback");
        }
        for foreign in Family::ALL.into_iter().filter(|foreign| *foreign != family) {
            let inserted = sqlx::query(
                "insert into webhook_spool (webhook_id, body_sha256, family, event_type, body,
                                            received_at, has_receipt, due_at)
                 values ('m', '', $1, 'unknown', '', now(), true, now())",
            )
            .bind(foreign.name())
            .execute(&mut worker)
            .await;
            assert_row_denied(&inserted, &format!("{family} spools for {foreign}"));
        }
    }
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn a_worker_stores_an_event_of_another_family_only_as_a_dead_letter_with_its_body(
    pool: PgPool,
) {
    const INSERT: &str =
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256,
                             problem, problem_kind)
         values ($1, $2, now(), $3, sha256('the body'), $4, $5)";
    let place = Place::prepared(&pool).await;
    // Among them what is of a family by one rule and not by another.
    let types = [
        "v1.export-job.created",
        "v2.vendor.archived",
        "v1.card.created",
        "unknown",
        "v1.vendor.created.again",
        "v1.vendor.",
        "v1.vendor",
        ".vendor.",
        "v1.vendors.created",
        "v1.export.job-created",
        "V1.VENDOR.created",
        "v1\n.vendor.\ncreated",
        "",
    ];
    for family in Family::ALL {
        let mut worker = place
            .postgres(Program::Worker(family))
            .await
            .expect("a login");
        for event_type in types {
            let what = format!("{family} stores {event_type:?}");
            let mut store = async |raw: &str, text: Option<&str>, kind: Option<Kind>| {
                let id = format!("{:x}", rand::random::<u64>());
                let insert = sqlx::query(INSERT)
                    .bind(id)
                    .bind(event_type)
                    .bind(raw.as_bytes());
                let insert = insert.bind(text).bind(kind.map(Kind::name));
                insert.execute(&mut worker).await
            };
            for (raw, text, kind) in [
                ("the body", None, None),
                // A replay of many would take these.
                ("the body", Some("a problem"), None),
                ("the body", Some("a problem"), Some(Kind::Refused)),
                ("the body", None, Some(Kind::Misrouted)),
                ("another body", Some("a problem"), Some(Kind::Misrouted)),
            ] {
                let stored = store(raw, text, kind).await;
                if Family::of(event_type) == family {
                    stored.expect(&what);
                } else {
                    assert_row_denied(&stored, &what);
                }
            }
            for kind in [Kind::Misrouted, Kind::Conflict, Kind::Unidentified] {
                let stored = store("the body", Some("a problem"), Some(kind)).await;
                stored.expect(&what);
            }
        }
    }
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn a_worker_reaches_no_typed_table_but_its_own(pool: PgPool) {
    const EXPORT_JOBS: [&str; 5] = [
        "select id from export_jobs",
        "update export_jobs set status = 'completed'",
        "insert into export_jobs (id, company_id, status, sort_key, webhook_id)
         values ('j2', 'c', 'pending', '', 'm')",
        "delete from export_jobs",
        "lock table export_jobs",
    ];
    const VENDORS: [&str; 5] = [
        "select id from vendors",
        "update vendors set state = 'ACTIVE'",
        "insert into vendors (id, company_id, name, state, sort_key, webhook_id)
         values ('v2', 'c', 'n', 'DRAFT', '', 'm')",
        "delete from vendors",
        "lock table vendors",
    ];
    let place = Place::prepared(&pool).await;
    place.sql(ROWS_OF_ALL).await;
    for (program, denied) in [
        (VENDOR, &[EXPORT_JOBS][..]),
        (Program::Worker(Family::ExportJob), &[VENDORS]),
        (OTHER, &[EXPORT_JOBS, VENDORS]),
    ] {
        let mut worker = place.postgres(program).await.expect("it logs in");
        for statements in denied {
            assert_denied(&mut worker, program.name(), statements).await;
        }
    }
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn others_see_what_they_saw_and_one_account_cannot_take_all_connections(pool: PgPool) {
    let place = Place::new(&pool);
    let reader = format!("{}-reader", place.prefix);
    migrations::MIGRATOR.run(&pool).await.expect("a schema");
    place.sql(ROWS_OF_ALL).await;
    place
        .sql(&format!(
            r#"create role "{reader}"; grant select on events, webhook_spool to "{reader}""#
        ))
        .await;
    let output = place.set_up(&["--account-replicas", "2"]).await;
    assert!(output.status.success(), "{}", text(&output));
    place
        .sql(&format!(r#"grant "{reader}" to current_user"#))
        .await;
    let mut connection = pool.acquire().await.expect("a connection");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(r#"set role "{reader}""#)))
        .execute(&mut *connection)
        .await
        .expect("the role");
    let seen: (i64, i64) = sqlx::query_as(
        "select (select count(*) from events), (select count(*) from webhook_spool)",
    )
    .fetch_one(&mut *connection)
    .await
    .expect("its rights");
    assert_eq!(seen, (3, 3));
    sqlx::raw_sql("reset role")
        .execute(&mut *connection)
        .await
        .expect("a role");
    let limits: Vec<i32> =
        sqlx::query_scalar("select distinct rolconnlimit from pg_roles where rolname = any($1)")
            .bind(
                Program::ACCOUNTS
                    .map(|program| place.name(program))
                    .to_vec(),
            )
            .fetch_all(&pool)
            .await
            .expect("the limits");
    assert_eq!(limits, [18]);
    place
        .sql(&format!(
            r#"drop owned by "{reader}"; drop role "{reader}""#
        ))
        .await;
    place.clean_up().await;
}

fn assert_row_denied(outcome: &Result<sqlx::postgres::PgQueryResult, sqlx::Error>, what: &str) {
    let said = format!("{outcome:?}");
    assert!(
        said.contains("violates row-level security policy"),
        "{what}: {said}"
    );
}
