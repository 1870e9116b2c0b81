-- Deletes old rows of the typed tables, for an account that has no right to delete one. A row goes only
-- once no event of its resource is in events, dead letters included: rebuild computes rows from events,
-- and so never writes one again that was swept.

-- Which table was swept. Rows of before, and those of sweep_events, are about events.
alter table sweeps add column table_name text not null default 'events';
alter table sweeps drop constraint sweeps_pkey;
alter table sweeps add primary key (swept_on, account, table_name);

comment on table sweeps is
    'Deletions of old rows by sweep_events and sweep_typed_rows: one row for each day, account and table.';
comment on column sweeps.account is 'The role in Postgres that logged in and called the function.';
comment on column sweeps.swept is 'How many rows it deleted on that day.';
comment on column sweeps.table_name is 'The table that they were in.';

do $migration$
begin
    execute format($create$
-- Last, as several replicas that sweep at once wait for one another's row until they commit.
create function note_sweep(swept_table text, older_than timestamptz, swept bigint) returns void
language sql set search_path = %1$I, pg_temp as $function$
    insert into sweeps (swept_on, account, table_name, older_than, swept, last_at)
    select (now() at time zone 'UTC')::date, session_user, swept_table, older_than, swept, now()
     where swept > 0
    on conflict (swept_on, account, table_name) do update
       set older_than = greatest(sweeps.older_than, excluded.older_than),
           swept = sweeps.swept + excluded.swept,
           last_at = excluded.last_at
$function$;

-- As sweep_events calls it.
create or replace function note_sweep(older_than timestamptz, swept integer) returns void
language sql set search_path = %1$I, pg_temp as $function$
    select note_sweep('events', older_than, swept)
$function$;

-- Whether rows of the table can be found by the column, and read in its order.
create function is_indexed(in_table text, by_column text) returns boolean
language sql stable set search_path = %1$I, pg_temp as $function$
    select exists (
        select from pg_index i
          join pg_class c on c.oid = i.indrelid
          join pg_namespace n on n.oid = c.relnamespace
          join pg_class own on own.oid = i.indexrelid
          join pg_am am on am.oid = own.relam
          join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
         where n.nspname = current_schema() and c.relname = in_table and a.attname = by_column
           and am.amname = 'btree' and i.indisvalid and i.indpred is null)
$function$;

-- A typed table is known by the columns that each has, so a new family needs no function of its own.
create function is_typed_table(candidate text) returns boolean
language sql stable set search_path = %1$I, pg_temp as $function$
    select count(*) = 5
      from pg_attribute a
      join pg_class c on c.oid = a.attrelid
      join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = current_schema() and c.relname = candidate and c.relkind in ('r', 'p')
       and a.attname in ('id', 'company_id', 'sort_key', 'webhook_id', 'stored_at')
$function$;

create function sweep_typed_rows(
    typed_table text, newer_than timestamptz, older_than timestamptz, batch integer,
    out looked_at bigint, out swept bigint, out reached timestamptz)
language plpgsql security definer set search_path = %1$I, pg_temp as $function$
declare
    old text[];
begin
    if older_than > now() - interval '30 days' then
        raise insufficient_privilege using message = 'typed rows are kept for 30 days at least';
    end if;
    if is_typed_table(typed_table) is not true then
        raise insufficient_privilege using message = 'only typed tables are swept by this function';
    end if;
    -- Without them each call would read whole tables.
    if not (is_indexed('events', 'resource_id') and is_indexed(typed_table, 'stored_at')) then
        raise object_not_in_prerequisite_state
            using message = 'the indexes for this sweep are not there: '
                            'run `hookctl setup` with TYPED_ROW_RETENTION';
    end if;
    -- No time before 1970, which programs cannot compute with if it is infinite.
    execute format($sql$
        with old as materialized (
            select id, stored_at from %%I
             where stored_at >= greatest($1, '1970-01-01 00:00:00+00') and stored_at < $2
             order by stored_at
             limit least($3, 10000)
               for update skip locked)
        select count(*), max(stored_at), array_agg(id) from old
    $sql$, typed_table) into looked_at, reached, old using newer_than, older_than, batch;
    -- In a statement of its own, which sees what was committed before these rows were locked. A worker
    -- adds an event before it locks the row, so either its event is seen here, or it waits and then finds
    -- no row.
    execute format($sql$
        delete from %%I t
         where t.id = any ($1)
           and (select true from events e where e.resource_id = t.id limit 1) is null
    $sql$, typed_table) using old;
    get diagnostics swept = row_count;
    perform note_sweep(typed_table, older_than, swept);
end
$function$
$create$, current_schema());
end
$migration$;

comment on function sweep_typed_rows(text, timestamptz, timestamptz, integer) is
    'Deletes, of the oldest batch rows of a typed table that were stored between newer_than and older_than, those whose resource has no event any more, and says how far it looked.';

revoke all on function
    note_sweep(text, timestamptz, bigint), is_indexed(text, text), is_typed_table(text),
    sweep_typed_rows(text, timestamptz, timestamptz, integer)
  from public;

-- A trigger's function runs with the search path of who inserts, and a schema of theirs in front could
-- have a now() of its own.
alter function operator_actions_sign() set search_path = pg_catalog, pg_temp;
alter function operator_actions_refuse() set search_path = pg_catalog, pg_temp;
