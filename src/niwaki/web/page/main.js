// The page: a photo or a camera frame in, the model's answer and its time out. Nothing leaves the device.
import * as ort from "./ort/ort.wasm.min.mjs";
import { planes, resize } from "./resize.js";

const $ = (id) => document.getElementById(id);
const base = new URL(".", location.href);
ort.env.wasm.wasmPaths = new URL("ort/", base).href;
ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;

async function fetched(name) {
  const answer = await fetch(name, { cache: "no-cache" });  // else a replaced export stays for hours
  if (!answer.ok) throw new Error(`${name} is not there (${answer.status})`);
  return answer;
}

async function loaded() {
  const about = await (await fetched("model.json")).json(), began = performance.now();
  const { spec } = about, [height, width] = spec.size_hw;
  const bytes = new Uint8Array(await (await fetched("model.onnx")).arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const black = new Uint8Array(height * width * spec.channels);  // the first answer is slow
  await session.run({ image: new ort.Tensor("uint8", black, [1, height, width, spec.channels]) });
  $("model").textContent = `${about.precision}, ${width} x ${height} pixels, ` +
    `${(bytes.length / 1e6).toPrecision(3)} MB, ready in ${(performance.now() - began).toFixed(0)} ms`;
  return { about, session };
}

const { about, session } = await loaded().catch((error) => {
  $("model").textContent = `the model could not be loaded: ${error.message}`;
  document.body.dataset.error = error.message;
  throw error;
});
const { spec, task } = about, [height, width] = spec.size_hw;

// Raw pixels of anything that can be drawn: upright, over white, at its own size, then as Spec.read does it.
function pixelsOf(source, w, h) {
  const canvas = new OffscreenCanvas(w, h), context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, w, h);
  context.drawImage(source, 0, 0);
  const raw = planes(context.getImageData(0, 0, w, h).data, spec.channels);
  return resize(raw, h, w, spec.channels, height, width);
}

async function answer(source, w, h) {
  const start = performance.now();
  const image = new ort.Tensor("uint8", pixelsOf(source, w, h), [1, height, width, spec.channels]);
  const prepared = performance.now();
  const found = await session.run({ image });
  const done = performance.now();
  show(Array.from(found.probabilities.data), done - prepared, prepared - start);
}

function show(probabilities, ms, before) {
  const order = probabilities.map((p, k) => [p, k]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  $("answer").replaceChildren(...order.map(([p, k]) => {
    const row = document.createElement("div"), bar = document.createElement("i"), text = document.createElement("b");
    row.className = "row";
    bar.style.width = `${(100 * p).toFixed(1)}%`;
    text.textContent = `${task.classes[k]}  ${(100 * p).toFixed(1)} %`;
    row.append(bar, text);
    return row;
  }));
  $("time").textContent = `model ${ms.toFixed(1)} ms, preparing the image ${before.toFixed(1)} ms`;
  delete document.body.dataset.error;
  document.body.dataset.label = task.classes[order[0][1]];
  document.body.dataset.probabilities = JSON.stringify(probabilities);
  document.body.dataset.ms = ms.toFixed(2);
}

async function photo(blob) {
  stop();
  try {
    const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
    const canvas = $("view");
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    await answer(bitmap, bitmap.width, bitmap.height);
  } catch (error) {
    fail(error);
  }
}

function fail(error) {  // the last picture's answer is not this one's
  $("answer").replaceChildren();
  for (const name of ["label", "probabilities", "ms"]) delete document.body.dataset[name];
  $("time").textContent = `this did not work: ${error.message}`;
  document.body.dataset.error = error.message;
}

let camera = null;
function stop() {
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
}

async function film() {
  stop();
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    return fail(error);
  }
  const video = document.createElement("video");
  video.srcObject = camera;
  video.playsInline = video.muted = true;
  await video.play();
  const canvas = $("view"), own = camera;
  while (camera === own) {
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    await answer(video, video.videoWidth, video.videoHeight);
    await new Promise(requestAnimationFrame);
  }
}

$("file").onchange = (event) => event.target.files[0] && photo(event.target.files[0]);
$("camera").onclick = () => (camera ? stop() : film());
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  if (event.dataTransfer.files[0]) photo(event.dataTransfer.files[0]);
};
if (navigator.serviceWorker && location.protocol !== "file:")
  navigator.serviceWorker.register("worker.js").catch(() => {});

// ?photo=NAME shows a picture that lies beside the page; names lead nowhere else.
const name = new URLSearchParams(location.search).get("photo");
if (name && /^[\w.-]+$/.test(name)) await photo(await (await fetch(name)).blob());
document.body.dataset.ready = "yes";
