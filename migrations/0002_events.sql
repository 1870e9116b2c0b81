create table events (
    webhook_id   text primary key,
    event_id     text,
    event_type   text        not null,
    company_id   text,
    resource_id  text,
    attempted_at timestamptz,
    received_at  timestamptz not null,
    stored_at    timestamptz not null default now(),
    payload      jsonb,
    raw          bytea,
    body_sha256  bytea       not null,
    secret_name  text,
    problem      text,
    attempts     integer     not null default 1,
    constraint events_keep_the_body check (payload is not null or raw is not null)
);

comment on table events is 'Every event that was ever accepted, once.';
comment on column events.webhook_id is
    'The sender''s id of the webhook. An id with #conflict- in it is a second body that came under the same id.';
comment on column events.event_id is 'Pleo''s eventId, where the body has one.';
comment on column events.event_type is 'The canonical type, such as v1.export-job.created; unknown where the body names none.';
comment on column events.company_id is 'data.companyId, where the body has one.';
comment on column events.resource_id is 'data.id, where the body has one.';
comment on column events.attempted_at is 'When the sender made the attempt that was accepted.';
comment on column events.received_at is 'When ingest received it.';
comment on column events.stored_at is 'When a worker stored it.';
comment on column events.payload is 'The whole body as JSON; null where JSON or Postgres cannot hold it.';
comment on column events.raw is 'The body''s bytes, only where payload is null.';
comment on column events.body_sha256 is 'SHA-256 of the body as it was received.';
comment on column events.secret_name is 'The configured name of the secret that verified it.';
comment on column events.problem is 'Why it has no row in its typed table although it should; null for a healthy event.';
comment on column events.attempts is 'How many attempts storing it took.';

create index events_received_at on events (received_at);
create index events_problem on events (stored_at) where problem is not null;
