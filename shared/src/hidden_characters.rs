//! Characters of somebody else's text that people would not see.

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Whether it is a control character, changes the direction of others, or has no width. A terminal or
/// a browser obeys such characters instead of showing them.
pub fn is_hidden(c: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    matches!(
        c.general_category(),
        Control | Format | LineSeparator | ParagraphSeparator
    )
}
