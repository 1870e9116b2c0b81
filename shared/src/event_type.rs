//! The canonical event type and the family that it belongs to.

use std::fmt;

/// The families of events, each with its own queue and worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `*.export-job.*`
    ExportJob,
    /// `*.vendor.*`
    Vendor,
    /// Everything else, including unknown types and bodies that are no Pleo event.
    Other,
}

impl Family {
    /// Every family, in the order in which they are declared and shown.
    pub const ALL: [Self; 3] = [Self::ExportJob, Self::Vendor, Self::Other];

    /// The resource in the family's event types; `None` for the family `other`.
    pub const fn resource(self) -> Option<&'static str> {
        match self {
            Self::ExportJob => Some("export-job"),
            Self::Vendor => Some("vendor"),
            Self::Other => None,
        }
    }

    /// The name used in queue names, metric labels and the spool: `export-job`, `vendor`, `other`.
    pub fn name(self) -> &'static str {
        self.resource().unwrap_or("other")
    }

    /// The family of a stored type. Unlike [`EventType::parse`], it does not make the spelling
    /// canonical, so it gives the same result as SQL with [`Self::pattern`].
    pub fn of(event_type: &str) -> Self {
        let of_resource = |resource| {
            Self::ALL
                .into_iter()
                .find(|family| family.resource() == Some(resource))
        };
        resource(event_type)
            .and_then(of_resource)
            .unwrap_or(Self::Other)
    }

    /// The Postgres regular expression for the family's types; `None` for the family `other`.
    pub fn pattern(self) -> Option<String> {
        self.resource()
            .map(|resource| format!("^[^.]*[.]{resource}[.][^.]*$"))
    }
}

/// The middle segment of exactly three.
fn resource(event_type: &str) -> Option<&str> {
    let mut segments = event_type.split('.');
    match (
        segments.next(),
        segments.next(),
        segments.next(),
        segments.next(),
    ) {
        (Some(_), Some(resource), Some(_), None) => Some(resource),
        _ => None,
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An event type in its canonical spelling, `version.resource.event` in kebab-case, such as
/// `v1.export-job.created`.
///
/// Always 1 to 128 bytes of ASCII letters, digits, `.`, `-` and `_`, so it fits an AMQP short
/// string and is safe in a log line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventType(String);

impl EventType {
    const MAX_LEN: usize = 128;

    /// The type of a body without a valid event type.
    pub fn unknown() -> Self {
        Self("unknown".to_owned())
    }

    /// Parses an event type as the sender spells it. The deprecated spelling
    /// `v1.export.job-created`, which Pleo's documentation still uses, becomes
    /// `v1.export-job.created`.
    ///
    /// Returns `None` if the text is empty, longer than 128 bytes, or has characters other than
    /// ASCII letters, digits, `.`, `-` and `_`.
    ///
    /// ```
    /// use shared::{EventType, Family};
    ///
    /// let event_type = EventType::parse("v1.export.job-created").expect("it is well formed");
    /// assert_eq!(event_type.as_str(), "v1.export-job.created");
    /// assert_eq!(event_type.family(), Family::ExportJob);
    /// assert_eq!(EventType::parse("v1 vendor created"), None);
    /// ```
    pub fn parse(raw: &str) -> Option<Self> {
        let well_formed = !raw.is_empty()
            && raw.len() <= Self::MAX_LEN
            && raw
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        if !well_formed {
            return None;
        }
        let mut segments = raw.split('.');
        if let (Some(version), Some("export"), Some(rest), None) = (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ) && let Some(event) = rest.strip_prefix("job-")
        {
            return Some(Self(format!("{version}.export-job.{event}")));
        }
        Some(Self(raw.to_owned()))
    }

    /// The canonical spelling.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The event's resource, such as `export-job` or `vendor`: the middle segment of exactly three.
    pub fn resource(&self) -> Option<&str> {
        resource(&self.0)
    }

    /// The routing key: the resource, to which its family's queue is bound. Other types have an
    /// empty key, to which nothing is bound.
    pub fn routing_key(&self) -> &str {
        self.resource().unwrap_or_default()
    }

    /// The family, by the same rule as the topology's bindings.
    pub fn family(&self) -> Family {
        Family::of(&self.0)
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("v1.export-job.created", "v1.export-job.created", Family::ExportJob)]
    #[case("v1.export.job-created", "v1.export-job.created", Family::ExportJob)]
    #[case("v2.export-job.created", "v2.export-job.created", Family::ExportJob)]
    #[case("v1.vendor.created", "v1.vendor.created", Family::Vendor)]
    #[case("v9.vendor.archived", "v9.vendor.archived", Family::Vendor)]
    #[case("v1.receipt.created", "v1.receipt.created", Family::Other)]
    #[case(
        "v1.export-job.created.now",
        "v1.export-job.created.now",
        Family::Other
    )]
    #[case("export-job", "export-job", Family::Other)]
    #[case("v1.export.jobs", "v1.export.jobs", Family::Other)]
    fn types_are_canonical_and_have_a_family(
        #[case] raw: &str,
        #[case] canonical: &str,
        #[case] family: Family,
    ) {
        let event_type = EventType::parse(raw).expect("well formed");
        assert_eq!(event_type.as_str(), canonical);
        assert_eq!(event_type.family(), family);
    }

    #[rstest]
    #[case("")]
    #[case("v1 vendor")]
    #[case("v1.vendor.created\n")]
    #[case("v1.vendör.created")]
    #[case("v1.vendor.#")]
    #[case(&"a".repeat(129))]
    fn what_cannot_be_a_type_is_refused(#[case] raw: &str) {
        assert_eq!(EventType::parse(raw), None);
    }

    #[test]
    fn the_unknown_type_goes_to_the_other_family() {
        assert_eq!(EventType::unknown().family(), Family::Other);
    }
}
