// From a picture to its faces, as OnnxDetector of featherface/onnx_detector.py finds them.
// A face is { score, box: [x1, y1, x2, y2], landmarks: [[x, y] × 5] } in pixels of the picture.

import { fitLongSide } from "./pixels.js";

// as in featherface/face_detector.py and config.py
const SECOND_LOOK = 640; // long side of the second look, pixels
const FIRST_LOOK_MOST = 320; // largest face of the first look of two: root of the box area
const SECOND_LOOK_LEAST = 160; // smallest face of the second look, in pixels of the first
const KEEP_TOP_K = 750;

/**
 * Find the faces of a picture, best first.
 * run(picture, options): faces in pixels of the picture that it is given.
 * options: { score, iou, maxSide }; maxSide: larger pictures are shrunk first; null: never.
 */
export async function findFaces(picture, options, run) {
  const looks = looksAt(picture, options.maxSide);
  const found = [];
  for (const { shown, smallest, largest } of looks) {
    const faces = toOriginal(await run(shown, options), shown, picture);
    found.push(...faces.filter(({ box }) => smallest < sizeOf(box) && sizeOf(box) <= largest));
  }
  return looks.length === 1 ? found : suppress(found, options.iou);
}

/** The picture as the network sees it: once, or a second time at long side 640 for large faces. */
function looksAt(picture, maxSide) {
  const shown = fitLongSide(picture, maxSide);
  const longest = Math.max(shown.width, shown.height);
  if (longest <= SECOND_LOOK) return [{ shown, smallest: 0, largest: Infinity }];
  const scale = Math.max(picture.width, picture.height) / longest;
  const again = fitLongSide(picture, SECOND_LOOK);
  return [
    { shown, smallest: 0, largest: FIRST_LOOK_MOST * scale },
    { shown: again, smallest: SECOND_LOOK_LEAST * scale, largest: Infinity },
  ];
}

/** Convert faces to pixels of the original, clip their boxes; faces outside are dropped. */
function toOriginal(faces, shown, original) {
  const limits = [original.width, original.height];
  const scale = [original.width / shown.width, original.height / shown.height];
  const clip = (value, axis) => Math.min(Math.max(value * scale[axis], 0), limits[axis]);
  return faces
    .map(({ score, box, landmarks }) => ({
      score,
      box: box.map((value, i) => clip(value, i % 2)),
      landmarks: landmarks.map(([x, y]) => [x * scale[0], y * scale[1]]),
    }))
    .filter(({ box: [left, top, right, bottom] }) => right > left && bottom > top);
}

const areaOf = ([left, top, right, bottom]) =>
  Math.max(0, right - left) * Math.max(0, bottom - top);

const sizeOf = (box) => Math.sqrt(areaOf(box));

/** Non-maximum suppression: best first, without those that overlap a better one by more than iou. */
function suppress(faces, iou) {
  const kept = [];
  for (const face of [...faces].sort((a, b) => b.score - a.score)) {
    if (kept.every((better) => overlap(better.box, face.box) <= iou)) kept.push(face);
  }
  return kept.slice(0, KEEP_TOP_K);
}

/** Intersection over union of two boxes. */
function overlap(a, b) {
  const larger = (i) => Math.max(a[i], b[i]);
  const smaller = (i) => Math.min(a[i], b[i]);
  const shared = areaOf([larger(0), larger(1), smaller(2), smaller(3)]);
  return shared / (areaOf(a) + areaOf(b) - shared);
}
