//! People whom a proxy has signed in.

use std::fs;

use reqwest::Response;
use sqlx::{ConnectOptions, PgPool};

use crate::app::App;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

async fn get(app: &App, headers: &[(&str, &str)]) -> Response {
    let request = app.client.get(format!("{}/events", app.url));
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
