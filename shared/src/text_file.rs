//! Reads text files that people write by hand, on any system and with any editor.

use std::path::Path;

use secrecy::SecretString;
use thiserror::Error;

use crate::settings_file;

/// In bytes; enough for hundreds of secrets.
pub const MAX_LEN: u64 = 64 * 1024;

/// The byte-order mark that some editors put at the start of a UTF-8 file.
const MARK: char = '\u{feff}';

/// Why a file is not text. The message shows none of its content.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NotText {
    /// It starts with the byte-order mark of UTF-16.
    #[error("is UTF-16, by its byte-order mark: save it as UTF-8")]
    Utf16,
    /// It is not valid UTF-8.
    #[error("is not UTF-8 text")]
    NotUtf8,
}

/// Reads a file of secrets. A byte-order mark is kept.
pub fn read(path: &Path) -> anyhow::Result<SecretString> {
    Ok(decode(settings_file::read(path, MAX_LEN)?)?.into())
}

/// Decodes UTF-8. A byte-order mark is kept.
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
