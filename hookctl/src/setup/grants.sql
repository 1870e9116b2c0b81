-- What the services' accounts may do in Postgres. Names after a colon stand for the accounts, the
-- schema and the database, as in psql.
--
-- Columns are named where a service uses only some. Rows are never a service's to drop, truncate or
-- alter, as it owns no table; only what is written here can be done at all.

-- From nothing, so that what an older version granted and nobody needs any more goes away. Services
-- at work see both at once, when the transaction commits.
revoke all on
    webhook_receipts, webhook_spool, events, export_jobs, vendors,
    dead_letters, dismissed_dead_letters, pending_export_jobs, draft_vendors, latest_events,
    export_jobs_reported_pending, vendors_reported_draft, unstored_receipts,
    written_off_receipts, operator_actions, _sqlx_migrations
  from :"ingest", :"export_job_worker", :"vendor_worker", :"other_worker";
revoke all on function
    sweep_events(timestamptz, integer), sweep_events(timestamptz, timestamptz, integer)
  from :"ingest", :"export_job_worker", :"vendor_worker", :"other_worker";
revoke all on schema :"schema"
  from :"ingest", :"export_job_worker", :"vendor_worker", :"other_worker";
-- Databases that come from Postgres 14 or older let everybody create tables.
revoke create on schema :"schema" from public;

grant connect on database :"database"
   to :"ingest", :"export_job_worker", :"vendor_worker", :"other_worker";
grant usage on schema :"schema"
   to :"ingest", :"export_job_worker", :"vendor_worker", :"other_worker";

-- Ingest claims ids and notes when they were published.
grant select (webhook_id, body_sha256, published_at),
      insert (webhook_id, body_sha256, received_at, published_at),
      update (published_at)
   on webhook_receipts to :"ingest";
-- It looks ids up here, and can read no event.
grant select (webhook_id, body_sha256) on events to :"ingest";
grant select (webhook_id, body_sha256),
      insert (webhook_id, body_sha256, family, event_type, body, received_at, attempted_at,
              secret_name, secret_companies, has_receipt, attempts, claims, due_at, last_error)
   on webhook_spool to :"ingest";

-- Workers store events, whose rows never change again, and compare them with what comes twice.
grant select (webhook_id, body_sha256),
      insert (webhook_id, event_id, event_type, company_id, resource_id, attempted_at, received_at,
              payload, raw, body_sha256, secret_name, secret_companies, problem, attempts)
   on events to :"export_job_worker", :"vendor_worker", :"other_worker";
-- An event's table follows from its type and not from the queue that it came by, so each worker
-- has them all.
grant select, insert, update
   on export_jobs, vendors to :"export_job_worker", :"vendor_worker", :"other_worker";
-- They claim rows, put them off, add to them, and delete what is stored.
grant select,
      insert (webhook_id, body_sha256, family, event_type, body, received_at, attempted_at,
              secret_name, secret_companies, has_receipt, attempts, claims, due_at, last_error),
      update (attempts, claims, due_at, last_error),
      delete
   on webhook_spool to :"export_job_worker", :"vendor_worker", :"other_worker";
-- They add the receipts that ingest could not write.
grant insert (webhook_id, body_sha256, received_at, published_at)
   on webhook_receipts to :"export_job_worker", :"vendor_worker", :"other_worker";

-- One worker keeps house: it sweeps receipts and looks at the ledger and the dead letters. To lock the
-- rows that it is about to delete it needs the right to update some column, and to delete them by their
-- place it needs the right to see that. It sees what was written off, and writes nothing off.
grant select (ctid, webhook_id, received_at, published_at, written_off_at), update (published_at), delete
   on webhook_receipts to :"other_worker";
grant select on unstored_receipts to :"other_worker";
grant select (event_type) on dead_letters to :"other_worker";
-- Old events go only by this function, which leaves young ones and dead letters alone.
grant execute on function
    sweep_events(timestamptz, integer), sweep_events(timestamptz, timestamptz, integer)
   to :"other_worker";
