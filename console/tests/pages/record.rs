//! What operators have done.

use sqlx::PgPool;

use crate::{
    app::{App, link},
    sample::sql,
};

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn each_filter_finds_its_actions_and_no_others(pool: PgPool) {
    let app = App::start(&pool).await;
    let empty = app.page("/record").await;
    assert!(empty.contains("Nobody has changed anything yet"), "{empty}");
    sql(
        &pool,
        r#"insert into operator_actions (run, person, action, filter, changed, changes) values
             (gen_random_uuid(), 'ada', 'dead-letters dismiss', '{"note": "note-1"}', 1,
              '[{"webhook_id": "msg_1", "before": null, "after": "dismissed"}]'),
             (gen_random_uuid(), null, 'dead-letters replay', '{"note": "note-2"}', 1,
              '[{"webhook_id": "msg_2"}]'),
             (gen_random_uuid(), null, 'rebuild', '{"note": "note-3"}', 40,
              (select jsonb_agg(jsonb_build_object('id', n)) from generate_series(1, 40) n))"#,
    )
    .await;
    let account: String = sqlx::query_scalar("select session_user::text")
        .fetch_one(&pool)
        .await
        .expect("a name");
    let all = ["note-1", "note-2", "note-3"];
    for (query, expected) in [
        ("", &all[..]),
        ("who=ada", &["note-1"]),
        (&format!("who={account}"), &all),
        ("who=nobody", &[]),
        ("action=dead-letters", &["note-1", "note-2"]),
        ("action=dead-letters%20replay", &["note-2"]),
        ("action=dead", &[]),
        ("event=msg_2", &["note-2"]),
        ("from=2020-01-01T00:00", &all),
        ("to=2020-01-01T00:00", &[]),
    ] {
        let page = app.page(&format!("/record?{query}")).await;
        let found = all.into_iter().filter(|note| page.contains(note));
        assert_eq!(found.collect::<Vec<_>>(), expected, "{query}: {page}");
    }
    let page = app.page("/record?action=rebuild").await;
    assert!(
        page.contains("&quot;id&quot;: 10") && !page.contains("&quot;id&quot;: 11"),
        "{page}"
    );
    assert!(page.contains("There is more"), "{page}");
    for address in ["/record?before=x", "/record?from=x"] {
        app.page_with(address, 400).await;
    }
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn pages_show_each_action_once_the_newest_first(pool: PgPool) {
    sql(
        &pool,
        "insert into operator_actions (run, action, filter, changed, changes)
         select gen_random_uuid(), 'test', jsonb_build_object('n', 'n' || n || '.'), 1, '[]'
           from generate_series(1, 120) n",
    )
    .await;
    let app = App::start(&pool).await;
    let mut address = Some("/record?action=test".to_owned());
    let mut next = 120;
    while let Some(path) = address {
        let page = app.page(&path).await;
        assert!(next > 0, "{path}");
        for part in page.split("&quot;n").skip(1) {
            if let Some((number, _)) = part.split_once('.')
                && let Ok(number) = number.parse::<u32>()
            {
                assert_eq!(number, next, "{path}");
                next -= 1;
            }
        }
        address = link(&page, "Older");
    }
    assert_eq!(next, 0);
    app.stop().await;
}
