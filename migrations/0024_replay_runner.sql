-- The console that runs replays, by a lease that ends unless it is renewed. An advisory lock would stay with a
-- console that is frozen.
create table replay_runner (
    is_only boolean     primary key default true check (is_only),
    holder  uuid,
    until   timestamptz not null default '-infinity'
);

comment on table replay_runner is
    'The console that runs replays. It has one row, which each transaction of a replay locks and checks.';
comment on column replay_runner.is_only is 'Allows only one row.';
comment on column replay_runner.holder is 'A random id of the process, or null if none runs replays.';
comment on column replay_runner.until is
    'When another console may run replays, by the clock of the database, unless the lease is renewed before.';

insert into replay_runner default values;

-- The account of the console cannot choose the length of a lease.
create function replay_runner_sign() returns trigger language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    new.until := case when new.holder is null then '-infinity'
                      else clock_timestamp() + interval '60 seconds' end;
    return new;
end
$$;

create trigger replay_runner_sign before update on replay_runner
    for each row execute function replay_runner_sign();

-- An outcome is written once, while the job is running, and with the time of the database. The letters of a job
-- are deleted only with it.
do $do$
begin
    execute format($create$

create function replay_job_letters_sign() returns trigger
language plpgsql set search_path = %1$I, pg_temp as $function$
begin
    if tg_op = 'DELETE' then
        if exists (select from replay_jobs where id = old.job) then
            raise insufficient_privilege using message = 'the letters of a replay are deleted with it';
        end if;
        return old;
    end if;
    if exists (select from replay_jobs where id = new.job and ended is not null) then
        raise insufficient_privilege using message = 'a replay that has ended does not change';
    end if;
    if tg_op = 'UPDATE' then
        if old.outcome is not null or old.job <> new.job then
            raise insufficient_privilege using message = 'the outcome of a replay is written once';
        end if;
        new.done_at := case when new.outcome is not null then now() end;
    end if;
    return new;
end
$function$

$create$, current_schema());
end
$do$;

create trigger replay_job_letters_sign before insert or update or delete on replay_job_letters
    for each row execute function replay_job_letters_sign();
