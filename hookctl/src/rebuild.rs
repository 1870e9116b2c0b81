//! `hookctl rebuild`: the typed tables, computed anew from `events` with the worker's own code.
//!
//! It goes through the healthy events of a family in the order of their ids, a batch in each
//! transaction, and writes a row where it is missing, older than the event, or not what its own event
//! says. Workers go on meanwhile: rows are locked in their order, and the newer state wins by their
//! rule. A row whose event is there and no longer healthy is computed again first, from the other events of
//! its resource and as `secrets distrust` does it. A row whose event was swept stays.

mod batch;
mod report;

use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use serde_json::json;
use shared::{
    Family,
    broker::reconnect_delays,
    config::DatabaseArgs,
    database::{self, Pool, TransactionError},
    shutdown,
};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use worker::{
    judge::Class,
    problem::{self, COMPANY_CHANGE},
};

use self::{
    batch::{Writer, count_events, count_rows_without_event, find_not_healthy},
    report::{Change, Totals},
};
use crate::{
    actions::Run,
    database::READING,
    family,
    output::OutputArgs,
    progress,
    typed_table::{self, Candidate, Table},
    verdict::{Verdict, WrongSettings},
};

/// The most events in one transaction: few enough to hold no lock for long.
const BATCH: u32 = 500;

/// A row whose own event says something else may have hidden newer events from this pass.
const PASSES: usize = 3;

/// In a row, for a deadlock, a lock that is held, or a restart of Postgres.
const TRIES: usize = 10;

const REFUSED: &str = "postgres does not take it";

/// Compute the typed tables anew from `events`: rows that are missing, too old or wrong, or whose event
/// is not healthy any more.
///
/// Without --yes it is only shown what would change. Workers may run meanwhile. It can be stopped and
/// repeated at any time; what was done stays done. It changes no event, and removes a row only if its
/// event is a dead letter now or was erased, and no other event says what the row should be.
///
/// Exit codes: 0 the tables are as the events say, 1 it could not be done, 2 wrong settings, 3 there
/// is something to write (without --yes), or an event has no row because this version finds a
/// problem in it or Postgres refuses it.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub database: DatabaseArgs,

    /// Only the table of this family: export-job or vendor
    #[arg(long, value_parser = parse_family)]
    pub family: Option<Family>,

    /// Do it. Without this it is only shown what would change
    #[arg(long)]
    pub yes: bool,

    /// At most so many events a second [default: as many as Postgres takes]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,

    /// Begin after this webhook id, as a rebuild that was stopped says
    #[arg(long, value_name = "WEBHOOK_ID", requires = "family")]
    pub after: Option<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,
}

fn parse_family(text: &str) -> Result<Family, String> {
    let family = family::parse(text)?;
    match typed_table::name(family) {
        Some(_) => Ok(family),
        None => Err(format!("{family} has no table")),
    }
}

/// Runs the subcommand.
pub async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let options = args.database.postgres().map_err(WrongSettings::new)?;
    let stop = shutdown::on_signal()?;
    // Says at once, and why, if Postgres cannot be reached.
    let mut connection = crate::database::connect_to_tables(&options).await?;
    if args.yes {
        Run::check(&mut connection).await?;
    }
    let filter = json!({"family": args.family.map(Family::name), "after": args.after});
    let run = Run::new("rebuild", filter, None);
    let pool = database::pool(options, "hookctl", 1);
    let families = Family::ALL.into_iter().filter(|family| match args.family {
        Some(only) => *family == only,
        None => typed_table::name(*family).is_some(),
    });
    let mut all = Vec::new();
    for family in families {
        let table = Table::find(&mut *connection.begin(&READING).await?, family).await?;
        let rebuild = Rebuild {
            args,
            run: args.yes.then_some(&run),
            writer: Writer::new(&pool, &table, args.yes.then_some(&run)),
            stop: &stop,
        };
        let mut totals = Totals::new(table.name());
        let ended = rebuild.passes(&pool, &table, &mut totals).await;
        totals.is_finished = ended.is_ok();
        all.push(totals);
        if let Err(error) = ended {
            // What was done is shown, however it ended.
            report::print(args.output, &all, args.yes)?;
            return Err(error);
        }
    }
    report::print(args.output, &all, args.yes)?;
    Ok(Verdict::of(all.iter().all(|t| t.is_fine(args.yes))))
}

/// The rebuilding of one table.
struct Rebuild<'a> {
    args: &'a Args,
    /// `None` to try it only.
    run: Option<&'a Run>,
    writer: Writer<'a>,
    stop: &'a CancellationToken,
}

impl Rebuild<'_> {
    async fn passes(&self, pool: &Pool, table: &Table, totals: &mut Totals) -> anyhow::Result<()> {
        let mut after = self.args.after.clone().unwrap_or_default();
        let refused = self.replace_not_healthy(pool, table, totals).await?;
        let bar = progress::bar(count_events(pool, table).await?);
        for _ in 0..PASSES {
            bar.reset();
            totals.begin_pass();
            self.pass(after, totals, &bar).await?;
            after = String::new();
            // What was tried and taken back would be found again.
            if !totals.has_mended_in_this_pass() || !self.args.yes {
                break;
            }
        }
        bar.finish_and_clear();
        for (webhook_id, reason) in refused {
            totals.problem(webhook_id, reason);
        }
        totals.rows_without_event = count_rows_without_event(pool, table).await?;
        Ok(())
    }

    /// Computes the rows again whose event is not healthy any more: their sort key would hide the other
    /// events of their resource. Answers with the events whose rows Postgres refuses to replace, and why.
    async fn replace_not_healthy(
        &self,
        pool: &Pool,
        table: &Table,
        totals: &mut Totals,
    ) -> anyhow::Result<Vec<(String, String)>> {
        let found = find_not_healthy(pool, table).await?;
        let mut refused = Vec::new();
        let Some(run) = self.run else {
            for (id, _) in &found {
                totals.change(id, Change::NotHealthy);
            }
            return Ok(refused);
        };
        let mut groups: Vec<&[_]> = found.chunks(BATCH as usize).rev().collect();
        while let Some(group) = groups.pop() {
            let replaced = self
                .patiently(async || or_refusal(self.writer.replace(run, group).await))
                .await?;
            match (replaced, group) {
                (Ok(ids), _) => {
                    for id in &ids {
                        totals.change(id, Change::NotHealthy);
                    }
                }
                (Err(reason), [(_, event)]) => refused.push((event.clone(), reason)),
                (Err(_), _) => {
                    let (first, second) = group.split_at(group.len() / 2);
                    groups.extend([second, first]);
                }
            }
        }
        Ok(refused)
    }

    async fn pass(
        &self,
        mut after: String,
        totals: &mut Totals,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let size = BATCH.min(self.args.rate.unwrap_or(BATCH));
        let mut next = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => bail!(
                    "stopped; what was done stays done. Run it again, or go on with --family {} \
                     --after '{after}'",
                    self.writer.family()
                ),
                () = sleep_until(next) => {}
            }
            let events = self
                .patiently(async || self.writer.read(&after, size).await)
                .await?;
            let Some(last) = events.last() else {
                return Ok(());
            };
            after.clone_from(&last.webhook_id);
            let read = events.len();
            let (candidates, problems): (Vec<_>, Vec<_>) =
                events.into_iter().partition(|event| event.typed.is_ok());
            for problem in problems {
                totals.problem(problem.webhook_id, problem.typed.err().unwrap_or_default());
            }
            self.write(&candidates, totals).await?;
            totals.events += read as u64;
            bar.inc(read as u64);
            if let Some(rate) = self.args.rate {
                let pause = Duration::from_secs_f64(read as f64 / f64::from(rate));
                next = next.max(Instant::now() - pause) + pause;
            }
        }
    }

    /// Writes a batch. What Postgres refuses is found by halving, so that it costs the others
    /// nothing.
    async fn write(&self, batch: &[Candidate], totals: &mut Totals) -> anyhow::Result<()> {
        let mut groups = vec![batch];
        while let Some(group) = groups.pop() {
            let written = self
                .patiently(async || or_refusal(self.writer.write(group).await))
                .await?;
            match (written, group) {
                (Ok(written), _) => {
                    for (id, change) in written.changes {
                        totals.change(&id, change);
                    }
                    for webhook_id in written.strangers {
                        totals.problem(webhook_id, COMPANY_CHANGE.to_owned());
                    }
                }
                (Err(reason), [one]) => totals.problem(one.webhook_id.clone(), reason),
                (Err(_), _) => {
                    let (first, second) = group.split_at(group.len() / 2);
                    groups.extend([second, first]);
                }
            }
        }
        Ok(())
    }

    /// Tries again what fails for a reason that passes.
    async fn patiently<T>(
        &self,
        work: impl AsyncFn() -> Result<T, TransactionError>,
    ) -> anyhow::Result<T> {
        let mut delays = reconnect_delays();
        for _ in 1..TRIES {
            match work().await {
                Ok(done) => return Ok(done),
                Err(error) if is_for_an_operator(&error) => {
                    return Err(error).context(REFUSED);
                }
                Err(_) => {}
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = sleep(delays.next().unwrap_or_default()) => {}
            }
        }
        work().await.context(REFUSED)
    }
}

/// Tells what Postgres refuses, with its words, from what may go better at another time.
fn or_refusal<T>(done: Result<T, TransactionError>) -> Result<Result<T, String>, TransactionError> {
    match done {
        Err(error) if is_a_rows_fault(&error) => Ok(Err(problem::refusal(&error))),
        other => other.map(Ok),
    }
}

/// A missing right or an older schema, which no waiting mends.
fn is_for_an_operator(error: &TransactionError) -> bool {
    let sqlstate = error.sqlstate();
    sqlstate.is_some_and(|sqlstate| sqlstate.starts_with("42"))
}

fn is_a_rows_fault(error: &TransactionError) -> bool {
    matches!(Class::of(error), Class::Row | Class::Suspect | Class::Slow)
}
