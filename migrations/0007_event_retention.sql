-- What deletes old events, for an account that has no right to delete one: never a young one, never a
-- dead letter.
--
-- An event is swept only if its id can be claimed as ingest claims one, by inserting its receipt. So
-- a repetition that is on its way keeps its event, and one that comes now waits for the end of this
-- and is then a new event. Whoever has a receipt is left for a later sweep.
--
-- A function with its owner's rights must not look names up where its caller says, so the schema is
-- written into it.
do $migration$
begin
    execute format($create$
create function sweep_events(older_than timestamptz, batch integer) returns bigint
language plpgsql security definer set search_path = %I, pg_temp as $function$
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
    return coalesce(cardinality(claimed), 0);
end
$function$
$create$, current_schema());
end
$migration$;

comment on function sweep_events is
    'Deletes at most batch events that were received before older_than, the oldest ones, and says how many. Dead letters stay, as do the typed tables.';

revoke all on function sweep_events from public;
