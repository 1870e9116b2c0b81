-- An erased event leaves a row without its body, by which a repetition is still recognised. A nullable
-- column without a default: no row is rewritten.
alter table events add column erased_at timestamptz;

comment on column events.erased_at is
    'When an operator erased it: its body, ids and company are gone, its event_type is erased, and what is left recognises a repetition.';
