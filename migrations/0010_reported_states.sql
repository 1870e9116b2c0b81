-- Views whose names say what is known: the last state that an event reported. Pleo documents events for
-- creations only. So no event need ever say that a job was started, finished or expired, or that a
-- vendor was activated or deleted, and a row may stay in these views for ever.
create view export_jobs_reported_pending as
select id, company_id, number_of_items, created_at,
       coalesce(last_updated_at, created_at) as reported_at,
       coalesce(last_updated_at, created_at) + make_interval(secs => least(greatest(expires_in, 0), 3153600000)) as expires_at,
       webhook_id
  from export_jobs
 where status = 'pending' and expired_at is null;

comment on view export_jobs_reported_pending is
    'Export jobs whose last reported state is pending. Whether a job was started, finished or expired since is known only if an event said so; Pleo documents events for creations only. Ask Pleo''s API for its state now.';
comment on column export_jobs_reported_pending.reported_at is
    'The time of the reported state, by Pleo''s clock.';
comment on column export_jobs_reported_pending.expires_at is
    'When the job expires unless something happens to it after reported_at.';
comment on column export_jobs_reported_pending.webhook_id is 'The event that reported the state, in events.';

create view vendors_reported_draft as
select company_id, id, name, country, default_currency, created_at,
       coalesce(updated_at, created_at) as reported_at,
       webhook_id
  from vendors
 where state = 'DRAFT' and deleted_at is null;

comment on view vendors_reported_draft is
    'Vendors whose last reported state is DRAFT, and that no event reported as deleted. Whether a vendor was created in the accounting system, activated or deleted since is known only if an event said so; Pleo documents events for creations only.';
comment on column vendors_reported_draft.reported_at is 'The time of the reported state, by Pleo''s clock.';
comment on column vendors_reported_draft.webhook_id is 'The event that reported the state, in events.';

-- The names of before promised more than is known. They stay for the queries that use them.
create or replace view pending_export_jobs as
select id, company_id, number_of_items, created_at, expires_at, webhook_id
  from export_jobs_reported_pending;

comment on view pending_export_jobs is
    'Deprecated: use export_jobs_reported_pending. It shows the last reported state, which need not be the state now.';

create or replace view draft_vendors as
select company_id, id, name, country, default_currency, created_at, webhook_id
  from vendors_reported_draft;

comment on view draft_vendors is
    'Deprecated: use vendors_reported_draft. It shows the last reported state, which need not be the state now.';

comment on table export_jobs is
    'The newest state of each Pleo export job that an event reported. The job may have gone on since: Pleo documents events for creations only.';
comment on table vendors is
    'The newest state of each Pleo vendor that an event reported. The vendor may have changed since: Pleo documents events for creations only.';
