//! The typed tables end the same for every order, repetition and batching of the same events.

use proptest::{
    prelude::{Just, Strategy},
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use sqlx::{PgPool, Row};

use crate::sample::{event, export_job_body, persist, sql, vendor_body};

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
    time: usize,
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
        event(&format!("vendor{}", self.id), body)
    }

    fn export_job(&self) -> shared::AcceptedEvent {
        let status = ["pending", "in_progress", "completed", "new_one"][self.state];
        let body = export_job_body(&format!("j{}", self.resource), status, TIMES[self.time]);
        event(&format!("job{}", self.id), body)
    }
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
    let changes = proptest::collection::vec((0..3_u8, 0..4_usize, 0..3_usize), 1..12).prop_map(
        |changes| -> Vec<Change> {
            changes
                .into_iter()
                .enumerate()
                .map(|(id, (resource, state, time))| Change {
                    id,
                    resource,
                    state,
                    time,
                })
                .collect()
        },
    );
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
    // The attempt is the latest of all, as of a retry; what counts is the resource's own time.
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
    // The webhook ids compare the other way round, and each is first once.
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
