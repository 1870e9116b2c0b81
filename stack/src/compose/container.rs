//! A container as `docker ps` shows it.

use anyhow::{Context, Result};

/// One container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Container {
    /// Its id.
    pub(super) id: String,
    /// The service that it belongs to.
    pub(super) service: String,
    /// Its name.
    pub(super) name: String,
    /// Such as `Up 3 minutes (healthy)`.
    pub(super) status: String,
}

impl Container {
    /// For `docker ps --format`.
    pub(super) const FORMAT: &str =
        "{{.ID}}\t{{.Label \"com.docker.compose.service\"}}\t{{.Names}}\t{{.Status}}";

    /// Reads a line of that format.
    ///
    /// # Errors
    /// When the line has another format.
    pub(super) fn parse(line: &str) -> Result<Self> {
        let mut fields = line.split('\t').map(str::to_owned);
        let mut next = || {
            fields
                .next()
                .with_context(|| format!("docker ps printed {line:?}"))
        };
        Ok(Self {
            id: next()?,
            service: next()?,
            name: next()?,
            status: next()?,
        })
    }

    /// Whether it is healthy or, for a container that does one job and exits, has done it.
    pub(super) fn is_well(&self, ends: bool) -> bool {
        if ends {
            self.status.starts_with("Exited (0)")
        } else {
            self.status.starts_with("Up") && self.status.ends_with("(healthy)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Container;

    #[test]
    fn only_a_healthy_or_finished_container_is_well() {
        let with = |status: &str| {
            Container::parse(&format!("id\tsetup\tpleo-setup-1\t{status}")).expect("four fields")
        };
        for (status, running, ending) in [
            ("Up 3 seconds (healthy)", true, false),
            ("Up 3 seconds (health: starting)", false, false),
            ("Up 3 seconds (unhealthy)", false, false),
            ("Up 3 seconds", false, false),
            ("Restarting (1) 3 seconds ago", false, false),
            ("Exited (0) 3 seconds ago", false, true),
            ("Exited (137) 3 seconds ago", false, false),
            ("Created", false, false),
        ] {
            assert_eq!(with(status).is_well(false), running, "{status}");
            assert_eq!(with(status).is_well(true), ending, "{status}");
        }
        assert!(Container::parse("one field").is_err());
    }
}
