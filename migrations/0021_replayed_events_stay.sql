-- Both functions as before (0016), but an event that was replayed stays as long after the replay as others
-- do after their receipt. The row that the replay wrote is as young, and is expected to have its event.
do $migration$
begin
    execute format($create$
create or replace function sweep_events(older_than timestamptz, batch integer) returns bigint
language plpgsql security definer set search_path = %1$I, pg_temp as $function$
declare
    claimed text[];
begin
    if older_than > now() - interval '30 days' then
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
    if older_than > now() - interval '30 days' then
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
