//! Reads a store's password from a file, as container engines provide secrets. The address then
//! contains no password and can be shown.

use std::path::Path;

use anyhow::{Context, ensure};
use secrecy::SecretString;

use crate::{settings_file, text_file};

/// Longer than any password. If the setting names a large file by mistake, such as a log, it is
/// refused at once.
const MAX_BYTES: u64 = 4_096;

/// Reads a password: the file's only line. Errors name the setting and the file and never show its
/// content.
pub fn read(setting: &str, path: &Path) -> anyhow::Result<SecretString> {
    let content = settings_file::read(path, MAX_BYTES)
        .with_context(|| format!("{setting}: cannot read {}", path.display()))?;
    parse(content).with_context(|| format!("{setting}: {}", path.display()))
}

fn parse(content: Vec<u8>) -> anyhow::Result<SecretString> {
    let text = text_file::decode(content)?;
    // Every byte counts, because other readers, such as the stores, take the mark as part of the
    // password.
    ensure!(
        !text_file::has_mark(&text),
        "starts with a byte-order mark: save it as UTF-8 without one"
    );
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    ensure!(!line.is_empty(), "has no password on its first line");
    ensure!(
        !line.contains(char::is_control),
        "must hold the password and nothing else, on one line"
    );
    Ok(line.into())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use secrecy::ExposeSecret;

    use super::*;

    #[rstest]
    #[case("hunter2", "hunter2")]
    #[case("hunter2\n", "hunter2")]
    #[case("hunter2\r\n", "hunter2")]
    #[case(" any: p@ss/wörd \n", " any: p@ss/wörd ")]
    fn the_only_line_is_the_password(#[case] content: &str, #[case] expected: &str) {
        let password = parse(content.into()).expect("a password");
        assert_eq!(password.expose_secret(), expected);
    }

    #[rstest]
    #[case::empty(b"")]
    #[case::first_line_empty(b"\n")]
    #[case::two_lines(b"hunter2\nhunter2\n")]
    #[case::nul(b"hunter2\0")]
    #[case::not_text(b"hunter2\xff")]
    #[case::utf16(b"\xff\xfeh\0")]
    #[case::byte_order_mark(b"\xef\xbb\xbfhunter2\n")]
    fn any_other_content_is_refused_without_showing_it(#[case] content: &[u8]) {
        let error = format!("{:#}", parse(content.into()).expect_err("refused"));
        assert!(!error.contains("hunter2"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
