// The page of `dashfusion serve`: choose clips or record one, and upload them one after the other. A single clip's
// result is shown in full, those of several as a table, whose rows open them.
import { formatClock, formatNumber } from "./charts.js";
import { $, element, show } from "./dom.js";
import { doubts, formatInterval, labelOf, offer, showResult } from "./result.js";

const player = $("player");
const state = {
  model: null, // response of GET /model
  token: loadToken(),
  clips: [], // chosen: { file, url, problem, body (the response), row (of the table) }
  shown: null, // the clip in the player
  recorder: null,
  request: null, // the running upload
  retryTimer: 0,
};

// ---- helpers

function loadToken() {
  try { return sessionStorage.getItem("token") || ""; } catch { return ""; } // storage may be disabled
}

function saveToken(token) {
  try { sessionStorage.setItem("token", token); } catch { return; }
}

function formatSize(bytes) {
  if (bytes < 2 ** 20) return `${Math.ceil(bytes / 2 ** 10)} KB`;
  return `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MB`;
}

// ---- model and token

async function loadModel() {
  clearProblem();
  let response;
  try {
    response = await fetch("model", { headers: authorization() });
  } catch {
    showProblem("gone", loadModel);
    return;
  }
  if (response.status === 401) {
    askForToken();
  } else if (response.ok) {
    state.model = await response.json();
    showForm(state.model);
  } else {
    const { error, message } = await response.json().catch(() => ({}));
    showProblem(error || "internal", loadModel, message);
  }
}

function authorization() {
  return state.token ? { Authorization: `Bearer ${state.token}` } : {};
}

function askForToken() {
  show($("token-form"));
  show($("form"), false);
  $("token-wrong").textContent = state.token ? "That is not the server's token." : "";
  show($("token-wrong"), Boolean(state.token));
  $("token").value = "";
  $("token").focus();
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = $("token").value.trim();
  saveToken(state.token);
  loadModel();
});

function showForm(model) {
  const [low, high] = model.label_range;
  $("notice").textContent = model.notice || "";
  show($("notice"), Boolean(model.notice));
  $("about").textContent = `By DashFusion trained on ${model.corpus} (language: ${model.language}), from ` +
    `${model.modalities.join(", ")}. Scores range from ${formatNumber(low, 0)} (negative) to ` +
    `${formatNumber(high, 0)} (positive). Clips of up to ${formatClock(model.limits.seconds)} and ` +
    `${formatSize(model.limits.bytes)}.`;
  const levels = model.levels.length ? model.levels : [0.9];
  const option = (level) => element("option", { value: level }, `${Math.round(100 * level)} %`);
  $("level").replaceChildren(...levels.map(option));
  $("level").value = levels.includes(0.9) ? 0.9 : levels[0];
  if (model.clip_seconds.median) $("window").placeholder = model.clip_seconds.median.toFixed(1);
  show($("text-row"), model.modalities.includes("text"));
  show($("recognise-row"), Boolean(model.recogniser));
  show($("record"), canRecord());
  show($("token-form"), false);
  show($("form"));
}

// ---- errors

const TITLES = {
  too_large: "The file is too large",
  too_long: "The clip is too long",
  too_many_pixels: "The frames are too large",
  not_media: "This is not a clip",
  not_scorable: "This clip cannot be scored",
  clip_timeout: "Scoring takes too long",
  too_much_memory: "Scoring needs too much memory",
  crashed: "The file cannot be read",
  invalid: "An option is invalid",
  upload_timeout: "The upload took too long",
  busy: "The server is busy",
  stopping: "The server is being stopped",
  gone: "The server does not answer",
  camera: "The camera cannot be used",
};
const GONE = "It may have been stopped (`dashfusion serve` starts it), or the connection is lost.";
const RETRYABLE = ["busy", "stopping", "gone", "internal", "no_worker", "upload_timeout"];

function showProblem(error, retry, message = GONE) {
  $("problem-title").textContent = TITLES[error] || "The server cannot do that";
  $("problem-message").textContent = message;
  show($("retry"), Boolean(retry) && RETRYABLE.includes(error));
  $("retry").onclick = retry;
  $("problem").dataset.error = error;
  show($("problem"));
}

function clearProblem() {
  show($("problem"), false);
  clearInterval(state.retryTimer);
}

// ---- choosing clips

$("file").addEventListener("change", () => $("file").files.length && choose([...$("file").files]));

addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault(); // by default the browser opens the file instead of this page
  $("drop").classList.remove("over");
  if (event.dataTransfer.files.length && state.model) choose([...event.dataTransfer.files]);
});

const several = () => state.clips.length > 1;

function choose(files) {
  cancel();
  clearProblem();
  for (const { url } of state.clips) URL.revokeObjectURL(url);
  state.clips = files.map((file) => ({ file, url: URL.createObjectURL(file), problem: checkSize(file), body: null }));
  const [{ file, problem }] = state.clips;
  const size = formatSize(files.reduce((sum, { size }) => sum + size, 0));
  $("chosen").textContent = several() ? `${files.length} files, ${size}` : `${file.name}, ${size}`;
  $("send").disabled = false;
  $("status").textContent = "";
  show($("result"), false);
  show($("text-row"), state.model.modalities.includes("text"));
  show($("single-text"), !several());
  show($("several-texts"), several());
  $("preview").append(player, $("unplayable"));
  if (several()) hidePlayer();
  else play(state.clips[0]);
  showTable();
  if (problem && !several()) reject(problem);
}

function checkSize(file) {
  const limit = state.model.limits.bytes;
  if (file.size <= limit) return null;
  const message = `${file.name} has ${formatSize(file.size)}; the limit is ${formatSize(limit)}. Make it smaller, or cut it.`;
  return { error: "too_large", message };
}

function reject(problem) {
  $("send").disabled = true;
  showProblem(problem.error, null, problem.message);
}

// ---- the player

function play(clip) {
  state.shown = clip;
  player.src = clip.url;
  show(player);
  show($("unplayable"), false);
}

function hidePlayer() {
  state.shown = null;
  player.removeAttribute("src");
  player.load();
  show(player, false);
  show($("unplayable"), false);
}

player.addEventListener("error", () => {
  if (!state.shown) return;
  show(player, false);
  $("unplayable").textContent = `This browser cannot play ${state.shown.file.name}. It is scored all the same, and if ` +
    "it has a picture, frames of it are shown with the score.";
  show($("unplayable"));
});

player.addEventListener("loadedmetadata", () => {
  const limit = state.model.limits.seconds;
  if (player.duration === Infinity) {
    measureDuration();
  } else if (player.duration > limit + 1 && !several()) {
    reject({
      error: "too_long",
      message: `${state.shown.file.name} lasts ${formatClock(player.duration)}; the limit is ${formatClock(limit)}. ` +
        "Cut it, or use `dashfusion predict`, which has no limit.",
    });
  }
});

function measureDuration() { // recordings do not declare it; seeking past the end makes the browser determine it
  player.addEventListener("durationchange", () => { player.currentTime = 0; }, { once: true });
  player.currentTime = 1e7;
}

const PROBE_MS = 3000;

function showsPicture({ url }) { // whether this browser plays the file and shows its video
  return new Promise((resolve) => {
    const video = element("video", { preload: "metadata" });
    const end = (shown) => { video.removeAttribute("src"); resolve(shown); };
    video.addEventListener("loadedmetadata", () => end(video.videoWidth > 0));
    video.addEventListener("error", () => end(false));
    setTimeout(() => end(false), PROBE_MS);
    video.src = url;
  });
}

// ---- recording a clip

const RECORDING_TYPES = ["video/webm;codecs=vp8,opus", "video/webm", "video/mp4"];

function canRecord() {
  return Boolean(window.MediaRecorder && navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
}

$("record").addEventListener("click", () => (state.recorder ? state.recorder.stop() : record()));

async function record() {
  clearProblem();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, facingMode: "user" }, audio: true });
  } catch (error) {
    const reasons = {
      NotAllowedError: "The browser was not allowed to use it.",
      NotFoundError: "There is no camera or microphone.",
    };
    const advice = "Choose a clip instead, or allow it in the browser's settings.";
    showProblem("camera", null, `${reasons[error.name] || error.message} ${advice}`);
    return;
  }
  const chunks = [];
  const mimeType = RECORDING_TYPES.find((type) => MediaRecorder.isTypeSupported(type));
  const recorder = new MediaRecorder(stream, mimeType ? { mimeType } : {});
  const started = performance.now();
  const tick = () => {
    const seconds = (performance.now() - started) / 1000;
    $("record").textContent = `Stop (${formatClock(seconds)})`;
    if (seconds > state.model.limits.seconds - 1) recorder.stop();
  };
  const timer = setInterval(tick, 250);
  recorder.addEventListener("dataavailable", (event) => chunks.push(event.data));
  recorder.addEventListener("stop", () => {
    stream.getTracks().forEach((track) => track.stop());
    clearInterval(timer);
    state.recorder = null;
    showCamera(null);
    const suffix = recorder.mimeType.includes("mp4") ? "mp4" : "webm";
    choose([new File(chunks, `recording.${suffix}`, { type: recorder.mimeType })]);
  });
  state.recorder = recorder;
  showCamera(stream);
  tick();
  recorder.start(1000);
}

function showCamera(stream) {
  $("camera").srcObject = stream;
  show($("camera"), Boolean(stream));
  show(player, !stream && Boolean(state.shown));
  $("record").classList.toggle("recording", Boolean(stream));
  if (stream) $("camera").play();
  else $("record").textContent = "Record one";
}

// ---- uploading them, one after the other

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!state.clips.length || state.request) return;
  for (const clip of state.clips) Object.assign(clip, { body: null, problem: checkSize(clip.file) });
  showTable();
  sendNext();
});

$("cancel").addEventListener("click", () => {
  cancel();
  clearProblem();
  $("status").textContent = "Cancelled.";
});

function cancel() {
  clearInterval(state.retryTimer);
  if (state.request) state.request.abort();
  setRequest(null);
}

function setRequest(request, status = "") {
  state.request = request;
  $("status").textContent = status;
  $("send").disabled = Boolean(request) || !state.clips.length;
  show($("cancel"), Boolean(request));
  show($("progress"), Boolean(request));
}

function sendNext() {
  clearProblem();
  const clip = state.clips.find(({ body, problem }) => !body && !problem);
  if (clip) send(clip);
  else finish();
}

async function send(clip) { // XMLHttpRequest, since fetch does not report upload progress
  const request = new XMLHttpRequest();
  setRequest(request, "Uploading");
  updateRow(clip, "Scoring");
  const form = new FormData();
  form.append("text", several() ? "" : $("text").value);
  form.append("level", $("level").value);
  if ($("window").value) form.append("window", $("window").value);
  form.append("recognise", $("recognise").checked);
  form.append("frames", !(await showsPicture(clip)));
  form.append("file", clip.file, clip.file.name);
  if (state.request !== request) { // cancelled meanwhile
    updateRow(clip);
    return;
  }
  const which = several() ? `${clip.file.name}: ` : "";
  request.open("POST", "predict");
  for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
  request.upload.addEventListener("progress", ({ loaded, total }) => {
    $("bar").value = loaded / total;
    if (loaded < total) $("status").textContent = `${which}Uploading, ${Math.floor(100 * loaded / total)} %`;
  });
  request.upload.addEventListener("load", () => {
    $("bar").removeAttribute("value");
    $("status").textContent = `${which}Scoring`;
  });
  request.addEventListener("load", () => handleResponse(clip, request));
  request.addEventListener("error", () => { setRequest(null); showProblem("gone", sendNext); });
  request.addEventListener("abort", () => updateRow(clip));
  request.send(form);
}

function handleResponse(clip, request) {
  setRequest(null);
  let body;
  try {
    body = JSON.parse(request.responseText);
  } catch {
    body = { error: "internal", message: `HTTP ${request.status}` };
  }
  if (request.status === 200) {
    clip.body = body;
  } else if (request.status === 401) {
    askForToken();
    return;
  } else if (!several() || RETRYABLE.includes(body.error)) {
    updateRow(clip);
    showProblem(body.error, sendNext, body.message);
    if (body.error === "busy") retryIn(Number(request.getResponseHeader("Retry-After")) || 5);
    return;
  } else {
    clip.problem = body;
  }
  updateRow(clip);
  sendNext();
}

function retryIn(seconds) {
  let left = seconds;
  const showLeft = () => { $("problem-message").textContent = `All workers are busy. Trying again in ${left} s.`; };
  showLeft();
  show($("cancel"));
  state.retryTimer = setInterval(() => {
    left -= 1;
    if (left > 0) {
      showLeft();
    } else {
      clearInterval(state.retryTimer);
      sendNext();
    }
  }, 1000);
}

function finish() {
  const scored = state.clips.filter(({ body }) => body);
  if (several()) {
    $("status").textContent = `${scored.length} of ${state.clips.length} files scored.`;
    if (scored.length) offer($("download-all"), { ...scored[0].body, results: scored.map(({ body }) => body.results[0]) });
    show($("download-all"), scored.length > 0);
    $("table-title").focus();
  } else if (scored.length) {
    const [{ body }] = scored;
    showResult(body, state.model);
    const [result] = body.results;
    $("status").textContent = `Scored: ${formatNumber(result.score)}, ${labelOf(result, state.model)}.`;
  }
}

// ---- the table of several results

function showTable() {
  show($("table"), several());
  if (!several()) return;
  show($("download-all"), false);
  show($("result"), false);
  $("clips").replaceChildren(...state.clips.map((clip) => {
    clip.row = element("tr");
    updateRow(clip);
    return clip.row;
  }));
}

function updateRow(clip, status = "Waiting") {
  if (!clip.row) return;
  const name = element("td", { class: "name" });
  const cells = [name];
  const cell = (text, value, kind = "") => cells.push(element("td", { class: kind, "data-value": value }, text));
  if (clip.body) {
    const [result] = clip.body.results;
    const { interval } = result;
    const button = element("button", { type: "button" }, clip.file.name);
    button.addEventListener("click", () => { play(clip); showResult(clip.body, state.model); });
    name.append(button);
    cell(formatNumber(result.score), result.score, "number");
    cell(labelOf(result, state.model), result.score);
    cell(interval ? formatInterval(interval) : "–", interval ? interval.high - interval.low : "", "number");
    const [first, ...others] = doubts(result);
    cell((first ? first.message : "") + (others.length ? ` (and ${others.length} more)` : ""), doubts(result).length);
  } else {
    name.textContent = clip.file.name;
    cell("", "", "number");
    cell(clip.problem ? "Not scored" : status, "");
    cell("", "", "number");
    cell(clip.problem ? clip.problem.message : "", "");
  }
  clip.row.replaceChildren(...cells);
}

loadModel();
