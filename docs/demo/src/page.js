// The page: photos and camera frames in, faces drawn and listed.

import { Camera } from "./camera.js";
import { Detector } from "./detector.js";
import { drawFaces } from "./drawing.js";

const IOU = 0.4; // of NMS: NMS_IOU of featherface/config.py
const CAMERA_SIDE = 640; // long side of camera frames for the network, pixels
const LANDMARKS = ["left_eye", "right_eye", "nose", "left_mouth", "right_mouth"];

const find = (id) => document.getElementById(id);
const view = find("view");
const status = find("status");
const buttons = ["choose", "camera", "sample"].map(find);

const detector = new Detector();
const camera = new Camera();
const photo = document.createElement("canvas"); // the picture without faces
const photoPen = photo.getContext("2d", { willReadFrequently: true });
let name = ""; // of the picture
let faces = [];
let turn = 0; // increases with each new picture, so that late answers are dropped

async function load(start) {
  find("retry").hidden = true;
  status.textContent = "Loading the detector…";
  try {
    const threads = await start();
    find("threads").textContent = `, ${threads} ${threads === 1 ? "thread" : "threads"}`;
    status.textContent = "";
    find("hint").hidden = name !== "";
    for (const button of buttons) button.disabled = false;
    return true;
  } catch (error) {
    showError(
      `The detector could not be loaded: ${error.message}. Check the connection, then try again.`,
    );
    status.textContent = "";
    find("retry").hidden = false;
    for (const button of buttons) button.disabled = true;
    return false;
  }
}

function showError(message) {
  find("message").textContent = message;
  find("error").hidden = message === "";
}

function options() {
  const side = find("side").value;
  const maxSide = side === "full" ? null : Number(side);
  return { score: Number(find("score").value), iou: IOU, maxSide };
}

async function openPhoto(blob, title) {
  stopCamera();
  showError("");
  const mine = ++turn;
  let bitmap;
  try {
    // pixels as stored, without colour management, as the Python detectors read them; upright
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    showError(
      `${title} is not a picture that this browser can read. ` +
        "Choose a JPEG, PNG, WebP, GIF, BMP or AVIF file.",
    );
    return;
  }
  if (mine !== turn) return;
  name = title;
  faces = [];
  setPhoto(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  await detectPhoto();
}

function setPhoto(source, width, height) {
  if (photo.width !== width || photo.height !== height) {
    Object.assign(photo, { width, height });
  }
  photoPen.fillStyle = "#fff"; // behind transparent pixels
  photoPen.fillRect(0, 0, width, height);
  photoPen.drawImage(source, 0, 0);
}

async function detectPhoto() {
  const mine = ++turn;
  const { width, height } = photo;
  showFaces();
  status.textContent = "Looking for faces…";
  try {
    const found = await detector.detect(photoPen.getImageData(0, 0, width, height), options());
    if (mine !== turn) return;
    faces = found.faces;
    showFaces();
    status.textContent = `${count()} in ${Math.round(found.ms)} ms · ${name}, ${width} × ${height} pixels`;
  } catch (error) {
    if (mine === turn) await recover(error);
  }
}

/** After an error of the detector: say so, and start it again. */
async function recover(error) {
  stopCamera();
  showError(
    `The detector stopped: ${error.message}. ` +
      "If the picture is very large, choose a smaller long side below.",
  );
  await load(() => detector.restart());
}

const count = () => `${faces.length || "No"} ${faces.length === 1 ? "face" : "faces"}`;

function showFaces() {
  find("hint").hidden = true;
  view.hidden = false;
  find("results").hidden = camera.isOn;
  if (view.width !== photo.width || view.height !== photo.height) {
    Object.assign(view, { width: photo.width, height: photo.height });
  }
  view.getContext("2d").drawImage(photo, 0, 0);
  drawFaces(view, faces, { landmarks: find("landmarks").checked });
  view.setAttribute("aria-label", `${name}: ${count().toLowerCase()} found`);
  if (!camera.isOn) listFaces();
}

function listFaces() {
  find("rows").replaceChildren(
    ...faces.map(({ score, box: [left, top, right, bottom] }, index) => {
      const row = document.createElement("tr");
      const values = [left, top, right - left, bottom - top].map((value) => value.toFixed(1));
      for (const text of [index + 1, score.toFixed(3), ...values]) {
        row.insertCell().textContent = text;
      }
      return row;
    }),
  );
}

async function startCamera() {
  showError("");
  find("camera").disabled = true; // while the browser asks for permission
  try {
    await camera.open(() => {
      stopCamera();
      showError("The camera was disconnected.");
    });
  } catch (error) {
    showError(error.message);
    return;
  } finally {
    find("camera").disabled = false;
  }
  name = "camera";
  find("camera").textContent = "Stop the camera";
  status.setAttribute("aria-live", "off"); // the text changes with every frame
  await followCamera(++turn);
}

async function followCamera(mine) {
  let before = performance.now();
  let interval = 0; // mean milliseconds between frames, of the last ten or so
  while (camera.isOn && mine === turn) {
    const { source, width, height } = camera.frame;
    setPhoto(source, width, height);
    const wanted = options();
    wanted.maxSide = Math.min(wanted.maxSide ?? CAMERA_SIDE, CAMERA_SIDE);
    try {
      const found = await detector.detect(photoPen.getImageData(0, 0, width, height), wanted);
      if (!camera.isOn || mine !== turn) return;
      faces = found.faces;
      showFaces();
      await new Promise(requestAnimationFrame);
      const now = performance.now();
      interval = interval === 0 ? now - before : 0.9 * interval + 0.1 * (now - before);
      before = now;
      const rate = (1000 / interval).toFixed(0);
      status.textContent = `${count()} in ${Math.round(found.ms)} ms · ${rate} frames per second`;
    } catch (error) {
      if (mine === turn) await recover(error);
      return;
    }
  }
}

/** Stop the camera; its last frame stays, as a photo. */
function stopCamera() {
  if (!camera.isOn) return;
  camera.close();
  turn++;
  find("camera").textContent = "Use the camera";
  status.setAttribute("aria-live", "polite");
  showFaces();
}

async function openSample() {
  const response = await fetch("sample.jpg").catch(() => null);
  if (response?.ok) await openPhoto(await response.blob(), "sample.jpg");
  else showError("The sample could not be loaded. Check the connection, or choose a photo.");
}

async function openFirst(files) {
  if (find("choose").disabled) return; // the detector is not loaded
  if (files.length > 0) await openPhoto(files[0], files[0].name);
  else showError("That is not a file. Save the picture first, then drop or choose the file.");
}

function save(blob, suffix) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/\.\w+$/, "") + suffix;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The faces in the form of Detections.to_json. */
function facesAsJson() {
  const named = faces.map(({ score, box, landmarks }) => ({
    score,
    box,
    landmarks: Object.fromEntries(LANDMARKS.map((key, index) => [key, landmarks[index]])),
  }));
  return new Blob([JSON.stringify(named)], { type: "application/json" });
}

function changed() {
  find("score-value").textContent = Number(find("score").value).toFixed(2);
  if (!camera.isOn && name !== "" && !find("choose").disabled) {
    showError("");
    detectPhoto();
  }
}

function listen() {
  const on = (id, type, action) => find(id).addEventListener(type, action);
  on("choose", "click", () => find("file").click());
  on("file", "change", async ({ target }) => {
    const files = [...target.files];
    target.value = ""; // the same file can be chosen again
    if (files.length > 0) await openFirst(files);
  });
  on("camera", "click", () => (camera.isOn ? stopCamera() : startCamera()));
  on("sample", "click", openSample);
  on("retry", "click", async () => {
    showError("");
    await load(() => detector.restart());
  });
  for (const id of ["score", "side"]) on(id, "change", changed);
  on("score", "input", ({ target }) => {
    find("score-value").textContent = Number(target.value).toFixed(2);
  });
  on("landmarks", "change", () => name !== "" && showFaces());
  on("save-picture", "click", () => view.toBlob((blob) => save(blob, "_faces.png")));
  on("save-faces", "click", () => save(facesAsJson(), "_faces.json"));
  listenForDrops();
}

function listenForDrops() {
  const stage = find("stage");
  window.addEventListener("dragover", (event) => {
    event.preventDefault();
    stage.classList.add("target");
  });
  window.addEventListener("dragleave", ({ relatedTarget }) => {
    if (relatedTarget === null) stage.classList.remove("target");
  });
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("target");
    openFirst(event.dataTransfer.files);
  });
  window.addEventListener("paste", ({ clipboardData }) => {
    if (clipboardData.files.length > 0) openFirst(clipboardData.files);
  });
}

async function keepOffline() {
  try {
    await navigator.serviceWorker.register("offline.js");
    await navigator.serviceWorker.ready;
    find("offline").textContent = "This page now works without a network.";
  } catch {
    find("offline").textContent = "This browser does not keep the page for use without a network.";
  }
}

find("unloaded").remove();
listen();
if (await load(() => detector.start())) await keepOffline();
