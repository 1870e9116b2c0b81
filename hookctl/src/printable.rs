//! Text of other people on a terminal.

use shared::hidden_characters::is_hidden;

/// Escapes characters that control a terminal, change the direction of text, or have no width. Line ends
/// and tabs stay if `multiline` is set.
pub fn printable(text: &str, multiline: bool) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) && !(multiline && matches!(c, '\n' | '\t')) {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn hidden_characters_are_shown_and_not_obeyed() {
        assert_eq!(printable("a\x1b[2Jü\n", false), "a\\u{1b}[2Jü\\n");
        assert_eq!(printable("a\n\tb\r\0", true), "a\n\tb\\r\\u{0}");
        assert_eq!(
            printable("a\u{202e}b\u{200b}", false),
            "a\\u{202e}b\\u{200b}"
        );
    }
}
