//! The final state of the typed tables does not depend on the order, repetition or batching of the
//! events.

use proptest::{
    prelude::{Just, Strategy},
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use sqlx::{PgPool, Row};

use crate::sample::{count, event, export_job_body, persist, sql, vendor_body};

const TIMES: [&str; 3] = [
    "2025-01-01T00:00:00Z",
    "2025-01-01T00:00:00.000000001Z",
    "2025-01-02T00:00:00+05:00",
];

#[derive(Clone, Debug)]
struct Change {
    id: usize,
    resource: u8,
    state: usize,
    /// The index of the last update's time in `TIMES`.
    time: usize,
    /// The index of the final time: a vendor's deletion or a job's completion.
    ended: Option<usize>,
}

impl Change {
    fn vendor(&self) -> shared::AcceptedEvent {
        let state = ["DRAFT", "ACTIVE", "ARCHIVED", "NEW_ONE"][self.state];
        let body = vendor_body(
            &format!("v{}", self.resource),
            &format!("name{}", self.id),
            state,
            TIMES[self.time],
        );
        event(&format!("vendor{}", self.id), self.end(body, "deletedAt"))
    }

    /// Adds the final time to `data`, if there is one.
    fn end(&self, body: String, field: &str) -> String {
        match self.ended {
            Some(time) => with_time(&body, field, TIMES[time]),
            None => body,
        }
    }

    fn export_job(&self) -> shared::AcceptedEvent {
        let status = ["pending", "in_progress", "completed", "new_one"][self.state];
        let body = export_job_body(&format!("j{}", self.resource), status, TIMES[self.time]);
        event(&format!("job{}", self.id), self.end(body, "completedAt"))
    }
}

/// Adds a time to the `data` of a body.
fn with_time(body: &str, field: &str, time: &str) -> String {
    body.replacen(
        "\"data\":{",
        &format!("\"data\":{{\"{field}\":\"{time}\","),
        1,
    )
}

async fn tables(pool: &PgPool) -> Vec<String> {
    sqlx::query(
        "select to_jsonb(v) - 'stored_at' || '{\"t\":\"vendor\"}' from vendors v
         union all select to_jsonb(j) - 'stored_at' from export_jobs j order by 1",
    )
    .fetch_all(pool)
    .await
    .expect("rows")
    .iter()
    .map(|row| row.get::<serde_json::Value, _>(0).to_string())
    .collect()
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn order_repetition_and_batching_do_not_matter(pool: PgPool) {
    let change = (
        0..3_u8,
        0..4_usize,
        0..3_usize,
        proptest::option::of(0..3_usize),
    );
    let changes = proptest::collection::vec(change, 1..12).prop_map(|changes| -> Vec<Change> {
        changes
            .into_iter()
            .enumerate()
            .map(|(id, (resource, state, time, ended))| Change {
                id,
                resource,
                state,
                time,
                ended,
            })
            .collect()
    });
    let cases = changes.prop_flat_map(|changes| {
        let repeated: Vec<Change> = changes.iter().chain(&changes).cloned().collect();
        (Just(changes), Just(repeated).prop_shuffle(), 1..6_usize)
    });
    let mut runner = TestRunner::new(Config::default());
    for _ in 0..40 {
        let case = cases.new_tree(&mut runner).expect("a case").current();
        let (in_order, shuffled, batch) = case;
        sql(&pool, "truncate events, vendors, export_jobs").await;
        for change in &in_order {
            persist(&pool, [change.vendor(), change.export_job()]).await;
        }
        let expected = tables(&pool).await;
        assert_eq!(states_older_than_another(&pool).await, 0, "{in_order:?}");
        sql(&pool, "truncate events, vendors, export_jobs").await;
        for batch in shuffled.chunks(batch) {
            persist(
                &pool,
                batch.iter().flat_map(|c| [c.vendor(), c.export_job()]),
            )
            .await;
        }
        assert_eq!(
            tables(&pool).await,
            expected,
            "{in_order:?} as {shuffled:?}"
        );
    }
}

/// The number of typed rows for which `events` has a state with a later time. Times with nine
/// decimal digits compare correctly as text.
async fn states_older_than_another(pool: &PgPool) -> i64 {
    count(
        pool,
        r"with states as (
              select e.webhook_id, e.event_type, e.resource_id,
                     (select max(to_char(t::timestamptz at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS')
                                 || rpad(coalesce(substring(t from '\.(\d+)'), ''), 9, '0'))
                        from unnest(array[d->>'updatedAt', d->>'deletedAt', d->>'lastUpdatedAt',
                                          d->>'completedAt']) t) as at
                from events e, jsonb_extract_path(e.payload, 'data') d),
          kept as (select webhook_id from vendors union all select webhook_id from export_jobs)
          select count(*)
            from kept join states k using (webhook_id)
            join states o on o.event_type = k.event_type and o.resource_id = k.resource_id
           where o.at > k.at",
    )
    .await
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_latest_of_all_times_that_a_state_gives_decides(pool: PgPool) {
    const AT: &str = "2025-01-01T00:00:00.000000001Z";
    const LATER: &str = "2025-01-01T00:00:00.000000002Z";
    let job = |status| export_job_body("j", status, AT);
    let vendor = |name, state| vendor_body("v", name, state, AT);
    // The newer state has the smaller webhook id and the same time of the last update.
    let cases = [
        (
            with_time(&vendor("deleted", "DRAFT"), "deletedAt", LATER),
            vendor("older", "ARCHIVED"),
            "select count(*) from vendors where name = 'deleted'",
        ),
        (
            with_time(&vendor("deleted", "DRAFT"), "deletedAt", AT),
            vendor("older", "ARCHIVED"),
            "select count(*) from vendors where name = 'deleted'",
        ),
        (
            with_time(&vendor("created", "DRAFT"), "createdAt", LATER),
            vendor("older", "DRAFT"),
            "select count(*) from vendors where name = 'created'",
        ),
        (
            with_time(&job("failed"), "completedAt", LATER),
            job("completed"),
            "select count(*) from export_jobs where status = 'failed'",
        ),
        (
            with_time(&job("in_progress"), "startedAt", LATER),
            job("completed"),
            "select count(*) from export_jobs where status = 'in_progress'",
        ),
        (
            with_time(&job("pending"), "expiredAt", LATER),
            job("completed"),
            "select count(*) from export_jobs where status = 'pending'",
        ),
    ];
    for (newer, older, is_kept) in cases {
        for newer_first in [true, false] {
            sql(&pool, "truncate events, vendors, export_jobs").await;
            let mut events = [event("a", newer.clone()), event("z", older.clone())];
            if !newer_first {
                events.reverse();
            }
            for event in events {
                persist(&pool, [event]).await;
            }
            assert_eq!(count(&pool, is_kept).await, 1, "{newer} before {older}");
        }
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_old_state_that_comes_late_does_not_win(pool: PgPool) {
    let newer = event(
        "m2",
        vendor_body("v", "new", "ACTIVE", "2025-02-02T00:00:00Z"),
    );
    let mut older = event(
        "m1",
        vendor_body("v", "old", "DRAFT", "2025-01-01T00:00:00Z"),
    );
    // The attempt's time is the latest one, as for a retry, but only the resource's own time
    // counts.
    older.attempted_at = Some(chrono::Utc::now());
    persist(&pool, [newer]).await;
    persist(&pool, [older]).await;
    let name: String = sqlx::query_scalar("select name from vendors where id = 'v'")
        .fetch_one(&pool)
        .await
        .expect("the vendor");
    assert_eq!(name, "new");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn of_two_states_with_one_time_the_further_one_wins(pool: PgPool) {
    const AT: &str = "2025-01-01T00:00:00Z";
    // The webhook ids are ordered the other way round, and each is first once.
    let pairs = [
        ("a", ["z-pending", "a-completed"]),
        ("b", ["a-completed", "z-pending"]),
    ];
    for (resource, ids) in pairs {
        for id in ids {
            let (status, state) = match id {
                "z-pending" => ("pending", "DRAFT"),
                _ => ("completed", "ARCHIVED"),
            };
            let job = export_job_body(resource, status, AT);
            let vendor = vendor_body(resource, "n", state, AT);
            let batch = [
                event(&format!("{id}-job-{resource}"), job),
                event(&format!("{id}-vendor-{resource}"), vendor),
            ];
            persist(&pool, batch).await;
        }
    }
    let states: Vec<String> = sqlx::query_scalar(
        "select status from export_jobs union all select state from vendors order by 1",
    )
    .fetch_all(&pool)
    .await
    .expect("rows");
    assert_eq!(states, ["ARCHIVED", "ARCHIVED", "completed", "completed"]);
}
