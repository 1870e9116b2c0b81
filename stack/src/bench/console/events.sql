-- The events $1 to $2 of $3, in the order of time, of the thirty days before $4. Of ten, six are states of
-- vendors, three of export jobs, and one is of another type. There are a tenth as many vendors as events, and
-- as many export jobs, so that a vendor has six states and a job three. Every fifth resource is of the
-- company 0. Every $5th event has a problem of one of the kinds $6; every 11th of those was dismissed.
-- $7 and $8 are the bodies of the samples. The last secret came when three fifths of the time were over.
insert into events (webhook_id, event_id, event_type, company_id, resource_id, attempted_at, received_at,
                    stored_at, payload, raw, body_sha256, secret_name, problem, problem_kind, dismissed_at,
                    dismissed_by, dismissal_note)
with numbers as (
    select n, n / 10 as ten, n % 10 as digit, n / $5 as letter, n % $5 = $5 / 2 as is_dead,
           $4 - interval '30 days' + interval '30 days' * (n::float8 / $3) as received_at
      from generate_series($1::bigint, $2::bigint) n),
families as (
    select *,
           case when digit < 6 then 'vendor' when digit < 9 then 'export-job' else 'other' end as family,
           case when digit < 6 then ten * 6 + digit when digit < 9 then ten * 3 + digit - 6 else ten end
           as position
      from numbers),
resources as (
    select *, position % ($3 / 10) as resource, position / ($3 / 10) as state,
           md5(family || position % ($3 / 10))::uuid::text as resource_id,
           md5('event' || n)::uuid::text as event_id,
           'msg_' || left(translate(encode(sha256(n::text::bytea), 'base64'), '+/=', 'xyz'), 27)
           as webhook_id,
           to_char(received_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as at
      from families),
typed as (
    select *,
           'b5fdaec1-1b43-4b62-996a-'
           || lpad(to_hex(case when resource % 5 = 0 then 0 else 1 + resource % 499 end), 12, '0')
           as company_id,
           case family
               when 'vendor' then case state when 0 then 'v1.vendor.created' else 'v1.vendor.updated' end
               when 'export-job' then
                   case state when 0 then 'v1.export-job.created' else 'v1.export-job.updated' end
               else (array['v1.card.created', 'v1.card.frozen', 'v1.expense.created', 'v1.tag.updated'])
                    [1 + resource % 4]
           end as event_type
      from resources),
bodies as (
    select *,
           case family
               when 'vendor' then $7::jsonb || jsonb_build_object(
                   'eventId', event_id, 'eventType', event_type,
                   'data', $7::jsonb -> 'data' || jsonb_build_object(
                       'id', resource_id, 'companyId', company_id, 'updatedAt', at,
                       'name', 'Vendor ' || resource || repeat(' Ltd', (state % 3)::int),
                       'state', (array['DRAFT', 'DRAFT', 'ACTIVE', 'ACTIVE', 'ACTIVE', 'ARCHIVED'])
                                [1 + least(state, 5)]))
               when 'export-job' then $8::jsonb || jsonb_build_object(
                   'eventId', event_id, 'eventType', event_type,
                   'data', $8::jsonb -> 'data' || jsonb_build_object(
                       'id', resource_id, 'companyId', company_id, 'lastUpdatedAt', at,
                       'numberOfItems', resource % 100,
                       'status', (array['pending', 'in_progress', 'completed'])[1 + least(state, 2)]))
               else jsonb_build_object(
                   'eventId', event_id, 'eventType', event_type,
                   'data', jsonb_build_object('id', resource_id, 'companyId', company_id, 'amount', 12.50))
           end as payload
      from typed)
select webhook_id, event_id, event_type, company_id, resource_id,
       date_trunc('second', received_at), received_at,
       received_at + interval '1 millisecond' * (3 + 30 * power(random(), 6)),
       payload, case when is_dead then payload::text::bytea end, sha256(n::text::bytea),
       case when n < $3 * 3 / 5 then 'retired' when n % 50 = 0 then 'previous' else 'current' end,
       case when is_dead then
           'a problem of the kind ' || kind
           || (array['', ': expected a string, found null at line 1 column 17', ': `data.name`',
                     ': `data.companyId`', ' (3 times)'])[1 + letter % 7 % 5]
       end,
       case when is_dead then kind end,
       case when is_dead and letter % 11 = 0 then received_at + interval '1 hour' end,
       case when is_dead and letter % 11 = 0 then 'ada' end,
       case when is_dead and letter % 11 = 0 then 'a test of the sender' end
  from bodies
 cross join lateral (
     select ($6::text[])[1 + (letter + letter / 10) % cardinality($6::text[])] as kind) of_one
