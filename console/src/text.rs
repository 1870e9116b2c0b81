//! Text of somebody else's on a page: nothing in it is obeyed, and everything in it is seen.

use std::fmt::Write;

use askama::filters::Safe;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use shared::hidden_characters::is_hidden;

/// What an address keeps as it is, between the marks that mean something there.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// The longest text in a list.
const CELL: usize = 120;

/// The text as HTML, with characters written out that are invisible or change the direction of
/// others, and isolated, so that its own direction changes nothing around it.
pub fn visible(text: &str) -> Safe<String> {
    let mut html = String::with_capacity(text.len() + 16);
    html.push_str("<bdi>");
    for c in text.chars() {
        push(&mut html, c, false);
    }
    html.push_str("</bdi>");
    Safe(html)
}

/// As [`visible`], cut off where a list has no room for more.
pub fn cell(text: &str) -> Safe<String> {
    match text.char_indices().nth(CELL) {
        Some((end, _)) => visible(&format!("{}…", &text[..end])),
        None => visible(text),
    }
}

/// As [`visible`], with its lines and tabs.
pub fn block(text: &str) -> Safe<String> {
    let mut html = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        push(&mut html, c, true);
    }
    Safe(html)
}

/// For titles and attributes, which hold no marks: what [`visible`] would mark becomes `\u{…}`.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars().take(CELL) {
        if is_hidden(c) {
            plain.extend(c.escape_unicode());
        } else {
            plain.push(c);
        }
    }
    plain
}

fn push(html: &mut String, c: char, multiline: bool) {
    match c {
        '<' => html.push_str("&lt;"),
        '>' => html.push_str("&gt;"),
        '&' => html.push_str("&amp;"),
        '"' => html.push_str("&quot;"),
        '\'' => html.push_str("&#39;"),
        '\n' | '\t' if multiline => html.push(c),
        _ if is_hidden(c) => {
            let code = u32::from(c);
            write!(html, "<span class=\"hidden-char\">U+{code:04X}</span>")
                .expect("a string takes everything");
        }
        _ => html.push(c),
    }
}

/// An address of this console with a query. What is empty is left out.
pub fn href(path: &str, query: &[(&str, &str)]) -> String {
    let mut href = path.to_owned();
    let mut separator = '?';
    for (name, value) in query.iter().filter(|(_, value)| !value.is_empty()) {
        href.push(separator);
        href.push_str(name);
        href.push('=');
        href.extend(utf8_percent_encode(value, PLAIN));
        separator = '&';
    }
    href
}

/// The word as a shell takes it literally.
pub fn shell(word: &str) -> String {
    let is_plain = !word.is_empty()
        && word.bytes().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b':' | b'@')
        });
    if is_plain {
        word.to_owned()
    } else if word.chars().any(is_hidden) {
        // A terminal might obey them, and a page does not show them.
        let mut quoted = String::from("$'");
        for c in word.chars() {
            match c {
                '\'' | '\\' => {
                    quoted.push('\\');
                    quoted.push(c);
                }
                _ if is_hidden(c) => {
                    write!(quoted, "\\U{:08x}", u32::from(c)).expect("a string takes everything");
                }
                _ => quoted.push(c),
            }
        }
        quoted.push('\'');
        quoted
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn marks_are_no_marks_and_what_is_hidden_is_seen() {
        let Safe(html) = visible("<script>\"'&\u{202e}\0ü");
        assert_eq!(
            html,
            "<bdi>&lt;script&gt;&quot;&#39;&amp;<span class=\"hidden-char\">U+202E</span>\
             <span class=\"hidden-char\">U+0000</span>ü</bdi>"
        );
        assert_eq!(plain("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn only_a_long_cell_is_cut_off() {
        let Safe(html) = cell(&"ü".repeat(CELL + 1));
        assert_eq!(html.matches('ü').count(), CELL);
        assert!(html.contains('…'));
        let Safe(html) = cell(&"ü".repeat(CELL));
        assert!(!html.contains('…'));
    }

    #[test]
    fn an_address_keeps_every_character() {
        let all: String = (' '..='~').collect();
        let href = href("/event", &[("id", &all), ("empty", ""), ("x", "é")]);
        assert!(href.starts_with("/event?id=%20%21"), "{href}");
        assert!(href.ends_with("&x=%C3%A9"), "{href}");
        assert_eq!(href.matches(['?', '&', '#', '"', '<']).count(), 2);
    }

    #[rstest]
    #[case("msg_1", "msg_1")]
    #[case("it's", r"'it'\''s'")]
    #[case("$(rm -r /)", "'$(rm -r /)'")]
    #[case("", "''")]
    #[case("a\u{202e}\n'", r"$'a\U0000202e\U0000000a\''")]
    fn a_word_stays_one_word_in_a_shell(#[case] word: &str, #[case] expected: &str) {
        assert_eq!(shell(word), expected);
        let echoed = std::process::Command::new("bash")
            .args(["-c", &format!("printf %s {expected}")])
            .env("LC_ALL", "C.UTF-8")
            .output()
            .expect("bash runs");
        assert_eq!(String::from_utf8_lossy(&echoed.stdout), word);
    }
}
