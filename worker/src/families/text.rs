//! Text that Postgres can hold.

use std::fmt;

use serde::{Deserialize, Deserializer, de::Error};

/// A string without NUL, which Postgres' `text` cannot hold. Refusing it while parsing gives the
/// event a readable problem.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
