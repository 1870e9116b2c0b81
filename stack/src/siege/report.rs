//! The table of what legitimate senders saw.

use std::fmt;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::{Serialize, Serializer};

use super::{Attack, Seen};

/// One attack in one way.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// The attack, if there was one.
    #[serde(serialize_with = "name")]
    pub attack: Option<Attack>,
    /// How ingest was reached.
    pub entrance: &'static str,
    /// What legitimate senders saw meanwhile.
    pub seen: Seen,
}

/// All results. The display is a table.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// In order of time.
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
                attack.map_or("none", Attack::name).to_owned(),
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

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands references over"
)]
fn name<S: Serializer>(attack: &Option<Attack>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(attack.map_or("none", Attack::name))
}
