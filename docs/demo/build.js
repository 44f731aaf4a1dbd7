// Bundle the page into a folder of static files: node build.js [folder, default dist]

import { createHash } from "node:crypto";
import { copyFile, mkdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import protobuf from "protobufjs/minimal.js";

const { Reader, Writer } = protobuf; // a CommonJS package
const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, "../..");
const out = resolve(process.argv[2] ?? join(here, "dist"));
const runtime = join(here, "node_modules/onnxruntime-web/dist");

const COPIES = {
  "index.html": join(here, "index.html"),
  "style.css": join(here, "style.css"),
  "icon.svg": join(here, "icon.svg"),
  "sample.jpg": join(root, "docs/astronaut.jpg"),
  "ort-wasm-simd-threaded.mjs": join(runtime, "ort-wasm-simd-threaded.mjs"),
  "ort-wasm-simd-threaded.wasm": join(runtime, "ort-wasm-simd-threaded.wasm"),
};
const BUNDLES = ["page", "worker"];
const SHIPPED_MODEL = join(root, "results/v2/featherface_v2_deployment.onnx");
const MODEL = "featherface.onnx";
const THRESHOLDS = ["score_threshold", "iou_threshold"];
// field numbers of onnx.proto, and protobuf's wire type of texts and messages
const GRAPH = 7, INITIALIZER = 5, NAME = 8, WITH_LENGTH = 2;

const bundle = (names, more) =>
  build({
    entryPoints: names.map((name) => join(here, "src", `${name}.js`)),
    outdir: out,
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    legalComments: "eof",
    logLevel: "warning",
    ...more,
  });

/** The fields of a protobuf message: number, all bytes, and the content of texts and messages. */
function fieldsOf(message) {
  const reader = Reader.create(message);
  const fields = [];
  while (reader.pos < reader.len) {
    const start = reader.pos;
    const tag = reader.uint32();
    const number = tag >>> 3;
    let content = null;
    if ((tag & 7) === WITH_LENGTH) content = reader.bytes();
    else reader.skipType(tag & 7);
    fields.push({ number, bytes: message.subarray(start, reader.pos), content });
  }
  return fields;
}

/**
 * The model without default values of its thresholds: ONNX Runtime for browsers feeds no input
 * that has a default value.
 */
function requireThresholds(model) {
  const isDefault = ({ number, content }) =>
    number === INITIALIZER &&
    THRESHOLDS.includes(fieldsOf(content).find((field) => field.number === NAME)?.content.toString());
  const parts = fieldsOf(model).map(({ number, bytes, content }) => {
    if (number !== GRAPH) return bytes;
    const kept = fieldsOf(content).filter((field) => !isDefault(field));
    const graph = Buffer.concat(kept.map((field) => field.bytes));
    return Writer.create().uint32((GRAPH << 3) | WITH_LENGTH).bytes(graph).finish();
  });
  return Buffer.concat(parts);
}

/** SHA-256 of all files: a page with other files gets a cache of its own. */
async function versionOf(files) {
  const digest = createHash("sha256");
  for (const file of files) digest.update(file).update(await readFile(join(out, file)));
  return digest.digest("hex").slice(0, 16);
}

await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
for (const [name, source] of Object.entries(COPIES)) await copyFile(source, join(out, name));
await writeFile(join(out, MODEL), requireThresholds(await readFile(SHIPPED_MODEL)));
// the condition selects the runtime that loads its WebAssembly from files next to the page
await bundle(BUNDLES, { conditions: ["onnxruntime-web-use-extern-wasm"] });
const files = [...Object.keys(COPIES), MODEL, ...BUNDLES.map((name) => `${name}.js`)];
const define = {
  FILES: JSON.stringify(["./", ...files]),
  VERSION: JSON.stringify(await versionOf(files)),
};
await bundle(["offline"], { define, format: "iife" });
const bytes = await Promise.all([...files, "offline.js"].map(async (file) => {
  return (await stat(join(out, file))).size;
}));
const megabytes = (bytes.reduce((sum, size) => sum + size, 0) / 1e6).toFixed(1);
console.log(`${out}: ${megabytes} MB; view it with: python -m http.server --directory ${out}`);
