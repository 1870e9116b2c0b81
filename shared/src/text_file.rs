//! Text files that people write by hand, on any system and with any editor.

use std::path::Path;

use secrecy::SecretString;
use thiserror::Error;

use crate::settings_file;

/// Bytes. Hundreds of secrets fit.
pub const MAX_LEN: u64 = 64 * 1024;

/// What some editors put at the beginning of a UTF-8 file.
const MARK: char = '\u{feff}';

/// Why bytes are no text. The message says nothing of what is in them.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NotText {
    /// Its first bytes are the byte-order mark of UTF-16.
    #[error("is UTF-16, by its byte-order mark: save it as UTF-8")]
    Utf16,
    /// Any other bytes.
    #[error("is not UTF-8 text")]
    NotUtf8,
}

/// Reads a file of secrets, with its byte-order mark if there is one.
pub fn read(path: &Path) -> anyhow::Result<SecretString> {
    Ok(decode(settings_file::read(path, MAX_LEN)?)?.into())
}

/// The bytes as text, with the byte-order mark if there is one.
pub fn decode(content: Vec<u8>) -> Result<String, NotText> {
    if matches!(content[..], [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) {
        return Err(NotText::Utf16);
    }
    String::from_utf8(content).map_err(|_| NotText::NotUtf8)
}

/// The text without a byte-order mark at its beginning.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix(MARK).unwrap_or(text)
}

/// Whether it begins with a byte-order mark.
pub fn has_mark(text: &str) -> bool {
    text.starts_with(MARK)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(b"\xff\xfea\0", Err(NotText::Utf16))]
    #[case(b"\xfe\xff\0a", Err(NotText::Utf16))]
    #[case(b"a\xff", Err(NotText::NotUtf8))]
    #[case(b"", Ok(""))]
    #[case(b"\xef\xbb\xbfa", Ok("\u{feff}a"))]
    fn bytes_that_are_no_text_are_named(
        #[case] bytes: &[u8],
        #[case] expected: Result<&str, NotText>,
    ) {
        assert_eq!(decode(bytes.to_vec()).as_deref(), expected.as_deref());
    }

    #[test]
    fn only_a_mark_at_the_beginning_goes() {
        assert_eq!(without_mark("\u{feff}a\u{feff}"), "a\u{feff}");
        assert_eq!(without_mark("a"), "a");
    }
}
