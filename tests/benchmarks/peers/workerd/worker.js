// The same job on Cloudflare's own runtime, for side-by-side measurement: a key names the tenant, a token bucket
// object is charged, a session object appends or reads. Same paths, bodies and headers as Mobula's.
import { DurableObject } from "cloudflare:workers";

const KEYS = { "sk-bench": { tenant: "bench", client: "sk-bench" } };
const REFILL_PER_SECOND = 1e6, CAPACITY = 1e6, MESSAGES_MAX = 1000;

export class ChatSession extends DurableObject {
  constructor(ctx, env) {
    super(ctx, env);
    this.sql = ctx.storage.sql;
    this.sql.exec("create table if not exists messages(id integer primary key, role text, content text, created_at real)");
  }
  append(role, content) {
    const id = this.sql.exec("insert into messages(role, content, created_at) values(?, ?, ?) returning id",
      role, content, Date.now() / 1000).one().id;
    if (id > MESSAGES_MAX) this.sql.exec("delete from messages where id <= ?", id - MESSAGES_MAX);
    return id;
  }
  messages(limit) {
    return this.sql.exec("select id, role, content, created_at from messages order by id desc limit ?", limit).toArray();
  }
}

export class TokenBucket extends DurableObject {
  constructor(ctx, env) {
    super(ctx, env);
    this.sql = ctx.storage.sql;
    this.sql.exec("create table if not exists bucket(id integer primary key check (id = 1), tokens real, updated_at real)");
  }
  check(cost) {
    const now = Date.now() / 1000;
    const row = this.sql.exec("select tokens, updated_at from bucket where id = 1").toArray()[0] ?? { tokens: CAPACITY, updated_at: now };
    let tokens = Math.min(CAPACITY, row.tokens + (now - row.updated_at) * REFILL_PER_SECOND);
    const allowed = tokens >= cost;
    if (allowed) tokens -= cost;
    this.sql.exec("insert or replace into bucket(id, tokens, updated_at) values(1, ?, ?)", tokens, now);
    return { allowed, remaining: tokens, retry_after_s: allowed ? 0 : (cost - tokens) / REFILL_PER_SECOND };
  }
}

export default {
  async fetch(request, env) {
    const who = KEYS[(request.headers.get("authorization") ?? "").replace("Bearer ", "")];
    if (!who) return Response.json({ title: "unauthorized" }, { status: 401 });
    const url = new URL(request.url);
    const client = request.headers.get("x-client") ?? who.client;     // lets a load test spread over many buckets
    const bucket = env.BUCKET.get(env.BUCKET.idFromName(`${who.tenant}:${client}`));
    if (url.pathname === "/ratelimit/check") {
      const { cost = 1 } = await request.json();
      const verdict = await bucket.check(cost);
      return Response.json(verdict, { status: verdict.allowed ? 200 : 429 });
    }
    const verdict = await bucket.check(1);
    if (!verdict.allowed) return Response.json({ title: "quota exceeded" }, { status: 429 });
    if (url.pathname === "/chat/sessions" && request.method === "POST")
      return Response.json({ id: crypto.randomUUID() }, { status: 201 });
    const match = url.pathname.match(/^\/chat\/sessions\/([^/]+)\/messages$/);
    if (!match) return Response.json({ title: "not found" }, { status: 404 });
    const session = env.SESSION.get(env.SESSION.idFromName(`${who.tenant}:${match[1]}`));
    if (request.method === "GET") return Response.json({ messages: await session.messages(Number(url.searchParams.get("limit") ?? 50)) });
    const { role, content } = await request.json();
    return Response.json({ id: await session.append(role, content) }, { status: 201 });
  },
};
