//! A row of a typed table.

use worker::families::{Resource as _, SortKey, Typed};

/// The row's key and its place among the states of its resource.
pub fn key(typed: &Typed) -> (&str, &SortKey, &str) {
    match typed {
        Typed::ExportJob(row) => (row.resource.id().as_str(), &row.sort_key, &row.webhook_id),
        Typed::Vendor(row) => (row.resource.id().as_str(), &row.sort_key, &row.webhook_id),
    }
}
