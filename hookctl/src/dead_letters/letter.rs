//! A dead letter as the lists show it.

use operations::dead_letters::Letter;

use crate::{age, output::Row, printable::printable};

impl Row for Letter {
    const HEADER: &'static [&'static str] = &[
        "webhook id",
        "type",
        "company",
        "resource",
        "problem",
        "attempts",
        "age",
    ];

    fn cells(&self) -> Vec<String> {
        let cell = |text: &str| printable(text, false);
        let optional = |text: &Option<String>| text.as_deref().map(cell).unwrap_or_default();
        let mut problem = cell(&self.problem);
        if let Some(dismissal) = &self.dismissal {
            let by = optional(&dismissal.dismissed_by);
            let at = dismissal.dismissed_at.format("%F %R");
            problem.push_str(&format!("\ndismissed {at} UTC by {by}"));
            if let Some(note) = &dismissal.dismissal_note {
                problem.push_str(&format!(": {}", cell(note)));
            }
        }
        vec![
            cell(&self.webhook_id),
            cell(&self.event_type),
            optional(&self.company_id),
            optional(&self.resource_id),
            problem,
            self.attempts.to_string(),
            age::words(self.age_s),
        ]
    }
}
