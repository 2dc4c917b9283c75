// The page of `dashfusion serve`: choose or record a clip, upload it, and view its score next to the playing video.
// The video plays from the browser's own copy of the file. Times are seconds from the clip's start.
import { contributionChart, formatClock, formatNumber, scaleChart, Timeline } from "./charts.js";

const $ = (id) => document.getElementById(id);
const player = $("player");
const state = {
  model: null, // response of GET /model
  token: loadToken(),
  file: null,
  fileUrl: "",
  recorder: null,
  request: null, // the running upload
  retryTimer: 0,
  result: null,
  timeline: null,
  time: 0, // position of the time line's head
  drawnWidth: 0,
};

// ---- helpers

function loadToken() {
  try { return sessionStorage.getItem("token") || ""; } catch { return ""; } // storage may be disabled
}

function saveToken(token) {
  try { sessionStorage.setItem("token", token); } catch { return; }
}

function show(element, shown = true) {
  element.hidden = !shown;
}

function formatSize(bytes) {
  if (bytes < 2 ** 20) return `${Math.ceil(bytes / 2 ** 10)} KB`;
  return `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MB`;
}

function element(name, attributes = {}, text = "") {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
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

// ---- choosing a clip

$("file").addEventListener("change", () => $("file").files.length && choose($("file").files[0]));

addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault(); // by default the browser opens the file instead of this page
  $("drop").classList.remove("over");
  if (event.dataTransfer.files.length && state.model) choose(event.dataTransfer.files[0]);
});

function choose(file) {
  cancel();
  clearProblem();
  URL.revokeObjectURL(state.fileUrl);
  state.file = file;
  state.fileUrl = URL.createObjectURL(file);
  show($("result"), false);
  $("preview").append(player, $("unplayable"));
  player.src = state.fileUrl;
  show(player);
  show($("unplayable"), false);
  $("chosen").textContent = `${file.name}, ${formatSize(file.size)}`;
  $("send").disabled = false;
  $("status").textContent = "";
  const limit = state.model.limits.bytes;
  if (file.size > limit) {
    reject("too_large", `${file.name} has ${formatSize(file.size)}; the limit is ${formatSize(limit)}. ` +
      "Make it smaller, or cut it.");
  }
}

function reject(error, message) {
  $("send").disabled = true;
  showProblem(error, null, message);
}

player.addEventListener("error", () => {
  if (!player.src) return;
  show(player, false);
  show($("unplayable"));
});

player.addEventListener("loadedmetadata", () => {
  const limit = state.model.limits.seconds;
  if (player.duration === Infinity) {
    measureDuration();
  } else if (player.duration > limit + 1) {
    reject("too_long", `${state.file.name} lasts ${formatClock(player.duration)}; the limit is ` +
      `${formatClock(limit)}. Cut it, or use \`dashfusion predict\`, which has no limit.`);
  }
});

function measureDuration() { // recordings do not declare it; seeking past the end makes the browser determine it
  player.addEventListener("durationchange", () => { player.currentTime = 0; }, { once: true });
  player.currentTime = 1e7;
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
    choose(new File(chunks, `recording.${suffix}`, { type: recorder.mimeType }));
  });
  state.recorder = recorder;
  showCamera(stream);
  tick();
  recorder.start(1000);
}

function showCamera(stream) {
  $("camera").srcObject = stream;
  show($("camera"), Boolean(stream));
  show(player, !stream && Boolean(state.file));
  $("record").classList.toggle("recording", Boolean(stream));
  if (stream) $("camera").play();
  else $("record").textContent = "Record one";
}

// ---- uploading it

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.file && !state.request) send();
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
  $("send").disabled = Boolean(request) || !state.file;
  show($("cancel"), Boolean(request));
  show($("progress"), Boolean(request));
}

function send() { // XMLHttpRequest, since fetch does not report upload progress
  clearProblem();
  const form = new FormData();
  form.append("text", $("text").value);
  form.append("level", $("level").value);
  if ($("window").value) form.append("window", $("window").value);
  form.append("recognise", $("recognise").checked);
  form.append("file", state.file, state.file.name);
  const request = new XMLHttpRequest();
  request.open("POST", "predict");
  for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
  request.upload.addEventListener("progress", ({ loaded, total }) => {
    $("bar").value = loaded / total;
    if (loaded < total) $("status").textContent = `Uploading, ${Math.floor(100 * loaded / total)} %`;
  });
  request.upload.addEventListener("load", () => {
    $("bar").removeAttribute("value");
    $("status").textContent = "Scoring";
  });
  request.addEventListener("load", () => handleResponse(request));
  request.addEventListener("error", () => { setRequest(null); showProblem("gone", send); });
  setRequest(request, "Uploading");
  request.send(form);
}

function handleResponse(request) {
  setRequest(null);
  let body;
  try {
    body = JSON.parse(request.responseText);
  } catch {
    body = { error: "internal", message: `HTTP ${request.status}` };
  }
  if (request.status === 200) {
    showResult(body);
  } else if (request.status === 401) {
    askForToken();
  } else {
    showProblem(body.error, send, body.message);
    if (body.error === "busy") retryIn(Number(request.getResponseHeader("Retry-After")) || 5);
  }
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
      send();
    }
  }, 1000);
}

// ---- the result

const TRANSCRIPT_TITLES = { asr: "Transcript, by speech recognition", given: "Transcript, as given" };

function showResult(body) {
  const [result] = body.results;
  const { interval } = result;
  state.result = result;
  $("result-name").textContent = result.file;
  $("score").textContent = formatNumber(result.score);
  $("sentiment").textContent = `${result.sentiment} (class ${result.class})`;
  $("from").textContent = `from ${result.used.join(", ")}; ${formatClock(result.duration)}`;
  if (interval) {
    $("from").textContent += `; ${Math.round(100 * interval.level)} % interval ` +
      `${formatNumber(interval.low)} to ${formatNumber(interval.high)}`;
  }
  $("result-player").append(player, $("unplayable"));
  showContributions(result.contributions);
  $("warning-list").replaceChildren(...result.warnings.map((warning) => element("li", {}, warning.message)));
  show($("warnings"), result.warnings.length > 0);
  $("transcript-title").textContent = TRANSCRIPT_TITLES[result.text_source] || "Transcript";
  $("transcript-text").textContent = result.text;
  show($("transcript"), Boolean(result.text));
  showWindows(result.windows);
  URL.revokeObjectURL($("download").href);
  const json = new Blob([JSON.stringify(body, null, 2)], { type: "application/json" });
  $("download").href = URL.createObjectURL(json);
  show($("result"));
  drawCharts();
  $("status").textContent = `Scored: ${formatNumber(result.score)}, ${result.sentiment}.`;
  $("result-name").focus();
}

function showContributions(contributions) {
  const entries = Object.entries(contributions);
  const [low, high] = state.model.label_range;
  const max = Math.max(...entries.map(([, value]) => Math.abs(value)), (high - low) / 6);
  $("bars").replaceChildren(...entries.map(([modality, value]) => {
    const row = element("div", { class: "contribution" });
    const number = element("span", { class: "number" }, formatNumber(value, 2, true));
    row.append(element("span", {}, modality), contributionChart(value, max), number);
    return row;
  }));
  show($("contributions"), entries.length > 0);
}

function showWindows(windows) {
  $("windows-title").textContent = `${windows.length} windows`;
  $("rows").replaceChildren(...windows.map(windowRow));
  show($("windows"), windows.length > 0);
  show($("over-time"), windows.length > 0);
  const median = state.model.clip_seconds.median;
  $("no-timeline").textContent = median
    ? `Too short for a time line: choose shorter windows (Options), or a clip of at least ` +
      `${formatNumber(2 * median, 1)} s.`
    : "Too short for a time line.";
  show($("no-timeline"), windows.length === 0);
}

function windowRow(window) {
  const row = element("tr");
  const time = element("td");
  const button = element("button", { type: "button" }, `${formatClock(window.start)} – ${formatClock(window.end)}`);
  button.addEventListener("click", () => seek(window.start));
  time.append(button);
  row.append(
    time,
    element("td", { class: "number" }, formatNumber(window.score)),
    element("td", {}, window.used.join(", ")),
    element("td", { class: "transcript" }, window.text),
  );
  return row;
}

function drawCharts() { // at their displayed width, so that text keeps its size
  const { label_range: range } = state.model;
  const { windows, duration } = state.result;
  state.drawnWidth = $("result").clientWidth;
  $("scale").replaceChildren(scaleChart(state.result, range, $("scale").clientWidth));
  state.timeline = windows.length ? new Timeline(windows, duration, range, $("timeline").clientWidth) : null;
  if (!state.timeline) return;
  $("timeline").replaceChildren(state.timeline.svg);
  $("timeline").setAttribute("aria-valuemax", state.timeline.end.toFixed(1));
  moveHead(isPlayable() ? player.currentTime : state.time);
}

new ResizeObserver(() => {
  const width = $("result").clientWidth;
  if (state.result && width && width !== state.drawnWidth) drawCharts();
}).observe($("result"));

// ---- the time line, which follows the video and seeks in it

const isPlayable = () => !player.hidden && player.readyState > 0;
const clampTime = (time) => Math.min(Math.max(time, 0), state.timeline.end);

function moveHead(time) {
  if (!state.timeline) return;
  state.time = clampTime(time);
  state.timeline.moveHead(state.time);
  const window = state.timeline.windowAt(state.time);
  const score = `${formatNumber(window.score)}, ${window.sentiment || "nothing to score"}`;
  const summary = `${formatClock(state.time)}: ${score}`;
  $("readout").textContent = summary + (window.text ? ` – “${window.text}”` : "");
  $("timeline").setAttribute("aria-valuenow", state.time.toFixed(1));
  $("timeline").setAttribute("aria-valuetext", summary);
}

function seek(time) {
  const target = clampTime(time);
  if (isPlayable()) player.currentTime = target;
  moveHead(target);
}

function followVideo() {
  moveHead(player.currentTime);
  if (!player.paused && !player.ended) requestAnimationFrame(followVideo);
}

player.addEventListener("play", followVideo);
for (const event of ["timeupdate", "seeked"]) player.addEventListener(event, () => moveHead(player.currentTime));

$("timeline").addEventListener("pointerdown", (event) => {
  const seekToPointer = ({ clientX }) => {
    const box = $("timeline").getBoundingClientRect();
    seek(state.timeline.timeAt((clientX - box.left) * state.timeline.width / box.width));
  };
  const release = () => {
    $("timeline").removeEventListener("pointermove", seekToPointer);
    removeEventListener("pointerup", release);
    removeEventListener("pointercancel", release);
  };
  $("timeline").setPointerCapture(event.pointerId);
  $("timeline").addEventListener("pointermove", seekToPointer);
  addEventListener("pointerup", release);
  addEventListener("pointercancel", release);
  seekToPointer(event);
});

const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };

$("timeline").addEventListener("keydown", (event) => {
  if (event.key in STEPS) seek(state.time + STEPS[event.key]);
  else if (event.key === "Home") seek(0);
  else if (event.key === "End") seek(state.timeline.end);
  else if (event.key === " " && isPlayable()) player.paused ? player.play() : player.pause();
  else return;
  event.preventDefault();
});

loadModel();
