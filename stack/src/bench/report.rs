//! The table: medians over the rounds, and the ratios to the limits of the same round.

use std::fmt;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;

use super::{Outcome, PeerRound, Report, Round, USUAL, Usage};

impl Report {
    fn median(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(figure))
    }

    fn limits(&self) -> Table {
        let mut table = table(&["limit", "a second"]);
        let mut row = |what: &str, figure: fn(&Round) -> f64| {
            table.add_row([what.to_owned(), rate(self.median(figure))]);
        };
        row("HTTP with HMAC, 64 connections", |r| r.limits.http_64);
        row("HTTP with HMAC, 256 connections", |r| r.limits.http_256);
        row("confirms, 64 in flight", |r| r.limits.confirms_64);
        row("confirms, 256 in flight", |r| r.limits.confirms_256);
        row("deliveries consumed", |r| r.limits.consumed);
        row("receipts inserted", |r| r.limits.receipts);
        row("events and vendors inserted", |r| r.limits.stored);
        row("acceptance combined, 64", |r| r.limits.acceptance(64));
        row("acceptance combined, 256", |r| r.limits.acceptance(256));
        row("end to end combined, 64", |r| r.limits.end_to_end(64));
        row("end to end combined, 256", |r| r.limits.end_to_end(256));
        table
    }

    fn acceptance(&self) -> Table {
        let mut table = table(&[
            "ingest",
            "accepted a second",
            "of the limit",
            "p50",
            "p99",
            "p99.9",
        ]);
        let mut row =
            |what: String, outcome: &dyn Fn(&Round) -> &super::Outcome, limit: Option<usize>| {
                let ratio = limit.map_or(String::new(), |connections| {
                    ratio(self.median(|r| outcome(r).rate / r.limits.acceptance(connections)))
                });
                table.add_row([
                    what,
                    rate(self.median(|r| outcome(r).rate)),
                    ratio,
                    ms(self.median(|r| outcome(r).p50_ms)),
                    ms(self.median(|r| outcome(r).p99_ms)),
                    ms(self.median(|r| outcome(r).p999_ms)),
                ]);
            };
        let Some(first) = self.rounds.first() else {
            return table;
        };
        for (i, (connections, _)) in first.accepted.iter().enumerate() {
            let limit = (*connections > 1).then_some(*connections);
            row(
                format!("{connections} connections"),
                &|r| &r.accepted[i].1,
                limit,
            );
        }
        for (i, (share, _)) in first.repeated.iter().enumerate() {
            let what = format!("64 connections, {} % repeated", share * 100.0);
            row(what, &|r| &r.repeated[i].1, None);
        }
        for (i, (share, _)) in first.paced.iter().enumerate() {
            let what = format!("at {} % of the highest rate", share * 100.0);
            row(what, &|r| &r.paced[i].1, None);
        }
        table
    }

    fn storage(&self) -> Table {
        let mut table = table(&["storage", "events a second", "of the limit"]);
        for (i, what) in ["one worker drains the queue", "two workers drain the queue"]
            .into_iter()
            .enumerate()
        {
            table.add_row([
                what.to_owned(),
                rate(self.median(|r| r.drained[i])),
                ratio(self.median(|r| r.drained[i] / r.limits.stored)),
            ]);
        }
        let Some(first) = self.rounds.first() else {
            return table;
        };
        for (i, &(connections, _)) in first.end_to_end.iter().enumerate() {
            let stored = |r: &Round| r.end_to_end[i].1.rate;
            table.add_row([
                format!("end to end, {connections} connections, one worker"),
                rate(self.median(stored)),
                ratio(self.median(|r| stored(r) / r.limits.end_to_end(connections))),
            ]);
        }
        table
    }

    /// Each ratio compares figures of one round.
    fn peer(&self) -> Option<Table> {
        let first = self.rounds.first()?.peer.as_ref()?;
        let mut table = table(&["beside Node", "this a second", "Node a second", "ratio"]);
        let mut row =
            |what: String, ours: &dyn Fn(&Round) -> f64, theirs: &dyn Fn(&PeerRound) -> f64| {
                let theirs = |r: &Round| r.peer.as_ref().map_or(f64::NAN, theirs);
                table.add_row([
                    what,
                    rate(self.median(ours)),
                    rate(self.median(theirs)),
                    ratio(self.median(|r| ours(r) / theirs(r))),
                ]);
            };
        for (i, (connections, _)) in first.accepted.iter().enumerate() {
            let what = format!("accepted, {connections} connections");
            row(what, &|r| r.accepted[i].1.rate, &|p| p.accepted[i].1.rate);
        }
        row("drained by one".to_owned(), &|r| r.drained[0], &|p| {
            p.drained
        });
        for (i, (connections, _)) in first.end_to_end.iter().enumerate() {
            let what = format!("end to end, {connections} connections");
            row(what, &|r| r.end_to_end[i].1.rate, &|p| p.end_to_end[i].1);
        }
        Some(table)
    }

    fn costs(&self) -> Table {
        fn usage(round: &Round) -> &Usage {
            &round.end_to_end[0].1.usage
        }
        let mut table = table(&["process", "CPU seconds for 1,000 events", "peak MiB"]);
        let mib =
            |figure: fn(&Usage) -> u64| format!("{}", self.median(|r| figure(usage(r)) as f64));
        let mut row = |what: &str, seconds: fn(&Usage) -> f64, mib: String| {
            table.add_row([
                what.to_owned(),
                format!("{:.3}", self.median(|r| seconds(usage(r)))),
                mib,
            ]);
        };
        row("ingest", |u| u.ingest_s, mib(|u| u.ingest_mib));
        row("vendor-worker", |u| u.worker_s, mib(|u| u.worker_mib));
        row("RabbitMQ", |u| u.rabbitmq_s, String::new());
        row("Postgres", |u| u.postgres_s, String::new());
        table
    }

    fn growth(&self) -> Table {
        let mut table = table(&[
            "rows before",
            "accepted a second",
            "of the limit",
            "drained a second",
            "of the limit",
            "end to end",
            "of the limit",
        ]);
        for grown in &self.grown {
            let limits = &grown.limits;
            let mut cells = vec![grown.rows.to_string()];
            for (figures, limit) in [
                (&grown.accepted, limits.acceptance(USUAL)),
                (&grown.drained, limits.stored),
                (&grown.end_to_end, limits.end_to_end(USUAL)),
            ] {
                let figure = median(figures.iter().copied());
                cells.extend([rate(figure), ratio(figure / limit)]);
            }
            table.add_row(cells);
        }
        table
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Medians of {} rounds.\n", self.rounds.len())?;
        writeln!(f, "{}\n", self.limits())?;
        writeln!(f, "{}\n", self.acceptance())?;
        writeln!(f, "{}\n", self.storage())?;
        writeln!(f, "{}\n", self.costs())?;
        if let Some(peer) = self.peer() {
            writeln!(f, "{peer}\n")?;
            writeln!(
                f,
                "A lone request takes {} of the time that it takes Node (medians).\n",
                ratio(
                    self.median(|r| lone(&r.accepted)
                        / r.peer.as_ref().map_or(f64::NAN, |p| lone(&p.accepted)))
                ),
            )?;
        }
        if !self.grown.is_empty() {
            writeln!(f, "{}\n", self.growth())?;
        }
        writeln!(
            f,
            "A lone request: {} (median), {} times one bare confirm and one bare commit of {}.",
            ms(self.median(|r| r.accepted[0].1.p50_ms)),
            ratio(self.median(|r| r.accepted[0].1.p50_ms / r.limits.lone_ms)),
            ms(self.median(|r| r.limits.lone_ms)),
        )?;
        writeln!(
            f,
            "From receipt to storage at half of the end-to-end rate: {} (median), {} (p99).",
            ms(self.median(|r| r.lag.p50_ms)),
            ms(self.median(|r| r.lag.p99_ms)),
        )?;
        write!(
            f,
            "All {} events that were accepted are stored.",
            self.events
        )
    }
}

/// Milliseconds, the median, over one connection.
fn lone(accepted: &[(usize, Outcome)]) -> f64 {
    accepted
        .first()
        .map_or(f64::NAN, |(_, outcome)| outcome.p50_ms)
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(header);
    table
}

fn rate(rate: f64) -> String {
    format!("{rate:.0}")
}

fn ratio(ratio: f64) -> String {
    format!("{ratio:.2}")
}

pub(super) fn ms(ms: f64) -> String {
    format!("{ms:.1} ms")
}
