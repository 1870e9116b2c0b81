//! Users who sign in.

use std::{fs, time::Duration};

use reqwest::Response;
use sqlx::{ConnectOptions, PgPool};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use web_console::access::{Role, users};

use crate::app::{App, SOON};

const PASSWORD: &str = "correct horse battery";

struct Door {
    app: App,
    folder: TempDir,
}

impl Door {
    async fn new(pool: &PgPool) -> Self {
        Self::with(
            pool,
            &users::line("ada", Role::Viewer, PASSWORD).expect("a line"),
        )
        .await
    }

    async fn with(pool: &PgPool, users: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("users"), users).expect("a file");
        let app = Self::app(pool, &folder).await;
        Self { app, folder }
    }

    async fn app(pool: &PgPool, folder: &TempDir) -> App {
        let file = folder.path().join("users");
        let file = file.to_str().expect("a path");
        let url = pool.connect_options().to_url_lossy();
        App::with(url.as_str(), &["--users-file", file]).await
    }

    /// Stops the console and starts it again.
    async fn restart(self, pool: &PgPool) -> Self {
        self.app.stop().await;
        let app = Self::app(pool, &self.folder).await;
        Self { app, ..self }
    }

    async fn sign_in(&self, name: &str, password: &str, next: &str) -> Response {
        let form = [("name", name), ("password", password), ("next", next)];
        let form: Vec<String> = form
            .map(|(name, value)| {
                web_console::text::href("", &[(name, value)])
                    .trim_start_matches('?')
                    .to_owned()
            })
            .into();
        let request = self.app.client.post(format!("{}/sign-in", self.app.url));
        request
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.join("&"))
            .send()
            .await
            .expect("an answer")
    }

    async fn get(&self, path: &str, cookie: &str) -> Response {
        let request = self.app.client.get(format!("{}{path}", self.app.url));
        request
            .header("cookie", cookie)
            .send()
            .await
            .expect("an answer")
    }
}

fn cookie(answer: &Response) -> String {
    let header = answer.headers()["set-cookie"].to_str().expect("text");
    for attribute in ["HttpOnly", "SameSite=Strict", "Secure", "Path=/"] {
        assert!(header.contains(attribute), "{header}");
    }
    header.split(';').next().expect("a cookie").to_owned()
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn only_users_see_pages_and_only_until_they_sign_out(pool: PgPool) {
    let door = Door::new(&pool).await;
    for path in [
        "/",
        "/overview/figures",
        "/events?company=a%26b",
        "/event/body?id=x",
        "/find?id=x",
        "/nowhere",
    ] {
        let answer = door.app.get(path).await;
        assert_eq!(answer.status(), 303, "{path}");
        let location = answer.headers()["location"].to_str().expect("text");
        assert!(location.starts_with("/sign-in?next=%2F"), "{location}");
        let answer = door.get(path, "console-session=0000").await;
        assert_eq!(answer.status(), 303, "{path}");
    }
    let form = door.app.page("/sign-in?next=/events").await;
    assert!(!form.contains("aria-label=\"Main\""), "no menu: {form}");
    let answer = door.sign_in("ada", PASSWORD, "/events?company=a%26b").await;
    assert_eq!(answer.status(), 303);
    assert_eq!(answer.headers()["location"], "/events?company=a%26b");
    let cookie = cookie(&answer);
    let page = door.get("/events", &cookie).await;
    assert_eq!(page.status(), 200);
    assert!(page.text().await.expect("text").contains("Sign out"));

    let request = door.app.client.post(format!("{}/sign-out", door.app.url));
    let answer = request
        .header("cookie", &cookie)
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 303);
    assert_eq!(door.get("/events", &cookie).await.status(), 303);
    door.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn wrong_passwords_are_refused_and_then_have_to_wait(pool: PgPool) {
    let door = Door::new(&pool).await;
    let elsewhere = door.sign_in("ada", PASSWORD, "//elsewhere.example/").await;
    assert_eq!(elsewhere.headers()["location"], "/");
    for _ in 0..5 {
        let answer = door.sign_in("ada", "wrong", "/").await;
        assert_eq!(answer.status(), 401);
        assert!(!answer.headers().contains_key("set-cookie"));
    }
    let answer = door.sign_in("ada", PASSWORD, "/").await;
    assert_eq!(answer.status(), 429);
    assert_eq!(answer.headers()["retry-after"], "60");
    // A name without a user is treated alike, and hinders no other.
    for _ in 0..5 {
        assert_eq!(door.sign_in("nobody", PASSWORD, "/").await.status(), 401);
    }
    assert_eq!(door.sign_in("nobody", PASSWORD, "/").await.status(), 429);
    assert_eq!(door.sign_in("nobody-2", PASSWORD, "/").await.status(), 401);
    door.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn who_is_taken_out_of_the_file_or_has_another_password_is_out(pool: PgPool) {
    let door = Door::new(&pool).await;
    let mut password = PASSWORD;
    for (name, new_password) in [("ada", "another horse battery"), ("bob", PASSWORD)] {
        let cookie = cookie(&door.sign_in("ada", password, "/").await);
        assert_eq!(door.get("/events", &cookie).await.status(), 200);
        let line = users::line(name, Role::Viewer, new_password).expect("a line");
        fs::write(door.folder.path().join("users"), line).expect("a file");
        let deadline = Instant::now() + SOON;
        while door.get("/events", &cookie).await.status() != 303 {
            assert!(Instant::now() < deadline, "still in");
            sleep(Duration::from_millis(100)).await;
        }
        password = new_password;
    }
    assert_eq!(door.sign_in("bob", PASSWORD, "/").await.status(), 303);
    door.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_restart_signs_everybody_out(pool: PgPool) {
    let door = Door::new(&pool).await;
    let cookie = cookie(&door.sign_in("ada", PASSWORD, "/").await);
    assert_eq!(door.get("/events", &cookie).await.status(), 200);
    let door = door.restart(&pool).await;
    assert_eq!(door.get("/events", &cookie).await.status(), 303);
    assert_eq!(door.sign_in("ada", PASSWORD, "/").await.status(), 303);
    door.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn while_there_is_no_user_the_page_says_so_and_the_first_one_needs_no_restart(pool: PgPool) {
    let door = Door::with(&pool, "# nobody yet\n").await;
    let form = door.app.page("/sign-in").await;
    assert!(form.contains("There is no user yet"), "{form}");
    assert_eq!(door.app.get("/events").await.status(), 303);
    assert_eq!(door.sign_in("ada", PASSWORD, "/").await.status(), 401);
    let line = users::line("ada", Role::Viewer, PASSWORD).expect("a line");
    fs::write(door.folder.path().join("users"), line).expect("a file");
    let deadline = Instant::now() + SOON;
    while door.app.page("/sign-in").await.contains("no user yet") {
        assert!(Instant::now() < deadline, "the user is not taken");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(door.sign_in("ada", PASSWORD, "/").await.status(), 303);
    door.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn forged_sign_ins_are_refused_and_links_from_elsewhere_work(pool: PgPool) {
    let door = Door::new(&pool).await;
    let post = |path: &str| door.app.client.post(format!("{}{path}", door.app.url));
    for (header, value) in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "https://elsewhere.example"),
        ("origin", "null"),
    ] {
        for path in ["/sign-in", "/sign-out"] {
            let answer = post(path)
                .header(header, value)
                .send()
                .await
                .expect("an answer");
            assert_eq!(answer.status(), 403, "{header}: {value}");
        }
    }
    // A browser leaves the cookie out of a link's request, and sends it when the page asks again.
    let request = door.app.client.get(format!("{}/events", door.app.url));
    let request = request
        .header("sec-fetch-site", "cross-site")
        .header("sec-fetch-mode", "navigate");
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert!(
        answer
            .text()
            .await
            .expect("text")
            .contains("http-equiv=\"refresh\"")
    );
    door.app.stop().await;
}
