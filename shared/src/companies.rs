//! The companies that a webhook secret is tied to.

use std::sync::Arc;

use thiserror::Error;

/// The most companies of one secret. Their ids are part of every event's message.
const MOST: usize = 100;

/// The longest id, in bytes. Pleo's have 36.
const LONGEST_ID: usize = 64;

/// Separates the ids. Ids are printable and contain no space.
const SEPARATOR: &str = " ";

/// The ids of companies. They travel with the event, and the worker compares them with the event's
/// company.
///
/// ```
/// use shared::Companies;
///
/// let companies = Companies::new(["acme", "globex"]).expect("both ids are well formed");
/// assert!(companies.include("acme"));
/// assert_eq!(Companies::read(companies.as_str()), companies);
/// assert!(!Companies::read("").include(""));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companies(Arc<str>);

/// Why a list of companies is refused. No variant contains an id, because it may be a misplaced
/// key.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CompaniesError {
    /// Too many companies to send with every event.
    #[error("has more than {MOST} companies")]
    TooMany,
    /// A malformed id, by its position from 1.
    #[error(
        "the id of company {0} must have 1 to {LONGEST_ID} printable ASCII characters, without spaces"
    )]
    Id(usize),
    /// A repeated id, by the position of its second occurrence from 1.
    #[error("company {0} is there twice")]
    Twice(usize),
}

impl Companies {
    /// Checks the ids of a secret.
    pub fn new<'i>(ids: impl IntoIterator<Item = &'i str>) -> Result<Self, CompaniesError> {
        let mut companies: Vec<&str> = Vec::new();
        for (index, id) in ids.into_iter().enumerate() {
            if index == MOST {
                return Err(CompaniesError::TooMany);
            }
            if !(1..=LONGEST_ID).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(CompaniesError::Id(index + 1));
            }
            if companies.contains(&id) {
                return Err(CompaniesError::Twice(index + 1));
            }
            companies.push(id);
        }
        Ok(Self(companies.join(SEPARATOR).into()))
    }

    /// Parses the text of [`as_str`](Self::as_str). A damaged text gives an empty list, which
    /// includes no company, so that damage never makes an event trusted.
    pub fn read(text: &str) -> Self {
        Self::new(text.split(SEPARATOR)).unwrap_or_else(|_| Self(Arc::from("")))
    }

    /// The ids, separated by spaces.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the secret may sign this company's events.
    pub fn include(&self, id: &str) -> bool {
        !self.0.is_empty() && self.0.split(SEPARATOR).any(|company| company == id)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn what_was_written_is_read() {
        for ids in [&["c1"][..], &["c1", "c2", "8d5d0c3e-77aa"]] {
            let companies = Companies::new(ids.iter().copied()).expect("good ids");
            assert_eq!(Companies::read(companies.as_str()), companies);
            assert!(ids.iter().all(|id| companies.include(id)));
            for other in ["", " ", "c", "c1 c2", "C1"] {
                assert!(!companies.include(other), "{other}");
            }
        }
    }

    #[rstest]
    #[case("")]
    #[case(" ")]
    #[case("c1  c2")]
    #[case("c1 c1")]
    #[case("c1 c2\0")]
    #[case("c1\nc2")]
    #[case("größe")]
    #[case(&format!("c1 {}", "x".repeat(65)))]
    #[case(&(0..101).map(|i| i.to_string()).collect::<Vec<_>>().join(" "))]
    fn what_cannot_be_read_is_no_company(#[case] text: &str) {
        let companies = Companies::read(text);
        assert_eq!(companies.as_str(), "");
        assert!(!companies.include("c1") && !companies.include(""));
    }
}
