//! The events of a batch with what is known of each, and the outcome that follows from it. Pure:
//! the processor does the input and output.

use shared::AcceptedEvent;

use crate::{outcome::Outcome, publisher::PublishError, receipts::Claim};

/// An event of a batch, and how far it has come.
pub(super) struct Item<'e> {
    event: &'e AcceptedEvent,
    /// A conflict is published under an id of its own, so that the worker never takes it for the
    /// first body's event.
    renamed: Option<Box<AcceptedEvent>>,
    claim: Claim,
    confirm: Confirm,
}

/// What the broker said about an event.
#[derive(Debug)]
enum Confirm {
    /// It was not published. A duplicate never is.
    NotAsked,
    /// A queue has it.
    Received,
    /// It is not known whether the broker has it.
    Missing(PublishError),
}

/// The items for events and their claims, which are in the same order.
pub(super) fn items<'e>(
    events: &[&'e AcceptedEvent],
    claims: impl ExactSizeIterator<Item = Claim>,
) -> Vec<Item<'e>> {
    debug_assert_eq!(events.len(), claims.len(), "each event has one claim");
    let item = |(&event, claim): (&&'e AcceptedEvent, Claim)| Item {
        event,
        renamed: (claim == Claim::Conflict).then(|| Box::new(event.clone().into_conflict())),
        claim,
        confirm: Confirm::NotAsked,
    };
    events.iter().zip(claims).map(item).collect()
}

/// The events that must be published, as they are published.
pub(super) fn to_publish<'i>(items: &'i [Item<'_>]) -> Vec<&'i AcceptedEvent> {
    let items = items.iter().filter(|item| item.must_be_published());
    items.map(Item::published).collect()
}

/// Notes the confirms, which are in the order of [`to_publish`].
pub(super) fn note_confirms(items: &mut [Item<'_>], confirms: Vec<Result<(), PublishError>>) {
    debug_assert_eq!(
        items.iter().filter(|i| i.must_be_published()).count(),
        confirms.len(),
        "each published event has one confirm"
    );
    let published = items.iter_mut().filter(|item| item.must_be_published());
    for (item, confirm) in published.zip(confirms) {
        item.confirm = match confirm {
            Ok(()) => Confirm::Received,
            Err(error) => Confirm::Missing(error),
        };
    }
}

impl Item<'_> {
    fn must_be_published(&self) -> bool {
        !matches!(self.claim, Claim::Duplicate(_))
    }

    /// The event under the id that it is published by.
    pub(super) fn published(&self) -> &AcceptedEvent {
        self.renamed.as_deref().unwrap_or(self.event)
    }

    /// Why the event has no confirm, if it was published.
    pub(super) fn unconfirmed(&self) -> Option<&PublishError> {
        match &self.confirm {
            Confirm::Missing(error) => Some(error),
            Confirm::NotAsked | Confirm::Received => None,
        }
    }

    /// The event's outcome. `is_spooled` tells whether the batch's events without a confirm are
    /// safe.
    pub(super) fn outcome(&self, is_spooled: bool) -> Outcome {
        outcome(self.claim, &self.confirm, is_spooled)
    }
}

fn outcome(claim: Claim, confirm: &Confirm, is_spooled: bool) -> Outcome {
    let is_safe = match confirm {
        Confirm::Received => true,
        Confirm::NotAsked | Confirm::Missing(_) => is_spooled,
    };
    match claim {
        Claim::Duplicate(layer) => Outcome::Duplicate(layer),
        Claim::Publish if is_safe => Outcome::Accepted,
        Claim::Conflict if is_safe => Outcome::Conflict,
        Claim::Publish | Claim::Conflict => Outcome::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use shared::{EventType, message::body_sha256};

    use super::*;
    use crate::outcome::Layer;

    const DUPLICATE: Claim = Claim::Duplicate(Layer::Receipt);

    #[rstest]
    #[case(Claim::Publish, Confirm::Received, false, Outcome::Accepted)]
    #[case(Claim::Publish, Confirm::Received, true, Outcome::Accepted)]
    #[case(Claim::Publish, missing(), true, Outcome::Accepted)]
    #[case(Claim::Publish, missing(), false, Outcome::Unavailable)]
    #[case(Claim::Publish, Confirm::NotAsked, false, Outcome::Unavailable)]
    #[case(Claim::Conflict, Confirm::Received, false, Outcome::Conflict)]
    #[case(Claim::Conflict, Confirm::Received, true, Outcome::Conflict)]
    #[case(Claim::Conflict, missing(), true, Outcome::Conflict)]
    #[case(Claim::Conflict, missing(), false, Outcome::Unavailable)]
    #[case(Claim::Conflict, Confirm::NotAsked, false, Outcome::Unavailable)]
    #[case(
        DUPLICATE,
        Confirm::NotAsked,
        false,
        Outcome::Duplicate(Layer::Receipt)
    )]
    #[case(DUPLICATE, Confirm::NotAsked, true, Outcome::Duplicate(Layer::Receipt))]
    fn only_a_confirm_or_a_spool_row_makes_an_event_safe(
        #[case] claim: Claim,
        #[case] confirm: Confirm,
        #[case] is_spooled: bool,
        #[case] expected: Outcome,
    ) {
        assert_eq!(outcome(claim, &confirm, is_spooled), expected);
    }

    #[test]
    fn a_confirm_reaches_the_event_that_was_published() {
        let events: Vec<AcceptedEvent> = ["a", "b", "c", "d"].map(event).into();
        let events: Vec<&AcceptedEvent> = events.iter().collect();
        let claims = [DUPLICATE, Claim::Publish, Claim::Conflict, Claim::Publish];
        let mut items = items(&events, claims.into_iter());
        let published: Vec<String> = to_publish(&items)
            .iter()
            .map(|event| event.webhook_id.clone())
            .collect();
        assert_eq!(published, ["b", &events[2].conflict_id("c"), "d"]);

        note_confirms(
            &mut items,
            vec![Ok(()), Err(PublishError::Nack), Err(PublishError::Nack)],
        );
        let unconfirmed: Vec<&str> = items
            .iter()
            .filter(|item| item.unconfirmed().is_some())
            .map(|item| item.published().webhook_id.as_str())
            .collect();
        assert_eq!(unconfirmed, &published[1..]);
        let outcomes: Vec<Outcome> = items.iter().map(|item| item.outcome(false)).collect();
        assert_eq!(
            outcomes,
            [
                Outcome::Duplicate(Layer::Receipt),
                Outcome::Accepted,
                Outcome::Unavailable,
                Outcome::Unavailable
            ]
        );
    }

    fn missing() -> Confirm {
        Confirm::Missing(PublishError::Deadline)
    }

    fn event(webhook_id: &str) -> AcceptedEvent {
        AcceptedEvent {
            webhook_id: webhook_id.to_owned(),
            event_type: EventType::unknown(),
            body: "{}".into(),
            body_sha256: body_sha256(b"{}"),
            received_at: chrono::DateTime::UNIX_EPOCH,
            attempted_at: None,
            secret_name: None,
            secret_companies: None,
        }
    }
}
