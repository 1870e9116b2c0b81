//! JSON as it was sent: laid out for reading, without touching a number or a string.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// The deepest indentation, in levels: what is nested deeper is laid out as if it were here.
const MOST_LEVELS: usize = 30;

/// How deep the fields of an object are told apart; what is deeper is one value.
const FIELD_LEVELS: usize = 5;

/// The bytes as text, if they are JSON.
pub fn as_json(bytes: &[u8]) -> Option<&str> {
    let text = str::from_utf8(bytes).ok()?;
    serde_json::from_str::<&RawValue>(text).ok()?;
    Some(text)
}

/// Lays JSON out in lines. Only whitespace between its marks changes. `most` bytes at most, and
/// whether there was more.
pub fn pretty(json: &str, most: usize) -> (String, bool) {
    let mut layout = Layout::default();
    for c in json.chars() {
        if layout.out.len() >= most {
            return (layout.out, true);
        }
        layout.push(c);
    }
    (layout.out, false)
}

#[derive(Default)]
struct Layout {
    out: String,
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The last mark opened an object or an array, which may stay empty.
    opened: bool,
}

impl Layout {
    fn push(&mut self, c: char) {
        if self.in_string {
            self.out.push(c);
            self.in_string = self.escaped || c != '"';
            self.escaped = c == '\\' && !self.escaped;
            return;
        }
        match c {
            ' ' | '\t' | '\n' | '\r' => return,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                if !self.opened {
                    self.line();
                }
                self.out.push(c);
                self.opened = false;
                return;
            }
            _ => {}
        }
        if self.opened {
            self.line();
            self.opened = false;
        }
        self.out.push(c);
        match c {
            '{' | '[' => {
                self.depth += 1;
                self.opened = true;
            }
            ',' => self.line(),
            ':' => self.out.push(' '),
            '"' => self.in_string = true,
            _ => {}
        }
    }

    fn line(&mut self) {
        self.out.push('\n');
        self.out.push_str(&"  ".repeat(self.depth.min(MOST_LEVELS)));
    }
}

/// The fields of an object by their paths, such as `address.city`, each with its JSON as it was sent.
pub fn fields(object: &RawValue) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    collect(object, "", FIELD_LEVELS, &mut fields);
    fields
}

fn collect(value: &RawValue, path: &str, levels: usize, fields: &mut BTreeMap<String, String>) {
    let object = match levels {
        0 => None,
        _ => serde_json::from_str::<BTreeMap<String, &RawValue>>(value.get()).ok(),
    };
    match object {
        Some(object) if !object.is_empty() || path.is_empty() => {
            for (name, value) in object {
                let path = match path {
                    "" => name,
                    _ => format!("{path}.{name}"),
                };
                collect(value, &path, levels - 1, fields);
            }
        }
        _ => {
            fields.insert(path.to_owned(), value.get().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        r#"{"a":1.10,"b":[1e5,{}],"c":"x\",{\\"}"#,
        "{\n  \"a\": 1.10,\n  \"b\": [\n    1e5,\n    {}\n  ],\n  \"c\": \"x\\\",{\\\\\"\n}"
    )]
    #[case(" [ ] ", "[]")]
    #[case(
        "123456789012345678901234567890.10",
        "123456789012345678901234567890.10"
    )]
    fn only_whitespace_changes(#[case] json: &str, #[case] expected: &str) {
        assert_eq!(pretty(json, 1_000), (expected.to_owned(), false));
    }

    #[test]
    fn what_is_deep_or_long_has_an_end() {
        let json = format!("{}{}", "[".repeat(250_000), "]".repeat(250_000));
        assert!(as_json(json.as_bytes()).is_some());
        let (text, is_cut) = pretty(&json, 100_000);
        assert!(is_cut && text.len() < 100_100, "{}", text.len());
        fields(serde_json::from_str(&json).expect("JSON"));
    }

    #[test]
    fn fields_have_their_paths_and_their_words() {
        let json = r#"{"n":1.50,"o":{"x":[1, 2],"e":{}},"s":"a\u0041"}"#;
        let fields = fields(serde_json::from_str(json).expect("JSON"));
        let fields: Vec<_> = fields.iter().map(|(k, v)| (&**k, &**v)).collect();
        let expected = [
            ("n", "1.50"),
            ("o.e", "{}"),
            ("o.x", "[1, 2]"),
            ("s", r#""a\u0041""#),
        ];
        assert_eq!(fields, expected);
    }
}
