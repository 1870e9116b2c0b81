//! New events of a view while they are stored, as server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! Messages: `row` with the table's row as HTML, `gap` when more came than fit, `away` with the reason
//! while Postgres gives nothing, `back` afterwards.

use std::{collections::HashMap, sync::Arc, time::Duration};

use actix_web::{HttpResponse, web};
use askama::Template;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::events;
use crate::{
    error::PageError,
    search::{self, Filter, Summary},
    store::{Store, StoreError},
    text, time,
};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// For how long a look searches; the next one follows soon.
const BUDGET: Duration = Duration::from_millis(300);

/// How much older than the newest event one may be that is stored now. What a worker stores later than
/// that, such as a retry, is in the list but not among the new ones.
const WINDOW: TimeDelta = TimeDelta::minutes(1);

/// Of one look.
const MOST_ROWS: usize = 50;

/// Views at once. Each asks Postgres once a second.
const MOST_VIEWS: usize = 20;

/// Then the browser connects again, and is asked again who it is.
const LASTS: Duration = Duration::from_secs(600);

/// A connection without a message for so long gets one, so that a browser that is gone is noticed.
const QUIET_LOOKS: u32 = 15;

/// What all live views share.
#[derive(Clone, Debug)]
pub struct Views {
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Views {
    /// They end at `stop`, as a view would hold up the end of the console.
    pub fn until(stop: CancellationToken) -> Self {
        Self {
            places: Arc::new(Semaphore::new(MOST_VIEWS)),
            stop,
        }
    }
}

#[derive(Template)]
#[template(path = "event_row.html")]
struct Row<'a> {
    row: &'a Summary,
}

/// `GET /events/live`, with the filters of the list.
pub(crate) async fn live(
    query: web::Query<events::Query>,
    store: web::Data<Store>,
    views: web::Data<Views>,
) -> Result<HttpResponse, PageError> {
    let filter = query.filter().map_err(PageError::BadAddress)?;
    let place = Arc::clone(&views.places).try_acquire_owned();
    let view = View {
        _place: place.map_err(|_| PageError::TooManyViews)?,
        stop: views.stop.clone(),
        store: store.get_ref().clone(),
        filter,
        shown: HashMap::new(),
        is_away: false,
        quiet: 0,
        next: Instant::now(),
        end: Instant::now() + LASTS,
    };
    let messages = stream::unfold(view, async |mut view| {
        let messages = view.next().await?;
        Some((Ok::<_, actix_web::Error>(Bytes::from(messages)), view))
    });
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .streaming(messages))
}

/// One browser that follows.
struct View {
    _place: OwnedSemaphorePermit,
    stop: CancellationToken,
    store: Store,
    filter: Filter,
    /// What was sent, with the times of receipt, as far back as a look goes.
    shown: HashMap<String, DateTime<Utc>>,
    is_away: bool,
    /// Looks since the last message.
    quiet: u32,
    next: Instant,
    end: Instant,
}

impl View {
    /// The next messages, which are some; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = sleep_until(self.next) => {}
            }
            if Instant::now() >= self.end {
                return None;
            }
            let messages = self.look().await;
            self.next = Instant::now() + LOOK_EVERY;
            self.quiet = if messages.is_empty() {
                self.quiet + 1
            } else {
                0
            };
            if !messages.is_empty() {
                return Some(messages);
            }
            if self.quiet >= QUIET_LOOKS {
                self.quiet = 0;
                return Some(":\n\n".to_owned());
            }
        }
    }

    async fn look(&mut self) -> String {
        match self.find_new().await {
            Ok(rows) => self.tell(&rows),
            // What a look has no time for, the next one may find.
            Err(StoreError::TooSlow) => String::new(),
            Err(error) => {
                let is_news = !std::mem::replace(&mut self.is_away, true);
                if is_news {
                    message("away", &error.to_string())
                } else {
                    String::new()
                }
            }
        }
    }

    /// Events of the last minute before the newest one, of those that were not sent, the newest first.
    async fn find_new(&mut self) -> Result<Vec<Summary>, StoreError> {
        let newest = search::find(&self.store, &Filter::default(), None, 1, BUDGET).await?;
        let Some(newest) = newest.rows.first() else {
            return Ok(Vec::new());
        };
        let since = newest.received_at - WINDOW;
        self.shown.retain(|_, at| *at >= since);
        let filter = Filter {
            from: self.filter.from.max(Some(since)),
            ..self.filter.clone()
        };
        let found = search::find(&self.store, &filter, None, MOST_ROWS, BUDGET).await?;
        let is_new = |row: &Summary| !self.shown.contains_key(&row.webhook_id);
        Ok(found.rows.into_iter().filter(is_new).collect())
    }

    fn tell(&mut self, rows: &[Summary]) -> String {
        let mut messages = String::new();
        if std::mem::take(&mut self.is_away) {
            messages += &message("back", "");
        }
        if rows.len() == MOST_ROWS && !self.shown.is_empty() {
            messages += &message("gap", "");
        }
        for row in rows.iter().rev() {
            self.shown.insert(row.webhook_id.clone(), row.received_at);
            match (Row { row }).render() {
                Ok(html) => messages += &message("row", &html),
                Err(error) => tracing::error!(%error, "a row could not be made"),
            }
        }
        messages
    }
}

/// A message of the stream: each line of its data needs its own mark.
fn message(event: &str, data: &str) -> String {
    let data: String = data
        .split(['\n', '\r'])
        .map(|line| format!("data: {line}\n"))
        .collect();
    format!("event: {event}\n{data}\n")
}

#[cfg(test)]
mod tests {
    use super::message;

    #[test]
    fn no_line_of_the_data_is_taken_for_a_field() {
        assert_eq!(
            message("row", "a\nevent: b\rretry: 1"),
            "event: row\ndata: a\ndata: event: b\ndata: retry: 1\n\n"
        );
    }
}
