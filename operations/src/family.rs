//! A family as a choice of those who ask for events.

use shared::Family;
use sqlx::{Postgres, QueryBuilder};

/// Reads a family's name.
///
/// # Errors
/// With the names that there are, when it is none of them.
pub fn parse(text: &str) -> Result<Family, String> {
    Family::ALL
        .into_iter()
        .find(|family| family.name() == text)
        .ok_or_else(|| {
            format!(
                "must be one of {}",
                Family::ALL.map(Family::name).join(", ")
            )
        })
}

/// Restricts a query on `events` to a family, as [`shared::EventType::family`] decides it: three
/// segments, the middle one names the resource.
pub fn push(family: Family, query: &mut QueryBuilder<Postgres>) {
    let (verb, resources) = match family.resource() {
        Some(resource) => (" ~ ", resource.to_owned()),
        None => {
            let all: Vec<_> = Family::ALL.iter().filter_map(|f| f.resource()).collect();
            (" !~ ", all.join("|"))
        }
    };
    query.push(" and event_type").push(verb);
    query.push_bind(format!(r"^[^.]*\.({resources})\.[^.]*$"));
}
