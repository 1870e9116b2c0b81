//! What was accepted and is not stored: where it must be, for how long, and what to do.

use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;

use crate::{
    error::PageError,
    frame::{Frame, Section, html},
    store::Store,
    text, time,
    watch::Watch,
};

/// Rows of the spool on the page.
const MOST_SPOOLED: i64 = 100;

#[derive(sqlx::FromRow)]
struct Receipt {
    webhook_id: String,
    received_at: DateTime<Utc>,
    published_at: Option<DateTime<Utc>>,
}

#[derive(sqlx::FromRow)]
struct Spooled {
    webhook_id: String,
    family: String,
    event_type: String,
    received_at: DateTime<Utc>,
    attempts: i32,
    due_at: DateTime<Utc>,
    last_error: Option<String>,
}

#[derive(Template)]
#[template(path = "receipts.html")]
struct ReceiptsPage {
    frame: Frame,
    /// `None` before they were counted once.
    unstored: Option<usize>,
    /// Whether that is the number of all.
    of_all: bool,
    receipts: Vec<Receipt>,
    spooled: Vec<Spooled>,
}

/// `GET /receipts`
pub(crate) async fn page(
    request: HttpRequest,
    store: web::Data<Store>,
    watch: web::Data<Watch>,
) -> Result<HttpResponse, PageError> {
    let known = watch.figures().ledger.found;
    let ids = known.as_ref().map_or(&[][..], |ledger| &ledger.receipts);
    let (receipts, spooled) = store
        .look(async |connection| {
            Ok((
                still_unstored(connection, ids).await?,
                spooled(connection).await?,
            ))
        })
        .await?;
    html(&ReceiptsPage {
        frame: Frame::new(&request, "Receipts that are not stored", Section::Receipts),
        unstored: known.as_ref().map(|ledger| ledger.unstored),
        of_all: known.is_some_and(|ledger| ledger.of_all),
        receipts,
        spooled,
    })
}

/// Those that the watch has found and that have no event even now.
async fn still_unstored(
    connection: &mut PgConnection,
    ids: &[String],
) -> Result<Vec<Receipt>, sqlx::Error> {
    sqlx::query_as(
        "select webhook_id, received_at, published_at from unstored_receipts
          where webhook_id = any($1) order by received_at, webhook_id",
    )
    .bind(ids)
    .fetch_all(connection)
    .await
}

async fn spooled(connection: &mut PgConnection) -> Result<Vec<Spooled>, sqlx::Error> {
    sqlx::query_as(
        "select webhook_id, family, event_type, received_at, attempts, due_at, last_error
           from webhook_spool order by family, due_at limit $1",
    )
    .bind(MOST_SPOOLED)
    .fetch_all(connection)
    .await
}

impl Receipt {
    /// What to do depends on who had it last, and for how long.
    fn advice(&self) -> &'static str {
        let age = Utc::now() - self.received_at;
        match self.published_at {
            None => "Ingest was about to publish it. The sender repeats it; nothing is to be done.",
            Some(_) if age < TimeDelta::minutes(10) => {
                "RabbitMQ confirmed it. A worker is behind: look at its /readyz and its log."
            }
            Some(_) => {
                "RabbitMQ confirmed it long ago. Look for it in the queues: hookctl reconcile."
            }
        }
    }
}
