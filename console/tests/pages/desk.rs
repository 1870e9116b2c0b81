//! A console with users, and what they do by its forms.

use std::fs;

use reqwest::Response;
use sqlx::{ConnectOptions, PgPool};
use tempfile::TempDir;
use web_console::access::{Role, users};

use crate::app::{App, unescape};

pub(crate) type Headers<'a> = &'a [(&'a str, &'a str)];

pub(crate) const PASSWORD: &str = "correct horse battery";
pub(crate) const OPERATORS: &str = "--operator-database-url";

/// A console with a viewer, Ada, and an operator, Grace.
pub(crate) struct Desk {
    pub(crate) app: App,
    _folder: TempDir,
}

impl Desk {
    pub(crate) async fn new(pool: &PgPool, can_act: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("users");
        let lines = [("ada", Role::Viewer), ("grace", Role::Operator)]
            .map(|(name, role)| users::line(name, role, PASSWORD).expect("a line"));
        fs::write(&file, lines.join("\n")).expect("a file");
        let url = pool.connect_options().to_url_lossy();
        let mut arguments = vec!["--users-file", file.to_str().expect("a path")];
        if can_act {
            arguments.extend([OPERATORS, url.as_str()]);
        }
        let app = App::with(url.as_str(), &arguments).await;
        Self {
            app,
            _folder: folder,
        }
    }

    /// The cookie of one who has signed in.
    pub(crate) async fn sign_in(&self, name: &str) -> String {
        let form = format!("name={name}&password={}", PASSWORD.replace(' ', "+"));
        let answer = post(&self.app, "/sign-in", &form, &[]).await;
        let cookie = answer.headers()["set-cookie"].to_str().expect("text");
        cookie.split(';').next().expect("a cookie").to_owned()
    }

    pub(crate) async fn page(&self, path: &str, cookie: &str) -> (u16, String) {
        let request = self.app.client.get(format!("{}{path}", self.app.url));
        let answer = request.header("cookie", cookie).send().await;
        let answer = answer.expect("an answer");
        let status = answer.status().as_u16();
        (status, unescape(&answer.text().await.expect("text")))
    }
}

pub(crate) async fn post(app: &App, path: &str, form: &str, headers: Headers<'_>) -> Response {
    let mut request = app.client.post(format!("{}{path}", app.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form.to_owned())
        .send()
        .await
        .expect("an answer")
}

/// The form's hidden fields that say what was shown.
pub(crate) fn shown(page: &str) -> String {
    let value = |name: &str| {
        let (_, rest) = page
            .split_once(&format!("name=\"{name}\" value=\""))
            .expect("a form");
        rest.split_once('"').expect("its value").0.to_owned()
    };
    format!("until={}&shown={}", value("until"), value("shown"))
}

/// The open dead letters.
pub(crate) async fn open(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "select webhook_id from events
          where problem is not null and dismissed_at is null order by webhook_id",
    )
    .fetch_all(pool)
    .await
    .expect("dead letters")
}
