create table webhook_receipts (
    webhook_id   text primary key,
    body_sha256  bytea       not null,
    received_at  timestamptz not null,
    published_at timestamptz
);

comment on table webhook_receipts is
    'What ingest has answered 2xx to: its memory for recognising repeated deliveries. Swept once the event is in events.';
comment on column webhook_receipts.webhook_id is 'The sender''s id of the webhook, stable over its retries.';
comment on column webhook_receipts.body_sha256 is 'SHA-256 of the request body: the same id with another body is a conflict.';
comment on column webhook_receipts.received_at is 'When ingest first received it.';
comment on column webhook_receipts.published_at is
    'When RabbitMQ last confirmed it; null where it went to webhook_spool instead.';

-- For the sweep and the ledger, which read by age. Rows come in that order, so inserts touch only
-- the index's last page.
create index webhook_receipts_received_at on webhook_receipts (received_at);

create table webhook_spool (
    webhook_id   text        not null,
    body_sha256  bytea       not null,
    family       text        not null,
    event_type   text        not null,
    body         bytea       not null,
    received_at  timestamptz not null,
    attempted_at timestamptz,
    secret_name  text,
    has_receipt  boolean     not null,
    attempts     integer     not null default 0,
    claims       integer     not null default 0,
    due_at       timestamptz not null,
    last_error   text,
    spooled_at   timestamptz not null default now(),
    primary key (webhook_id, body_sha256)
);

comment on table webhook_spool is
    'Events on their way to a worker without RabbitMQ: accepted while it was away, or waiting for their next attempt.';
comment on column webhook_spool.family is 'Whose worker takes it: export-job, vendor or other.';
comment on column webhook_spool.body is 'The request body, byte for byte.';
comment on column webhook_spool.has_receipt is 'Whether webhook_receipts has it; a worker adds it where not.';
comment on column webhook_spool.attempts is 'Failed attempts to store it.';
comment on column webhook_spool.claims is 'How often a worker took it and was gone before it had finished.';
comment on column webhook_spool.due_at is 'No worker takes it before this time.';
comment on column webhook_spool.last_error is 'Why it is here.';

create index webhook_spool_due on webhook_spool (family, due_at);

-- For the few rows that have to be handled alone, among what may be the backlog of a long outage.
create index webhook_spool_isolated on webhook_spool (family, due_at) where claims >= 2;
