-- For the pages of the console about events with a problem. Healthy events are in neither index, so storing
-- one costs nothing more.

-- Events with a problem in the order of the list of events, however many healthy ones are between them.
create index events_problem_received on events (received_at, webhook_id) where problem is not null;

-- Open dead letters can be counted and selected in this index alone.
create index events_open_dead_letters on events (stored_at, webhook_id)
    where problem is not null and dismissed_at is null;
