create table export_jobs (
    id                       text primary key,
    company_id               text not null,
    status                   text not null,
    number_of_items          bigint,
    expires_in               bigint,
    is_interactive           boolean,
    vendor_based_bookkeeping boolean,
    failure_reason           text,
    failure_reason_type      text,
    created_by               text,
    created_at               timestamptz,
    started_at               timestamptz,
    completed_at             timestamptz,
    expired_at               timestamptz,
    last_updated_at          timestamptz,
    sort_key                 bytea not null,
    webhook_id               text  not null,
    stored_at                timestamptz not null default now()
);

comment on table export_jobs is 'The newest known state of each Pleo export job.';
comment on column export_jobs.status is
    'pending, in_progress, failed, completed, completed_with_errors, or a value that Pleo added since.';
comment on column export_jobs.expires_in is 'Seconds after the last action until the job expires.';
comment on column export_jobs.created_at is 'To the microsecond; the exact text is in events.payload.';
comment on column export_jobs.sort_key is
    'Which state is newer: 8 bytes of last_updated_at or created_at in nanoseconds, 1 byte of the status''s rank, then webhook_id. The greater one wins.';
comment on column export_jobs.webhook_id is 'The event that set this state, in events.';
