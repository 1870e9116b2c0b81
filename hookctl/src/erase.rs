//! `hookctl erase`: removes the personal data of a company, a resource or an event, and still recognises
//! late duplicates.
//!
//! An erased event stays in `events` with its webhook id, the hash of its body and its times. So ingest and
//! the workers find it where they look for duplicates anyway, its receipt counts as stored, and the
//! services need no code for erasure. Rows of the typed tables and of the spool are deleted.

mod matching;
mod spool;
mod tables;

use std::io::{self, Write};

use anyhow::{Context, anyhow};
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;
use shared::config::DatabaseArgs;

use self::{matching::Subject, tables::Table};
use crate::{
    actions::Run,
    database::{self, Connection},
    output::{OutputArgs, Row},
    verdict::{Verdict, WrongSettings},
};

/// Remove what is known of a company, a resource or one event: bodies, typed rows, what waits in the
/// spool. A repetition of an erased event is recognised and not stored again.
///
/// Without --yes it is only shown how much there is. What is in RabbitMQ, or being stored at this
/// moment, is not seen yet: run it again until it finds nothing. Backups are yours to erase.
///
/// Exit codes: 0 nothing is left, 1 it could not be done, 2 wrong settings, 3 there is something to
/// erase (without --yes), something came meanwhile, or rows of the spool were not read.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub database: DatabaseArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub subject: SubjectArgs,

    /// Do it. It cannot be taken back. Without this it is only shown how much there is
    #[arg(long)]
    pub yes: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,
}

/// Of what.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct SubjectArgs {
    /// Everything of this company: events with this data.companyId and its typed rows
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub company: Option<String>,

    /// Everything of the export job or vendor with this id
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub resource: Option<String>,

    /// One event, by its webhook id, with the second bodies that came under the same id, and the typed
    /// rows that they have set
    #[arg(long, value_name = "WEBHOOK_ID", value_parser = NonEmptyStringValueParser::new())]
    pub event: Option<String>,
}

impl SubjectArgs {
    fn subject(&self) -> Option<Subject> {
        let company = self.company.clone().map(Subject::Company);
        let resource = || self.resource.clone().map(Subject::Resource);
        let event = || self.event.clone().map(Subject::Event);
        company.or_else(resource).or_else(event)
    }
}

/// Runs the subcommand.
pub async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let url = args.database.postgres().map_err(WrongSettings::new)?;
    let subject = (args.subject.subject())
        .ok_or_else(|| WrongSettings::new(anyhow!("give --company, --resource or --event")))?;
    let mut connection = database::connect_to_tables(&url).await?;
    if args.yes {
        Run::check(&mut connection).await?;
    }
    let found = Found::look(&mut connection, &subject).await?;
    print(args.output, &found, args.yes)?;
    if !args.yes || found.is_empty() {
        return Ok(Verdict::of(found.is_nothing()));
    }
    let run = Run::new("erase", subject.describe(), None);
    found.erase(&mut connection, &subject, &run).await.context(
        "not all was erased; what was erased before stays so. Run it again for the rest",
    )?;
    let left = Found::look(&mut connection, &subject).await?;
    if !left.is_empty() {
        writeln!(
            io::stderr(),
            "more came meanwhile, or a worker has it, which is not erased; run it again"
        )?;
    }
    Ok(Verdict::of(left.is_nothing()))
}

/// The rows about a subject.
struct Found {
    spool: spool::Matches,
    tables: Vec<(Table, Vec<String>)>,
}

impl Found {
    /// The spool is counted first: events that a worker stores meanwhile are then in `events`.
    async fn look(connection: &mut Connection, subject: &Subject) -> anyhow::Result<Self> {
        let spool = spool::find(connection, subject).await?;
        let mut tables = Vec::new();
        for table in Table::all() {
            tables.push((table, table.find(connection, subject).await?));
        }
        Ok(Self { spool, tables })
    }

    fn is_empty(&self) -> bool {
        self.spool.rows.is_empty() && self.tables.iter().all(|(_, ids)| ids.is_empty())
    }

    /// Whether nothing is left. Rows that were not read may be about the subject.
    fn is_nothing(&self) -> bool {
        self.is_empty() && self.spool.unread == 0
    }

    /// In the same order, so that no event moves from a table that comes later to one that is already done.
    async fn erase(
        &self,
        connection: &mut Connection,
        subject: &Subject,
        run: &Run,
    ) -> anyhow::Result<()> {
        spool::erase(connection, &self.spool.rows, run).await?;
        for (table, ids) in &self.tables {
            table.erase(connection, subject, ids, run).await?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Line {
    table: &'static str,
    rows: usize,
}

impl Row for Line {
    const HEADER: &'static [&'static str] = &["table", "rows"];

    fn cells(&self) -> Vec<String> {
        vec![self.table.to_owned(), self.rows.to_string()]
    }
}

fn print(output: OutputArgs, found: &Found, is_done: bool) -> io::Result<()> {
    let spool = Line {
        table: "webhook_spool",
        rows: found.spool.rows.len(),
    };
    let tables = (found.tables.iter()).map(|(table, ids)| Line {
        table: table.name(),
        rows: ids.len(),
    });
    output.print_rows(&[spool].into_iter().chain(tables).collect::<Vec<_>>())?;
    let mut notes = io::stderr().lock();
    if found.spool.unread > 0 {
        writeln!(
            notes,
            "{} events in webhook_spool were not read, as they may be what stops workers; run it again \
             when they are stored",
            found.spool.unread
        )?;
    }
    if !is_done && !found.is_empty() {
        writeln!(notes, "nothing was changed; erase it with --yes")?;
    }
    Ok(())
}
