-- A receipt whose event will never come is written off, with a reason, and no longer counts as
-- unstored. Nullable columns without defaults: no row is rewritten, and services of older versions,
-- which name their columns, go on.
alter table webhook_receipts
    add column written_off_at   timestamptz,
    add column written_off_by   text,
    add column write_off_reason text;

comment on column webhook_receipts.received_at is
    'When the transaction that recorded it began, by the clock of the database. Services of versions before this column''s comment wrote their own clock''s time.';
comment on column webhook_receipts.written_off_at is
    'When an operator declared that its event will not come; it counts again if it was published after that.';
comment on column webhook_receipts.written_off_by is 'The role in Postgres that wrote it off.';
comment on column webhook_receipts.write_off_reason is 'Why it was written off.';

create or replace view unstored_receipts as
select r.webhook_id, r.received_at, r.published_at, now() - r.received_at as age
  from webhook_receipts r
 where (r.written_off_at is null or r.published_at > r.written_off_at)
   and not exists (select from events e where e.webhook_id = r.webhook_id)
   and not exists (select from webhook_spool s where s.webhook_id = r.webhook_id);

comment on view unstored_receipts is
    'The ledger: what was accepted, is neither stored nor spooled and was not written off, and therefore must be in RabbitMQ.';

create view written_off_receipts as
select r.webhook_id, r.received_at, r.published_at, r.written_off_at, r.written_off_by, r.write_off_reason
  from webhook_receipts r
 where r.written_off_at is not null
   and (r.published_at is null or r.published_at <= r.written_off_at)
   and not exists (select from events e where e.webhook_id = r.webhook_id)
   and not exists (select from webhook_spool s where s.webhook_id = r.webhook_id);

comment on view written_off_receipts is
    'Accepted events that an operator wrote off, with the reason, and that have not come since.';
