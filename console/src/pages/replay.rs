//! Trying and starting a replay of dead letters: the page that shows which, and its forms.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use askama::Template;
use operations::dead_letters::{
    State,
    replay::{Replayed, Totals, job::NewJob},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::choice::{Choice, Preview, Shown};
use crate::{
    error::PageError,
    frame::{Frame, Section, html},
    operations::{Operations, person, replays::MAX_TRIED},
    store::Store,
    text, time,
};

/// The path on which a replay is started.
pub(crate) const PATH: &str = "/dead-letters/replay";

/// The limit of events per second: the default, which is also that of hookctl, and the maximum.
const DEFAULT_RATE: u32 = 100;
const MAX_RATE: u32 = 1_000;

/// The posted form.
#[derive(Deserialize)]
pub(crate) struct Form {
    #[serde(flatten)]
    shown: Shown,
    #[serde(default = "default_rate")]
    rate: u32,
}

fn default_rate() -> u32 {
    DEFAULT_RATE
}

#[derive(Template)]
#[template(path = "replay.html")]
struct ReplayPage {
    frame: Frame,
    choice: Choice,
    preview: Preview,
    rate: u32,
    back: String,
}

#[derive(Template)]
#[template(path = "try.html")]
struct TryPage {
    frame: Frame,
    choice: Choice,
    preview: Preview,
    rate: u32,
    back: String,
    totals: Totals,
    tried: Vec<Replayed>,
    untried: usize,
    error: Option<String>,
}

/// `GET /dead-letters/replay` and `/dead-letters/try`: shows the dead letters, without trying anything.
pub(crate) async fn page(
    request: HttpRequest,
    choice: web::Query<Choice>,
    store: web::Data<Store>,
    operations: web::Data<Operations>,
) -> Result<HttpResponse, PageError> {
    operations.check(&request)?;
    let choice = choice.into_inner();
    html(&ReplayPage {
        frame: Frame::new(&request, "Replay dead letters", Section::DeadLetters),
        preview: choice.preview(&store, State::Open).await?,
        rate: DEFAULT_RATE,
        back: choice.back(State::Open, None),
        choice,
    })
}

/// `POST /dead-letters/try`: replays them and rolls everything back.
pub(crate) async fn try_them(
    request: HttpRequest,
    form: web::Form<Form>,
    store: web::Data<Store>,
    operations: web::Data<Operations>,
) -> Result<HttpResponse, PageError> {
    operations.check(&request)?;
    let Form { shown, rate } = form.into_inner();
    let ids = in_order(shown.ids(&store, State::Open).await?);
    let (tried, error) = operations.try_replay(&ids).await;
    let mut totals = Totals::default();
    tried.iter().for_each(|one| totals.count(one));
    let error = error.map(|error| shared::reason::one_line(&error));
    if let Some(error) = &error {
        tracing::warn!(error, "a trial failed");
    }
    html(&TryPage {
        frame: Frame::new(&request, "What a replay would do", Section::DeadLetters),
        preview: shown.preview(&ids),
        rate,
        back: shown.choice.back(State::Open, None),
        choice: shown.choice,
        untried: ids.len() - tried.len(),
        totals,
        tried,
        error,
    })
}

/// `POST /dead-letters/replay`: starts a replay of exactly those that were shown.
pub(crate) async fn start(
    request: HttpRequest,
    form: web::Form<Form>,
    store: web::Data<Store>,
    operations: web::Data<Operations>,
) -> Result<HttpResponse, PageError> {
    operations.check(&request)?;
    let Form { shown, rate } = form.into_inner();
    if !(1..=MAX_RATE).contains(&rate) {
        return Err(PageError::BadAddress(format!(
            "The rate must be from 1 to {MAX_RATE} events per second."
        )));
    }
    let ids = in_order(shown.ids(&store, State::Open).await?);
    if ids.is_empty() {
        return Err(PageError::Changed);
    }
    let person = person(&request);
    let job = NewJob {
        ids: &ids,
        set_sha256: &Sha256::digest(ids.join("\n")),
        filter: shown.describe(),
        rate,
        person: person.as_deref(),
    };
    let job = operations.start_replay(job).await.map_err(|error| {
        let error = shared::reason::one_line(&error);
        tracing::warn!(error, "a replay could not be started");
        PageError::NotDone(format!("The replay was not started: {error}"))
    })?;
    tracing::info!(
        person,
        job,
        events = ids.len(),
        "an operator started a replay"
    );
    Ok(HttpResponse::SeeOther()
        .insert_header((header::LOCATION, format!("/replays/{job}")))
        .finish())
}

/// The oldest first: if two companies have the same resource, the older event decides whose it is.
fn in_order(mut newest_first: Vec<String>) -> Vec<String> {
    newest_first.reverse();
    newest_first
}
