// One scene of the official JavaScript client with a daemon: node client.mjs NODE_MODULES URL MODEL SCENE
//
// A scene says what it saw as one line of JSON on stdout; what should be there is the test's affair. A scene that
// aborts then stays until stdin is closed: if it ended, the kernel would close its connection for it.

import { createRequire } from "node:module";
import { join } from "node:path";
import { once } from "node:events";

const [modules, host, model, name] = process.argv.slice(2);
const { Ollama } = createRequire(join(modules, "client.cjs"))("ollama");
const client = new Ollama({ host });

const messages = [{ role: "user", content: "What is the capital of France?" }];
const greedy = { temperature: 0, num_predict: 16 };
const endless = { temperature: 0, num_predict: 2000 };
const story = [{ role: "user", content: "Count: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10. Go on for ever." }];

async function collect(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return { name: error.name, status: error.status_code, error: error.error ?? error.message };
  }
  return null;
}

/** Reads two parts of every stream, aborts, and tells how the streams ended. */
async function aborted(streams, abort) {
  const readers = streams.map((stream) => stream[Symbol.asyncIterator]());
  let seen = 0;
  for (const reader of readers) {
    for (let part = 0; part < 2; part += 1) seen += (await reader.next()).done ? 0 : 1;
  }
  abort();
  const rests = readers.map((reader) => collect({ [Symbol.asyncIterator]: () => reader }));
  return { seen, ends: await Promise.all(rests.map(failure)) };
}

async function stay() {
  process.stdin.resume();
  await once(process.stdin, "end");
}

const scenes = {
  async speaking() {
    const think = false;
    return {
      chat: await client.chat({ model, messages, think, options: greedy }),
      chatParts: await collect(await client.chat({ model, messages, think, options: greedy, stream: true })),
      generate: await client.generate({ model, prompt: messages[0].content, think, options: greedy }),
      generateParts: await collect(
        await client.generate({ model, prompt: messages[0].content, think, options: greedy, stream: true }),
      ),
    };
  },

  async embedding() {
    const input = ["A cat sits on the mat.", "A kitten rests on a rug."];
    return { embed: await client.embed({ model, input }), one: await client.embed({ model, input: input[0] }) };
  },

  async models() {
    const made = "from-javascript";
    const parameters = { num_predict: 3, temperature: 0 };
    const create = { model: made, from: model, system: "You are a lighthouse.", parameters };
    const seen = { version: await client.version() };
    seen.created = await collect(await client.create({ ...create, stream: true }));
    seen.createdWhole = await client.create({ ...create, model: `${made}:whole` });
    seen.copied = await client.copy({ source: made, destination: `${made}:copy` });
    seen.list = await client.list();
    seen.show = await client.show({ model: made });
    seen.chat = await client.chat({ model: made, messages, think: false });
    seen.ps = await client.ps();
    for (const tag of ["latest", "whole", "copy"]) seen.deleted = await client.delete({ model: `${made}:${tag}` });
    seen.left = (await client.list()).models.map((each) => each.name);
    return seen;
  },

  async refusals() {
    const png = new Uint8Array([137, 80, 78, 71]);
    return {
      unknown: await failure(client.chat({ model: "nope", messages })),
      unknownStream: await failure(client.chat({ model: "nope", messages, stream: true })),
      show: await failure(client.show({ model: "nope" })),
      remove: await failure(client.delete({ model: "nope" })),
      embed: await failure(client.embed({ model, input: "Why is the sky blue?" })),
      push: await failure(client.push({ model, stream: false })),
      images: await failure(client.chat({ model, messages: [{ ...messages[0], images: [png] }] })),
    };
  },

  async abortOne() {
    const stream = await client.chat({ model, messages: story, think: false, options: endless, stream: true });
    return aborted([stream], () => stream.abort());
  },

  async abortAll() {
    const ask = () => client.generate({ model, prompt: story[0].content, think: false, options: endless, stream: true });
    return aborted(await Promise.all([ask(), ask(), ask()]), () => client.abort());
  },
};

console.log(JSON.stringify(await scenes[name]()));
if (name.startsWith("abort")) await stay();
