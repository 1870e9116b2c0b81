-- The time of a state is now the latest of all the times that the state gives. Before, it was the time
-- of the last update, or of the creation where there was none, so that a deletion that left updated_at
-- as it was could lose against an older event.
--
-- This computes the stored keys anew, so that they compare with those of the new rule. It touches only
-- rows whose latest time is another one. The columns hold microseconds; the digits below come from the
-- event's text, if the event is still there. Keys never get smaller: a worker of an older version that
-- still runs writes keys of the old rule, which are at most as great.
update vendors v
   set sort_key = fixed.sort_key
  from (select v.id, int8send(latest.ns # (-9223372036854775808)::bigint) || substr(v.sort_key, 9) as sort_key
          from vendors v
          left join events e on e.webhook_id = v.webhook_id
         cross join lateral (select coalesce(e.payload->'data', e.payload->'payload'->'data') as data) body
         cross join lateral (
               select greatest(least(max(
                          trunc(extract(epoch from at)::numeric * 1000000) * 1000
                          + rpad(coalesce(substring(written from '\.\d{6}(\d{1,3})'), ''), 3, '0')::numeric),
                          9223372036854775807), -9223372036854775808)::bigint as ns
                 from (values (v.created_at, data->>'createdAt'),
                              (v.updated_at, data->>'updatedAt'),
                              (v.deleted_at, data->>'deletedAt')) as times (at, written)
                where at is not null) latest
         where v.deleted_at >= coalesce(v.updated_at, v.created_at, '-infinity')
            or v.created_at > v.updated_at) fixed
 where v.id = fixed.id and v.sort_key < fixed.sort_key;

update export_jobs j
   set sort_key = fixed.sort_key
  from (select j.id, int8send(latest.ns # (-9223372036854775808)::bigint) || substr(j.sort_key, 9) as sort_key
          from export_jobs j
          left join events e on e.webhook_id = j.webhook_id
         cross join lateral (select coalesce(e.payload->'data', e.payload->'payload'->'data') as data) body
         cross join lateral (
               select greatest(least(max(
                          trunc(extract(epoch from at)::numeric * 1000000) * 1000
                          + rpad(coalesce(substring(written from '\.\d{6}(\d{1,3})'), ''), 3, '0')::numeric),
                          9223372036854775807), -9223372036854775808)::bigint as ns
                 from (values (j.created_at, data->>'createdAt'),
                              (j.started_at, data->>'startedAt'),
                              (j.completed_at, data->>'completedAt'),
                              (j.expired_at, data->>'expiredAt'),
                              (j.last_updated_at, data->>'lastUpdatedAt')) as times (at, written)
                where at is not null) latest
         where greatest(j.started_at, j.completed_at, j.expired_at)
               >= coalesce(j.last_updated_at, j.created_at, '-infinity')
            or j.created_at > j.last_updated_at) fixed
 where j.id = fixed.id and j.sort_key < fixed.sort_key;

comment on column vendors.sort_key is
    'Which state is newer: 8 bytes of the latest of its times in nanoseconds, 1 byte of the state''s rank, then webhook_id. The greater one wins.';
comment on column export_jobs.sort_key is
    'Which state is newer: 8 bytes of the latest of its times in nanoseconds, 1 byte of the status''s rank, then webhook_id. The greater one wins.';
