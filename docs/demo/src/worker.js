// The detector in a thread of its own, so that the page answers while it computes.
// In: { id, image: ImageData, options }. Out: { ready }, then { id, faces, ms } or { id, error }.

import * as ort from "onnxruntime-web/wasm";
import { findFaces } from "./faces.js";
import { fromImageData } from "./pixels.js";

const MODEL = "featherface.onnx";
const MOST_THREADS = 4;

let session;

async function load() {
  ort.env.wasm.wasmPaths = new URL("./", self.location.href).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated
    ? Math.min(MOST_THREADS, navigator.hardwareConcurrency)
    : 1;
  ort.env.logLevel = "error";
  const response = await fetch(MODEL).catch(() => null);
  if (!response?.ok) {
    throw new Error(`${MODEL} (${response ? `HTTP ${response.status}` : "no connection"})`);
  }
  const model = new Uint8Array(await response.arrayBuffer());
  session = await ort.InferenceSession.create(model, {
    executionProviders: ["wasm"],
    logSeverityLevel: 3, // errors only
  });
  await run({ data: new Uint8Array(3 * 64 * 64), width: 64, height: 64 }, { score: 0.5, iou: 0.4 });
  return ort.env.wasm.numThreads;
}

/** Run the network on a picture of any size: its faces, in its pixels. */
async function run({ data, width, height }, { score, iou }) {
  const { boxes, scores, landmarks } = await session.run({
    image: new ort.Tensor("uint8", data, [height, width, 3]),
    score_threshold: new ort.Tensor("float32", [score], []),
    iou_threshold: new ort.Tensor("float32", [iou], []),
  });
  return Array.from(scores.data, (value, face) => {
    const points = landmarks.data.slice(10 * face, 10 * face + 10);
    return {
      score: value,
      box: Array.from(boxes.data.slice(4 * face, 4 * face + 4)),
      landmarks: Array.from({ length: 5 }, (_, i) => [points[2 * i], points[2 * i + 1]]),
    };
  });
}

const text = (error) => error?.message ?? String(error);

const loaded = load();
loaded.then(
  (threads) => self.postMessage({ ready: true, threads }),
  (error) => self.postMessage({ ready: false, error: text(error) }),
);

self.addEventListener("message", async ({ data: { id, image, options } }) => {
  try {
    await loaded;
    const start = performance.now();
    const faces = await findFaces(fromImageData(image), options, run);
    self.postMessage({ id, faces, ms: performance.now() - start });
  } catch (error) {
    self.postMessage({ id, error: text(error) });
  }
});
