//! Text of somebody else's on a terminal.

/// The text with its control characters written out, so that none is obeyed. Line ends and tabs stay
/// where `multiline` says so.
pub fn printable(text: &str, multiline: bool) -> String {
    text.chars()
        .flat_map(|c| {
            let harmless = !c.is_control() || multiline && matches!(c, '\n' | '\t');
            let kept = harmless.then_some(c);
            let escaped = (!harmless).then(|| c.escape_default());
            kept.into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(printable("a\x1b[2Jü\n", false), "a\\u{1b}[2Jü\\n");
        assert_eq!(printable("a\n\tb\r\0", true), "a\n\tb\\r\\u{0}");
    }
}
