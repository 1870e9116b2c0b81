//! Does it flow?

use actix_web::{HttpRequest, HttpResponse, web};
use askama::{Template, filters::Safe};
use chrono::{DateTime, TimeDelta, Utc};
use shared::Family;
use worker::problem::Kind;

use crate::{
    chart::{self, Bar},
    error::PageError,
    frame::{Frame, Section, html},
    pages,
    store::StoreError,
    text, time,
    watch::{Figures, Known, Ledger, Traffic, Watch},
};

/// Figures that are older than this are said to be old.
const FRESH: TimeDelta = TimeDelta::seconds(40);

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewPage {
    frame: Frame,
    figures: View,
}

#[derive(Template)]
#[template(path = "figures.html")]
struct FiguresPart {
    figures: View,
}

/// `GET /`
pub(crate) async fn page(
    request: HttpRequest,
    watch: web::Data<Watch>,
) -> Result<HttpResponse, PageError> {
    html(&OverviewPage {
        frame: Frame::new(&request, "Overview", Section::Overview),
        figures: View::of(watch.figures()),
    })
}

/// `GET /overview/figures`: what the overview fetches again and again.
pub(crate) async fn figures(watch: web::Data<Watch>) -> Result<HttpResponse, PageError> {
    html(&FiguresPart {
        figures: View::of(watch.figures()),
    })
}

/// The figures in words.
struct View {
    /// Why nothing newer is known, and since when.
    stale: Option<String>,
    at: Option<DateTime<Utc>>,
    traffic: Option<TrafficView>,
    ledger: Option<LedgerView>,
}

struct TrafficView {
    last_event: Option<DateTime<Utc>>,
    p50: Option<String>,
    p99: Option<String>,
    sample: i64,
    in_hour: u64,
    charts: [Chart; 2],
}

struct Chart {
    title: &'static str,
    svg: Safe<String>,
    rows: Vec<(String, Vec<String>)>,
}

struct LedgerView {
    unstored: usize,
    oldest_unstored: String,
    of_all: bool,
    waits_too_long: bool,
    spooled: String,
    oldest_spooled: Option<String>,
    dead: Vec<DeadLetters>,
}

struct DeadLetters {
    kind: &'static str,
    meaning: &'static str,
    events: i64,
    href: String,
}

/// An accepted event that waits for longer is worth a look.
const TOO_LONG: f64 = 600.0;

impl View {
    fn of(figures: Figures) -> Self {
        let Figures { traffic, ledger } = figures;
        let at = [traffic.at, ledger.at].into_iter().flatten().min();
        Self {
            stale: stale(&traffic, &ledger, at),
            at,
            traffic: traffic.found.as_deref().map(TrafficView::of),
            ledger: ledger.found.as_deref().map(LedgerView::of),
        }
    }
}

fn stale(
    traffic: &Known<Traffic>,
    ledger: &Known<Ledger>,
    at: Option<DateTime<Utc>>,
) -> Option<String> {
    let failure = traffic.failure.as_ref().or(ledger.failure.as_ref());
    match (failure, at) {
        (Some(StoreError::TooSlow), _) => {
            Some("Postgres is too busy to count everything in time.".to_owned())
        }
        (Some(failure), _) => Some(format!("{failure}.")),
        (None, Some(at)) if Utc::now() - at > FRESH => {
            Some("Counting takes longer than usual.".to_owned())
        }
        (None, _) => None,
    }
}

impl TrafficView {
    fn of(traffic: &Traffic) -> Self {
        let hour = chart::bars(traffic, 60, 1);
        let day = chart::bars(traffic, 96, 15);
        let seconds = |value: f64| time::words(TimeDelta::milliseconds((value * 1_000.0) as i64));
        let minute = traffic.now.timestamp() / 60;
        Self {
            last_event: traffic.last_event,
            p50: traffic.delays.map(|delays| seconds(delays.p50)),
            p99: traffic.delays.map(|delays| seconds(delays.p99)),
            sample: traffic.delays.map_or(0, |delays| delays.events),
            in_hour: traffic
                .minutes
                .range(minute - 59..)
                .map(|(_, counts)| counts.iter().sum::<u64>())
                .sum(),
            charts: [
                Chart::of("Last hour", "hour", &hour, 10, 10),
                Chart::of("Last day", "day", &day, 180, 4),
            ],
        }
    }
}

impl Chart {
    /// `every` minutes there is a time below the drawing; the table has a row for each `group` of bars.
    fn of(title: &'static str, id: &str, bars: &[Bar], every: i64, group: usize) -> Self {
        let most = bars
            .iter()
            .filter_map(|bar| bar.rates)
            .map(|rates| rates.iter().sum::<f64>())
            .fold(0.0, f64::max);
        let description = format!(
            "{title}: events a minute by family, at most {}. The table below has the numbers.",
            chart::rate(most)
        );
        let rows = bars.chunks(group).rev().map(|bars| {
            let counted: Vec<_> = bars.iter().filter_map(|bar| bar.rates).collect();
            let cells = (0..Family::ALL.len()).map(|family| match counted.len() {
                0 => "not counted yet".to_owned(),
                n => chart::rate(counted.iter().map(|rates| rates[family]).sum::<f64>() / n as f64),
            });
            (chart::clock(bars[0].minute), cells.collect())
        });
        Self {
            title,
            svg: chart::svg(id, bars, every, &description),
            rows: rows.collect(),
        }
    }
}

impl LedgerView {
    fn of(ledger: &Ledger) -> Self {
        let words = |seconds: f64| time::words(TimeDelta::milliseconds((seconds * 1_000.0) as i64));
        let counted = |events: i64| match events > crate::watch::MOST_COUNTED {
            true => format!("more than {}", crate::watch::MOST_COUNTED),
            false => events.to_string(),
        };
        let dead = Kind::ALL.into_iter().filter_map(|kind| {
            let events = *ledger.dead_letters.get(&kind)?;
            Some(DeadLetters {
                kind: kind.name(),
                meaning: pages::meaning(&kind),
                events,
                href: text::href("/dead-letters", &[("kind", kind.name())]),
            })
        });
        Self {
            unstored: ledger.unstored,
            oldest_unstored: words(ledger.oldest_unstored),
            of_all: ledger.of_all,
            waits_too_long: ledger.unstored > 0 && ledger.oldest_unstored > TOO_LONG,
            spooled: counted(ledger.spooled.map_or(0, |spooled| spooled.events)),
            oldest_spooled: ledger.spooled.map(|spooled| words(spooled.oldest)),
            dead: dead.collect(),
        }
    }
}
