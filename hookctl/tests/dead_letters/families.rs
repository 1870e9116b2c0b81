//! Events that are stored under another family than their body is of, as a worker's account can add them.

use serde_json::Value;
use sqlx::PgPool;

use crate::place::{
    event, forge, hookctl, is, job_at, json, lines, run, sql, store_events, text, vendor,
};

const WRONG_DATA: &str = "`data` is not that of the vendor its type names: forged";
const NO_EVENT: &str = "the body is not a JSON object: as an older version read it";

/// Outcome and reason of each event, in the order of their ids.
fn told(replayed: &[Value]) -> Vec<[&str; 3]> {
    let mut told: Vec<_> = replayed
        .iter()
        .map(|r| ["webhook_id", "outcome", "reason"].map(|field| r[field].as_str().unwrap_or("")))
        .collect();
    told.sort_unstable();
    told
}

async fn is_as_the_worker_wrote_it(pool: &PgPool) -> bool {
    is(
        pool,
        "select array_agg(webhook_id) = array['m1'] from export_jobs",
    )
    .await
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn no_replay_takes_an_event_for_another_family(pool: PgPool) {
    store_events(&pool, [job_at("m1", "j1", 1)]).await;
    let newer = job_at("f1", "j1", 2);
    forge(&pool, &newer, "v1.vendor.created", Some(WRONG_DATA)).await;
    let untyped = event("f2", r#"{"data":{},"eventType":"v1.card.created"}"#);
    forge(&pool, &untyped, "v1.vendor.created", Some(WRONG_DATA)).await;
    // Of the family of other types as it is spelled here, by which the policies go.
    let old = job_at("f3", "j1", 3);
    forge(&pool, &old, "v1.export.job-created", Some("refused")).await;

    let many = ["replay", "--yes"];
    let by_id = ["replay", "--yes", "--id=f1", "--id=f2", "--id=f3"];
    let insisting = [&by_id[..], &["--include-withheld"]].concat();
    for (flags, outcome) in [
        (&many[..], "withheld"),
        (&by_id, "withheld"),
        (&insisting, "still-wrong"),
    ] {
        let replayed = json(&pool, flags, 3).await;
        let told = told(&replayed);
        let ids = ["f1", "f2", "f3"].map(|id| (id, outcome));
        assert_eq!(
            told.iter().map(|[id, o, _]| (*id, *o)).collect::<Vec<_>>(),
            ids
        );
        assert!(
            told[0][2].contains("stored as one of vendor, and its body is one of export-job"),
            "{told:?}"
        );
    }
    assert!(is_as_the_worker_wrote_it(&pool).await);
    assert!(is(&pool, "select count(*) = 3 from dead_letters").await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_of_no_known_type_is_taken_for_a_family_only_on_request(pool: PgPool) {
    forge(&pool, &vendor("u1"), "unknown", Some(NO_EVENT)).await;
    let untyped = event("u2", r#"{"data":{},"eventType":"v1.card.created"}"#);
    forge(&pool, &untyped, "unknown", Some(NO_EVENT)).await;
    forge(&pool, &vendor("u3"), "unknown", Some("stopped the worker")).await;
    let replayed = json(&pool, &["replay", "--yes"], 3).await;
    let outcomes: Vec<_> = told(&replayed).iter().map(|[id, o, _]| (*id, *o)).collect();
    assert_eq!(
        outcomes,
        [("u1", "withheld"), ("u2", "untyped"), ("u3", "withheld")],
        "only the family of all other types takes unknown ones"
    );
    assert!(is(&pool, "select not exists (select from vendors)").await);
    let told = [
        "replay",
        "--yes",
        "--id=u1",
        "--id=u3",
        "--include-withheld",
    ];
    let replayed = json(&pool, &told, 0).await;
    assert!(
        replayed.iter().all(|r| r["outcome"] == "newest"),
        "{replayed:?}"
    );
    assert!(
        is(
            &pool,
            "select count(*) = 2 and bool_and(e.event_type = 'v1.vendor.created')
               from vendors v join events e on e.webhook_id = v.webhook_id"
        )
        .await
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_rebuild_names_such_an_event_and_writes_no_row_of_it(pool: PgPool) {
    store_events(&pool, [job_at("m1", "j1", 1)]).await;
    let newer = job_at("f1", "j1", 2);
    forge(&pool, &newer, "v1.vendor.created", None).await;
    let reason = "no row for f1: it is stored as one of vendor, and its body is one of export-job";
    for flags in [
        &["rebuild"][..],
        &["rebuild", "--yes"],
        &["rebuild", "--yes", "--family=vendor"],
    ] {
        let output = hookctl(&pool, flags).output().await.expect("it runs");
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        assert!(text(&output).contains(reason), "{}", text(&output));
        assert!(is_as_the_worker_wrote_it(&pool).await);
    }
    assert!(is(&pool, "select not exists (select from operator_actions)").await);

    // As versions wrote it that went by the body alone.
    sql(
        &pool,
        "update export_jobs set webhook_id = 'f1', sort_key = '\\xff', stored_at = now()",
    )
    .await;
    let flags = ["rebuild", "--yes", "--json", "--family=export-job"];
    let output = hookctl(&pool, &flags).output().await.expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(lines(&output)[0]["event_not_healthy"], 1);
    assert!(is_as_the_worker_wrote_it(&pool).await);
    run(&pool, &["show", "f1"], 0).await;
}
