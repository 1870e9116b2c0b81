//! The table of pages.

use std::fmt;

use super::Report;
use crate::bench::report::{ms, table};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filled = &self.filled;
        writeln!(
            f,
            "{} requests for each page, with {} events ({} of the largest company), {} open dead \
             letters, {} vendors, {} export jobs, {} receipts and {} actions of operators, {} MiB in \
             all.\n",
            self.requests,
            filled.events,
            filled.of_largest_company,
            filled.dead_letters,
            filled.vendors,
            filled.export_jobs,
            filled.receipts,
            filled.actions,
            filled.mib,
        )?;
        let mut pages = table(&[
            "page",
            "p50",
            "p95",
            "max",
            "promised (p95)",
            "stopped early",
        ]);
        for page in &self.pages {
            let mark = if page.is_kept { "" } else { " ABOVE" };
            let stopped = match page.stopped {
                0.0 => String::new(),
                share => format!("{:.0} %", share * 100.0),
            };
            pages.add_row([
                page.name.clone(),
                ms(page.p50_ms),
                format!("{}{mark}", ms(page.p95_ms)),
                ms(page.max_ms),
                ms(page.promise_ms),
                stopped,
            ]);
        }
        writeln!(f, "{pages}\n")?;
        let above = self.pages.iter().filter(|page| !page.is_kept).count();
        match above {
            0 => write!(f, "Every page is as fast as it is promised to be."),
            1 => write!(f, "One page is slower than it is promised to be."),
            more => write!(f, "{more} pages are slower than they are promised to be."),
        }
    }
}
