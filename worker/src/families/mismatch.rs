//! Explains why `data` does not match the event's type: the field, what was expected, and the kind
//! of value found. It never quotes the value, because problems appear in lists and logs, and `data`
//! is personal data.
//!
//! serde_json's own messages quote values and do not name the field. So refused `data` is parsed a
//! second time here, with an error type that keeps only kinds.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize,
    de::{
        DeserializeOwned, Deserializer, Error, Expected, IntoDeserializer, MapAccess, Unexpected,
        Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Value, value::RawValue};

/// The beginnings of the parser's errors.
const TOO_DEEP: &str = "recursion limit exceeded";
const OUT_OF_RANGE: &str = "number out of range";

/// Explains why `data`, a JSON object, is no `R`. A duplicate field is called so, because a replay
/// looks for these words.
pub(super) fn explain<R: DeserializeOwned>(data: &str) -> String {
    let fields = match serde_json::from_str::<Fields>(data) {
        Ok(Fields(fields)) => fields,
        Err(_) => return unread(data),
    };
    let fields = fields
        .iter()
        .map(|(name, value)| (name.as_str(), Found(value)));
    match serde_path_to_error::deserialize::<_, R>(MapDeserializer::new(fields)) {
        Ok(_) => "it cannot be read".to_owned(),
        Err(error) => {
            let nowhere = error.path().iter().next().is_none();
            let place = match nowhere {
                true => "data".to_owned(),
                false => format!("data.{}", error.path()),
            };
            match error.into_inner() {
                Mismatch::Missing(field) => format!("`{place}.{field}` is missing"),
                Mismatch::Twice(field) => format!("duplicate field `{place}.{field}`"),
                Mismatch::Kind { expected, found } => {
                    format!("`{place}`: expected {expected}, found {found}")
                }
                Mismatch::Unfit(reason) => format!("`{place}`: {reason}"),
            }
        }
    }
}

/// Names the first field that cannot be parsed at all.
fn unread(data: &str) -> String {
    let fields = serde_json::from_str(data).map(|Fields::<Box<RawValue>>(fields)| fields);
    for (name, value) in fields.unwrap_or_default() {
        if let Err(error) = serde_json::from_str::<Value>(value.get()) {
            let found = match error.to_string() {
                words if words.starts_with(TOO_DEEP) => "expected at most 127 levels, found more",
                words if words.starts_with(OUT_OF_RANGE) => {
                    "expected numbers up to 1.8e308, found a larger one"
                }
                _ => "it cannot be read",
            };
            return format!("`data.{name}`: {found}");
        }
    }
    "it cannot be read".to_owned()
}

/// The fields of an object, including duplicates.
struct Fields<V = Value>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Fields<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for All<V> {
            type Value = Fields<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<V>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(All(PhantomData))
    }
}

/// An error that contains no value of the input.
#[derive(Debug)]
enum Mismatch {
    Missing(&'static str),
    Twice(&'static str),
    Kind {
        expected: String,
        found: &'static str,
    },
    /// The value has the right kind, but the field's type refuses it for this reason.
    Unfit(String),
}

impl Error for Mismatch {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self::Unfit(reason.to_string())
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Kind {
            expected: expected.to_string(),
            found: kind(unexpected),
        }
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::Twice(field)
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`data` is not as expected")
    }
}

impl std::error::Error for Mismatch {}

fn kind(unexpected: Unexpected<'_>) -> &'static str {
    match unexpected {
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
        Unexpected::Float(_) => "a number with a fraction or an exponent",
        Unexpected::Char(_) | Unexpected::Str(_) => "a string",
        Unexpected::Unit | Unexpected::Option => "null",
        Unexpected::Seq => "an array",
        Unexpected::Map => "an object",
        _ => "another kind of value",
    }
}

/// A value of the input, parsed with errors that do not quote it.
#[derive(Clone, Copy)]
struct Found<'v>(&'v Value);

impl<'de> IntoDeserializer<'de, Mismatch> for Found<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Found<'_> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (None, Some(number)) => visitor.visit_i64(number),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => {
                let expected = (&visitor as &dyn Expected).to_string();
                visitor.visit_str(text).map_err(|error| match error {
                    Mismatch::Unfit(reason) => {
                        Mismatch::Unfit(format!("expected {expected}, found a string: {reason}"))
                    }
                    other => other,
                })
            }
            Value::Array(values) => {
                visitor.visit_seq(SeqDeserializer::new(values.iter().map(Found)))
            }
            Value::Object(fields) => visitor.visit_map(MapDeserializer::new(
                fields
                    .iter()
                    .map(|(name, value)| (name.as_str(), Found(value))),
            )),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}
