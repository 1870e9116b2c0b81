//! Dismissing dead letters and restoring them: a page that shows which, and the form on it that does it.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use askama::Template;
use operations::dead_letters::{Change, State};
use serde::Deserialize;

use super::choice::{Choice, Preview, Shown};
use crate::{
    error::PageError,
    frame::{Frame, Section, html},
    operations::{Operations, person},
    store::Store,
    text, time,
};

const MAX_NOTE: usize = 1_000;

/// What is posted: `note` where they are dismissed.
#[derive(Deserialize)]
pub(crate) struct Form {
    #[serde(flatten)]
    shown: Shown,
    #[serde(default)]
    note: String,
}

/// What is done, by the last part of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    Dismiss,
    Restore,
}

#[derive(Template)]
#[template(path = "act.html")]
struct ActPage {
    frame: Frame,
    choice: Choice,
    preview: Preview,
    dismisses: bool,
    path: &'static str,
    back: String,
}

/// `GET /dead-letters/dismiss` and `/dead-letters/restore`: shows which they are. Nothing is changed.
pub(crate) async fn page(
    request: HttpRequest,
    action: web::Path<Action>,
    choice: web::Query<Choice>,
    store: web::Data<Store>,
    operations: web::Data<Operations>,
) -> Result<HttpResponse, PageError> {
    let (action, choice) = (action.into_inner(), choice.into_inner());
    operations.check(&request)?;
    html(&ActPage {
        frame: Frame::new(&request, action.title(), Section::DeadLetters),
        preview: choice.preview(&store, action.takes()).await?,
        dismisses: action == Action::Dismiss,
        path: action.path(),
        back: choice.back(action.takes(), None),
        choice,
    })
}

/// `POST /dead-letters/dismiss` and `/dead-letters/restore`
pub(crate) async fn act(
    request: HttpRequest,
    action: web::Path<Action>,
    form: web::Form<Form>,
    store: web::Data<Store>,
    operations: web::Data<Operations>,
) -> Result<HttpResponse, PageError> {
    operations.check(&request)?;
    let action = action.into_inner();
    let Form { shown, note } = form.into_inner();
    let note = action.note(&note)?;
    let ids = shown.ids(&store, action.takes()).await?;
    let (operations, person) = (operations.as_ref().clone(), person(&request));
    let record = shown.describe();
    // On its own, so that somebody who closes the page does not end it half done.
    let done = actix_web::rt::spawn(async move {
        let change = match action {
            Action::Dismiss => Change::Dismiss { note: &note },
            Action::Restore => Change::Restore,
        };
        let changed = operations
            .change(change, &ids, record, person.as_deref())
            .await;
        tracing::info!(
            person,
            action = change.action(),
            changed = changed.rows,
            "an operator acted"
        );
        changed
    });
    let changed = done
        .await
        .map_err(|_ended| PageError::NotDone("The console was stopped meanwhile.".to_owned()))?;
    if let Some(error) = changed.error {
        let error = shared::reason::one_line(&error);
        tracing::warn!(error, changed = changed.rows, "an operator's action failed");
        let (rows, verb) = (changed.rows, action.verb());
        return Err(PageError::NotDone(format!(
            "{rows} {verb}, and none of the others: {error}"
        )));
    }
    let back = shown.choice.back(action.takes(), Some(changed.rows));
    Ok(HttpResponse::SeeOther()
        .insert_header((header::LOCATION, back))
        .finish())
}

impl Action {
    /// What is done to letters that are dismissed, or are not.
    pub(crate) fn of(dismissed: bool) -> Self {
        match dismissed {
            true => Self::Restore,
            false => Self::Dismiss,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Dismiss => "Dismiss dead letters",
            Self::Restore => "Restore dead letters",
        }
    }

    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Dismiss => "/dead-letters/dismiss",
            Self::Restore => "/dead-letters/restore",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Dismiss => "dismissed",
            Self::Restore => "restored",
        }
    }

    /// Which they are before.
    fn takes(self) -> State {
        match self {
            Self::Dismiss => State::Open,
            Self::Restore => State::Dismissed,
        }
    }

    /// Why they are dismissed, which has to be said.
    fn note(self, note: &str) -> Result<String, PageError> {
        let note = note.trim();
        let is_good = match self {
            Self::Dismiss => !note.is_empty() && note.len() <= MAX_NOTE && !note.contains('\0'),
            Self::Restore => note.is_empty(),
        };
        match is_good {
            true => Ok(note.to_owned()),
            false => Err(PageError::BadAddress(format!(
                "The note says why, in 1 to {MAX_NOTE} bytes of text."
            ))),
        }
    }
}
