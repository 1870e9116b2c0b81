//! Detects invisible characters in untrusted text.

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Whether it is a control character, changes the direction of text, or has no width. Terminals and
/// browsers interpret such characters instead of showing them.
pub fn is_hidden(c: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    matches!(
        c.general_category(),
        Control | Format | LineSeparator | ParagraphSeparator
    )
}
