//! The result of a command, as an exit code for scripts.

use std::{fmt, io, process::ExitCode};

/// A command that worked. Its findings are another matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong: exit code 0.
    Fine,
    /// Something is wrong, and was shown: exit code 3.
    Findings,
}

impl Verdict {
    /// Fine, or not.
    pub fn of(fine: bool) -> Self {
        if fine { Self::Fine } else { Self::Findings }
    }
}

/// The command cannot start with these settings: exit code 2, as for an invalid command line.
#[derive(Debug)]
pub struct WrongSettings(String);

impl WrongSettings {
    /// For an error in a setting.
    #[expect(clippy::needless_pass_by_value, reason = "is given to `map_err`")]
    pub fn new(error: anyhow::Error) -> Self {
        Self(shared::reason::one_line(&error))
    }
}

impl fmt::Display for WrongSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongSettings {}

/// The exit code of a command, with an error as one line on standard error: 0 nothing is wrong,
/// 1 it could not be done, 2 wrong settings, 3 it was done and something is wrong.
#[expect(clippy::print_stderr, reason = "errors of a command-line tool")]
pub fn exit_code(ended: anyhow::Result<Verdict>) -> ExitCode {
    let code = match &ended {
        Ok(Verdict::Fine) => 0,
        Ok(Verdict::Findings) => 3,
        Err(error) if error.is::<WrongSettings>() => 2,
        Err(_) => 1,
    };
    if let Err(error) = ended {
        // The reader of our output, such as `head`, has closed it.
        if error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {}", shared::reason::one_line(&error));
    }
    ExitCode::from(code)
}
