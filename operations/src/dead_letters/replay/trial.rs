//! What a trial would have stored by now. Each of its batches is taken back, so the tables do not show the
//! next one what a run would have left there.

use std::collections::HashMap;

use shared::Family;
use worker::{
    families::{SortKey, Typed},
    record::Record,
};

use crate::typed_row::key;

/// The newest state of each resource. Empty in a run, whose tables show it.
#[derive(Debug, Default)]
pub struct Trial(HashMap<(Family, String), State>);

#[derive(Debug)]
struct State {
    company_id: String,
    sort_key: SortKey,
}

impl Trial {
    /// Whether the record's resource would be another company's by now.
    pub fn makes_a_stranger(&self, record: &Record) -> bool {
        self.find(record)
            .is_some_and(|(state, typed)| state.company_id != typed.company_id())
    }

    /// Whether a newer state of its resource would be there.
    pub fn has_newer(&self, record: &Record) -> bool {
        self.find(record)
            .is_some_and(|(state, typed)| state.sort_key > *key(typed).1)
    }

    fn find<'a>(&'a self, record: &'a Record) -> Option<(&'a State, &'a Typed)> {
        let typed = record.typed.as_ref()?;
        let place = (record.event_type.family(), typed.id().to_owned());
        Some((self.0.get(&place)?, typed))
    }

    /// Notes what a batch would have stored.
    pub fn add(&mut self, records: impl IntoIterator<Item = Record>) {
        for record in records {
            let Some(typed) = &record.typed else { continue };
            let (id, sort_key, _) = key(typed);
            let state = self
                .0
                .entry((record.event_type.family(), id.to_owned()))
                .or_insert_with(|| State {
                    company_id: typed.company_id().to_owned(),
                    sort_key: sort_key.clone(),
                });
            if state.sort_key < *sort_key {
                state.sort_key = sort_key.clone();
            }
        }
    }
}
