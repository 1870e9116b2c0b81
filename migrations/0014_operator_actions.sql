-- What operators did, and who it was: a row for each transaction of a command that changes something,
-- written in that transaction. Rows of the pipeline's tables say only how things are now.
create table operator_actions (
    id      bigint      generated always as identity primary key,
    run     uuid        not null,
    at      timestamptz not null,
    account text        not null,
    person  text,
    action  text        not null,
    filter  jsonb       not null,
    changed bigint      not null,
    changes jsonb       not null
);

comment on table operator_actions is
    'What operators changed with hookctl, a row for each transaction. Rows are only added.';
comment on column operator_actions.run is 'The same for all transactions of one command.';
comment on column operator_actions.at is 'When the transaction began, by the clock of the database.';
comment on column operator_actions.account is
    'The role in Postgres that logged in. A trigger sets it, whatever the statement says.';
comment on column operator_actions.person is
    'The person for whom a program did it that knows its users, in that program''s words; null for hookctl itself.';
comment on column operator_actions.action is 'The command, such as dead-letters dismiss.';
comment on column operator_actions.filter is 'How the command was told what to change.';
comment on column operator_actions.changed is 'How many rows or accounts the transaction changed.';
comment on column operator_actions.changes is
    'Each of them: its webhook_id, or its table and id, or its account, and what was before and after. It has no body and no value of one.';

create index operator_actions_at on operator_actions (at);

-- Both events of a typed row are found, that of before and that of after.
create index operator_actions_webhook_ids on operator_actions
    using gin (jsonb_path_query_array(changes, '$[*].**{0 to 1}.webhook_id'));

create function operator_actions_sign() returns trigger language plpgsql as $$
begin
    new.account := session_user;
    new.at := now();
    return new;
end
$$;

create trigger operator_actions_sign before insert on operator_actions
    for each row execute function operator_actions_sign();

create function operator_actions_refuse() returns trigger language plpgsql as $$
begin
    raise insufficient_privilege using message = 'rows of operator_actions are only added';
end
$$;

create trigger operator_actions_refuse before update or delete or truncate on operator_actions
    for each statement execute function operator_actions_refuse();
