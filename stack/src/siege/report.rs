//! The table of what good senders saw.

use std::fmt;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::Serialize;

use super::{Attack, Entrance, Seen};

/// One attack by one way.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// What strangers did.
    pub attack: &'static str,
    /// By which way.
    pub entrance: &'static str,
    /// What good senders saw meanwhile.
    pub seen: Seen,
}

impl Line {
    /// Without an attack it is what the machine can do.
    pub(super) fn new(attack: Option<Attack>, entrance: Entrance, seen: Seen) -> Self {
        Self {
            attack: attack.map_or("none", Attack::name),
            entrance: entrance.name(),
            seen,
        }
    }
}

/// Everything that was seen. Its display is a table.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// In the order of time.
    pub lines: Vec<Line>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header(["attack", "way", "events", "2xx", "p50", "p99", "others"]);
        for Line {
            attack,
            entrance,
            seen,
        } in &self.lines
        {
            let others = seen
                .refused
                .iter()
                .map(|(what, count)| format!("{count} × {what}"));
            table.add_row([
                (*attack).to_owned(),
                (*entrance).to_owned(),
                seen.sent.to_string(),
                format!("{:.1} %", seen.share() * 100.0),
                format!("{} ms", seen.p50_ms),
                format!("{} ms", seen.p99_ms),
                others.collect::<Vec<_>>().join(", "),
            ]);
        }
        write!(f, "{table}")
    }
}
