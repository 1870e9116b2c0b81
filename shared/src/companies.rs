//! The companies that a webhook secret speaks for, where it is tied to some.

use std::sync::Arc;

use thiserror::Error;

/// The most companies of one secret. Their ids travel with every event.
const MOST: usize = 100;

/// The most bytes of an id. Pleo's have 36.
const LONGEST_ID: usize = 64;

/// Between two ids. No id has it, as ids are printable.
const SEPARATOR: &str = " ";

/// Ids of companies, for the way from a secret to the worker that compares them with the event's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companies(Arc<str>);

/// Why these are no companies of a secret. No variant repeats an id, as it may be a misplaced key.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CompaniesError {
    /// An event would carry too much.
    #[error("has more than {MOST} companies")]
    TooMany,
    /// By its position, from 1.
    #[error(
        "the id of company {0} must have 1 to {LONGEST_ID} printable ASCII characters, without spaces"
    )]
    Id(usize),
    /// By the position of the second one, from 1.
    #[error("company {0} is there twice")]
    Twice(usize),
}

impl Companies {
    /// Takes the ids of a secret.
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

    /// Reads what [`as_str`](Self::as_str) gave. What cannot be read is no company at all: an event
    /// must not be believed because somebody damaged this.
    pub fn read(text: &str) -> Self {
        Self::new(text.split(SEPARATOR)).unwrap_or_else(|_| Self(Arc::from("")))
    }

    /// The ids, separated by spaces.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the secret speaks for this company.
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
