//! Text of somebody else's in every field.

use sqlx::PgPool;
use web_console::text::href;

use crate::{
    app::{App, links},
    sample::{event, store},
};

/// Every printable character, a script in each of HTML's contexts, directions and controls.
fn hostile() -> String {
    let printable: String = (' '..='~').collect();
    format!(
        "\u{202e}\u{2066}\u{1}\u{feff}{printable}\"'><script>alert(1)</script><img src=x onerror=alert(1)>ü"
    )
}

/// A filter's field has to give back what it was given.
fn without_fields(page: &str) -> String {
    let mut parts = page.split(" value=\"");
    let first = parts.next().unwrap_or_default().to_owned();
    let rest = parts.filter_map(|part| part.split_once('"'));
    rest.fold(first, |page, (_, rest)| page + rest)
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn nothing_that_was_sent_runs_or_breaks_a_page(pool: PgPool) {
    let text = hostile();
    for (n, problem) in [None, Some("Postgres refused")].into_iter().enumerate() {
        sqlx::query(
            "insert into events (webhook_id, event_id, event_type, company_id, resource_id, received_at,
                                 raw, payload, body_sha256, secret_name, problem, dismissed_by,
                                 dismissal_note, replayed_problem, replayed_at)
             values ($1, $2, $2, $2, $2, now(), $3, $4, '', $2, $5 || $2, $2, $2, $2, now())",
        )
        .bind(format!("{text}{n}"))
        .bind(&text)
        .bind(problem.map(|_| text.as_bytes()))
        .bind(serde_json::json!({"eventType": "v1.vendor.created", "data": {"id": &text, &text: &text}}))
        .bind(problem)
        .execute(&pool)
        .await
        .expect("an event");
    }
    sqlx::query(
        "insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                                    has_receipt, due_at, last_error)
         values ($1, '', 'vendor', $1, '', now(), true, now(), $1)",
    )
    .bind(&text)
    .execute(&pool)
    .await
    .expect("a row of the spool");
    sqlx::query(
        "insert into operator_actions (run, person, action, filter, changed, changes)
         values (gen_random_uuid(), $1, $1, jsonb_build_object($1, $1), 1,
                 jsonb_build_array(jsonb_build_object($1, $1)))",
    )
    .bind(&text)
    .execute(&pool)
    .await
    .expect("an action");
    sqlx::query(
        "with job as (
             insert into replay_jobs (person, filter, letters, set_sha256, rate, tries, error,
                                      stop_requested_at, stop_requested_by)
             values ($1, jsonb_build_object($1, $1), 1, '', 1, 2, $1, now(), $1) returning id)
         insert into replay_job_letters (job, webhook_id, position, outcome, reason, done_at)
         select id, $1, 1, $1, $1, now() from job",
    )
    .bind(&text)
    .execute(&pool)
    .await
    .expect("a replay");
    let app = App::start(&pool).await;
    let events = app.page(&href("/events", &[("company", &text)])).await;
    let mut paths = vec![
        "/events".to_owned(),
        "/dead-letters".to_owned(),
        "/receipts".to_owned(),
        "/record".to_owned(),
        "/replays".to_owned(),
        "/replays/1".to_owned(),
        "/replays/1/progress".to_owned(),
        href(
            "/events",
            &[("field", &format!("data.{text}")), ("value", &text)],
        ),
        href("/dead-letters", &[("company", &text)]),
        href("/event", &[("id", &text)]),
    ];
    // What a page links to is there.
    let linked = links(&events)
        .into_iter()
        .filter(|link| link.starts_with("/event?") || link.starts_with("/resource?"));
    paths.extend(linked);
    assert!(paths.len() >= 10, "{events}");
    for path in paths {
        let page = without_fields(&app.page(&path).await);
        assert!(
            !page.contains("<script>alert") && !page.contains("<img"),
            "{path}: {page}"
        );
        assert!(
            !page.contains(['\u{202e}', '\u{2066}', '\u{1}', '\u{feff}']),
            "{path}"
        );
        assert!(
            page.contains("U+202E") || !page.contains("alert(1)"),
            "{path}: {page}"
        );
    }
    let found = app.get(&href("/find", &[("id", &text)])).await;
    assert_eq!(found.status(), 303);
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn large_and_deep_bodies_are_shown_and_downloaded_whole(pool: PgPool) {
    let deep = format!("{}{}", "[".repeat(250_000), "]".repeat(250_000));
    let large = format!(
        r#"{{"eventType":"v1.card.created","data":{{"id":"k","text":"{}"}}}}"#,
        "ä\\n<".repeat(100_000)
    );
    store(
        &pool,
        [
            event("deep", deep.as_str()),
            event("large", large.as_str()),
            event("empty", ""),
        ],
    )
    .await;
    let app = App::start(&pool).await;
    for id in ["deep", "large"] {
        let page = app.page(&format!("/event?id={id}")).await;
        assert!(
            page.contains("Only the beginning is shown") && page.len() < 1_000_000,
            "{id}: {}",
            page.len()
        );
    }
    assert!(
        app.page("/event?id=empty")
            .await
            .contains("The body is empty")
    );
    let bytes = app
        .get("/event/body?id=deep")
        .await
        .bytes()
        .await
        .expect("bytes");
    assert_eq!(bytes, deep);
    app.page("/resource?id=k").await;
    app.stop().await;
}
