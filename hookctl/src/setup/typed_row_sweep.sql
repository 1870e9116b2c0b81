-- Only where typed rows are to be swept (TYPED_ROW_RETENTION): by a function as those for events, which
-- leaves rows alone that are young or whose resource has an event, and leaves a row in sweeps. Its indexes
-- are in sweep_indexes.rs.
grant execute on function sweep_typed_rows(text, timestamptz, timestamptz, integer)
   to :"other_worker";
