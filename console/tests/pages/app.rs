//! A running console, and what a browser would ask it.

use std::time::Duration;

use clap::Parser;
use reqwest::{Client, Response, redirect::Policy};
use sqlx::{ConnectOptions, PgPool};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use web_console::{config::Config, service::Service};

/// How long anything may take that is waited for, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) struct App {
    pub(crate) url: String,
    pub(crate) private_url: String,
    pub(crate) client: Client,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl App {
    /// On loopback, without signing in.
    pub(crate) async fn start(pool: &PgPool) -> Self {
        Self::with(pool.connect_options().to_url_lossy().as_str(), &[]).await
    }

    /// On this database, with more arguments.
    pub(crate) async fn with(database_url: &str, arguments: &[&str]) -> Self {
        let fixed = [
            "console",
            "--database-url",
            database_url,
            "--listen",
            "127.0.0.1:0",
            "--private-listen",
            "127.0.0.1:0",
        ];
        let config = Config::parse_from(fixed.iter().chain(arguments));
        let service = Service::bind(&config).expect("it starts");
        let stop = CancellationToken::new();
        let url = format!("http://{}", service.address());
        let private_url = format!("http://{}", service.private_address());
        Self {
            url,
            private_url,
            client: Client::builder()
                .redirect(Policy::none())
                .build()
                .expect("a client"),
            running: tokio::spawn(service.run(stop.clone())),
            stop,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        let request = self.client.get(format!("{}{path}", self.url));
        request.send().await.expect("an answer")
    }

    /// A page, which must be there.
    pub(crate) async fn page(&self, path: &str) -> String {
        self.page_with(path, 200).await
    }

    /// A page with this status.
    pub(crate) async fn page_with(&self, path: &str, status: u16) -> String {
        let answer = self.get(path).await;
        let found = answer.status();
        let text = answer.text().await.expect("text");
        assert_eq!(found, status, "{path}: {text}");
        text
    }

    /// Waits until a page has this text, and gives it.
    pub(crate) async fn until(&self, path: &str, text: &str) -> String {
        self.until_is(path, |page| page.contains(text), text).await
    }

    /// Waits until a page has this text no more.
    pub(crate) async fn until_gone(&self, path: &str, text: &str) {
        self.until_is(path, |page| !page.contains(text), text).await;
    }

    async fn until_is(&self, path: &str, is: impl Fn(&str) -> bool, text: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let page = self.page(path).await;
            if is(&page) {
                return page;
            }
            assert!(
                Instant::now() < deadline,
                "still waiting for {text}: {page}"
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.running.await.expect("no panic").expect("it stops");
    }
}

/// The addresses that a page links to, as the browser sees them, in their order.
pub(crate) fn links(page: &str) -> Vec<String> {
    page.split("href=\"")
        .skip(1)
        .filter_map(|rest| rest.split_once('"'))
        .map(|(href, _)| unescape(href))
        .collect()
}

/// The one link whose text is this.
pub(crate) fn link(page: &str, text: &str) -> Option<String> {
    let end = format!(">{text}</a>");
    let before = &page[..page.find(&end)?];
    let href = before.rsplit_once("href=\"")?.1;
    Some(unescape(href.split_once('"')?.0))
}

/// HTML's marks as the characters that they stand for.
pub(crate) fn unescape(html: &str) -> String {
    html.replace("&#38;", "&")
        .replace("&amp;", "&")
        .replace("&#39;", "'")
        .replace("&#34;", "\"")
        .replace("&quot;", "\"")
        .replace("&#60;", "<")
        .replace("&lt;", "<")
        .replace("&#62;", ">")
        .replace("&gt;", ">")
}
