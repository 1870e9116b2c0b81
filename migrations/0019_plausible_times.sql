-- Programs compute with these times, and cannot with an infinite one. Services write none that is not
-- of these years: a message's times are taken only from them. Where a time is null, a check passes. The
-- rows that are there are not scanned, so that the lock is short.
alter table events
    add constraint events_have_plausible_times
    check (received_at >= '1970-01-01 00:00:00+00' and received_at < '10000-01-01 00:00:00+00'
           and attempted_at >= '1970-01-01 00:00:00+00' and attempted_at < '10000-01-01 00:00:00+00')
    not valid;
alter table webhook_spool
    add constraint webhook_spool_has_plausible_times
    check (received_at >= '1970-01-01 00:00:00+00' and received_at < '10000-01-01 00:00:00+00'
           and attempted_at >= '1970-01-01 00:00:00+00' and attempted_at < '10000-01-01 00:00:00+00'
           and due_at >= '1970-01-01 00:00:00+00' and due_at < '10000-01-01 00:00:00+00')
    not valid;
alter table webhook_receipts
    add constraint webhook_receipts_have_plausible_times
    check (received_at >= '1970-01-01 00:00:00+00' and received_at < '10000-01-01 00:00:00+00'
           and published_at >= '1970-01-01 00:00:00+00' and published_at < '10000-01-01 00:00:00+00')
    not valid;
