//! The events, the newest first, with filters that are all in the address.

use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use worker::problem::Kind;

use crate::{
    error::PageError,
    frame::{Frame, Section, html},
    search::{self, End, Filter, Key, Patience, Problem, Summary},
    store::{Store, StoreError},
    text, time,
};

/// Events on a page.
const PAGE: usize = 50;

/// What the address says, as it says it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Query {
    #[serde(rename = "type")]
    event_type: String,
    company: String,
    resource: String,
    secret: String,
    problem: String,
    field: String,
    value: String,
    from: String,
    to: String,
    before: String,
    search: Patience,
}

#[derive(Template)]
#[template(path = "events.html")]
struct EventsPage {
    frame: Frame,
    query: Query,
    problems: Vec<(&'static str, &'static str)>,
    rows: Vec<Summary>,
    /// The next page's address.
    older: Option<String>,
    /// How far a search came whose time was over.
    looked_back_to: Option<DateTime<Utc>>,
    /// For how long it searches.
    search_limit: &'static str,
    /// It was too slow to find even the first.
    too_slow: bool,
    is_filtered: bool,
    is_first: bool,
}

/// `GET /events`
pub(crate) async fn page(
    request: HttpRequest,
    query: web::Query<Query>,
    store: web::Data<Store>,
) -> Result<HttpResponse, PageError> {
    let query = query.into_inner();
    let filter = query.filter().map_err(PageError::BadAddress)?;
    let before = match query.before.as_str() {
        "" => None,
        text => Some(text.parse::<Key>().map_err(PageError::BadAddress)?),
    };
    let is_first = before.is_none();
    let patience = match filter.field {
        // Reading bodies takes longer.
        Some(_) => Patience::Longer,
        None => query.search,
    };
    let found = match search::find(&store, &filter, before, PAGE, patience.budget()).await {
        Err(StoreError::TooSlow) => None,
        found => Some(found?),
    };
    let too_slow = found.is_none();
    let (rows, end) = found.map_or((Vec::new(), End::All), |found| (found.rows, found.end));
    let (next, looked_back_to) = end.next();
    let older = next.map(|key| match looked_back_to {
        Some(_) => query.further_before(key),
        None => query.page_before(key),
    });
    html(&EventsPage {
        frame: Frame::new(&request, &query.title(), Section::Events),
        problems: problems(),
        rows,
        older,
        looked_back_to,
        search_limit: search_limit(&filter, patience),
        too_slow,
        is_filtered: filter != Filter::default(),
        is_first,
        query,
    })
}

fn search_limit(filter: &Filter, patience: Patience) -> &'static str {
    match (&filter.field, patience) {
        (Some(_), _) => {
            "Bodies have no index: the search reads them one by one, for a second and a half at most. With a short time range it is complete."
        }
        (None, Patience::Short) => {
            "It takes only a moment, so that the page is there at once. With a time range it gets there sooner."
        }
        (None, Patience::Longer) => "It takes a second and a half at most.",
    }
}

/// Choices for the problem, as in the address and in words.
fn problems() -> Vec<(&'static str, &'static str)> {
    let fixed = [
        ("", "Any or none"),
        ("none", "No problem"),
        ("any", "Any problem"),
    ];
    let kinds = Kind::ALL.map(|kind| (kind.name(), kind.name()));
    fixed.into_iter().chain(kinds).collect()
}

impl Query {
    /// What an event has to be.
    pub(super) fn filter(&self) -> Result<Filter, String> {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let problem = match self.problem.as_str() {
            "" => None,
            "none" => Some(Problem::None),
            "any" => Some(Problem::Any),
            name => Some(Problem::Of(kind(name)?)),
        };
        let field = match (self.field.as_str(), &self.value) {
            ("", value) if value.is_empty() => None,
            ("", _) => return Err("there is a value, and no field that should have it".to_owned()),
            (field, value) => {
                let path = field.split('.').map(str::to_owned).collect();
                Some((path, value.clone()))
            }
        };
        Ok(Filter {
            event_type: given(&self.event_type),
            company: given(&self.company),
            resource: given(&self.resource),
            secret: given(&self.secret),
            problem,
            field,
            from: time::parse_field("from", &self.from)?,
            to: time::parse_field("to", &self.to)?,
        })
    }

    /// The same from another place on.
    fn page_before(&self, key: &Key) -> String {
        self.address("/events", &[("before", &key.to_string())])
    }

    /// The same from another place on, searched for longer.
    fn further_before(&self, key: &Key) -> String {
        let before = key.to_string();
        self.address("/events", &[("before", &before), Patience::LONGER])
    }

    fn first_page(&self) -> String {
        self.address("/events", &[])
    }

    /// What comes from now on.
    fn live(&self) -> String {
        self.address("/events/live", &[])
    }

    /// All of it as a file.
    fn export(&self, format: &str) -> String {
        self.address("/events/export", &[("format", format)])
    }

    fn address(&self, path: &str, more: &[(&str, &str)]) -> String {
        let filters: [(&str, &str); 9] = [
            ("type", &self.event_type),
            ("company", &self.company),
            ("resource", &self.resource),
            ("secret", &self.secret),
            ("problem", &self.problem),
            ("field", &self.field),
            ("value", &self.value),
            ("from", &self.from),
            ("to", &self.to),
        ];
        text::href(path, &[&filters, more].concat())
    }

    /// Whether this choice is the one.
    fn has_problem(&self, choice: &str) -> bool {
        self.problem == choice
    }

    fn title(&self) -> String {
        let words = [
            &self.event_type,
            &self.company,
            &self.resource,
            &self.problem,
        ];
        let words: Vec<&str> = words
            .into_iter()
            .map(String::as_str)
            .filter(|w| !w.is_empty())
            .collect();
        match words.is_empty() {
            true => "Events".to_owned(),
            false => format!("Events: {}", words.join(", ")),
        }
    }
}

/// A kind of problem by its name.
pub(super) fn kind(name: &str) -> Result<Kind, String> {
    Kind::named(name)
        .ok_or_else(|| format!("there is no problem of the kind `{}`", text::plain(name)))
}
