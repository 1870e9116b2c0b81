//! `hookctl dead-letters replay`: applies today's worker code to events that older code, or an older table,
//! could not store.

mod child;
mod outcome;

use std::{io, io::Write, sync::Mutex};

use indicatif::ProgressBar;
use operations::dead_letters::{
    Filter, State,
    replay::{ACTION, Attempt, Host, Letters, Replay, Replayed, Totals},
};
use shared::{config::DatabaseArgs, database, shutdown};
use sqlx::{Postgres, QueryBuilder};
use worker::problem::Kind;

use self::child::Child;
use super::connect;
use crate::{
    actions::Run,
    database::{Connection, READING},
    lock_holders::Watch,
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
    let letters = find(&mut connection, args).await?;
    let mut filter = args.filter.describe();
    if args.any_company {
        filter["any_company"] = true.into();
    }
    let run = Run::new(ACTION, filter, None).part_of(args.run.as_deref());
    let attempt = Attempt {
        watch: Watch::new(&options),
        pool: database::pool(options, "hookctl", 1),
        run: args.yes.then_some(run),
        include_withheld: args.include_withheld,
        any_company: args.any_company,
        trial: Mutex::default(),
        job: None,
    };
    let tried_alone = !args.yes && letters.has_dangerous() && letters.len() > 1;
    let mut terminal = Terminal {
        run: attempt.run.clone(),
        args,
        bar: progress::bar(letters.len() as u64),
        totals: Totals::default(),
    };
    let mut replay = Replay {
        attempt: &attempt,
        rate: args.rate,
        host: &mut terminal,
    };
    let ended = replay.all(letters, &stop).await;
    terminal.bar.finish_and_clear();
    let totals = terminal.totals;
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

/// Finds the dead letters to replay.
async fn find(connection: &mut Connection, args: &Args) -> anyhow::Result<Letters> {
    let mut query = QueryBuilder::<Postgres>::new("select webhook_id, coalesce(problem_kind = ");
    query
        .push_bind(Kind::StoppedWorker.name())
        .push(", false) from events");
    args.filter.push(State::Open, &mut query);
    query.push(" order by stored_at, webhook_id");
    let mut transaction = connection.begin(&READING).await?;
    let found: Vec<(String, bool)> = query.build_query_as().fetch_all(&mut *transaction).await?;
    let found = found.into_iter();
    Ok(Letters::new(found.map(|(id, is_poison)| {
        (id, is_poison && !args.in_process)
    })))
}

/// Prints the outcomes, and replays those that could stop this process in a child process.
struct Terminal<'a> {
    run: Option<Run>,
    args: &'a Args,
    bar: ProgressBar,
    totals: Totals,
}

impl Host for Terminal<'_> {
    async fn may_continue(&mut self) -> anyhow::Result<bool> {
        Ok(true)
    }

    async fn dangerous(&mut self, webhook_id: String) -> anyhow::Result<Replayed> {
        let child = Child {
            database: &self.args.database,
            run: self.run.as_ref(),
            include_withheld: self.args.include_withheld,
            any_company: self.args.any_company,
        };
        child.replay(webhook_id).await
    }

    async fn finished(&mut self, replayed: Vec<Replayed>) -> anyhow::Result<()> {
        for one in &replayed {
            if self.args.json {
                outcome::print_json(one)?;
            }
            self.totals.count(one);
        }
        self.bar.inc(replayed.len() as u64);
        Ok(())
    }

    fn retrying(&mut self, locked: usize) -> anyhow::Result<()> {
        self.bar
            .suspend(|| writeln!(io::stderr(), "locked, tried again later: {locked}"))?;
        Ok(())
    }
}
