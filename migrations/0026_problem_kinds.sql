-- The kind of an event's problem, beside its text, so that no program has to recognise a text. A column without
-- a default changes no row, so the exclusive lock that it needs is held only for a moment. 0027 fills it in.
alter table events add column problem_kind text;

comment on column events.problem_kind is
    'The kind of problem, or of replayed_problem once a replay has cleared it. Null for an event without any, and for one that a worker of an older version has stored since this column exists, until hookctl setup runs again.';

create or replace view dead_letters as
select webhook_id, event_type, company_id, resource_id, problem, attempts, received_at, stored_at,
       payload, raw, problem_kind
  from events
 where problem is not null and dismissed_at is null;

create or replace view dismissed_dead_letters as
select webhook_id, event_type, company_id, resource_id, problem, attempts, received_at, stored_at,
       payload, raw, dismissed_at, dismissed_by, dismissal_note, problem_kind
  from events
 where problem is not null and dismissed_at is not null;

-- Only this function recognises a kind by the words of a problem: for what versions without the column have
-- stored. Postgres' own messages are all that begins otherwise.
create function kind_of_old_problem(problem text) returns text
language sql immutable parallel safe
as $$
select case
           when starts_with(problem, 'the body is ')
             or starts_with(problem, 'the body has ')
             or starts_with(problem, '`eventType` is ') then 'not-an-event'
           when starts_with(problem, '`data` is not that of the')
             or starts_with(problem, 'the event has no `data`') then 'wrong-data'
           when starts_with(problem, 'stopped the worker') then 'stopped-worker'
           when starts_with(problem, 'another body was accepted under this webhook id before') then 'conflict'
           when starts_with(problem, 'the message had no id') then 'unidentified'
           when starts_with(problem, 'signed with a secret that is distrusted') then 'distrusted'
           when starts_with(problem, 'the secret that verified it does not speak for its company')
               then 'foreign-company'
           when starts_with(problem, 'its resource belongs to another company') then 'company-change'
           when starts_with(problem, 'it came by the queue of') then 'misrouted'
           when problem is not null then 'refused'
       end
$$;

comment on function kind_of_old_problem is
    'The kind of a problem that a version without events.problem_kind has stored.';
