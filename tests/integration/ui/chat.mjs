// A chat of the AI SDK, without a browser: reads what to do from its standard input, a JSON a line, and answers each
// with a line that says what the chat is like then. Arguments: the package, the service's address, the key.
import { createInterface } from 'node:readline';

const [packageName, url, key] = process.argv.slice(2);
const { AbstractChat, DefaultChatTransport, readUIMessageStream } = await import(packageName);

class State {
  status = 'ready';
  error = undefined;
  constructor(messages) {
    this.messages = messages;
  }
  pushMessage = message => {
    this.messages = [...this.messages, message];
  };
  popMessage = () => {
    this.messages = this.messages.slice(0, -1);
  };
  replaceMessage = (index, message) => {
    this.messages = this.messages.map((one, at) => (at === index ? this.snapshot(message) : one));
  };
  snapshot = value => structuredClone(value);
}

class Chat extends AbstractChat {
  constructor({ messages, ...init }) {
    super({ ...init, state: new State(messages ?? []) });
  }
}

let chat;
let responses;

async function logged(input, init) {
  const response = await fetch(input, init);
  responses.push({
    method: init.method,
    path: String(input).slice(url.length),
    status: response.status,
    mark: response.headers.get('x-vercel-ai-ui-message-stream'),
    replayed: response.headers.get('idempotent-replayed'),
  });
  return response;
}

function transport({ api = '/chat', headers = {}, body = {} } = {}) {
  return new DefaultChatTransport({
    api: url + api,
    headers: { authorization: `Bearer ${key}`, ...headers },
    body,
    fetch: logged,
  });
}

const textOf = message => message.parts.map(part => (part.type === 'text' ? part.text : '')).join('');
const pause = () => new Promise(resolve => setTimeout(resolve, 5));

async function readAll(stream) {
  const [forParts, forMessage] = stream.tee();
  const parts = [];
  const collected = (async () => {
    for await (const part of forParts) parts.push(part);
  })();
  let message;
  const errors = [];
  for await (const next of readUIMessageStream({ stream: forMessage, onError: error => errors.push(String(error)) })) {
    message = next;
  }
  await collected;
  return { parts, message, errors };
}

const steps = {
  // Another page with the same chat, which begins with these messages.
  open({ id, messages, ...options }) {
    chat = new Chat({ id, messages, transport: transport(options) });
  },
  async send({ message, options }) {
    await chat.sendMessage(message, options);
  },
  // Sends, and goes away when the answer has begun.
  async leave({ message }) {
    const sent = chat.sendMessage(message);
    while (!(chat.lastMessage?.role === 'assistant' && textOf(chat.lastMessage)) && chat.status !== 'error') await pause();
    await chat.stop();
    await sent;
  },
  async regenerate(options) {
    await chat.regenerate(options);
  },
  async resume() {
    await chat.resumeStream();
  },
  // The transport and the stream reader by themselves: each part as it came, and the message as it was in the end.
  async read({ id, messages, trigger = 'submit-message', messageId, ...options }) {
    return readAll(await transport(options).sendMessages({ chatId: id, messages, trigger, messageId }));
  },
  // The same of a stream that is given.
  async parse({ text }) {
    const given = new DefaultChatTransport({ api: '/', fetch: async () => new Response(text) });
    return readAll(await given.sendMessages({ chatId: 'c', messages: [], trigger: 'submit-message' }));
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { step, ...options } = JSON.parse(line);
  responses = [];
  let result;
  try {
    result = await steps[step](options);
  } catch (error) {
    result = { thrown: String(error) };
  }
  const shown = { status: chat?.status, error: chat?.error && String(chat.error), messages: chat?.messages };
  process.stdout.write(`${JSON.stringify({ ...shown, responses, ...result })}\n`);
}
