create view dead_letters as
select webhook_id, event_type, company_id, resource_id, problem, attempts, received_at, stored_at,
       payload, raw
  from events
 where problem is not null;

comment on view dead_letters is 'Events that were stored with a problem and have no row in their typed table.';

create view pending_export_jobs as
select id, company_id, number_of_items, created_at,
       coalesce(last_updated_at, created_at) + make_interval(secs => least(greatest(expires_in, 0), 3153600000)) as expires_at,
       webhook_id
  from export_jobs
 where status = 'pending' and expired_at is null;

comment on view pending_export_jobs is 'Export jobs that nobody has picked up, with the time at which they expire.';

create view draft_vendors as
select company_id, id, name, country, default_currency, created_at, webhook_id
  from vendors
 where state = 'DRAFT' and deleted_at is null;

comment on view draft_vendors is 'Vendors that still have to be created in the accounting system.';

create view latest_events as
select webhook_id, event_type, company_id, resource_id, received_at, stored_at,
       stored_at - received_at as lag, problem
  from events
 order by received_at desc
 limit 100;

comment on view latest_events is 'The last hundred events received, with the time from receipt to this database.';

create view unstored_receipts as
select r.webhook_id, r.received_at, r.published_at, now() - r.received_at as age
  from webhook_receipts r
 where not exists (select from events e where e.webhook_id = r.webhook_id)
   and not exists (select from webhook_spool s where s.webhook_id = r.webhook_id);

comment on view unstored_receipts is
    'The ledger: what was accepted and is neither stored nor spooled, and therefore must be in RabbitMQ.';
