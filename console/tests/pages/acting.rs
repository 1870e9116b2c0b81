//! What operators do with dead letters, and who may not.

use sqlx::{ConnectOptions, PgPool};

use crate::{
    app::App,
    desk::{Desk, Headers, OPERATORS, open, post, shown},
    sample::{event, nameless, store},
};

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn only_operators_act_and_only_by_forms_of_the_console(pool: PgPool) {
    store(&pool, [nameless("msg_1", "c1")]).await;
    let desk = Desk::new(&pool, true).await;
    let (viewer, operator) = (desk.sign_in("ada").await, desk.sign_in("grace").await);
    let form = "id=msg_1&note=why&until=2999-01-01T00:00:00Z";
    let path = "/dead-letters/dismiss";
    let ours = desk.app.url.clone();
    let refused: [(&str, Headers<'_>, u16); 6] = [
        ("nobody", &[("sec-fetch-site", "same-origin")], 303),
        (
            "a viewer",
            &[("cookie", &viewer), ("sec-fetch-site", "same-origin")],
            403,
        ),
        (
            "a viewer without a browser",
            &[("cookie", &viewer), ("origin", &ours)],
            403,
        ),
        (
            "another site",
            &[("cookie", &operator), ("sec-fetch-site", "cross-site")],
            403,
        ),
        (
            "a neighbour",
            &[("cookie", &operator), ("sec-fetch-site", "same-site")],
            403,
        ),
        (
            "another origin",
            &[("cookie", &operator), ("origin", "https://evil.example")],
            403,
        ),
    ];
    for (who, headers, status) in refused {
        let answer = post(&desk.app, path, form, headers).await;
        assert_eq!(answer.status().as_u16(), status, "{who}");
        assert_eq!(open(&pool).await, ["msg_1"], "{who}");
    }
    let (status, page) = desk.page("/dead-letters/dismiss?id=msg_1", &viewer).await;
    assert_eq!(status, 403, "{page}");
    let (_, page) = desk.page("/dead-letters", &viewer).await;
    assert!(!page.contains("Dismiss these"), "{page}");
    // A link changes nothing.
    let (status, _) = desk.page(&format!("{path}?{form}"), &operator).await;
    assert_eq!((status, open(&pool).await), (200, vec!["msg_1".to_owned()]));
    for note in ["", "%00", "+"] {
        let form = format!("id=msg_1&note={note}&until=2999-01-01T00:00:00Z");
        let headers = [("cookie", &*operator), ("origin", &*ours)];
        let answer = post(&desk.app, path, &form, &headers).await;
        assert_eq!(answer.status(), 400, "{note}");
    }
    assert_eq!(open(&pool).await, ["msg_1"]);
    desk.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_operator_dismisses_what_was_shown_and_restores_it(pool: PgPool) {
    store(
        &pool,
        [
            nameless("msg_1", "c1"),
            nameless("msg_2", "c1"),
            nameless("msg_3", "c2"),
        ],
    )
    .await;
    let desk = Desk::new(&pool, true).await;
    let operator = desk.sign_in("grace").await;
    let headers = [("cookie", &*operator), ("origin", &*desk.app.url)];
    let (_, page) = desk.page("/dead-letters?company=c1", &operator).await;
    assert!(page.contains("/dead-letters/dismiss?company=c1"), "{page}");
    let (_, page) = desk
        .page("/dead-letters/dismiss?company=c1", &operator)
        .await;
    assert!(
        page.contains("Dismiss 2") && !page.contains("msg_3"),
        "{page}"
    );
    let shown = shown(&page);
    store(&pool, [nameless("msg_late", "c1")]).await;
    let form = format!("company=c1&note=a+test&{shown}");
    let answer = post(&desk.app, "/dead-letters/dismiss", &form, &headers).await;
    assert_eq!(answer.status(), 303);
    let back = answer.headers()["location"]
        .to_str()
        .expect("text")
        .to_owned();
    let (_, page) = desk.page(&back, &operator).await;
    assert!(page.contains("2 dismissed."), "{page}");
    assert_eq!(open(&pool).await, ["msg_3", "msg_late"]);
    // A form that is sent twice does nothing twice.
    post(&desk.app, "/dead-letters/dismiss", &form, &headers).await;
    let record: Vec<String> = sqlx::query_scalar(
        "select concat_ws(', ', action, person, changed, filter ->> 'company',
                          changes -> 0 -> 'after' ->> 'dismissal_note')
           from operator_actions order by id",
    )
    .fetch_all(&pool)
    .await
    .expect("the record");
    assert_eq!(record, ["dead-letters dismiss, grace, 2, c1, a test"]);
    let (_, page) = desk.page("/dead-letters/restore?id=msg_2", &operator).await;
    let form = format!("id=msg_2&{}", self::shown(&page));
    let answer = post(&desk.app, "/dead-letters/restore", &form, &headers).await;
    assert_eq!(answer.headers()["location"], "/event?id=msg_2");
    assert_eq!(open(&pool).await, ["msg_2", "msg_3", "msg_late"]);
    desk.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn one_action_takes_ten_thousand_and_says_so(pool: PgPool) {
    store(&pool, [event("msg_1", "no JSON")]).await;
    sqlx::raw_sql(
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256, problem,
                             problem_kind, attempts)
         select 'many_' || n, event_type, received_at, raw, body_sha256, problem, problem_kind,
                attempts
           from events, generate_series(1, 10001) n where webhook_id = 'msg_1'",
    )
    .execute(&pool)
    .await
    .expect("many dead letters");
    let desk = Desk::new(&pool, true).await;
    let operator = desk.sign_in("grace").await;
    let (_, page) = desk.page("/dead-letters/dismiss", &operator).await;
    assert!(
        page.contains("There are more.") && page.contains("Dismiss 10000"),
        "{page}"
    );
    let headers = [("cookie", &*operator), ("sec-fetch-site", "same-origin")];
    let form = format!("note=why&{}", shown(&page));
    let answer = post(&desk.app, "/dead-letters/dismiss", &form, &headers).await;
    assert_eq!(answer.status(), 303);
    assert_eq!(open(&pool).await.len(), 2);
    desk.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn without_an_account_for_it_nobody_can_act_and_pages_say_so(pool: PgPool) {
    store(&pool, [nameless("msg_1", "c1")]).await;
    let desk = Desk::new(&pool, false).await;
    let operator = desk.sign_in("grace").await;
    for path in ["/dead-letters", "/event?id=msg_1"] {
        let (_, page) = desk.page(path, &operator).await;
        assert!(page.contains("Nobody can act here"), "{page}");
    }
    let (status, page) = desk.page("/dead-letters/dismiss", &operator).await;
    assert_eq!(status, 503, "{page}");
    assert!(page.contains("OPERATOR_DATABASE_URL"), "{page}");
    desk.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn on_loopback_one_looks_unless_a_setting_says_otherwise(pool: PgPool) {
    store(&pool, [nameless("msg_1", "c1")]).await;
    let url = pool.connect_options().to_url_lossy();
    let form = "id=msg_1&note=why&until=2999-01-01T00:00:00Z";
    let path = "/dead-letters/dismiss";
    let app = App::with(url.as_str(), &[OPERATORS, url.as_str()]).await;
    assert_eq!(post(&app, path, form, &[]).await.status(), 403);
    assert_eq!(open(&pool).await, ["msg_1"]);
    app.stop().await;
    let arguments = [OPERATORS, url.as_str(), "--loopback-role", "operator"];
    let app = App::with(url.as_str(), &arguments).await;
    let evil = [("sec-fetch-site", "cross-site")];
    assert_eq!(post(&app, path, form, &evil).await.status(), 403);
    assert_eq!(post(&app, path, form, &[]).await.status(), 409, "not shown");
    let page = app.page("/dead-letters/dismiss?id=msg_1").await;
    let form = format!("id=msg_1&note=why&{}", shown(&page));
    assert_eq!(post(&app, path, &form, &[]).await.status(), 303);
    assert!(open(&pool).await.is_empty());
    app.stop().await;
}

/// A commit that began before the page shows up after it, with an older time.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn nothing_is_done_to_letters_that_were_not_shown(pool: PgPool) {
    store(&pool, [nameless("msg_1", "c1"), nameless("msg_2", "c1")]).await;
    let set = |sql: &'static str| sqlx::raw_sql(sql).execute(&pool);
    set("update events set dismissed_at = now() where webhook_id = 'msg_2'")
        .await
        .expect("a dismissal");
    let desk = Desk::new(&pool, true).await;
    let operator = desk.sign_in("grace").await;
    let (_, page) = desk.page("/dead-letters/dismiss", &operator).await;
    let form = format!("note=why&{}", shown(&page));
    let headers = [("cookie", &*operator), ("sec-fetch-site", "same-origin")];
    set("update events set dismissed_at = null where webhook_id = 'msg_2'")
        .await
        .expect("somebody else restores it");
    let answer = post(&desk.app, "/dead-letters/dismiss", &form, &headers).await;
    assert_eq!(answer.status(), 409);
    assert_eq!(open(&pool).await, ["msg_1", "msg_2"]);
    let early = "note=why&until=-262142-01-01T00:00:00Z";
    let answer = post(&desk.app, "/dead-letters/dismiss", early, &headers).await;
    assert_eq!(answer.status(), 400);
    desk.app.stop().await;
}
