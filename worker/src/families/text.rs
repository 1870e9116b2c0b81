//! Text that Postgres can store.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de::Error};

/// A string without NUL, which Postgres' `text` cannot store. Refusing NUL while parsing gives the
/// event a readable problem.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Text(String);

impl Text {
    /// `None` if the text contains NUL.
    pub fn new(text: impl Into<String>) -> Option<Self> {
        Some(text.into())
            .filter(|text| !text.contains('\0'))
            .map(Self)
    }

    /// The text of an optional field.
    pub fn as_optional(text: &Option<Self>) -> Option<&str> {
        text.as_ref().map(Self::as_str)
    }

    /// Whether it has only white space.
    pub fn is_blank(&self) -> bool {
        self.0.trim().is_empty()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?)
            .ok_or_else(|| D::Error::custom("a text with \\u0000, which Postgres cannot hold"))
    }
}

/// In bytes. An index entry has at most 2,704, including Postgres' own part.
const LONGEST_KEY: usize = 2_600;

/// Parses an id that is the key of a table: it is [not blank](not_blank) and fits into an index.
pub(super) fn key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
    let text = not_blank(deserializer)?;
    if text.0.len() > LONGEST_KEY {
        return Err(D::Error::custom(format!(
            "expected an id, found a string of more than {LONGEST_KEY} bytes, which no index of \
             Postgres can hold"
        )));
    }
    Ok(text)
}

/// Parses an id, which must not be blank: all resources with a blank id would share a row.
pub(super) fn not_blank<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
    let text = Text::deserialize(deserializer)?;
    if text.is_blank() {
        return Err(D::Error::custom("expected an id, found a blank string"));
    }
    Ok(text)
}
