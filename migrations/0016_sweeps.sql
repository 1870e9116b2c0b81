-- Who swept events, and how many: the one deletion that a service's account can make. One row for each
-- day and account, so that it grows by little; a sweep that deleted nothing leaves none.
create table sweeps (
    swept_on   date        not null,
    account    text        not null,
    older_than timestamptz not null,
    swept      bigint      not null,
    last_at    timestamptz not null,
    primary key (swept_on, account)
);

comment on table sweeps is 'Deletions of old events by sweep_events: one row for each day and account.';
comment on column sweeps.swept_on is 'The day in UTC.';
comment on column sweeps.account is 'The role in Postgres that logged in and called sweep_events.';
comment on column sweeps.older_than is 'The latest time before which that account deleted on that day.';
comment on column sweeps.swept is 'How many events it deleted on that day.';
comment on column sweeps.last_at is 'When it last deleted some.';

-- Both functions as before (0007, 0012), with a note at the end. The account is that of the session: the
-- functions have their owner's rights, and a session cannot change its own name.
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
    perform note_sweep(older_than, cardinality(claimed));
end
$function$;

-- Last, as several replicas that sweep at once wait for one another's row until they commit.
create function note_sweep(older_than timestamptz, swept integer) returns void
language sql set search_path = %1$I, pg_temp as $function$
    insert into sweeps (swept_on, account, older_than, swept, last_at)
    select (now() at time zone 'UTC')::date, session_user, older_than, swept, now()
     where swept > 0
    on conflict (swept_on, account) do update
       set older_than = greatest(sweeps.older_than, excluded.older_than),
           swept = sweeps.swept + excluded.swept,
           last_at = excluded.last_at
$function$
$create$, current_schema());
end
$migration$;

revoke all on function note_sweep(timestamptz, integer) from public;
