//! Whose fault a failed transaction is.

use shared::database::TransactionError;

/// What a failure says about the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// One of the rows: its data or a constraint.
    Row,
    /// Perhaps one of the rows: believed only when it keeps happening while Postgres is otherwise
    /// well.
    Suspect,
    /// The connection was lost in the middle of the transaction. So it is when a row makes Postgres
    /// crash, and far more often when something else ends Postgres or the way to it: believed only
    /// when it keeps happening where a harmless event of the same kind gets through.
    Lost,
    /// Postgres or the way to it. No row is blamed and no attempt is spent, however long it takes.
    Environment,
}

/// Judges by SQLSTATE (Postgres manual, appendix A).
pub fn blame(error: &TransactionError) -> Blame {
    match error {
        TransactionError::Deadline => Blame::Suspect,
        TransactionError::Database(sqlx::Error::Database(database)) => {
            blame_sqlstate(database.code().as_deref().unwrap_or_default())
        }
        TransactionError::Database(sqlx::Error::Encode(_)) => Blame::Row,
        TransactionError::Database(sqlx::Error::Io(_)) => Blame::Lost,
        // A standby that is away, and no row's fault.
        TransactionError::CommitDeadline => Blame::Environment,
        TransactionError::Database(_) | TransactionError::NotBegun(_) => Blame::Environment,
    }
}

fn blame_sqlstate(sqlstate: &str) -> Blame {
    const QUERY_CANCELED: &str = "57014";
    match sqlstate.get(..2) {
        // Data exception; integrity constraint violation.
        Some("22" | "23") => Blame::Row,
        // Feature not supported; program limit exceeded; an exception of somebody's trigger;
        // internal error.
        Some("0A" | "54" | "P0" | "XX") => Blame::Suspect,
        _ if sqlstate == QUERY_CANCELED => Blame::Suspect,
        // Connection exception: how a pooler tells that it lost the server.
        Some("08") => Blame::Lost,
        _ => Blame::Environment,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("22P05", Blame::Row)]
    #[case("22003", Blame::Row)]
    #[case("23514", Blame::Row)]
    #[case("54001", Blame::Suspect)]
    #[case("57014", Blame::Suspect)]
    #[case("P0001", Blame::Suspect)]
    #[case("XX000", Blame::Suspect)]
    #[case("08006", Blame::Lost)]
    #[case("08P01", Blame::Lost)]
    #[case("25006", Blame::Environment)]
    #[case("40P01", Blame::Environment)]
    #[case("42501", Blame::Environment)]
    #[case("42P01", Blame::Environment)]
    #[case("53100", Blame::Environment)]
    #[case("53300", Blame::Environment)]
    #[case("55P03", Blame::Environment)]
    #[case("57P01", Blame::Environment)]
    #[case("57P02", Blame::Environment)]
    #[case("", Blame::Environment)]
    fn blame_follows_the_class(#[case] sqlstate: &str, #[case] expected: Blame) {
        assert_eq!(blame_sqlstate(sqlstate), expected);
    }

    #[test]
    fn a_lost_connection_says_something_only_in_the_middle_of_a_transaction() {
        let lost = || sqlx::Error::Io(std::io::ErrorKind::UnexpectedEof.into());
        assert_eq!(blame(&TransactionError::Database(lost())), Blame::Lost);
        assert_eq!(
            blame(&TransactionError::NotBegun(lost())),
            Blame::Environment
        );
    }
}
