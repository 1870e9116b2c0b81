-- The receipts of the events that were received from $1 on and before $2.
insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
select webhook_id, body_sha256, received_at, received_at + interval '2 milliseconds'
  from events
 where received_at >= $1 and received_at < $2
