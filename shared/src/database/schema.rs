//! The schema that the pipeline's tables are in.

use std::fmt;

/// Postgres truncates longer names.
const MAX_NAME_LEN: usize = 63;

/// The schema that the pipeline's tables are in.
///
/// Each transaction sets it, so the search path of a role or a database does not matter. It is not
/// a setting of the session, because poolers such as PgBouncer do not support that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema(String);

impl Default for Schema {
    fn default() -> Self {
        Self("public".to_owned())
    }
}

impl Schema {
    /// Checks a schema's name. The error says which names are allowed.
    pub fn parse(name: &str) -> Result<Self, String> {
        if !(1..=MAX_NAME_LEN).contains(&name.len()) || name.contains('\0') {
            return Err(format!("must be a name of 1 to {MAX_NAME_LEN} bytes"));
        }
        // Postgres reserves these names.
        if name.starts_with("pg_") || name == "information_schema" {
            return Err(format!(
                "`{name}` is a name of Postgres' own schemas: name the one that the tables are in"
            ));
        }
        Ok(Self(name.to_owned()))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The statement that makes names refer to this schema until the transaction ends. Temporary
    /// tables come last: a shared session may have one with the name of a table.
    pub fn search(&self) -> String {
        let quoted = self.0.replace('"', "\"\"");
        format!("set local search_path = \"{quoted}\", pg_temp")
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("")]
    #[case("a\0")]
    #[case(&"x".repeat(64))]
    fn what_postgres_would_take_for_another_name_is_refused(#[case] name: &str) {
        assert!(Schema::parse(name).is_err());
    }

    #[rstest]
    #[case("pg_catalog")]
    #[case("pg_temp")]
    #[case("pg_toast_temp_3")]
    #[case("information_schema")]
    fn a_schema_of_postgres_own_is_refused(#[case] name: &str) {
        let error = Schema::parse(name).expect_err("refused");
        assert!(error.contains(name), "{error}");
    }

    #[test]
    fn what_only_looks_like_one_is_taken() {
        for name in ["pg", "pgdata", "PG_CATALOG", "my_pg_tables"] {
            Schema::parse(name).expect("another name");
        }
    }

    #[test]
    fn a_name_is_quoted() {
        let schema = Schema::parse("My \"own\"").expect("a name");
        assert_eq!(
            schema.search(),
            "set local search_path = \"My \"\"own\"\"\", pg_temp"
        );
    }
}
