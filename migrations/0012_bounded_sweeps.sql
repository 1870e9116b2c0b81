-- As sweep_events (0007), for a table of any size: a sweep reads a bounded number of rows. It begins at
-- newer_than instead of among the dead entries of what was swept before, looks at no more than batch
-- events, and says how far it came. The conditions are scalar subqueries, which the planner cannot turn
-- into a join that reads a whole table.
--
-- The older function stays for services of older versions.
do $migration$
begin
    execute format($create$
create function sweep_events(
    newer_than timestamptz, older_than timestamptz, batch integer,
    out looked_at bigint, out swept bigint, out reached timestamptz)
language plpgsql security definer set search_path = %I, pg_temp as $function$
declare
    claimed text[];
begin
    if older_than > now() - interval '30 days' then
        raise insufficient_privilege using message = 'events are kept for 30 days at least';
    end if;
    with old as materialized (
        select e.webhook_id, e.body_sha256, e.received_at,
               e.problem is null or e.dismissed_at is not null as is_healthy
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
end
$function$
$create$, current_schema());
end
$migration$;

comment on function sweep_events(timestamptz, timestamptz, integer) is
    'Deletes, of the oldest batch events that were received between newer_than and older_than, those that nothing needs, and says how far it looked. Dead letters stay, as do the typed tables.';

revoke all on function sweep_events(timestamptz, timestamptz, integer) from public;
