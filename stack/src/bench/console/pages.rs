//! The pages that are asked for, each by addresses of what is really there.

use anyhow::{Result, ensure};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use reqwest::Url;
use sqlx::PgPool;
use worker::problem::Kind;

use super::fill::{DAYS, LARGE_COMPANY, small_company};

/// Addresses of a page: as many as requests that warm up, so that each was asked for before it counts.
pub(super) const ADDRESSES: usize = 20;

/// How fast the console promises an answer to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    /// The whole page.
    Page,
    /// The beginning of a file.
    FirstByte,
    /// A search that goes on for longer because somebody has asked for that. It stops by itself and says
    /// how far it came.
    LongSearch,
}

impl Promise {
    /// Milliseconds for nineteen answers of twenty.
    pub(super) const fn p95_ms(self) -> f64 {
        match self {
            Self::Page => 100.0,
            Self::FirstByte => 200.0,
            // For a second and a half, and the look that is under way then, which Postgres ends after three.
            Self::LongSearch => 4_500.0,
        }
    }
}

/// A page with different things on it.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) name: String,
    pub(super) promise: Promise,
    pub(super) addresses: Vec<Url>,
}

/// What is there, as addresses name it.
struct Known {
    /// Ids of events.
    events: Vec<String>,
    /// Places in the list of events, anywhere in it.
    places: Vec<String>,
    vendors: Vec<String>,
    export_jobs: Vec<String>,
    dead_letters: Vec<String>,
    /// Times of receipt.
    times: Vec<DateTime<Utc>>,
}

impl Known {
    async fn find(pool: &PgPool, events: i64) -> Result<Self> {
        // Some thousand rows of each table, whatever its size.
        let share = (20_000.0 * 100.0 / events as f64).min(100.0) as f32;
        let texts = async |sql: &'static str| {
            let query = sqlx::query_scalar(sql).bind(share).bind(ADDRESSES as i64);
            query.fetch_all(pool).await
        };
        let known = Self {
            events: texts(
                "select webhook_id from events tablesample system ($1) repeatable (1)
                  order by md5(webhook_id) limit $2",
            )
            .await?,
            places: texts(
                "select to_char(received_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')
                        || '~' || webhook_id
                   from events tablesample system ($1) repeatable (2)
                  order by md5(webhook_id) limit $2",
            )
            .await?,
            vendors: texts(
                "select id from vendors tablesample system (least($1 * 10, 100)::real) repeatable (3)
                  order by md5(id) limit $2",
            )
            .await?,
            export_jobs: texts(
                "select id from export_jobs tablesample system (least($1 * 10, 100)::real) repeatable (4)
                  order by md5(id) limit $2",
            )
            .await?,
            dead_letters: texts(
                "select webhook_id from dead_letters where $1 > 0 order by md5(webhook_id) limit $2",
            )
            .await?,
            times: sqlx::query_scalar(
                "select received_at from events tablesample system ($1) repeatable (5)
                  order by md5(webhook_id) limit $2",
            )
            .bind(share)
            .bind(ADDRESSES as i64)
            .fetch_all(pool)
            .await?,
        };
        let found = [
            known.events.len(),
            known.places.len(),
            known.vendors.len(),
            known.export_jobs.len(),
            known.dead_letters.len(),
            known.times.len(),
        ];
        ensure!(!found.contains(&0), "the tables are empty: {found:?}");
        Ok(known)
    }

    fn resources(&self) -> impl Iterator<Item = &String> {
        self.vendors
            .iter()
            .zip(&self.export_jobs)
            .flat_map(|(a, b)| [a, b])
    }
}

/// Builds pages of one console.
struct Builder {
    base: Url,
    pages: Vec<Page>,
}

type Fields<'a> = Vec<(&'a str, &'a str)>;

impl Builder {
    fn new(base: Url) -> Self {
        Self {
            base,
            pages: Vec::new(),
        }
    }

    fn add<'a>(
        &mut self,
        name: impl Into<String>,
        promise: Promise,
        path: &str,
        fields: impl IntoIterator<Item = Fields<'a>>,
    ) {
        let address = |fields: Fields<'a>| {
            let mut address = self.base.clone();
            address.set_path(path);
            if !fields.is_empty() {
                address.query_pairs_mut().extend_pairs(fields);
            }
            address
        };
        self.pages.push(Page {
            name: name.into(),
            promise,
            addresses: fields.into_iter().take(ADDRESSES).map(address).collect(),
        });
    }
}

/// All pages of the console.
#[derive(Debug)]
pub(super) struct Pages {
    /// As the schema is.
    pub(super) without_index: Vec<Page>,
    /// Those that are faster if somebody creates an index on resources.
    pub(super) with_index: Vec<Page>,
}

impl Pages {
    /// Those of the console at the address `base`.
    pub(super) async fn find(pool: &PgPool, base: Url, events: i64) -> Result<Self> {
        let known = Known::find(pool, events).await?;
        let mut without_index = Builder::new(base.clone());
        lists(&mut without_index, &known);
        searches(&mut without_index, &known);
        single(&mut without_index, &known);
        problems(&mut without_index, &known);
        files(&mut without_index, &known);
        let mut with_index = Builder::new(base);
        of_resources(&mut with_index, &known, ", with an index on resources");
        Ok(Self {
            without_index: without_index.pages,
            with_index: with_index.pages,
        })
    }
}

/// Those that always find a page full at once.
fn lists(builder: &mut Builder, known: &Known) {
    let plain = || [Fields::new()];
    builder.add("overview", Promise::Page, "/", plain());
    builder.add(
        "overview, refreshed",
        Promise::Page,
        "/overview/figures",
        plain(),
    );
    builder.add("events", Promise::Page, "/events", plain());
    let places = known.places.iter().map(|place| vec![("before", &**place)]);
    builder.add("events, deep in the list", Promise::Page, "/events", places);
    let types = [
        "v1.vendor.updated",
        "v1.export-job.created",
        "v1.card.frozen",
    ];
    let types = types.map(|name| vec![("type", name)]);
    builder.add("events by type", Promise::Page, "/events", types);
    let large = known.places.iter();
    let large = large.map(|place| vec![("company", LARGE_COMPANY), ("before", &**place)]);
    let newest = [vec![("company", LARGE_COMPANY)]];
    builder.add(
        "events of the largest company",
        Promise::Page,
        "/events",
        newest.into_iter().chain(large),
    );
    let hours = ranges(&known.times, TimeDelta::hours(1));
    let days = ranges(&known.times, TimeDelta::days(1));
    let ranges = hours.iter().take(ADDRESSES / 2).chain(&days);
    let ranges = ranges.map(Range::fields);
    builder.add("events by time range", Promise::Page, "/events", ranges);
}

/// Those that no index knows, so that they may stop before they have a page full.
fn searches(builder: &mut Builder, known: &Known) {
    let small: Vec<String> = (0..20).map(small_company).collect();
    let of_small = || small.iter().map(|company| vec![("company", &**company)]);
    builder.add(
        "events of a small company",
        Promise::Page,
        "/events",
        of_small(),
    );
    let longer = known
        .resources()
        .map(|id| vec![("resource", &**id), ("search", "longer")]);
    builder.add(
        "events by resource, searched further",
        Promise::LongSearch,
        "/events",
        longer,
    );
    for secret in ["current", "previous", "retired"] {
        let name = format!("events by secret, `{secret}`");
        builder.add(name, Promise::Page, "/events", [vec![("secret", secret)]]);
    }
    let kinds = Kind::ALL.map(|kind| vec![("problem", kind.name())]);
    let any = [vec![("problem", "any")]];
    builder.add(
        "events by problem",
        Promise::Page,
        "/events",
        any.into_iter().chain(kinds),
    );
    let hours = ranges(&known.times, TimeDelta::hours(1));
    let archived = hours.iter().map(|hour| {
        let mut fields = hour.fields();
        fields.extend([("field", "data.state"), ("value", "ARCHIVED")]);
        fields
    });
    builder.add(
        "events by a field of the body, in an hour",
        Promise::LongSearch,
        "/events",
        archived,
    );
    let nowhere = [vec![("field", "data.name"), ("value", "nobody")]];
    builder.add(
        "events by a field of the body, at any time",
        Promise::LongSearch,
        "/events",
        nowhere,
    );
}

fn single(builder: &mut Builder, known: &Known) {
    let id = |id| vec![("id", id)];
    let events = known.events.iter().map(|event| id(&**event));
    builder.add("one event", Promise::Page, "/event", events);
    let letters = known.dead_letters.iter().map(|letter| id(&**letter));
    builder.add("one dead letter", Promise::Page, "/event", letters);
    of_resources(builder, known, "");
}

/// Those of the events of one resource. `index` ends their names.
fn of_resources(builder: &mut Builder, known: &Known, index: &str) {
    let id = |id| vec![("id", id)];
    let name = |page| format!("{page}{index}");
    let vendors = known.vendors.iter().map(|vendor| id(&**vendor));
    builder.add(name("one vendor"), Promise::Page, "/resource", vendors);
    let jobs = known.export_jobs.iter().map(|job| id(&**job));
    builder.add(name("one export job"), Promise::Page, "/resource", jobs);
    let resources = || known.resources().map(|id| vec![("resource", &**id)]);
    builder.add(
        name("events by resource"),
        Promise::Page,
        "/events",
        resources(),
    );
    let files = resources().map(|mut fields| {
        fields.push(("format", "csv"));
        fields
    });
    builder.add(
        name("CSV of a resource"),
        Promise::FirstByte,
        "/events/export",
        files,
    );
}

fn problems(builder: &mut Builder, known: &Known) {
    let plain = || [Fields::new()];
    let by_kind = || Kind::ALL.map(|kind| vec![("kind", kind.name())]);
    builder.add("dead letters", Promise::Page, "/dead-letters", plain());
    builder.add(
        "dead letters of a kind",
        Promise::Page,
        "/dead-letters",
        by_kind(),
    );
    let dismissed = [vec![("state", "dismissed")]];
    builder.add(
        "dismissed dead letters",
        Promise::Page,
        "/dead-letters",
        dismissed,
    );
    let dismiss = "/dead-letters/dismiss";
    builder.add(
        "what dismissing all would take",
        Promise::Page,
        dismiss,
        plain(),
    );
    builder.add(
        "what dismissing a kind would take",
        Promise::Page,
        dismiss,
        by_kind(),
    );
    builder.add(
        "what restoring would take",
        Promise::Page,
        "/dead-letters/restore",
        plain(),
    );
    builder.add(
        "receipts that are not stored",
        Promise::Page,
        "/receipts",
        plain(),
    );
    builder.add("record", Promise::Page, "/record", plain());
    let filters = [
        vec![("who", "ada")],
        vec![("action", "dead-letters restore")],
    ];
    builder.add(
        "record by person or command",
        Promise::Page,
        "/record",
        filters,
    );
    let letters = known.dead_letters.iter().map(|id| vec![("event", &**id)]);
    builder.add("record of an event", Promise::Page, "/record", letters);
}

fn files(builder: &mut Builder, known: &Known) {
    let path = "/events/export";
    let days = ranges(&known.times, TimeDelta::days(1));
    for (format, name) in [("csv", "CSV"), ("jsonl", "JSON lines")] {
        let format = ("format", format);
        builder.add(
            format!("{name} of all events"),
            Promise::FirstByte,
            path,
            [vec![format]],
        );
        let of_company = days.iter().map(|day| {
            let mut fields = day.fields();
            fields.extend([
                format,
                ("company", LARGE_COMPANY),
                ("type", "v1.vendor.updated"),
            ]);
            fields
        });
        let name = format!("{name} of a company's type in a day");
        builder.add(name, Promise::FirstByte, path, of_company);
    }
}

/// From a time on, for so long, as the form on the page writes it.
struct Range {
    from: String,
    to: String,
}

impl Range {
    fn fields(&self) -> Fields<'_> {
        vec![("from", &self.from), ("to", &self.to)]
    }
}

/// Ranges that begin at these times, and have events all the time.
fn ranges(times: &[DateTime<Utc>], length: TimeDelta) -> Vec<Range> {
    let newest = Utc::now() - length;
    let oldest = newest - TimeDelta::days(DAYS - 1);
    let written = |time: DateTime<Utc>| {
        time.to_rfc3339_opts(SecondsFormat::Secs, true)
            .trim_end_matches('Z')
            .to_owned()
    };
    times
        .iter()
        .map(|time| (*time).clamp(oldest, newest))
        .map(|time| Range {
            from: written(time),
            to: written(time + length),
        })
        .collect()
}
