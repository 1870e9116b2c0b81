-- Only where events are to be swept (EVENT_RETENTION): by these functions, which have their owner's
-- rights, leave young events and dead letters alone, and leave a row in sweeps.
grant execute on function
    sweep_events(timestamptz, integer), sweep_events(timestamptz, timestamptz, integer)
   to :"other_worker";
