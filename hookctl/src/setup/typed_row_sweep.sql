-- Only where typed rows are to be swept (TYPED_ROW_RETENTION): by a function as those for events, which
-- leaves rows alone that are young or whose resource has an event, and leaves a row in sweeps.
--
-- Its indexes cost each event a little, so they are only here. Inserts wait while they are made; where a
-- table is large, make them before that, concurrently (docs/retention.md).
do $$
declare
    missing record;
begin
    for missing in
        select in_table, by_column
          from (values ('events', 'resource_id'), ('export_jobs', 'stored_at'), ('vendors', 'stored_at'))
               as needed (in_table, by_column)
         where not is_indexed(in_table, by_column)
    loop
        execute format('create index on %I (%I)', missing.in_table, missing.by_column);
    end loop;
end $$;
grant execute on function sweep_typed_rows(text, timestamptz, timestamptz, integer)
   to :"other_worker";
