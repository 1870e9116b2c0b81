-- A receipt counts as stored only where an event of its body is, and other-worker deletes receipts only
-- through a function that looks for itself. Until now any row under the receipt's id hid it from the
-- ledger, whoever had put it there, and other-worker could delete every receipt.

-- The id of a second body, as workers give it (shared/src/message.rs).
create function conflict_id(taken text, body_sha256 bytea) returns text
language sql immutable parallel safe
as $$ select taken || '#conflict-' || left(encode(body_sha256, 'hex'), 16) $$;

comment on function conflict_id is 'The id under which a second body is kept whose own id was taken.';

-- The id that was taken, of a second body's; any other id as it is.
create function taken_id(webhook_id text) returns text
language sql immutable parallel safe
as $$ select regexp_replace(webhook_id, '#conflict-[0-9a-f]{16}$', '') $$;

comment on function taken_id is 'The id that was taken when a second body was kept under this one.';

-- Who may read a view has to be able to call what it calls, whatever this database's default is.
grant execute on function conflict_id, taken_id to public;

-- The definition of stored: an event of this body under this id, or, where that was taken, under the id
-- of a second body. What was erased has kept its hash. Ingest trusts an old receipt by the same rule. The
-- two views below say the opposite once more, in a form that one join answers for whole tables.
create view stored_receipts as
select r.webhook_id
  from webhook_receipts r
 where exists (select from events e
                where e.webhook_id = r.webhook_id and e.body_sha256 = r.body_sha256)
    or exists (select from events e
                where e.webhook_id = conflict_id(r.webhook_id, r.body_sha256)
                  and e.body_sha256 = r.body_sha256);

comment on view stored_receipts is 'Receipts whose event is in events, with the body that was accepted.';

create or replace view unstored_receipts as
select r.webhook_id, r.received_at, r.published_at, now() - r.received_at as age
  from webhook_receipts r
 where (r.written_off_at is null or r.published_at > r.written_off_at)
   and not exists (select from events e
                    where e.webhook_id = r.webhook_id and e.body_sha256 = r.body_sha256)
   and not exists (select from events e
                    where e.webhook_id = conflict_id(r.webhook_id, r.body_sha256)
                      and e.body_sha256 = r.body_sha256)
   and not exists (select from webhook_spool s
                    where s.webhook_id = r.webhook_id and s.body_sha256 = r.body_sha256);

create or replace view written_off_receipts as
select r.webhook_id, r.received_at, r.published_at, r.written_off_at, r.written_off_by, r.write_off_reason
  from webhook_receipts r
 where r.written_off_at is not null
   and (r.published_at is null or r.published_at <= r.written_off_at)
   and not exists (select from events e
                    where e.webhook_id = r.webhook_id and e.body_sha256 = r.body_sha256)
   and not exists (select from events e
                    where e.webhook_id = conflict_id(r.webhook_id, r.body_sha256)
                      and e.body_sha256 = r.body_sha256)
   and not exists (select from webhook_spool s
                    where s.webhook_id = r.webhook_id and s.body_sha256 = r.body_sha256);

do $migration$
begin
    execute format($create$
create function sweep_receipts(
    newer_than timestamptz, older_than timestamptz, batch integer,
    out looked_at bigint, out swept bigint, out reached timestamptz)
language plpgsql security definer set search_path = %1$I, pg_temp as $function$
begin
    -- As the least of RECEIPT_RETENTION: senders repeat for up to 75 hours. In hours, as a day of the
    -- session's time zone may have 25 of them.
    if older_than > now() - interval '96 hours' then
        raise insufficient_privilege using message = 'receipts are kept for 4 days at least';
    end if;
    -- The condition is a scalar subquery, which cannot become a join that reads all of events.
    with old as materialized (
        select r.ctid as place, r.webhook_id, r.received_at
          from webhook_receipts r
         where r.received_at >= coalesce(newer_than, '-infinity') and r.received_at < older_than
         order by r.received_at
         limit least(batch, 10000)
           for update of r skip locked),
    stored as materialized (
        select place from old
         where (select true from stored_receipts s where s.webhook_id = old.webhook_id)),
    gone as (
        delete from webhook_receipts r
         where r.ctid = any (array(select place from stored))
        returning 1)
    select (select count(*) from old), (select count(*) from gone),
           (select max(received_at) from old)
      into looked_at, swept, reached;
    perform note_sweep('webhook_receipts', older_than, swept);
end
$function$;

-- Both functions as before (0021), but the least time is in hours as well, and a second body stays as long
-- as the receipt by which it counts as stored: that one may be under the id that was taken.
create or replace function sweep_events(older_than timestamptz, batch integer) returns bigint
language plpgsql security definer set search_path = %1$I, pg_temp as $function$
declare
    claimed text[];
begin
    if older_than > now() - interval '720 hours' then
        raise insufficient_privilege using message = 'events are kept for 30 days at least';
    end if;
    with claims as (
        insert into webhook_receipts (webhook_id, body_sha256, received_at)
        select webhook_id, body_sha256, received_at
          from (select e.webhook_id, e.body_sha256, e.received_at
                  from events e
                 where e.received_at < older_than
                   and (e.replayed_at is null or e.replayed_at < older_than)
                   and not exists (select from dead_letters d where d.webhook_id = e.webhook_id)
                   and not exists (select from webhook_receipts r where r.webhook_id = e.webhook_id)
                   and not exists (select from webhook_receipts r
                                    where r.webhook_id = taken_id(e.webhook_id)
                                      and r.body_sha256 = e.body_sha256)
                 order by e.received_at
                 limit least(batch, 10000)
                   for update of e skip locked) old
         order by webhook_id
        on conflict do nothing
        returning webhook_id)
    select array_agg(webhook_id) into claimed from claims;
    delete from events where webhook_id = any (claimed);
    delete from webhook_receipts where webhook_id = any (claimed);
    perform note_sweep(older_than, cardinality(claimed));
    return coalesce(cardinality(claimed), 0);
end
$function$;

create or replace function sweep_events(
    newer_than timestamptz, older_than timestamptz, batch integer,
    out looked_at bigint, out swept bigint, out reached timestamptz)
language plpgsql security definer set search_path = %1$I, pg_temp as $function$
declare
    claimed text[];
begin
    if older_than > now() - interval '720 hours' then
        raise insufficient_privilege using message = 'events are kept for 30 days at least';
    end if;
    with old as materialized (
        select e.webhook_id, e.body_sha256, e.received_at,
               (e.problem is null or e.dismissed_at is not null)
               and (e.replayed_at is null or e.replayed_at < older_than) as is_healthy
          from events e
         where e.received_at >= coalesce(newer_than, '-infinity') and e.received_at < older_than
         order by e.received_at
         limit least(batch, 10000)
           for update of e skip locked),
    claims as (
        insert into webhook_receipts (webhook_id, body_sha256, received_at)
        select webhook_id, body_sha256, received_at
          from old
         where is_healthy
           and (select true from webhook_receipts r where r.webhook_id = old.webhook_id) is null
           and (select true from webhook_receipts r
                 where r.webhook_id = taken_id(old.webhook_id)
                   and r.body_sha256 = old.body_sha256) is null
         order by webhook_id
        on conflict do nothing
        returning webhook_id)
    select (select count(*) from old), (select max(received_at) from old),
           (select array_agg(webhook_id) from claims)
      into looked_at, reached, claimed;
    delete from events where webhook_id = any (claimed);
    delete from webhook_receipts where webhook_id = any (claimed);
    swept := coalesce(cardinality(claimed), 0);
    perform note_sweep(older_than, cardinality(claimed));
end
$function$;
$create$, current_schema());
end
$migration$;

comment on function sweep_receipts(timestamptz, timestamptz, integer) is
    'Deletes, of the oldest batch receipts of between newer_than and older_than, those whose event is stored with the body that was accepted, and says how far it looked.';
comment on table sweeps is
    'Deletions of old rows by sweep_receipts, sweep_events and sweep_typed_rows: one row for each day, account and table.';

revoke all on function sweep_receipts(timestamptz, timestamptz, integer) from public;
