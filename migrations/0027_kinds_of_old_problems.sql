-- The kinds of the problems that are stored already, also of those that a replay has cleared. It is a migration
-- of its own because it reads `events` twice, and 0026 holds an exclusive lock. This one locks only the rows that
-- it fills in, which are dead letters and replayed events. Workers wait only while the index is made, as in 0025;
-- whoever reads does not wait.
update events
   set problem_kind = kind_of_old_problem(coalesce(problem, replayed_problem))
 where (problem is not null or replayed_problem is not null) and problem_kind is null;

-- Open dead letters of a kind, the newest first, and their number by kind, however many there are of other kinds.
-- Healthy events are not in it, so storing one costs nothing more.
create index events_open_dead_letters_by_kind on events (problem_kind, stored_at, webhook_id)
    where problem is not null and dismissed_at is null;
