//! The accounts' passwords, from the settings.

use std::path::Path;

use anyhow::{bail, ensure};
use secrecy::{ExposeSecret, SecretString};
use shared::{Program, password_file, text_file};

const MIN_LEN: usize = 16;
const MAX_LEN: usize = 128;

/// A password for every account. The two of the console may have none, and then cannot log in.
#[derive(Debug)]
pub struct Passwords(Vec<(Program, SecretString)>);

impl Passwords {
    /// Reads `service=password` entries, separated by commas or line ends; lines that start with `#` are
    /// comments. The error names the entry and never shows a password.
    ///
    /// Passwords are put into addresses and environment files, so they consist of characters without a
    /// special meaning in both.
    pub fn parse(text: &SecretString) -> anyhow::Result<Self> {
        let mut passwords: Vec<(Program, SecretString)> = Vec::new();
        let entries = text_file::without_mark(text.expose_secret())
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .flat_map(|line| line.split(','))
            .map(str::trim)
            .filter(|entry| !entry.is_empty());
        for (index, entry) in entries.enumerate() {
            let position = index + 1;
            let named = entry.split_once('=').and_then(|(name, password)| {
                let mut programs = Program::ACCOUNTS.into_iter();
                let program = programs.find(|p| p.name() == name.trim())?;
                Some((program, password.trim()))
            });
            let Some((program, password)) = named else {
                bail!(
                    "entry {position} names no service: write {}",
                    Program::ALL.map(|p| format!("{p}=…")).join(",")
                );
            };
            ensure!(
                passwords.iter().all(|(other, _)| *other != program),
                "there are two passwords of {program}"
            );
            passwords.push((program, checked(program, password)?));
        }
        for program in Program::ALL {
            ensure!(
                passwords.iter().any(|(other, _)| *other == program),
                "there is no password of {0}: add {0}=…",
                program.name()
            );
        }
        Ok(Self(passwords))
    }

    /// Reads one file for each service, named like the service, with nothing but its password.
    pub fn from_folder(setting: &str, folder: &Path) -> anyhow::Result<Self> {
        let consoles = [Program::Console, Program::ConsoleOperator]
            .into_iter()
            .filter(|program| folder.join(program.name()).exists());
        let passwords = Program::ALL.into_iter().chain(consoles).map(|program| {
            let password = password_file::read(setting, &folder.join(program.name()))?;
            Ok((program, checked(program, password.expose_secret())?))
        });
        passwords.collect::<anyhow::Result<_>>().map(Self)
    }

    /// An account's password; only the two of the console may have none.
    pub fn of(&self, program: Program) -> Option<&SecretString> {
        let mut passwords = self.0.iter();
        passwords
            .find(|(other, _)| *other == program)
            .map(|(_, password)| password)
    }
}

fn checked(program: Program, password: &str) -> anyhow::Result<SecretString> {
    ensure!(
        (MIN_LEN..=MAX_LEN).contains(&password.len()) && password.bytes().all(is_plain),
        "the password of {program} must be {MIN_LEN} to {MAX_LEN} letters, digits, `-`, `.`, `_` or \
         `~`; make one with: openssl rand -hex 24"
    );
    Ok(password.into())
}

/// The characters that a URL does not escape.
fn is_plain(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use shared::Family;

    use super::*;

    const GOOD: &str = "ingest=0123456789abcde-\n# rotated\nexport-job-worker = 0123456789abcde.,\
                        vendor-worker=0123456789abcde_\nother-worker=0123456789abcde~\n";

    fn parse(text: &str) -> anyhow::Result<Passwords> {
        Passwords::parse(&SecretString::from(text))
    }

    #[test]
    fn each_account_has_its_own_password() {
        let passwords = parse(GOOD).expect("valid");
        let of = |program| passwords.of(program).expect("a password").expose_secret();
        assert_eq!(of(Program::Ingest), "0123456789abcde-");
        assert_eq!(of(Program::Worker(Family::Other)), "0123456789abcde~");
        assert!(!format!("{passwords:?}").contains("0123456789"));
        assert!(passwords.of(Program::Console).is_none());
        let passwords = parse(&format!("{GOOD}console=0123456789abcde.")).expect("valid");
        let console = passwords.of(Program::Console).expect("a password");
        assert_eq!(console.expose_secret(), "0123456789abcde.");
    }

    #[test]
    fn a_file_of_another_system_is_read() {
        let text = format!("\u{feff}{}", GOOD.replace('\n', " \r\n"));
        let passwords = parse(&text).expect("valid");
        let vendor = passwords.of(Program::Worker(Family::Vendor));
        let vendor = vendor.expect("a password");
        assert_eq!(vendor.expose_secret(), "0123456789abcde_");
    }

    #[rstest]
    #[case::missing(&GOOD.replace("vendor-worker=", "#"))]
    #[case::twice(&GOOD.replace("vendor-worker", "ingest"))]
    #[case::unknown(&GOOD.replace("vendor-worker", "vendor"))]
    #[case::unnamed(&GOOD.replace("vendor-worker=", ""))]
    #[case::short(&GOOD.replace("0123456789abcde_", "0123456789abcde"))]
    #[case::not_plain(&GOOD.replace("0123456789abcde_", "0123456789abcde@"))]
    fn a_bad_list_is_refused_without_showing_a_password(#[case] text: &str) {
        let error = format!("{:#}", parse(text).expect_err("refused"));
        assert!(!error.contains("0123456789"), "{error}");
    }
}
