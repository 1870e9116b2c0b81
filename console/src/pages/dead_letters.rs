//! Events with a problem: grouped, listed, and the commands for exactly those that are shown.

use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::{PgConnection, Postgres, QueryBuilder};
use worker::problem::Kind;

use crate::{
    error::PageError,
    frame::{Frame, Section, html},
    operations::{Operations, Standing},
    pages::{self, act::Action, events, replay},
    search::Key,
    store::{STATEMENT_TIMEOUT, Store},
    text, time,
    watch::MOST_COUNTED,
};

/// Letters on a page, and groups.
const PAGE: i64 = 50;
const MOST_GROUPS: i64 = 100;

/// What the address says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Query {
    kind: String,
    #[serde(rename = "type")]
    event_type: String,
    company: String,
    state: String,
    before: String,
    /// How many an operator has just changed.
    changed: String,
}

/// Which letters, checked.
struct Which {
    kind: Option<Kind>,
    event_type: String,
    company: String,
    dismissed: bool,
    before: Option<Key>,
}

/// Letters that have the same thing wrong with them.
#[derive(sqlx::FromRow)]
struct Group {
    event_type: String,
    problem_kind: Option<String>,
    what: String,
    letters: i64,
    oldest: DateTime<Utc>,
    newest: DateTime<Utc>,
    /// Letters of all groups, also of those that are not shown.
    of_all_groups: i64,
}

#[derive(sqlx::FromRow)]
struct Letter {
    webhook_id: String,
    event_type: String,
    company_id: Option<String>,
    problem: String,
    stored_at: DateTime<Utc>,
    dismissed_at: Option<DateTime<Utc>>,
    dismissed_by: Option<String>,
    dismissal_note: Option<String>,
}

/// The groups of one kind.
struct KindSection {
    kind: Kind,
    groups: Vec<Group>,
    letters: i64,
}

#[derive(Template)]
#[template(path = "dead_letters.html")]
struct DeadLettersPage {
    frame: Frame,
    query: Query,
    kinds: [&'static str; Kind::ALL.len()],
    dismissed: bool,
    total: String,
    sections: Vec<KindSection>,
    letters: Vec<Letter>,
    commands: Vec<(&'static str, String)>,
    older: Option<String>,
    is_filtered: bool,
    standing: Standing,
    act: String,
    replay: Option<String>,
    changed: Option<u32>,
}

/// `GET /dead-letters`
pub(crate) async fn page(
    request: HttpRequest,
    query: web::Query<Query>,
    store: web::Data<Store>,
    operations: web::Data<Operations>,
) -> Result<HttpResponse, PageError> {
    let query = query.into_inner();
    let which = query.which().map_err(PageError::BadAddress)?;
    let (groups, mut letters) = tokio::try_join!(
        store.look_by_index(STATEMENT_TIMEOUT, async |connection| groups(
            connection, &which
        )
        .await),
        store.look_by_index(STATEMENT_TIMEOUT, async |connection| letters(
            connection, &which
        )
        .await),
    )?;
    let older = match letters.len() > PAGE as usize {
        true => {
            letters.truncate(PAGE as usize);
            letters.last().map(|last| query.page_before(&last.key()))
        }
        false => None,
    };
    let counted = groups.first().map_or(0, |group| group.of_all_groups);
    let title = if which.dismissed {
        "Dismissed dead letters"
    } else {
        "Dead letters"
    };
    html(&DeadLettersPage {
        frame: Frame::new(&request, title, Section::DeadLetters),
        kinds: Kind::ALL.map(Kind::name),
        standing: operations.standing(&request),
        act: query.act(which.dismissed),
        replay: which.is_replayed_here().then(|| query.replay()),
        changed: query.changed.parse().ok(),
        dismissed: which.dismissed,
        total: match counted > MOST_COUNTED {
            true => format!("more than {MOST_COUNTED}"),
            false => counted.to_string(),
        },
        commands: commands(&which, counted),
        sections: sections(groups),
        letters,
        older,
        is_filtered: which.kind.is_some()
            || !(which.event_type.is_empty() && which.company.is_empty()),
        query,
    })
}

impl Query {
    fn which(&self) -> Result<Which, String> {
        Ok(Which {
            kind: match self.kind.as_str() {
                "" => None,
                name => Some(events::kind(name)?),
            },
            event_type: self.event_type.clone(),
            company: self.company.clone(),
            dismissed: match self.state.as_str() {
                "" | "open" => false,
                "dismissed" => true,
                _ => return Err("`state` is open or dismissed".to_owned()),
            },
            before: match self.before.as_str() {
                "" => None,
                text => Some(text.parse()?),
            },
        })
    }

    /// Where these are dismissed, or restored.
    fn act(&self, dismissed: bool) -> String {
        text::href(
            Action::of(dismissed).path(),
            &[
                ("kind", &self.kind),
                ("type", &self.event_type),
                ("company", &self.company),
            ],
        )
    }

    /// The page on which they are replayed or tried.
    fn replay(&self) -> String {
        text::href(
            replay::PATH,
            &[
                ("kind", &self.kind),
                ("type", &self.event_type),
                ("company", &self.company),
            ],
        )
    }

    fn with(&self, kind: &str, event_type: &str, before: &str) -> String {
        text::href(
            "/dead-letters",
            &[
                ("state", &self.state),
                ("kind", kind),
                ("type", event_type),
                ("company", &self.company),
                ("before", before),
            ],
        )
    }

    /// Whether this choice is the one.
    fn has_kind(&self, choice: &str) -> bool {
        self.kind == choice
    }

    fn page_before(&self, key: &Key) -> String {
        self.with(&self.kind, &self.event_type, &key.to_string())
    }

    fn of_group(&self, kind: &Kind, event_type: &str) -> String {
        self.with(kind.name(), event_type, "")
    }

    fn of_kind(&self, kind: &Kind) -> String {
        self.with(kind.name(), &self.event_type, "")
    }
}

impl Letter {
    fn key(&self) -> Key {
        Key {
            at: self.stored_at,
            webhook_id: self.webhook_id.clone(),
        }
    }
}

impl Which {
    /// Whether the console can replay these.
    fn is_replayed_here(&self) -> bool {
        !self.dismissed && self.kind.is_none_or(|kind| pages::is_replayed_here(&kind))
    }

    fn push(&self, query: &mut QueryBuilder<Postgres>) {
        query.push(" where problem is not null and dismissed_at is");
        query.push(if self.dismissed { " not null" } else { " null" });
        if let Some(kind) = self.kind {
            kind.push_condition(query);
        }
        if !self.event_type.is_empty() {
            query
                .push(" and event_type = ")
                .push_bind(self.event_type.clone());
        }
        if !self.company.is_empty() {
            query
                .push(" and company_id = ")
                .push_bind(self.company.clone());
        }
    }
}

/// As `hookctl dead-letters list --summary` groups them. The line in a body says little, and tells
/// equal problems apart. Equal texts are grouped first, because the expression takes longer than all else.
async fn groups(connection: &mut PgConnection, which: &Which) -> Result<Vec<Group>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new(
        "select event_type, problem_kind, what, sum(letters)::bigint as letters, min(oldest) as oldest,
                max(newest) as newest, (sum(sum(letters)) over ())::bigint as of_all_groups
           from (select event_type, problem_kind, count(*) as letters, min(stored_at) as oldest,
                        max(stored_at) as newest,
                        case when problem like '% at line %'
                             then regexp_replace(problem, ' at line \\d+( column \\d+)?', '')
                             else problem end as what
                   from (select event_type, problem_kind, problem, stored_at from events",
    );
    which.push(&mut query);
    query
        .push(" order by stored_at desc limit ")
        .push_bind(MOST_COUNTED + 1);
    query.push(
        ") letter group by event_type, problem_kind, problem) equal
          group by event_type, problem_kind, what order by letters desc, what, event_type limit ",
    );
    query.push_bind(MOST_GROUPS);
    query.build_query_as().fetch_all(connection).await
}

async fn letters(connection: &mut PgConnection, which: &Which) -> Result<Vec<Letter>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new(
        "select webhook_id, event_type, company_id, problem, stored_at, dismissed_at, dismissed_by,
                dismissal_note
           from events",
    );
    which.push(&mut query);
    if let Some(before) = &which.before {
        query.push(" and (stored_at, webhook_id) < (");
        query.push_bind(before.at).push(", ");
        query.push_bind(before.webhook_id.clone()).push(")");
    }
    query
        .push(" order by stored_at desc, webhook_id desc limit ")
        .push_bind(PAGE + 1);
    query.build_query_as().fetch_all(connection).await
}

fn sections(groups: Vec<Group>) -> Vec<KindSection> {
    let mut sections: Vec<KindSection> = Vec::new();
    for group in groups {
        let kind = Kind::shown(group.problem_kind.as_deref());
        let index = sections.iter().position(|section| section.kind == kind);
        let index = index.unwrap_or_else(|| {
            sections.push(KindSection {
                kind,
                groups: Vec::new(),
                letters: 0,
            });
            sections.len() - 1
        });
        sections[index].letters += group.letters;
        sections[index].groups.push(group);
    }
    sections
}

/// The commands that take exactly the letters that the address is about.
fn commands(which: &Which, counted: i64) -> Vec<(&'static str, String)> {
    if counted == 0 {
        return Vec::new();
    }
    let mut filter = String::new();
    if let Some(kind) = which.kind {
        filter.push_str(&format!(" --problem {}", kind.name()));
    }
    for (flag, value) in [("--type", &which.event_type), ("--company", &which.company)] {
        if !value.is_empty() {
            filter.push_str(&format!(" {flag} {}", text::shell(value)));
        }
    }
    let all = if filter.is_empty() { " --all" } else { "" };
    if which.dismissed {
        return vec![
            (
                "See what would be restored",
                format!("hookctl dead-letters restore{filter}{all}"),
            ),
            (
                "Make them open ones again",
                format!("hookctl dead-letters restore{filter}{all} --yes"),
            ),
        ];
    }
    let dismissal = format!("hookctl dead-letters dismiss{filter}{all} --note 'WHY' --yes");
    let dismissal = ("Dismiss them", dismissal);
    if which.kind.is_some_and(Kind::is_withheld) {
        return vec![dismissal];
    }
    let replay = format!("hookctl dead-letters replay{filter}");
    vec![
        ("Try what a replay would do to each", replay.clone()),
        ("Replay them", format!("{replay} --yes")),
        dismissal,
    ]
}
