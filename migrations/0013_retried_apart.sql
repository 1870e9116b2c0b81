-- Workers take events that were refused before apart from the others, which need not wait for them.
create index webhook_spool_retried on webhook_spool (family, due_at) where attempts > 0;
