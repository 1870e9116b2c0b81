-- Receipts without an event, of the last days, and rows of the spool, of the last hour.
insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
select 'msg_lost' || lpad(n::text, 23, '0'), sha256(n::text::bytea), at,
       case when n % 10 > 0 then at + interval '2 milliseconds' end
  from generate_series(1, 300) n,
       lateral (select now() - interval '2 minutes' - interval '6 days' * power(n / 300.0, 4) as at) times;

insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at, has_receipt,
                           attempts, due_at, last_error)
select 'msg_spooled' || lpad(n::text, 20, '0'), sha256(n::text::bytea), 'vendor', 'v1.vendor.created',
       '{}', now() - interval '1 hour' * (n / 500.0), true, n % 5,
       now() + interval '1 minute' * (n % 60), 'RabbitMQ did not confirm it'
  from generate_series(1, 500) n;

-- Ten dead letters an action, which dismisses them, and another one that restores them.
insert into operator_actions (run, person, action, filter, changed, changes)
select gen_random_uuid(), (array['ada', 'grace', null])[1 + letters.action % 3], done.action,
       jsonb_build_object('problem', 'wrong-data'), cardinality(ids),
       (select jsonb_agg(jsonb_build_object(
                   'webhook_id', id,
                   'before', jsonb_build_object('dismissed_at', null),
                   'after', jsonb_build_object('dismissed_at', now(), 'dismissal_note', 'a test')))
          from unnest(ids) id)
  from (select array_agg(webhook_id) as ids, number / 10 as action
          from (select webhook_id, row_number() over (order by stored_at) as number
                  from events where problem is not null) numbered
         group by number / 10) letters,
       (values ('dead-letters dismiss'), ('dead-letters restore')) as done (action);
