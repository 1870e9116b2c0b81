//! What operators have changed: who, when, and how it was chosen. The newest first.

use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::{PgConnection, Postgres, QueryBuilder};

use crate::{
    error::PageError,
    frame::{Frame, Section, html},
    json,
    store::Store,
    text, time,
};

/// Actions on a page.
const PAGE: usize = 50;

/// Changes of an action that the page shows, of possibly thousands.
const CHANGES: i32 = 10;

/// The most of them as text, in bytes.
const MOST_SHOWN: usize = 20_000;

/// What the address says, as it says it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Query {
    who: String,
    action: String,
    event: String,
    from: String,
    to: String,
    before: String,
}

#[derive(sqlx::FromRow)]
struct Action {
    id: i64,
    at: DateTime<Utc>,
    account: String,
    person: Option<String>,
    action: String,
    filter: String,
    changed: i64,
    changes: String,
    has_more: bool,
}

#[derive(Template)]
#[template(path = "record.html")]
struct RecordPage {
    frame: Frame,
    query: Query,
    actions: Vec<Action>,
    older: Option<String>,
    is_filtered: bool,
    is_first: bool,
}

/// `GET /record`
pub(crate) async fn page(
    request: HttpRequest,
    query: web::Query<Query>,
    store: web::Data<Store>,
) -> Result<HttpResponse, PageError> {
    let query = query.into_inner();
    let filter = query.filter().map_err(PageError::BadAddress)?;
    let mut actions = store
        .look(async |connection| filter.find(connection).await)
        .await?;
    let has_older = actions.len() > PAGE;
    actions.truncate(PAGE);
    let last = actions.last().filter(|_| has_older);
    let older = last.map(|action| query.page_from(&action.id.to_string()));
    let is_first = query.before.is_empty();
    let everything = Query {
        before: query.before.clone(),
        ..Query::default()
    };
    html(&RecordPage {
        frame: Frame::new(&request, "Record of operators' actions", Section::Record),
        is_filtered: query != everything,
        is_first,
        actions,
        older,
        query,
    })
}

/// What an action has to be; all of it together.
struct Filter {
    who: Option<String>,
    action: Option<String>,
    event: Option<String>,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
    before: Option<i64>,
}

impl Query {
    fn filter(&self) -> Result<Filter, String> {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let before = match self.before.as_str() {
            "" => None,
            id => Some(id.parse().map_err(|_| "`before` is no place in the list")?),
        };
        Ok(Filter {
            who: given(&self.who),
            action: given(&self.action),
            event: given(&self.event),
            from: time::parse_field("from", &self.from)?,
            to: time::parse_field("to", &self.to)?,
            before,
        })
    }

    fn first_page(&self) -> String {
        self.page_from("")
    }

    fn page_from(&self, before: &str) -> String {
        text::href(
            "/record",
            &[
                ("who", &self.who),
                ("action", &self.action),
                ("event", &self.event),
                ("from", &self.from),
                ("to", &self.to),
                ("before", before),
            ],
        )
    }
}

impl Filter {
    async fn find(&self, connection: &mut PgConnection) -> Result<Vec<Action>, sqlx::Error> {
        let mut query = QueryBuilder::<Postgres>::new(
            "select id, at, account, person, action, filter::text as filter, changed,
                    jsonb_path_query_array(changes, '$[0 to $last]', jsonb_build_object('last', ",
        );
        query.push_bind(CHANGES - 1);
        query.push("::integer))::text as changes, jsonb_array_length(changes) > ");
        query.push_bind(CHANGES);
        query.push(" as has_more from operator_actions where true");
        if let Some(who) = &self.who {
            query.push(" and (account = ").push_bind(who);
            query.push(" or person = ").push_bind(who).push(")");
        }
        if let Some(action) = &self.action {
            query.push(" and starts_with(action || ' ', ");
            query.push_bind(format!("{action} ")).push(")");
        }
        if let Some(id) = &self.event {
            // As the index has it. In the same query as the order by id, Postgres might read all actions in that
            // order and take their changes apart.
            query.push(
                " and id = any(array(select id from operator_actions
                   where jsonb_path_query_array(changes, '$[*].**{0 to 1}.webhook_id') ? ",
            );
            query.push_bind(id).push("))");
        }
        if let Some(from) = self.from {
            query.push(" and at >= ").push_bind(from);
        }
        if let Some(to) = self.to {
            query.push(" and at < ").push_bind(to);
        }
        if let Some(before) = self.before {
            query.push(" and id < ").push_bind(before);
        }
        query.push(" order by id desc limit ");
        query.push_bind(i64::try_from(PAGE + 1).unwrap_or(i64::MAX));
        query.build_query_as().fetch_all(connection).await
    }
}

impl Action {
    /// The first of the changes, laid out, and whether there are more.
    fn shown(&self) -> (String, bool) {
        let (text, is_cut) = json::pretty(&self.changes, MOST_SHOWN);
        (text, is_cut || self.has_more)
    }

    /// What shows all of the changes.
    fn command(&self) -> String {
        format!(
            "hookctl actions --limit 100000 --json | jq 'select(.id == {})'",
            self.id
        )
    }
}
