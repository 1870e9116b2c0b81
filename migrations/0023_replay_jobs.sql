-- Replays that operators start in the console. A job keeps the exact set of dead letters, and the outcome of
-- each is written in the transaction that replays it. So a job can continue after the console or Postgres was
-- restarted, and nothing is done twice.
create table replay_jobs (
    id                bigint      generated always as identity primary key,
    run               uuid        not null default gen_random_uuid(),
    created_at        timestamptz not null default now(),
    account           text        not null default session_user,
    person            text,
    filter            jsonb       not null,
    letters           integer     not null check (letters > 0),
    set_sha256        bytea       not null,
    rate              integer     not null check (rate > 0),
    tries             integer     not null default 0,
    error             text,
    stop_requested_at timestamptz,
    stop_requested_by text,
    ended             text        check (ended in ('done', 'stopped', 'failed')),
    ended_at          timestamptz,
    check ((ended is null) = (ended_at is null))
);

comment on table replay_jobs is
    'Replays of dead letters that operators started in the console. They are kept for 30 days after their end.';
comment on column replay_jobs.run is 'The run in operator_actions, which has what the replay changed.';
comment on column replay_jobs.account is 'The role in Postgres that logged in.';
comment on column replay_jobs.person is 'The person who started it, as the console knows them.';
comment on column replay_jobs.filter is 'How the dead letters were selected.';
comment on column replay_jobs.letters is 'The number of its rows in replay_job_letters.';
comment on column replay_jobs.set_sha256 is 'A hash of the ids. At most one unfinished job has the same set.';
comment on column replay_jobs.rate is 'The limit of events per second.';
comment on column replay_jobs.tries is
    'How often it was started or continued since the last dead letter was finished. It fails after too many tries.';
comment on column replay_jobs.error is 'The error that interrupted it last.';
comment on column replay_jobs.ended is
    'done: each dead letter has an outcome. stopped, failed: those without an outcome were not replayed.';

-- At most one unfinished job of a set. It also finds unfinished jobs.
create unique index replay_jobs_unfinished on replay_jobs (set_sha256) where ended is null;

create table replay_job_letters (
    job        bigint  not null references replay_jobs on delete cascade,
    webhook_id text    not null,
    position   integer not null,
    outcome    text,
    reason     text,
    done_at    timestamptz,
    primary key (job, webhook_id),
    check ((outcome is null) = (done_at is null))
);

comment on table replay_job_letters is 'The dead letters of each replay job, with their outcomes.';
comment on column replay_job_letters.position is 'The order in which they are replayed.';
comment on column replay_job_letters.outcome is
    'As in hookctl dead-letters replay --json, or null if it was not replayed yet.';
comment on column replay_job_letters.reason is 'Why it still is a dead letter. It quotes no value of a body.';

-- The account of the console cannot choose the times, and cannot change an ended job or delete it before 30
-- days have passed.
create function replay_jobs_sign() returns trigger language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'DELETE' then
        if old.ended is null or old.ended_at > now() - interval '720 hours' then
            raise insufficient_privilege using message = 'a replay is kept for 30 days after its end';
        end if;
        return old;
    end if;
    if tg_op = 'UPDATE' then
        if old.ended is not null then
            raise insufficient_privilege using message = 'a replay that has ended does not change';
        end if;
        new.ended_at := case when new.ended is not null then now() end;
    else
        new.account := session_user;
        new.created_at := now();
    end if;
    return new;
end
$$;

create trigger replay_jobs_sign before insert or update or delete on replay_jobs
    for each row execute function replay_jobs_sign();
