//! Formats an error with its causes on one line.

/// The error and its causes. Drivers often repeat the text of a cause, so repeated texts are left
/// out.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn what_a_cause_repeats_is_said_once() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let driver = std::io::Error::other(format!("the driver failed: {refused}"));
        let error = anyhow::Error::from(refused)
            .context(driver.to_string())
            .context("cannot connect");
        assert_eq!(
            one_line(&error),
            "cannot connect: the driver failed: connection refused"
        );
        let error = Err::<(), _>(std::fmt::Error)
            .context("one")
            .context("two")
            .expect_err("an error");
        assert!(one_line(&error).starts_with("two: one: "), "{error:#}");
    }
}
