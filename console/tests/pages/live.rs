//! Events of a view while they are stored.

use reqwest::Response;
use sqlx::PgPool;
use tokio::time::timeout;

use crate::{
    app::{App, SOON},
    sample::{event, store, vendor},
};

/// Views that are open at once.
const MOST_VIEWS: usize = 20;

/// A stream that is being read.
pub(crate) struct View {
    answer: Response,
    text: String,
}

impl View {
    pub(crate) async fn open(app: &App, address: &str) -> Self {
        let answer = app.get(address).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self {
            answer,
            text: String::new(),
        }
    }

    /// Reads until the stream has said this.
    pub(crate) async fn until(&mut self, text: &str) {
        while !self.text.contains(text) {
            let chunk = timeout(SOON, self.answer.chunk()).await;
            let chunk = chunk.unwrap_or_else(|_| panic!("no {text} in {}", self.text));
            let chunk = chunk.expect("a stream").expect("it goes on");
            self.text += &String::from_utf8_lossy(&chunk);
        }
    }

    /// Reads to the end.
    async fn rest(mut self) -> String {
        while let Some(chunk) = timeout(SOON, self.answer.chunk())
            .await
            .expect("it ends")
            .expect("a stream")
        {
            self.text += &String::from_utf8_lossy(&chunk);
        }
        self.text
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_view_gets_each_new_event_of_its_filters_once_and_ends_with_the_console(pool: PgPool) {
    let app = App::start(&pool).await;
    let mut all = View::open(&app, "/events/live").await;
    let mut vendors = View::open(&app, "/events/live?type=v1.vendor.created").await;
    store(&pool, [vendor("msg_1", "v-1", "Acme", "DRAFT", 1)]).await;
    all.until("/event?id=msg_1").await;
    let card = r#"{"eventType":"v1.card.created","data":{"id":"<script>"}}"#;
    store(&pool, [event("msg_2", card)]).await;
    all.until("/event?id=msg_2").await;
    store(&pool, [vendor("msg_3", "v-1", "Acme", "DRAFT", 1)]).await;
    all.until("/event?id=msg_3").await;
    vendors.until("/event?id=msg_3").await;
    let (stopped, all, vendors) = tokio::join!(app.stop(), all.rest(), vendors.rest());
    let () = stopped;
    for id in ["msg_1", "msg_2", "msg_3"] {
        let row = format!("/event?id={id}\"");
        assert_eq!(all.matches(&row).count(), 1, "{all}");
        assert_eq!(vendors.matches(&row).count(), usize::from(id != "msg_2"));
    }
    assert!(!all.contains("<script>"), "{all}");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn there_is_an_end_to_the_number_of_views(pool: PgPool) {
    let app = App::start(&pool).await;
    let mut views = Vec::new();
    for _ in 0..MOST_VIEWS {
        views.push(View::open(&app, "/events/live").await);
    }
    let page = app.page_with("/events/live", 503).await;
    assert!(page.contains("Too many live views"), "{page}");
    assert_eq!(
        app.get("/events").await.status(),
        200,
        "pages are still there"
    );
    drop(views);
    app.stop().await;
}
