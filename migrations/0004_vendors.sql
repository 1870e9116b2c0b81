create table vendors (
    id                      text primary key,
    company_id              text not null,
    name                    text not null,
    state                   text not null,
    country                 text,
    code                    text,
    external_id             text,
    accounting_system       text,
    registration_number     text,
    tax_registration_number text,
    default_currency        text,
    created_by              text,
    created_at              timestamptz,
    updated_at              timestamptz,
    deleted_at              timestamptz,
    sort_key                bytea not null,
    webhook_id              text  not null,
    stored_at               timestamptz not null default now()
);

comment on table vendors is 'The newest known state of each Pleo vendor.';
comment on column vendors.state is
    'DRAFT (to be created in the accounting system), ACTIVE, ARCHIVED, or a value that Pleo added since.';
comment on column vendors.country is 'ISO 3166 alpha-2, or UNDEFINED.';
comment on column vendors.default_currency is 'ISO 4217.';
comment on column vendors.created_at is 'To the microsecond; the exact text is in events.payload.';
comment on column vendors.sort_key is
    'Which state is newer: 8 bytes of updated_at or created_at in nanoseconds, 1 byte of the state''s rank, then webhook_id. The greater one wins.';
comment on column vendors.webhook_id is 'The event that set this state, in events.';
