// A simple receiver for comparison: verifies, publishes, and answers after the broker has confirmed. It has
// no dedup, and no fallback when the broker is away.
import { createHmac, timingSafeEqual } from "node:crypto";
import amqp from "amqplib";
import Fastify from "fastify";
import { QUEUE, ARGUMENTS } from "./queue.js";

const TOLERANCE_S = 300;
const key = Buffer.from(process.env.WEBHOOK_SECRET.replace(/^whsec_/, ""), "base64");

function isSigned(headers, body) {
  const id = headers["webhook-id"];
  const timestamp = headers["webhook-timestamp"];
  if (!id || !(Math.abs(Date.now() / 1000 - Number(timestamp)) <= TOLERANCE_S)) return false;
  const expected = createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest();
  return (headers["webhook-signature"] ?? "").split(" ").some((signature) => {
    const [version, value] = signature.split(",");
    const given = Buffer.from(value ?? "", "base64");
    return version === "v1" && given.length === expected.length && timingSafeEqual(given, expected);
  });
}

const connection = await amqp.connect(process.env.AMQP_URL);
const channel = await connection.createConfirmChannel();
await channel.assertQueue(QUEUE, { durable: true, arguments: ARGUMENTS });

function publish(id, body) {
  const options = { persistent: true, messageId: id, contentType: "application/json" };
  return new Promise((resolve, reject) => {
    channel.publish("", QUEUE, body, options, (error) => (error ? reject(error) : resolve()));
  });
}

const app = Fastify({ bodyLimit: 256 * 1024 });
app.addContentTypeParser("application/json", { parseAs: "buffer" }, (_, body, done) => done(null, body));
app.post("/webhooks/pleo", async (request, reply) => {
  if (!isSigned(request.headers, request.body)) return reply.code(401).send({ status: "refused" });
  await publish(request.headers["webhook-id"], request.body);
  return reply.code(202).send({ status: "accepted" });
});
await app.listen({ host: "127.0.0.1", port: Number(process.env.PORT) });

process.once("SIGTERM", async () => {
  await app.close();
  await connection.close();
});
