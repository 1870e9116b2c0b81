-- Nullable columns without defaults: no row is rewritten, and workers of older versions, which name
-- their columns, store on. The index events_problem serves open and dismissed ones alike: both are
-- few beside the healthy events.
alter table events
    add column dismissed_at     timestamptz,
    add column dismissed_by     text,
    add column dismissal_note   text,
    add column replayed_at      timestamptz,
    add column replayed_problem text;

comment on column events.raw is
    'The body''s bytes, where payload is null and for every event with a problem, so that a replay reads what was sent.';
comment on column events.dismissed_at is
    'When somebody decided that a dead letter needs nothing more; null for the open ones.';
comment on column events.dismissed_by is 'The role in Postgres that dismissed it.';
comment on column events.dismissal_note is 'Why it was dismissed.';
comment on column events.replayed_at is 'When a replay got a dead letter over its problem.';
comment on column events.replayed_problem is 'The problem that it had until then.';

create or replace view dead_letters as
select webhook_id, event_type, company_id, resource_id, problem, attempts, received_at, stored_at,
       payload, raw
  from events
 where problem is not null and dismissed_at is null;

comment on view dead_letters is
    'Events that were stored with a problem, have no row in their typed table and were not dismissed.';

create view dismissed_dead_letters as
select webhook_id, event_type, company_id, resource_id, problem, attempts, received_at, stored_at,
       payload, raw, dismissed_at, dismissed_by, dismissal_note
  from events
 where problem is not null and dismissed_at is not null;

comment on view dismissed_dead_letters is 'Dead letters that somebody dismissed, with the reason.';
