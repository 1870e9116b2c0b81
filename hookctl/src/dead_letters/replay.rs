//! `hookctl dead-letters replay`: applies today's worker code to events that older code, or an older table,
//! could not store.

mod child;
mod outcome;

use std::{collections::VecDeque, io, io::Write, sync::Mutex, time::Duration};

use anyhow::Context;
use indicatif::ProgressBar;
use operations::dead_letters::{
    Filter, State,
    replay::{Attempt, BATCH, Outcome, Replayed, Totals},
};
use shared::{config::DatabaseArgs, database, shutdown};
use sqlx::{Postgres, QueryBuilder};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use worker::problem::STOPPED_WORKER;

use self::child::Child;
use super::connect;
use crate::{
    actions::Run,
    database::{Connection, READING},
    lock_holders::{FIRST_LOCK_WAIT, LAST_LOCK_WAIT, Watch},
    progress,
    verdict::{Verdict, WrongSettings},
};

/// A trial of one event in a process of its own does not know what the others would have stored.
const TRIED_ALONE: &str = "what stopped a worker was tried as if the other events were not replayed; with \
                           --yes one of them may turn out to be of another company than theirs";

/// Replay dead letters: read them again with this version's code, and store the typed row of each
/// that has no problem any more.
///
/// Without --yes everything is tried and taken back. A replay can be stopped and repeated at any
/// time, also beside workers and other replays: each event is locked while it is looked at, and no
/// row gives way to an older state. What somebody holds a lock on is tried again at the end, and left as
/// it was if it is still locked then. Second bodies under a taken id, messages that ingest did not
/// publish, events from the queue of another family or with a body of one, and what a distrusted secret
/// signed are withheld; see --include-withheld.
///
/// Exit codes: 0 none is left of those that were asked for, 1 it could not be done, 2 wrong
/// settings, 3 some still have a problem, are withheld
/// or locked.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    database: DatabaseArgs,

    /// Do it. Without this it is only shown what would become of each
    #[arg(long)]
    yes: bool,

    /// At most so many events a second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,

    /// Print JSON for scripts: one object for each event, as it is done
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    filter: Filter,

    /// Treat those given by --id as events of their own even if they are second bodies under a taken
    /// id, or did not come from ingest, so that nobody has verified them, or came by the queue of another
    /// family, or were stored without a known type, or were signed with a secret that is distrusted
    #[arg(long, requires = "ids")]
    include_withheld: bool,

    /// Believe these events whatever companies their secret speaks for: you tied it to the wrong ones
    /// and have corrected that
    #[arg(long)]
    any_company: bool,

    /// Replay what has stopped a worker here instead of in a process of its own
    #[arg(long, hide = true)]
    in_process: bool,

    /// Of which run this process is a part
    #[arg(long, hide = true, requires = "in_process")]
    run: Option<String>,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let options = args.database.postgres().map_err(WrongSettings::new)?;
    if args.any_company && args.filter.is_empty() {
        let which =
            "--any-company needs a filter, such as --company, that says which events to believe";
        return Err(WrongSettings::new(anyhow::anyhow!(which)).into());
    }
    let stop = shutdown::on_signal()?;
    let mut connection = connect(&args.database).await?;
    if args.yes {
        Run::check(&mut connection).await?;
    }
    let letters = Letters::find(&mut connection, args).await?;
    let mut filter = args.filter.describe();
    if args.any_company {
        filter["any_company"] = true.into();
    }
    let run = Run::new("dead-letters replay", filter, None).part_of(args.run.as_deref());
    let replay = Replay {
        attempt: Attempt {
            watch: Watch::new(&options),
            pool: database::pool(options, "hookctl", 1),
            run: args.yes.then_some(run),
            include_withheld: args.include_withheld,
            any_company: args.any_company,
            trial: Mutex::default(),
        },
        args,
        bar: progress::bar(letters.len() as u64),
    };
    let tried_alone = !args.yes && !letters.dangerous.is_empty() && letters.len() > 1;
    let mut totals = Totals::default();
    let ended = replay.all(letters, &stop, &mut totals).await;
    replay.bar.finish_and_clear();
    // The results so far are shown, also after an error.
    if !args.json {
        outcome::print(&totals, args.yes, matches!(ended, Ok(0)))?;
        if tried_alone {
            writeln!(io::stdout().lock(), "{TRIED_ALONE}")?;
        }
    }
    let rest = ended?;
    anyhow::ensure!(
        rest == 0,
        "stopped before {rest} events were looked at; run it again for them"
    );
    Ok(Verdict::of(totals.is_clean()))
}

/// The ids to replay, as they were when the replay began.
#[derive(Default)]
struct Letters {
    ordinary: VecDeque<String>,
    /// Poison messages come last, so that they cannot stop the others.
    dangerous: VecDeque<String>,
}

impl Letters {
    async fn find(connection: &mut Connection, args: &Args) -> anyhow::Result<Self> {
        let mut query = QueryBuilder::<Postgres>::new("select webhook_id, starts_with(problem, ");
        query.push_bind(STOPPED_WORKER).push(") from events");
        args.filter.push(State::Open, &mut query);
        query.push(" order by stored_at, webhook_id");
        let mut transaction = connection.begin(&READING).await?;
        let found: Vec<(String, bool)> =
            query.build_query_as().fetch_all(&mut *transaction).await?;
        let (dangerous, ordinary): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|(_, stopped)| *stopped && !args.in_process);
        let ids = |letters: Vec<(String, bool)>| letters.into_iter().map(|(id, _)| id).collect();
        Ok(Self {
            ordinary: ids(ordinary),
            dangerous: ids(dangerous),
        })
    }

    fn push(&mut self, id: String, is_ordinary: bool) {
        match is_ordinary {
            true => self.ordinary.push_back(id),
            false => self.dangerous.push_back(id),
        }
    }

    fn len(&self) -> usize {
        self.ordinary.len() + self.dangerous.len()
    }
}

struct Replay<'a> {
    attempt: Attempt,
    args: &'a Args,
    bar: ProgressBar,
}

impl Replay<'_> {
    /// Replays everything at the wanted rate until `stop`, and tries the locked ones once more at the end.
    /// Returns how many are left.
    async fn all(
        &self,
        mut letters: Letters,
        stop: &CancellationToken,
        totals: &mut Totals,
    ) -> anyhow::Result<usize> {
        let mut locked = Letters::default();
        self.round(&mut letters, stop, totals, Some(&mut locked))
            .await?;
        if letters.len() == 0 && locked.len() > 0 {
            self.bar.suspend(|| {
                let count = locked.len();
                writeln!(io::stderr(), "locked, tried again later: {count}")
            })?;
            self.round(&mut locked, stop, totals, None).await?;
        }
        Ok(letters.len() + locked.len())
    }

    /// Replays these until `stop`, and removes them from the list. Locked ones are moved to `later`, if
    /// there is such a list.
    async fn round(
        &self,
        letters: &mut Letters,
        stop: &CancellationToken,
        totals: &mut Totals,
        mut later: Option<&mut Letters>,
    ) -> anyhow::Result<()> {
        let size = BATCH.min(self.args.rate as usize);
        let lock_wait = match later {
            Some(_) => FIRST_LOCK_WAIT,
            None => LAST_LOCK_WAIT,
        };
        let mut next = Instant::now();
        while letters.len() > 0 {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep_until(next) => {}
            }
            let size = size.min(letters.ordinary.len());
            let is_ordinary = size > 0;
            let mut replayed = Vec::new();
            let (took, ended) = if is_ordinary {
                let batch: Vec<String> = letters.ordinary.drain(..size).collect();
                (
                    size,
                    self.attempt.batch(batch, lock_wait, &mut replayed).await,
                )
            } else {
                let id = letters.dangerous.pop_front().context("an id is left")?;
                let child = self.child(id).await.map(|done| replayed.push(done));
                (1, child)
            };
            for replayed in replayed {
                match &mut later {
                    Some(later) if replayed.outcome == Outcome::Locked => {
                        later.push(replayed.webhook_id, is_ordinary);
                    }
                    _ => self.count(&replayed, totals)?,
                }
            }
            ended?;
            self.bar.inc(took as u64);
            let pause = Duration::from_secs_f64(took as f64 / f64::from(self.args.rate));
            next = next.max(Instant::now() - pause) + pause;
        }
        Ok(())
    }

    fn count(&self, replayed: &Replayed, totals: &mut Totals) -> io::Result<()> {
        if self.args.json {
            outcome::print_json(replayed)?;
        }
        totals.count(replayed);
        Ok(())
    }

    async fn child(&self, webhook_id: String) -> anyhow::Result<Replayed> {
        let child = Child {
            database: &self.args.database,
            run: self.attempt.run.as_ref(),
            include_withheld: self.args.include_withheld,
            any_company: self.args.any_company,
        };
        child.replay(webhook_id).await
    }
}
