//! The pages, one file each.

pub mod act;
mod choice;
pub mod dead_letters;
pub mod event;
pub mod events;
pub mod export;
pub mod find;
pub mod live;
pub mod overview;
pub mod receipts;
pub mod record;
pub mod replay;
pub mod replays;
pub mod resource;

use worker::problem::Kind;

/// What a kind of problem means, in words.
pub fn meaning(kind: &Kind) -> &'static str {
    match kind {
        Kind::NotAnEvent => "The body is no Pleo event.",
        Kind::WrongData => "What is in data is not what the event's type promises.",
        Kind::Refused => "Postgres refused the row.",
        Kind::StoppedWorker => "It stopped workers again and again, so it was stored unread.",
        Kind::Conflict => "Another body was accepted under the same webhook id before.",
        Kind::Unidentified => "It did not come from ingest, so nobody has verified it.",
        Kind::Distrusted => "An operator distrusts the secret that it was signed with.",
        Kind::ForeignCompany => "Its secret is tied to other companies than the event's.",
        Kind::CompanyChange => "Its export job or vendor is in the table as another company's.",
        Kind::Misrouted => "It came by the queue of another family.",
    }
}

/// What usually helps.
pub fn advice(kind: &Kind) -> &'static str {
    match kind {
        Kind::NotAnEvent => {
            "Look at a body. If the sender is a test, dismiss them; if Pleo has a new shape of events, upgrade and replay."
        }
        Kind::WrongData => {
            "Pleo may have changed a field. Upgrade, then replay; the body is kept as it was sent."
        }
        Kind::Refused => {
            "Read Postgres' words, mend the table (a constraint, a trigger), then replay."
        }
        Kind::StoppedWorker => {
            "Replay reads it in a process of its own, so that nothing else is harmed."
        }
        Kind::Conflict => {
            "Compare both bodies. The first one counts; replay this one by its id with --include-withheld only if it is the right one."
        }
        Kind::Unidentified => {
            "Find out who publishes to the queue. Replay one by its id with --include-withheld only if you trust it."
        }
        Kind::Distrusted => {
            "Compare it with what Pleo's API says. Replay one by its id with --include-withheld only if it is true."
        }
        Kind::ForeignCompany => {
            "Find out who signed it. If the secret was tied to the wrong company, correct the secrets, then replay with --any-company."
        }
        Kind::CompanyChange => {
            "Compare both events with what Pleo's API says. A row never changes its company: dismiss this event, or delete the row if that one is wrong, and replay."
        }
        Kind::Misrouted => {
            "See to the queues' bindings (hookctl doctor). Look at the event, then replay it by its id with --include-withheld: that stores it as what it is."
        }
    }
}

/// Whether the console replays dead letters of this kind. The others need hookctl: a decision about each, or a
/// separate process.
fn is_replayed_here(kind: &Kind) -> bool {
    !kind.is_withheld() && *kind != Kind::StoppedWorker
}
