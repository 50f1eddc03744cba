// The model at work, off the page's own thread: loads runtime and weights once, then completes what it is given.
// In:  {load: "wasm" | "webgpu", about, base}   {complete: {given, n, seed, temperature, topK}}   {stop: true}
// Out: {progress: bytes} {ready: backend, seconds} {failed: sentence, stage}
//      {tokens: [one an image], position} {done: {seconds, first, drawn, stopped}}

import { draw, uniforms } from "./sampler.js";

let about, ort, session, stopped = false;

// A file as bytes, in pieces so that the page can show how far it is; a file that is not the expected one is refused.
async function load(file, base) {
  const subtle = globalThis.crypto?.subtle; // not there on plain http beyond localhost: the browser checks, in one piece
  const response = await fetch(new URL(file.name, base), subtle ? {} : { integrity: file.integrity });
  if (!response.ok) throw new Error(`${file.name} is missing (${response.status})`);
  const bytes = new Uint8Array(file.bytes);
  let at = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > bytes.length) throw new Error(`${file.name} is another file than this page expects`);
    bytes.set(value, at);
    at += value.length;
    postMessage({ progress: value.length });
  }
  if (subtle) {
    const digest = new Uint8Array(await subtle.digest("SHA-384", bytes));
    if (`sha384-${btoa(String.fromCharCode(...digest))}` !== file.integrity)
      throw new Error(`${file.name} is another file than this page expects`);
  }
  return bytes;
}

async function unpack(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function start(backend, base) {
  const begun = performance.now();
  const [script, binary] = await Promise.all(about.runtime.backends[backend].map((file) => load(file, base)));
  const [graph, weights] = await Promise.all(about.model_files.map((file) => load(file, base)));
  const loaded = performance.now();
  const address = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  ort = await import(address);
  ort.env.wasm.numThreads = 1; // more need headers that a folder of files cannot send
  ort.env.wasm.wasmBinary = (await unpack(binary)).buffer;
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(graph, {
    executionProviders: [backend],
    logSeverityLevel: 3, // errors; that shapes are computed on the processor is as it should be
    externalData: [{ path: "weights.bin", data: weights }],
    // On a graphics card the cache stays there; only logits come back.
    preferredOutputLocation: backend === "webgpu" ? presents("gpu-buffer") : "cpu",
  });
  URL.revokeObjectURL(address);
  await complete({ given: [], n: 1, seed: 0, temperature: 1, topK: null, upTo: 2 }, () => {}); // the first runs compile
  return { download: (loaded - begun) / 1000, seconds: (performance.now() - loaded) / 1000 };
}

function presents(location) {
  const places = { logits: "cpu" };
  for (let layer = 0; layer < about.n_layer; layer++)
    for (const part of ["key", "value"]) places[`present.${layer}.${part}`] = location;
  return places;
}

// given: one array of tokens, -1 where a token is to be drawn; what is not in it is drawn too.
async function complete({ given, n, seed, temperature, topK, upTo = about.n_ctx }, report) {
  const uniform = uniforms(seed, n * about.n_ctx); // one number decides one token, image by image
  const open = given.findIndex((token) => token < 0);
  const prefix = given.slice(0, open < 0 ? given.length : open);
  let tokens = new ort.Tensor("int64", BigInt64Array.from(repeat([about.n_vocab, ...prefix], n), BigInt), [n, prefix.length + 1]);
  let cache = emptyCache(n);
  const begun = performance.now();
  let first = null, drawn = 0;
  for (let position = prefix.length; position < upTo && !stopped; position++) {
    const results = await session.run({ tokens, ...cache });
    const logits = results.logits.data;
    const chosen = Array.from({ length: n }, (_, image) =>
      given[position] >= 0
        ? given[position]
        : draw(logits.subarray(image * about.n_vocab, (image + 1) * about.n_vocab), uniform[image * about.n_ctx + position], { temperature, topK }),
    );
    for (const tensor of Object.values(cache)) tensor.dispose();
    cache = {};
    for (const [name, tensor] of Object.entries(results))
      if (name !== "logits") cache[name.replace("present", "past")] = tensor;
    if (!(given[position] >= 0)) drawn += n;
    first ??= (performance.now() - begun) / 1000;
    report(chosen, position);
    tokens = new ort.Tensor("int64", BigInt64Array.from(chosen, BigInt), [n, 1]);
    // Messages (a press of Stop) are only heard between tasks.
    if (position % 8 === 7) await new Promise((resolve) => setTimeout(resolve));
  }
  for (const tensor of Object.values(cache)) tensor.dispose();
  return { seconds: (performance.now() - begun) / 1000, first, drawn, stopped };
}

function repeat(row, n) {
  return Array.from({ length: n }, () => row).flat();
}

function emptyCache(n) {
  const dims = [n, about.n_head, 0, about.n_embd / about.n_head];
  const cache = {};
  for (let layer = 0; layer < about.n_layer; layer++)
    for (const part of ["key", "value"]) cache[`past.${layer}.${part}`] = new ort.Tensor("float32", new Float32Array(0), dims);
  return cache;
}

onmessage = async ({ data }) => {
  if (data.stop) {
    stopped = true;
    return;
  }
  try {
    if (data.load) {
      about = data.about;
      const times = await start(data.load, data.base);
      postMessage({ ready: data.load, ...times });
    } else {
      stopped = false;
      const done = await complete(data.complete, (tokens, position) => postMessage({ tokens, position }));
      postMessage({ done });
    }
  } catch (error) {
    postMessage({ failed: String(error?.message ?? error), stage: data.load ? "load" : "complete" });
  }
};
