//! What an account cannot do in Postgres.

use shared::{Family, Program};
use sqlx::{Connection, PgConnection, PgPool};

use crate::place::Place;

const VENDOR: Program = Program::Worker(Family::Vendor);
const OTHER: Program = Program::Worker(Family::Other);

/// Nobody but the owner.
const OWNERS_ONLY: [&str; 18] = [
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
            ],
        )
        .await;
    }
    // Only the one that keeps house sweeps.
    let mut vendor = place.postgres(VENDOR).await.expect("it logs in");
    assert_denied(
        &mut vendor,
        "vendor-worker",
        &[
            "delete from webhook_receipts",
            "select webhook_id from webhook_receipts",
            "update webhook_receipts set published_at = null",
            "select * from unstored_receipts",
            "select event_type from dead_letters",
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
            "select sweep_events(now(), 1)",
            "select sweep_events(null, now(), 1)",
            "select sweep_events('infinity', 1)",
            "select sweep_events(null, 'infinity', 1)",
        ],
    )
    .await;
    place.clean_up().await;
}
