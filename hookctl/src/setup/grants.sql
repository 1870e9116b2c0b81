-- What the services' accounts may do in Postgres. Names after a colon stand for the accounts, the
-- schema and the database, as in psql.
--
-- Columns are named where a service uses only some. Rows are never a service's to drop, truncate or
-- alter, as it owns no table; only what is written here can be done at all. Which rows of events and
-- webhook_spool a worker's account may touch is in policies.rs beside this file.

-- From nothing, so that what an older version granted and nobody needs any more goes away. Services
-- at work see both at once, when the transaction commits.
revoke all on
    webhook_receipts, webhook_spool, events, export_jobs, vendors,
    dead_letters, dismissed_dead_letters, pending_export_jobs, draft_vendors, latest_events,
    export_jobs_reported_pending, vendors_reported_draft, stored_receipts, unstored_receipts,
    written_off_receipts, operator_actions, replay_jobs, replay_job_letters, replay_runner, sweeps,
    _sqlx_migrations
  from :"ingest", :"export_job_worker", :"vendor_worker", :"other_worker", :"console",
       :"console_operator";
revoke all on function
    sweep_receipts(timestamptz, timestamptz, integer),
    sweep_events(timestamptz, integer), sweep_events(timestamptz, timestamptz, integer),
    sweep_typed_rows(text, timestamptz, timestamptz, integer)
  from :"ingest", :"export_job_worker", :"vendor_worker", :"other_worker", :"console",
       :"console_operator";
revoke all on schema :"schema"
  from :"ingest", :"export_job_worker", :"vendor_worker", :"other_worker", :"console",
       :"console_operator";
-- Databases that come from Postgres 14 or older let everybody create tables.
revoke create on schema :"schema" from public;
-- What everybody has and no service needs: temporary tables, and large objects, which only a superuser
-- can take away. Where somebody keeps large objects, that stays as it is.
revoke temporary on database :"database" from public;
do $$
begin
    if (select rolsuper from pg_roles where rolname = current_user)
       and not exists (select from pg_largeobject_metadata) then
        revoke execute on function
            pg_catalog.lo_creat(integer), pg_catalog.lo_create(oid),
            pg_catalog.lo_from_bytea(oid, bytea)
          from public;
    end if;
end $$;

revoke all on database :"database"
  from :"ingest", :"export_job_worker", :"vendor_worker", :"other_worker", :"console",
       :"console_operator";
grant connect on database :"database"
   to :"ingest", :"export_job_worker", :"vendor_worker", :"other_worker", :"console",
       :"console_operator";
grant usage on schema :"schema"
   to :"ingest", :"export_job_worker", :"vendor_worker", :"other_worker", :"console",
       :"console_operator";

-- Ingest claims ids and notes when they were published.
grant select (webhook_id, body_sha256, published_at),
      insert (webhook_id, body_sha256, received_at, published_at),
      update (published_at)
   on webhook_receipts to :"ingest";
-- It looks ids up here, and can read no event.
grant select (webhook_id, body_sha256) on events to :"ingest";
grant select (webhook_id, body_sha256, family),
      insert (webhook_id, body_sha256, family, event_type, body, received_at, attempted_at,
              secret_name, secret_companies, has_receipt, attempts, claims, due_at, last_error)
   on webhook_spool to :"ingest";

-- Workers store events, whose rows never change again, and compare them with what comes twice. What is
-- there under an id counts as the event only if it is of the worker's family.
grant select (webhook_id, body_sha256, event_type, erased_at),
      insert (webhook_id, event_id, event_type, company_id, resource_id, attempted_at, received_at,
              payload, raw, body_sha256, secret_name, secret_companies, problem,
              problem_kind, attempts)
   on events to :"export_job_worker", :"vendor_worker", :"other_worker";
-- Each writes the newest states of its own family.
grant select, insert, update on export_jobs to :"export_job_worker";
grant select, insert, update on vendors to :"vendor_worker";
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

-- One worker keeps house: it looks at the ledger and the dead letters, and sweeps receipts by a function
-- with its owner's rights, which takes neither a young one nor one whose event is not stored. It sees no
-- hash and writes nothing off.
grant select (webhook_id, received_at) on webhook_receipts to :"other_worker";
grant execute on function sweep_receipts(timestamptz, timestamptz, integer) to :"other_worker";
grant select on unstored_receipts to :"other_worker";
grant select (event_type) on dead_letters to :"other_worker";

-- The console shows everything but the bodies that are still in the spool, and changes nothing. Its
-- account cannot log in unless it was given a password.
grant select
   on events, export_jobs, vendors, dead_letters, dismissed_dead_letters, unstored_receipts,
      written_off_receipts, operator_actions, replay_jobs, replay_job_letters
   to :"console";
grant select (webhook_id, received_at, published_at, written_off_at) on webhook_receipts to :"console";
grant select (webhook_id, family, event_type, received_at, attempts, claims, due_at, last_error, spooled_at)
   on webhook_spool to :"console";

-- With this account operators change dead letters in the console. Each change is recorded with the account,
-- which Postgres knows, and the person. For dismissing and restoring:
grant select (webhook_id, event_type, company_id, resource_id, problem, problem_kind, attempts, received_at,
              stored_at, dismissed_at, dismissed_by, dismissal_note),
      update (dismissed_at, dismissed_by, dismissal_note)
   on events to :"console_operator";
-- For replaying: it reads their bodies, clears their problems, and writes the newest states. It sees no other
-- events (policies.rs).
grant select (event_id, attempted_at, payload, raw, body_sha256, secret_name, secret_companies,
              replayed_at, replayed_problem),
      update (problem, replayed_at, replayed_problem, event_id, event_type, company_id, resource_id,
              payload, raw, secret_companies)
   on events to :"console_operator";
grant select, insert, update on export_jobs, vendors to :"console_operator";
grant insert (run, person, action, filter, changed, changes) on operator_actions to :"console_operator";
-- For replays as background jobs. A trigger lets it delete only jobs that ended 30 days ago.
grant select,
      insert (person, filter, letters, set_sha256, rate),
      update (tries, error, stop_requested_at, stop_requested_by, ended, ended_at),
      delete
   on replay_jobs to :"console_operator";
grant select, insert (job, webhook_id, position), update (outcome, reason, done_at)
   on replay_job_letters to :"console_operator";
-- The console that runs the jobs holds a lease. A trigger decides how long it counts.
grant select, update (holder) on replay_runner to :"console_operator";
