//! `hookctl dead-letters dismiss` and `restore`

use sqlx::PgPool;

use crate::place::{event, is, json, nameless, run, sorted, store_events, text, vendor};

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_dismissed_dead_letter_is_out_of_sight_until_it_is_restored(pool: PgPool) {
    store_events(
        &pool,
        [nameless("m1"), event("m2", "no json"), vendor("m3")],
    )
    .await;
    let dismiss = [
        "dismiss",
        "--family",
        "vendor",
        "--note",
        "a test of Pleo's",
    ];

    let output = run(&pool, &dismiss, 0).await;
    assert!(
        text(&output).contains("1 would be dismissed"),
        "{}",
        text(&output)
    );
    assert_eq!(
        json(&pool, &["list"], 0).await.len(),
        2,
        "nothing was changed"
    );

    let dismissed = json(&pool, &[&dismiss[..], &["--yes"]].concat(), 0).await;
    assert_eq!(sorted(&dismissed, "webhook_id"), ["m1"]);
    assert_eq!(
        sorted(&json(&pool, &["list"], 0).await, "webhook_id"),
        ["m2"]
    );
    assert!(
        is(
            &pool,
            "select array_agg(webhook_id) = array['m2'] from dead_letters"
        )
        .await
    );
    assert!(
        is(
            &pool,
            "select webhook_id = 'm1' and dismissed_by = session_user
                    and dismissed_at <= now() and dismissal_note = 'a test of Pleo''s'
               from dismissed_dead_letters"
        )
        .await
    );
    let [letter] = &json(&pool, &["list", "--dismissed"], 0).await[..] else {
        panic!("one row");
    };
    assert_eq!(letter["dismissal_note"], "a test of Pleo's");
    let shown = text(&run(&pool, &["show", "m1"], 0).await);
    assert!(shown.contains(": a test of Pleo's"), "{shown}");
    let replayed = json(&pool, &["replay"], 3).await;
    assert_eq!(sorted(&replayed, "webhook_id"), ["m2"], "it is left alone");

    let restored = json(&pool, &["restore", "--id", "m1", "--yes"], 0).await;
    assert_eq!(sorted(&restored, "webhook_id"), ["m1"]);
    assert_eq!(
        sorted(&json(&pool, &["list"], 0).await, "webhook_id"),
        ["m1", "m2"]
    );
    assert!(
        is(
            &pool,
            "select count(*) = 0 from events where dismissed_by is not null
                or dismissal_note is not null"
        )
        .await
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn all_of_them_have_to_be_asked_for(pool: PgPool) {
    store_events(&pool, (0..1_200).map(|i| nameless(&format!("m{i}")))).await;
    store_events(&pool, [vendor("healthy")]).await;
    run(&pool, &["dismiss", "--note", "n", "--yes"], 2).await;
    run(&pool, &["dismiss", "--all", "--yes"], 2).await;
    let unset = ["dismiss", "--problem", "", "--note", "n", "--yes"];
    run(&pool, &unset, 2).await;
    assert!(is(&pool, "select count(*) = 1200 from dead_letters").await);
    let flags = ["dismiss", "--all", "--note", "n", "--yes"];
    let dismissed = json(&pool, &flags, 0).await;
    assert_eq!(dismissed.len(), 1_200);
    assert!(is(&pool, "select count(*) = 0 from dead_letters").await);
    assert_eq!(json(&pool, &flags, 0).await.len(), 0, "none is left");
    run(&pool, &["restore", "--yes"], 2).await;
    run(&pool, &["restore", "--all", "--yes"], 0).await;
    assert!(is(&pool, "select count(*) = 1200 from dead_letters").await);
    assert!(
        is(
            &pool,
            "select count(*) = 0 from events where webhook_id = 'healthy' and dismissed_at is not null"
        )
        .await
    );
}
