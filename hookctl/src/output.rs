//! Output of commands: tables for people, JSON for scripts.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

/// How to print.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct OutputArgs {
    /// Print JSON for scripts, one object a line, instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Something that is a row in a table and an object in JSON.
pub trait Row: Serialize {
    /// The table's header.
    const HEADER: &'static [&'static str];

    /// The row's cells, in the header's order.
    fn cells(&self) -> Vec<String>;
}

impl OutputArgs {
    /// Prints the rows: a table (nothing without rows), or one JSON object a line.
    pub fn print_rows<R: Row>(self, rows: &[R]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            return rows.iter().try_for_each(|row| print_json(&mut out, row));
        }
        if rows.is_empty() {
            return Ok(());
        }
        let mut table = table(R::HEADER);
        table.add_rows(rows.iter().map(Row::cells));
        writeln!(out, "{table}")
    }

    /// Prints one thing: `text` for people, or one line of JSON.
    pub fn print<T: Serialize>(self, thing: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            print_json(&mut out, thing)
        } else {
            writeln!(out, "{}", text(thing))
        }
    }
}

/// An empty table, which wraps its cells if the terminal is too narrow. If the output is not a terminal,
/// lines may have any length.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

fn print_json(out: &mut impl Write, thing: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, thing)?;
    writeln!(out)
}
