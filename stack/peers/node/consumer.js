// A simple consumer for comparison: batches of 500 messages or 5 ms, one statement for each, with
// `on conflict do nothing`. It has no retries and no dead letters; one bad event stops it.
import { createServer } from "node:http";
import amqp from "amqplib";
import pg from "pg";
import { QUEUE, ARGUMENTS } from "./queue.js";

const BATCH = 500;
const LINGER_MS = 5;

const STORE = {
  name: "store",
  text: `
    with event as (
      insert into peer_events (webhook_id, event_type, payload)
      select * from unnest($1::text[], $2::text[], $3::jsonb[])
      on conflict do nothing
      returning webhook_id),
    vendor as (
      insert into peer_vendors as known (id, company_id, name, state, updated_at, webhook_id)
      select distinct on (id) *
        from unnest($4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[], $1::text[])
          as v (id, company_id, name, state, updated_at, webhook_id)
       order by id, updated_at desc
      on conflict (id) do update
        set (company_id, name, state, updated_at, webhook_id)
          = (excluded.company_id, excluded.name, excluded.state, excluded.updated_at, excluded.webhook_id)
        where known.updated_at < excluded.updated_at)
    select count(*)::int as stored from event`,
};

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 4 });
let stored = 0;

async function store(batch) {
  const columns = Array.from({ length: 8 }, () => []);
  for (const message of batch) {
    const text = message.content.toString();
    const { eventType, data } = JSON.parse(text);
    const row = [message.properties.messageId, eventType, text];
    row.push(data.id, data.companyId, data.name, data.state, data.updatedAt);
    row.forEach((value, n) => columns[n].push(value));
  }
  const { rows } = await pool.query({ ...STORE, values: columns });
  stored += rows[0].stored;
}

const connection = await amqp.connect(process.env.AMQP_URL);
const channel = await connection.createChannel();
await channel.assertQueue(QUEUE, { durable: true, arguments: ARGUMENTS });
await channel.prefetch(4 * BATCH);

let batch = [];
let timer;
async function flush() {
  clearTimeout(timer);
  timer = undefined;
  const messages = batch;
  batch = [];
  await store(messages);
  for (const message of messages) channel.ack(message);
}
await channel.consume(QUEUE, (message) => {
  batch.push(message);
  if (batch.length >= BATCH) flush();
  else timer ??= setTimeout(flush, LINGER_MS);
});

// The count that a metrics endpoint would expose.
createServer((_, response) => response.end(String(stored))).listen(Number(process.env.PORT), "127.0.0.1");

process.once("SIGTERM", async () => {
  // The channel is closed first, so that its acks are sent.
  await channel.close();
  await connection.close();
  await pool.end();
  process.exit(0);
});
