//! `hookctl rebuild`: computes the typed tables again from `events`, with the worker's own code.
//!
//! It reads the healthy events of a family in the order of their ids, with one transaction per batch. It
//! writes a row that is missing, older than the event, or different from its own event. Workers run
//! meanwhile: rows are locked in their order, and the newer state wins by their rule. A row whose event
//! exists but is no longer healthy is computed first, from the other events of its resource, as
//! `secrets distrust` does it. A row whose event was swept stays.

mod batch;
mod report;

use std::{
    io::{self, Write as _},
    time::Duration,
};

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
    batch::{Named, Writer, count_events, count_rows_without_event, find_not_set},
    report::{Change, Totals},
};
use crate::{
    actions::Run,
    database::READING,
    family,
    lock_holders::{FIRST_LOCK_WAIT, LAST_LOCK_WAIT, LATER_LOCK_WAIT, MOST_LOCKED_ALONE, Watch},
    output::OutputArgs,
    progress,
    typed_table::{self, Candidate, Table},
    verdict::{Verdict, WrongSettings},
};

/// The most events in one transaction: few enough to hold no lock for long.
const BATCH: u32 = 500;

/// A row that differs from its own event may have hidden newer events from this pass.
const PASSES: usize = 3;

/// Failures in a row, to survive a restart of Postgres.
const TRIES: usize = 10;

const REFUSED: &str = "postgres does not take it";

/// Compute the typed tables anew from `events`: rows that are missing, too old or wrong, or whose event
/// is not healthy any more or another resource's.
///
/// Without --yes it is only shown what would change. Workers may run meanwhile. It can be stopped and
/// repeated at any time; what was done stays done. It changes no event, and removes a row only if its
/// event is a dead letter now, was erased or is another resource's, and no other event says what the row
/// should be.
///
/// Exit codes: 0 the tables are as the events say, 1 it could not be done, 2 wrong settings, 3 there
/// is something to write (without --yes), or an event has no row because this version finds a
/// problem in it, Postgres refuses it, or its row is locked, also when it was tried again at the end.
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
    // Fails at once, with the reason, if Postgres cannot be reached.
    let mut connection = crate::database::connect_to_tables(&options).await?;
    if args.yes {
        Run::check(&mut connection).await?;
    }
    let filter = json!({"family": args.family.map(Family::name), "after": args.after});
    let run = Run::new("rebuild", filter, None);
    let watch = Watch::new(&options);
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
            writer: Writer::new(&pool, &watch, &table, args.yes.then_some(&run)),
            stop: &stop,
        };
        let mut totals = Totals::new(table.name());
        let ended = rebuild.passes(&pool, &table, &mut totals).await;
        totals.is_finished = ended.is_ok();
        all.push(totals);
        if let Err(error) = ended {
            // The results so far are shown, also after an error.
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
    /// `None` for a trial.
    run: Option<&'a Run>,
    writer: Writer<'a>,
    stop: &'a CancellationToken,
}

impl Rebuild<'_> {
    async fn passes(&self, pool: &Pool, table: &Table, totals: &mut Totals) -> anyhow::Result<()> {
        let mut after = self.args.after.clone().unwrap_or_default();
        let refused = self.replace_not_set(pool, table, totals).await?;
        let bar = progress::bar(count_events(pool, table).await?);
        for _ in 0..PASSES {
            bar.reset();
            totals.begin_pass();
            self.pass(after, totals, &bar).await?;
            after = String::new();
            // A trial is rolled back, so another pass would find the same.
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

    /// Computes the rows again whose event is not healthy any more or another resource's: their sort key
    /// would hide the events of their resource. Returns the events
    /// whose rows Postgres refuses to replace, and why.
    async fn replace_not_set(
        &self,
        pool: &Pool,
        table: &Table,
        totals: &mut Totals,
    ) -> anyhow::Result<Vec<(String, String)>> {
        let found = find_not_set(pool, table).await?;
        let mut refused = Vec::new();
        let Some(run) = self.run else {
            for (id, _) in &found {
                totals.change(id, Change::NotHealthy);
            }
            return Ok(refused);
        };
        let mut left = Vec::new();
        for some in found.chunks(BATCH as usize) {
            left.extend(
                self.replace(run, some.to_vec(), FIRST_LOCK_WAIT, totals)
                    .await?,
            );
        }
        for (name, fate) in left {
            match fate {
                Fate::Refused(reason) => refused.push((name.1, reason)),
                Fate::Locked(_) => {
                    for ((_, event), fate) in self
                        .replace(run, vec![name], LAST_LOCK_WAIT, totals)
                        .await?
                    {
                        refused.push((event, fate.reason()));
                    }
                }
            }
        }
        Ok(refused)
    }

    async fn replace(
        &self,
        run: &Run,
        rows: Vec<Named>,
        lock_wait: Duration,
        totals: &mut Totals,
    ) -> anyhow::Result<Vec<(Named, Fate)>> {
        let replace = async |rows: &[_], wait| self.writer.replace(run, rows, wait).await;
        self.divide(rows, lock_wait, replace, |ids: Vec<String>| {
            for id in &ids {
                totals.change(id, Change::NotHealthy);
            }
        })
        .await
    }

    async fn pass(
        &self,
        mut after: String,
        totals: &mut Totals,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let size = BATCH.min(self.args.rate.unwrap_or(BATCH));
        let mut next = Instant::now();
        let mut locked = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => bail!(stopped(self.writer.family(), &after, locked.len())),
                () = sleep_until(next) => {}
            }
            let events = self
                .patiently(async || self.writer.read(&after, size).await)
                .await?;
            let Some(last) = events.last() else {
                return self.write_locked(locked, totals).await;
            };
            after.clone_from(&last.webhook_id);
            let read = events.len();
            let (candidates, problems): (Vec<_>, Vec<_>) =
                events.into_iter().partition(|event| event.typed.is_ok());
            for problem in problems {
                totals.problem(problem.webhook_id, problem.typed.err().unwrap_or_default());
            }
            locked.extend(self.write(candidates, FIRST_LOCK_WAIT, totals).await?);
            totals.events += read as u64;
            bar.inc(read as u64);
            if let Some(rate) = self.args.rate {
                let pause = Duration::from_secs_f64(read as f64 / f64::from(rate));
                next = next.max(Instant::now() - pause) + pause;
            }
        }
    }

    /// Writes a batch, and returns the events that are locked.
    async fn write(
        &self,
        batch: Vec<Candidate>,
        lock_wait: Duration,
        totals: &mut Totals,
    ) -> anyhow::Result<Vec<(Candidate, String)>> {
        let mut strangers = Vec::new();
        let write = async |group: &[_], wait| self.writer.write(group, wait).await;
        let left = self
            .divide(batch, lock_wait, write, |written| {
                for (id, change) in written.changes {
                    totals.change(&id, change);
                }
                strangers.extend(written.strangers);
            })
            .await?;
        for webhook_id in strangers {
            totals.problem(webhook_id, COMPANY_CHANGE.to_owned());
        }
        let mut locked = Vec::new();
        for (candidate, fate) in left {
            match fate {
                Fate::Refused(reason) => totals.problem(candidate.webhook_id, reason),
                Fate::Locked(reason) => locked.push((candidate, reason)),
            }
        }
        Ok(locked)
    }

    /// Tries locked events once more at the end.
    async fn write_locked(
        &self,
        locked: Vec<(Candidate, String)>,
        totals: &mut Totals,
    ) -> anyhow::Result<()> {
        if locked.is_empty() {
            return Ok(());
        }
        writeln!(
            io::stderr(),
            "{}: locked, tried again now: {}",
            self.writer.family(),
            locked.len()
        )?;
        let mut candidates: Vec<Candidate> = locked.into_iter().map(|(one, _)| one).collect();
        while !candidates.is_empty() {
            let rest = candidates.split_off(candidates.len().min(BATCH as usize));
            for (candidate, reason) in self.write(candidates, LAST_LOCK_WAIT, totals).await? {
                totals.problem(candidate.webhook_id, reason);
            }
            candidates = rest;
        }
        Ok(())
    }

    /// Does this with all items, and returns those that fail. Halving the batch isolates an offender, so
    /// that it does not affect the others.
    async fn divide<I, T>(
        &self,
        items: Vec<I>,
        lock_wait: Duration,
        work: impl AsyncFn(&[I], Duration) -> Result<T, TransactionError>,
        mut done: impl FnMut(T),
    ) -> anyhow::Result<Vec<(I, Fate)>> {
        let mut groups = vec![(items, lock_wait)];
        let mut left = Vec::new();
        let mut locked_alone = 0;
        while let Some((mut group, wait)) = groups.pop() {
            let outcome = self
                .patiently(async || self.attempted(work(&group, wait).await))
                .await?;
            let fate = match outcome {
                Attempt::Done(outcome) => {
                    done(outcome);
                    continue;
                }
                Attempt::Failed(fate) => fate,
            };
            let is_locked = matches!(fate, Fate::Locked(_));
            if group.len() > 1 && !(is_locked && locked_alone >= MOST_LOCKED_ALONE) {
                let second = group.split_off(group.len() / 2);
                groups.extend([(second, LATER_LOCK_WAIT), (group, LATER_LOCK_WAIT)]);
                continue;
            }
            locked_alone += usize::from(is_locked);
            left.extend(group.into_iter().map(|item| (item, fate.clone())));
        }
        Ok(left)
    }

    /// Distinguishes an error of a single row, and a lock, from errors that may go away.
    fn attempted<T>(
        &self,
        done: Result<T, TransactionError>,
    ) -> Result<Attempt<T>, TransactionError> {
        let error = match done {
            Ok(done) => return Ok(Attempt::Done(done)),
            Err(error) => error,
        };
        let fate = match Class::of(&error) {
            Class::Row | Class::Suspect | Class::Slow => Fate::Refused(problem::refusal(&error)),
            Class::Locked => Fate::Locked(self.writer.lock_holders()),
            Class::Contention => Fate::Locked(problem::refusal(&error)),
            Class::Environment | Class::Lost | Class::Away => return Err(error),
        };
        Ok(Attempt::Failed(fate))
    }

    /// Tries again after an error that may go away.
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

/// One attempt to write some rows, unless it failed by an error that may go away.
enum Attempt<T> {
    /// They are written.
    Done(T),
    /// None of them is, because of at least one.
    Failed(Fate),
}

/// Why a row was not written.
#[derive(Clone, Debug)]
enum Fate {
    /// Postgres refuses it, with this message.
    Refused(String),
    /// Another session holds a lock on it, or on its event.
    Locked(String),
}

impl Fate {
    fn reason(self) -> String {
        match self {
            Self::Refused(reason) | Self::Locked(reason) => reason,
        }
    }
}

fn stopped(family: Family, after: &str, locked: usize) -> String {
    const STOPPED: &str = "stopped; what was done stays done. Run it again";
    match locked {
        0 => format!("{STOPPED}, or go on with --family {family} --after '{after}'"),
        _ => format!("{STOPPED}: {locked} event(s) before '{after}' were locked"),
    }
}

/// A missing right or an older schema. Waiting does not help.
fn is_for_an_operator(error: &TransactionError) -> bool {
    let sqlstate = error.sqlstate();
    sqlstate.is_some_and(|sqlstate| sqlstate.starts_with("42"))
}
