//! The typed tables by their families, for statements about them.

use shared::Family;

/// The table with the newest state of the family's resources; `None` for the family without one.
pub fn name(family: Family) -> Option<&'static str> {
    match family {
        Family::ExportJob => Some("export_jobs"),
        Family::Vendor => Some("vendors"),
        Family::Other => None,
    }
}
