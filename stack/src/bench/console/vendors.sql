-- The newest states of vendors, of the events that were received from $1 on and before $2. It is run from the
-- newest events back, so that a row that is there is of a newer state.
insert into vendors (id, company_id, name, state, country, code, registration_number,
                     tax_registration_number, default_currency, created_by, created_at, updated_at,
                     sort_key, webhook_id, stored_at)
select resource_id, company_id, data ->> 'name', data ->> 'state', data ->> 'country', data ->> 'code',
       data ->> 'registrationNumber', data ->> 'taxRegistrationNumber', data ->> 'defaultCurrency',
       data ->> 'createdBy', (data ->> 'createdAt')::timestamptz, received_at,
       int8send((extract(epoch from received_at) * 1000000000)::bigint) || webhook_id::bytea,
       webhook_id, stored_at
  from events, lateral (select payload -> 'data' as data) body
 where received_at >= $1 and received_at < $2 and event_type like 'v1.vendor.%' and problem is null
 order by received_at desc
    on conflict (id) do nothing
