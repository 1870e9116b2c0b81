-- As the vendors, of export jobs.
insert into export_jobs (id, company_id, status, number_of_items, expires_in, created_by, created_at,
                         last_updated_at, sort_key, webhook_id, stored_at)
select resource_id, company_id, data ->> 'status', (data ->> 'numberOfItems')::bigint,
       (data ->> 'expiresIn')::bigint, data ->> 'createdBy', (data ->> 'createdAt')::timestamptz,
       received_at,
       int8send((extract(epoch from received_at) * 1000000000)::bigint) || webhook_id::bytea,
       webhook_id, stored_at
  from events, lateral (select payload -> 'data' as data) body
 where received_at >= $1 and received_at < $2 and event_type like 'v1.export-job.%' and problem is null
 order by received_at desc
    on conflict (id) do nothing
