-- The companies that the secret speaks for which verified an event, where the secret is tied to some.
-- Nullable columns without defaults: no row is rewritten, and services of older versions, which name
-- their columns, go on.
alter table webhook_spool add column secret_companies text[];
alter table events add column secret_companies text[];

comment on column webhook_spool.secret_companies is
    'The companies that the secret speaks for; null where it is not tied to any.';
comment on column events.secret_companies is
    'The companies that the secret speaks for which verified it; null where it is not tied to any. A replay judges by them again.';
