create table peer_events (
    webhook_id text primary key,
    event_type text not null,
    payload jsonb not null,
    stored_at timestamptz not null default now()
);
create index on peer_events (stored_at);
create table peer_vendors (
    id text primary key,
    company_id text,
    name text,
    state text,
    updated_at timestamptz,
    webhook_id text not null
);
