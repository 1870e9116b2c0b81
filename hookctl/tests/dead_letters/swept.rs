//! Rows of events that were swept: another event that comes under the same id says nothing of them.

use sqlx::PgPool;

use crate::place::{event, forge, hookctl, is, job_at, sql, store_events, text, vendor_at};

/// Rows of a vendor and an export job, whose events are swept. Their ids come again, with events of another
/// resource and company, healthy and not, and of another family.
async fn fill(pool: &PgPool) {
    store_events(
        pool,
        [
            vendor_at("m1", "v1", "Acme", 1),
            vendor_at("m2", "v2", "Acme", 1),
            job_at("m3", "j1", 1),
        ],
    )
    .await;
    sql(
        pool,
        "delete from events;
         update vendors set stored_at = now() - interval '40 days';
         update export_jobs set stored_at = now() - interval '40 days'",
    )
    .await;
    let nameless =
        r#"{"eventType":"v1.vendor.created","data":{"id":"z1","companyId":"c9","name":7}}"#;
    store_events(pool, [event("m1", nameless), vendor_at("m2", "z2", "Z", 1)]).await;
    let text = event("m3", r#""no object""#);
    forge(
        pool,
        &text,
        "v1.vendor.created",
        Some("the body is not a JSON object"),
    )
    .await;
    sql(pool, "update events set secret_name = 'stolen'").await;
}

async fn are_there(pool: &PgPool) -> bool {
    is(
        pool,
        "select (select array_agg(id order by id) = array['v1', 'v2'] from vendors where id <> 'z2')
                and (select array_agg(id) = array['j1'] from export_jobs)",
    )
    .await
}

/// The exit code is any: the events that came may be work for an operator.
async fn run(pool: &PgPool, arguments: &[&str]) -> String {
    let output = hookctl(pool, arguments).output().await.expect("it runs");
    let said = text(&output);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{said}");
    said
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_rebuild_leaves_them(pool: PgPool) {
    fill(&pool).await;
    let said = run(&pool, &["rebuild", "--yes"]).await;
    assert!(are_there(&pool).await, "{said}");
    assert!(
        said.contains("vendors: 2 row(s) name an event that is not there"),
        "{said}"
    );
    assert!(said.contains("export_jobs: 1 row(s) name"), "{said}");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_distrusted_secret_of_the_others_leaves_them(pool: PgPool) {
    fill(&pool).await;
    let distrust = [
        "secrets",
        "distrust",
        "--secret",
        "stolen",
        "--since",
        "1970-01-01T00:00:00Z",
    ];
    let said = run(&pool, &[&distrust[..], &["--yes"]].concat()).await;
    assert!(are_there(&pool).await, "{said}");
    assert!(
        is(
            &pool,
            "select not exists (select from vendors where id = 'z2')"
        )
        .await
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_erasure_of_the_others_leaves_them(pool: PgPool) {
    fill(&pool).await;
    for id in ["m1", "m2", "m3"] {
        let said = run(&pool, &["erase", "--event", id, "--yes"]).await;
        assert!(are_there(&pool).await, "{said}");
    }
    assert!(
        is(
            &pool,
            "select not exists (select from vendors where id = 'z2')"
        )
        .await
    );
    assert!(is(&pool, "select bool_and(erased_at is not null) from events").await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_erasure_takes_the_row_of_a_swept_event(pool: PgPool) {
    fill(&pool).await;
    sql(&pool, "delete from events").await;
    run(&pool, &["erase", "--event", "m1", "--yes"]).await;
    assert!(
        is(
            &pool,
            "select array_agg(id order by id) = array['v2', 'z2'] from vendors"
        )
        .await
    );
}
