//! People whom a proxy has signed in.

use std::fs;

use reqwest::Response;
use sqlx::{ConnectOptions, PgPool};

use crate::{
    app::{App, unescape},
    desk::{open, post, shown},
    sample::{nameless, store},
};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

async fn get(app: &App, headers: &[(&str, &str)]) -> Response {
    get_at(app, "/events", headers).await
}

async fn get_at(app: &App, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = app.client.get(format!("{}{path}", app.url));
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    request.send().await.expect("an answer")
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn only_the_proxy_with_the_secret_says_who_asks(pool: PgPool) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("secret");
    fs::write(&file, format!("{SECRET}\n")).expect("a file");
    let url = pool.connect_options().to_url_lossy();
    let file = file.to_str().expect("a path");
    let arguments = [
        "--trusted-proxy-secret-file",
        file,
        "--trusted-proxy-user-header",
        "Remote-User",
    ];
    let app = App::with(url.as_str(), &arguments).await;
    let (secret, user) = (
        ("x-console-secret", SECRET),
        ("remote-user", "ada@example.com"),
    );

    let answer = get(&app, &[secret, user, ("host", "console.example")]).await;
    assert_eq!(answer.status(), 200);
    let page = answer.text().await.expect("text");
    assert!(page.contains("ada@example.com"), "{page}");
    assert!(!page.contains("Sign out"), "{page}");

    let wrong = ("x-console-secret", "0123456789abcdef0123456789abcdeX");
    let other = ("remote-user", "mallory");
    for headers in [
        &[][..],
        &[user],
        &[wrong, user],
        &[wrong, secret, user],
        &[secret],
        &[secret, ("remote-user", "")],
        &[secret, ("x-forwarded-user", "mallory")],
        &[secret, user, other],
    ] {
        let answer = get(&app, headers).await;
        assert_eq!(answer.status(), 403, "{headers:?}");
        let page = answer.text().await.expect("text");
        assert!(!page.contains("aria-label=\"Main\""), "no menu: {page}");
    }
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn exactly_the_named_people_are_operators(pool: PgPool) {
    store(&pool, [nameless("msg_1", "c1")]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("secret");
    fs::write(&file, SECRET).expect("a file");
    let url = pool.connect_options().to_url_lossy();
    let arguments = [
        "--trusted-proxy-secret-file",
        file.to_str().expect("a path"),
        "--operators",
        "ada@example.com,grace",
        "--operator-database-url",
        url.as_str(),
    ];
    let app = App::with(url.as_str(), &arguments).await;
    let path = "/dead-letters/dismiss";
    let headers = |name| {
        let (secret, origin) = (("x-console-secret", SECRET), ("origin", &*app.url));
        [secret, ("x-forwarded-user", name), origin]
    };
    let page = get_at(&app, path, &headers("ada@example.com")).await;
    assert_eq!(page.status(), 200);
    let page = unescape(&page.text().await.expect("text"));
    let form = format!("note=why&{}", shown(&page));
    for viewer in [
        "mallory",
        "ada",
        "Grace",
        "grace@example.com",
        "ada@example.com,grace",
    ] {
        let answer = get_at(&app, "/dead-letters", &headers(viewer)).await;
        assert_eq!(answer.status(), 200, "{viewer}");
        let list = answer.text().await.expect("text");
        assert!(
            list.contains("msg_1") && !list.contains("Dismiss these"),
            "{viewer}: {list}"
        );
        let answer = get_at(&app, path, &headers(viewer)).await;
        assert_eq!(answer.status(), 403, "{viewer}");
        let answer = post(&app, path, &form, &headers(viewer)).await;
        assert_eq!(answer.status(), 403, "{viewer}");
        assert_eq!(open(&pool).await, ["msg_1"], "{viewer}");
    }
    let answer = post(&app, path, &form, &headers("grace")).await;
    assert_eq!(answer.status(), 303);
    assert!(open(&pool).await.is_empty());
    let people: Vec<Option<String>> = sqlx::query_scalar("select person from operator_actions")
        .fetch_all(&pool)
        .await
        .expect("the record");
    assert_eq!(people, [Some("grace".to_owned())]);
    app.stop().await;
}
