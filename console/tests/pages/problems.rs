//! Dead letters, and receipts that are not stored.

use sqlx::PgPool;

use crate::{
    app::{App, link, unescape},
    sample::{event, nameless, sql, store, vendor},
};

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn dead_letters_are_grouped_with_the_commands_for_exactly_them(pool: PgPool) {
    store(
        &pool,
        [
            nameless("msg_1", "c1"),
            nameless("msg_2", "it's"),
            event("msg_3", "no JSON"),
            vendor("msg_fine", "v-1", "Acme", "DRAFT", 1),
        ],
    )
    .await;
    sql(
        &pool,
        "update events set dismissed_at = now(), dismissed_by = 'ada', dismissal_note = 'a test'
                 where webhook_id = 'msg_3'",
    )
    .await;
    let app = App::start(&pool).await;
    let page = unescape(&app.page("/dead-letters").await);
    assert!(
        page.contains("2 open") && !page.contains("msg_3") && !page.contains("msg_fine"),
        "{page}"
    );
    assert!(
        page.contains("<pre id=\"command-1\">hookctl dead-letters replay</pre>"),
        "{page}"
    );
    assert!(
        page.contains("hookctl dead-letters dismiss --all --note 'WHY' --yes"),
        "{page}"
    );
    let kind = link(&page, "wrong-data").expect("the group's page");
    let page = unescape(&app.page(&kind).await);
    assert!(
        page.contains("hookctl dead-letters replay --problem wrong-data --yes"),
        "{page}"
    );
    let page = unescape(
        &app.page("/dead-letters?company=it%27s&type=v1.vendor.created")
            .await,
    );
    assert!(
        page.contains(
            r"hookctl dead-letters replay --type v1.vendor.created --company 'it'\''s' --yes"
        ),
        "{page}"
    );
    assert!(page.contains("msg_2") && !page.contains("msg_1"), "{page}");
    let page = unescape(&app.page("/dead-letters?state=dismissed").await);
    assert!(
        page.contains("msg_3") && page.contains("ada") && page.contains("a test"),
        "{page}"
    );
    assert!(
        page.contains("hookctl dead-letters restore --all --yes"),
        "{page}"
    );
    let page = unescape(&app.page("/event?id=msg_3").await);
    assert!(
        page.contains("hookctl dead-letters restore --id msg_3 --yes"),
        "{page}"
    );
    sql(
        &pool,
        "update events set problem = 'another body', problem_kind = 'conflict'
                 where webhook_id = 'msg_1'",
    )
    .await;
    let page = unescape(&app.page("/dead-letters?kind=conflict").await);
    assert!(
        !page.contains("hookctl dead-letters replay"),
        "it would take none: {page}"
    );
    let page = unescape(&app.page("/event?id=msg_1").await);
    assert!(
        page.contains("replay --id msg_1 --include-withheld --yes"),
        "{page}"
    );
    for bad in ["kind=great", "state=lost", "before=x"] {
        app.page_with(&format!("/dead-letters?{bad}"), 400).await;
    }
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn pages_of_dead_letters_that_were_stored_together_leave_none_out(pool: PgPool) {
    sql(
        &pool,
        "insert into events (webhook_id, event_type, received_at, stored_at, raw, body_sha256, problem)
         select 'msg_' || n, 'unknown', now(), '2026-01-01', '', '', 'the body is empty'
           from generate_series(1, 120) n",
    )
    .await;
    let app = App::start(&pool).await;
    let (mut next, mut seen) = (
        Some("/dead-letters".to_owned()),
        std::collections::BTreeSet::new(),
    );
    while let Some(path) = next {
        let page = app.page(&path).await;
        seen.extend(
            crate::app::links(&page)
                .into_iter()
                .filter(|link| link.starts_with("/event?")),
        );
        next = link(&page, "Older");
    }
    assert_eq!(seen.len(), 120);
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_is_accepted_and_not_stored_is_shown_with_its_age(pool: PgPool) {
    store(&pool, [vendor("msg_stored", "v-1", "Acme", "DRAFT", 1)]).await;
    sql(
        &pool,
        "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
         select webhook_id, body_sha256, now() - interval '2 hours', now() from events;
         insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
         values ('msg_lost', '', now() - interval '2 hours', now() - interval '2 hours'),
                ('msg_written_off', '', now() - interval '2 hours', now() - interval '2 hours');
         update webhook_receipts set written_off_at = now() where webhook_id = 'msg_written_off';
         insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                                    has_receipt, due_at, attempts, last_error)
         values ('msg_spooled', '', 'vendor', 'v1.vendor.created', 'secret body', now(), true,
                 now() + interval '1 hour', 3, 'rabbitmq was away')",
    )
    .await;
    let app = App::start(&pool).await;
    let page = app.until("/receipts", "msg_lost").await;
    assert!(
        page.contains("2 h ago") && page.contains("hookctl reconcile"),
        "{page}"
    );
    assert!(
        page.contains("msg_spooled") && page.contains("rabbitmq was away"),
        "{page}"
    );
    assert!(
        !page.contains("msg_stored") && !page.contains("msg_written_off"),
        "{page}"
    );
    let page = app.page("/event?id=msg_spooled").await;
    assert!(
        page.contains("In the spool") && !page.contains("secret body"),
        "{page}"
    );
    let page = app.page("/").await;
    assert!(page.contains("the oldest for 2 h"), "{page}");
    app.stop().await;
}
