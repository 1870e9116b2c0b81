//! The commands in README.md.

/// The lines of the first shell block below a heading, without comments.
pub(super) fn commands<'t>(text: &'t str, heading: &str) -> Vec<&'t str> {
    text.lines()
        .skip_while(|line| *line != heading)
        .skip_while(|line| *line != "```sh")
        .skip(1)
        .take_while(|line| *line != "```")
        .map(|line| line.split(" #").next().unwrap_or(line).trim())
        .filter(|line| !line.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::commands;

    #[test]
    fn commands_are_those_below_their_heading_without_comments() {
        let text = "## A\n```sh\nfirst\n```\n## B\ntext\n```sh\none --two   # three\n\nfour\n```\n```sh\nfive\n```\n";
        assert_eq!(commands(text, "## B"), ["one --two", "four"]);
        assert!(commands(text, "## C").is_empty());
    }
}
