// The page of `dashfusion serve`: choose or record a clip, send it, and see the score beside the playing video.
// The video plays from the browser's own copy of the file. Times are seconds from the clip's start.
"use strict";

const $ = (id) => document.getElementById(id);
const player = $("player");
const drawn = { width: 0 };
const state = { model: null, token: read("token"), file: null, address: "", result: null, request: null, timer: 0 };

// ---- small helpers

function read(name) {
  try { return sessionStorage.getItem(name) || ""; } catch { return ""; } // storage may be switched off
}

function keep(name, value) {
  try { sessionStorage.setItem(name, value); } catch { return; }
}

function show(element, shown = true) {
  element.hidden = !shown;
}

function number(value, digits = 2, sign = false) {
  if (value === null || value === undefined) return "–";
  return (sign && value >= 0 ? "+" : "") + value.toFixed(digits).replace("-", "−");
}

function clock(seconds) {
  if (seconds < 59.95) return `0:${seconds.toFixed(1).padStart(4, "0")}`;
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, String(whole % 60).padStart(2, "0")];
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

function size(bytes) {
  return bytes < 2 ** 20 ? `${Math.ceil(bytes / 2 ** 10)} KB` : `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MB`;
}

function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function shape(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

// ---- what the server is

async function load() {
  clearProblem();
  let answer;
  try {
    answer = await fetch("model", { headers: authorization() });
  } catch {
    problem("gone", load);
    return;
  }
  if (answer.status === 401) {
    askForToken();
  } else if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    problem(told.error || "internal", load, told.message);
  } else {
    state.model = await answer.json();
    introduce(state.model);
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
  keep("token", state.token);
  load();
});

function introduce(model) {
  const [low, high] = model.label_range;
  const [bytes, seconds] = [model.limits.bytes, model.limits.seconds];
  $("about").textContent = `By DashFusion trained on ${model.corpus} (language: ${model.language}), from ` +
    `${model.modalities.join(", ")}. Scores run from ${number(low, 0)} (negative) to ${number(high, 0)} (positive). ` +
    `Clips of up to ${clock(seconds)} and ${size(bytes)}.`;
  const levels = model.levels.length ? model.levels : [0.9];
  $("level").replaceChildren(...levels.map((level) => element("option", { value: level }, `${Math.round(100 * level)} %`)));
  $("level").value = levels.includes(0.9) ? 0.9 : levels[0];
  if (model.clip_seconds.median) $("window").placeholder = model.clip_seconds.median.toFixed(1);
  show($("said-row"), model.modalities.includes("text"));
  show($("recognise-row"), Boolean(model.recogniser));
  show($("record"), canRecord());
  show($("token-form"), false);
  show($("form"));
}

// ---- errors: what happened, and what helps

const TITLES = {
  too_large: "The file is too large",
  too_long: "The clip is too long",
  too_many_pixels: "The picture is too large",
  not_media: "This is not a clip",
  not_scorable: "This clip cannot be scored",
  clip_timeout: "Scoring takes too long",
  too_much_memory: "Scoring needs too much memory",
  crashed: "The file cannot be read",
  invalid: "An option does not fit",
  upload_timeout: "The upload took too long",
  busy: "The server is busy",
  stopping: "The server is being stopped",
  gone: "The server does not answer",
  camera: "The camera cannot be used",
};
const GONE = "Its address is right, but nothing answers there: it may have been stopped (`dashfusion serve` starts it), " +
  "or the connection is lost.";
const WORTH_ANOTHER_TRY = ["busy", "stopping", "gone", "internal", "no_worker", "upload_timeout"];

function problem(error, again, message = GONE) {
  $("problem-title").textContent = TITLES[error] || "The server cannot do that";
  $("problem-message").textContent = message;
  show($("again"), Boolean(again) && WORTH_ANOTHER_TRY.includes(error));
  $("again").onclick = again;
  $("problem").dataset.error = error;
  show($("problem"));
}

function clearProblem() {
  show($("problem"), false);
  clearInterval(state.timer);
}

// ---- choosing a clip

$("file").addEventListener("change", () => $("file").files.length && choose($("file").files[0]));

addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault(); // without it the browser would leave the page for the file
  $("drop").classList.remove("over");
  if (event.dataTransfer.files.length && state.model) choose(event.dataTransfer.files[0]);
});

function choose(file) {
  cancel();
  clearProblem();
  URL.revokeObjectURL(state.address);
  Object.assign(state, { file, address: URL.createObjectURL(file) });
  show($("result"), false);
  $("preview").append(player, $("unplayable"));
  player.src = state.address;
  show(player);
  show($("unplayable"), false);
  $("chosen").textContent = `${file.name}, ${size(file.size)}`;
  $("send").disabled = false;
  $("doing").textContent = "";
  if (file.size > state.model.limits.bytes) {
    refuse("too_large", `${file.name} has ${size(file.size)}; up to ${size(state.model.limits.bytes)} are taken. Make it smaller, or cut it.`);
  }
}

function refuse(error, message) {
  $("send").disabled = true;
  problem(error, null, message);
}

player.addEventListener("error", () => {
  if (!player.src) return;
  show(player, false);
  show($("unplayable"));
});

player.addEventListener("loadedmetadata", () => {
  const most = state.model.limits.seconds;
  if (player.duration === Infinity) findDuration();
  else if (player.duration > most + 1) {
    refuse("too_long", `${state.file.name} lasts ${clock(player.duration)}; up to ${clock(most)} are taken. Cut it, or use \`dashfusion predict\`, which takes any length.`);
  }
});

function findDuration() { // a recording's header does not say; a browser finds out when it looks for the end
  player.addEventListener("durationchange", () => { player.currentTime = 0; }, { once: true });
  player.currentTime = 1e7;
}

// ---- recording one

const KINDS = ["video/webm;codecs=vp8,opus", "video/webm", "video/mp4"];

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
    const reasons = { NotAllowedError: "The browser was not allowed to use it.", NotFoundError: "There is no camera or microphone." };
    problem("camera", null, `${reasons[error.name] || error.message} Choose a clip instead, or allow it in the browser's settings.`);
    return;
  }
  const parts = [];
  const kind = KINDS.find((one) => MediaRecorder.isTypeSupported(one));
  const recorder = new MediaRecorder(stream, kind ? { mimeType: kind } : {});
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.addEventListener("stop", () => {
    stream.getTracks().forEach((track) => track.stop());
    clearInterval(ticking);
    Object.assign(state, { recorder: null });
    camera(null);
    const suffix = recorder.mimeType.includes("mp4") ? "mp4" : "webm";
    choose(new File(parts, `recording.${suffix}`, { type: recorder.mimeType }));
  });
  const began = performance.now();
  const tick = () => {
    const seconds = (performance.now() - began) / 1000;
    $("record").textContent = `Stop (${clock(seconds)})`;
    if (seconds > state.model.limits.seconds - 1) recorder.stop();
  };
  const ticking = setInterval(tick, 250);
  state.recorder = recorder;
  camera(stream);
  tick();
  recorder.start(1000);
}

function camera(stream) {
  $("camera").srcObject = stream;
  show($("camera"), Boolean(stream));
  show(player, !stream && Boolean(state.file));
  $("record").classList.toggle("recording", Boolean(stream));
  if (stream) $("camera").play();
  else $("record").textContent = "Record one";
}

// ---- sending it

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.file && !state.request) send();
});

$("cancel").addEventListener("click", () => {
  cancel();
  clearProblem();
  $("doing").textContent = "Cancelled.";
});

function cancel() {
  clearInterval(state.timer);
  if (state.request) state.request.abort();
  working(null);
}

function working(request, words = "") {
  state.request = request;
  $("doing").textContent = words;
  $("send").disabled = Boolean(request) || !state.file;
  show($("cancel"), Boolean(request));
  show($("progress"), Boolean(request));
}

function send() { // XMLHttpRequest, since fetch does not tell how far an upload is
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
  request.upload.addEventListener("progress", (event) => {
    $("bar").value = event.loaded / event.total;
    if (event.loaded < event.total) $("doing").textContent = `Uploading, ${Math.floor(100 * event.loaded / event.total)} %`;
  });
  request.upload.addEventListener("load", () => {
    $("bar").removeAttribute("value");
    $("doing").textContent = "Scoring";
  });
  request.addEventListener("load", () => answered(request));
  request.addEventListener("error", () => { working(null); problem("gone", send); });
  working(request, "Uploading");
  request.send(form);
}

function answered(request) {
  working(null);
  let told;
  try { told = JSON.parse(request.responseText); } catch { told = { error: "internal", message: `HTTP ${request.status}` }; }
  if (request.status === 200) {
    present(told);
  } else if (request.status === 401) {
    askForToken();
  } else {
    problem(told.error, send, told.message);
    if (told.error === "busy") waitAndSend(Number(request.getResponseHeader("Retry-After")) || 5);
  }
}

function waitAndSend(seconds) {
  let left = seconds;
  const tell = () => { $("problem-message").textContent = `All that score are at work. Trying again in ${left} s.`; };
  tell();
  show($("cancel"));
  state.timer = setInterval(() => {
    left -= 1;
    if (left > 0) tell();
    else { clearInterval(state.timer); send(); }
  }, 1000);
}

// ---- showing the score

function present(told) {
  const [result] = told.results;
  state.result = result;
  $("result-name").textContent = result.file;
  $("score").textContent = number(result.score);
  $("sentiment").textContent = `${result.sentiment} (class ${result.class})`;
  $("from").textContent = `from ${result.used.join(", ")}; ${clock(result.duration)}` +
    (result.interval ? `; ${Math.round(100 * result.interval.level)} % interval ${number(result.interval.low)} to ${number(result.interval.high)}` : "");
  $("stage").append(player, $("unplayable"));
  showShares(result.contributions);
  $("warning-list").replaceChildren(...result.warnings.map((warning) => element("li", {}, warning.message)));
  show($("warnings"), result.warnings.length > 0);
  $("said-title").textContent = { asr: "Said, as it was recognised", given: "Said, as it was given" }[result.text_source] || "Said";
  $("said-text").textContent = result.text;
  show($("said"), Boolean(result.text));
  showWindows(result.windows);
  URL.revokeObjectURL($("download").href);
  $("download").href = URL.createObjectURL(new Blob([JSON.stringify(told, null, 2)], { type: "application/json" }));
  show($("result"));
  draw();
  $("doing").textContent = `Scored: ${number(result.score)}, ${result.sentiment}.`;
  $("result-name").focus();
}

function draw() { // as wide as there is room for, so that letters have their size
  drawn.width = $("result").clientWidth;
  $("scale").replaceChildren(scale(state.result));
  drawTimeline();
}

function scale(result) {
  const [low, high] = state.model.label_range;
  const [width, margin, middle] = [$("scale").clientWidth, 14, 18];
  const across = (value) => margin + (width - 2 * margin) * (value - low) / (high - low);
  const picture = shape("svg", { viewBox: `0 0 ${width} 46`, role: "img", "aria-label": `score ${number(result.score)} on a scale from ${number(low, 0)} to ${number(high, 0)}` });
  picture.append(shape("line", { class: "axis", x1: margin, x2: width - margin, y1: middle, y2: middle }));
  for (const value of [low, (low + high) / 2, high]) {
    picture.append(shape("line", { class: "axis", x1: across(value), x2: across(value), y1: 12, y2: 24 }));
    picture.append(shape("text", { x: across(value), y: 42, "text-anchor": "middle" }, number(value, 0)));
  }
  if (result.interval) {
    const [first, last] = [across(result.interval.low), across(result.interval.high)];
    picture.append(shape("rect", { class: "band", x: first, y: middle - 6, width: last - first, height: 12, rx: 6 }));
  }
  picture.append(shape("circle", { class: "dot", cx: across(result.score), cy: middle, r: 6 }));
  return picture;
}

function showShares(shares) {
  const known = Object.entries(shares);
  const [low, high] = state.model.label_range;
  const most = Math.max(...known.map(([, value]) => Math.abs(value)), (high - low) / 6);
  $("bars").replaceChildren(...known.map(([modality, value]) => {
    const row = element("div", { class: "share" });
    const picture = shape("svg", { viewBox: "-100 0 200 12", preserveAspectRatio: "none", height: 12, "aria-hidden": "true" });
    const length = 100 * Math.abs(value) / most;
    picture.append(shape("rect", { class: "bar", x: Math.min(100 * value / most, 0), y: 2, width: length, height: 8 }));
    picture.append(shape("line", { class: "axis", x1: 0, x2: 0, y1: 0, y2: 12, "vector-effect": "non-scaling-stroke" }));
    row.append(element("span", {}, modality), picture, element("span", { class: "number" }, number(value, 2, true)));
    return row;
  }));
  show($("shares"), known.length > 0);
}

function showWindows(windows) {
  $("windows-title").textContent = `${windows.length} windows`;
  $("rows").replaceChildren(...windows.map((window) => {
    const row = element("tr");
    const time = element("td");
    const button = element("button", { type: "button" }, `${clock(window.start)} – ${clock(window.end)}`);
    button.addEventListener("click", () => seek(window.start));
    time.append(button);
    row.append(time, element("td", { class: "number" }, number(window.score)), element("td", {}, window.used.join(", ")), element("td", { class: "said" }, window.text));
    return row;
  }));
  show($("windows"), windows.length > 0);
  show($("over-time"), windows.length > 0);
  const least = state.model.clip_seconds.median;
  $("no-timeline").textContent = "Too short for a time line" +
    (least ? `: clips of ${number(2 * least, 1)} s or more have one, and shorter ones with shorter windows (Options).` : ".");
  show($("no-timeline"), windows.length === 0);
}

// ---- the time line, which follows the video and moves it

const HEIGHT = 150, TOP = 10, BOTTOM = 124, LEFT = 26, RIGHT = 12;
const line = { width: 0, end: 1, at: 0, head: null };

function drawTimeline() {
  const windows = state.result ? state.result.windows : [];
  if (!windows.length) return;
  const [low, high] = state.model.label_range;
  line.width = $("timeline").clientWidth;
  line.end = Math.max(state.result.duration || 0, windows[windows.length - 1].end);
  const height = (value) => TOP + (BOTTOM - TOP) * (high - value) / (high - low);
  const picture = shape("svg", { viewBox: `0 0 ${line.width} ${HEIGHT}`, "aria-hidden": "true" });
  for (const value of [low, (low + high) / 2, high]) {
    picture.append(shape("line", { class: "axis", x1: LEFT, x2: line.width - RIGHT, y1: height(value), y2: height(value) }));
    picture.append(shape("text", { x: LEFT - 6, y: height(value) + 4, "text-anchor": "end" }, number(value, 0)));
  }
  for (const run of runs(windows)) {
    const points = run.map((window) => [across(middle(window)), height(window.score), window.interval]);
    if (points.every(([, , interval]) => interval)) {
      const edge = [...points.map(([x, , i]) => `${x},${height(i.high)}`), ...points.map(([x, , i]) => `${x},${height(i.low)}`).reverse()];
      picture.append(shape("polygon", { class: "band", points: edge.join(" ") }));
    }
    picture.append(shape("polyline", { class: "mark", points: points.map(([x, y]) => `${x},${y}`).join(" ") }));
    for (const [x, y] of points) picture.append(shape("circle", { class: "dot", cx: x, cy: y, r: 2.5 }));
  }
  picture.append(shape("text", { x: LEFT, y: HEIGHT - 6 }, "0:00"));
  picture.append(shape("text", { x: line.width - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, clock(line.end)));
  line.head = shape("g", {});
  line.head.append(shape("line", { class: "head", x1: 0, x2: 0, y1: TOP - 4, y2: BOTTOM + 4 }), shape("circle", { class: "knob", cx: 0, cy: 0, r: 6 }));
  picture.append(line.head);
  $("timeline").replaceChildren(picture);
  $("timeline").setAttribute("aria-valuemax", line.end.toFixed(1));
  moveHead(playable() ? player.currentTime : line.at);
}

const across = (time) => LEFT + (line.width - LEFT - RIGHT) * time / line.end;
const middle = (window) => (window.start + window.end) / 2;
const playable = () => !player.hidden && player.readyState > 0;

function runs(windows) { // stretches without a gap: where a window has no score, the line is broken
  const found = [[]];
  for (const window of windows) {
    if (window.score === null) found.push([]);
    else found[found.length - 1].push(window);
  }
  return found.filter((run) => run.length);
}

function nearest(time) {
  return state.result.windows.reduce((best, window) => (Math.abs(middle(window) - time) < Math.abs(middle(best) - time) ? window : best));
}

function moveHead(time) {
  if (!state.result || !state.result.windows.length || !line.head) return;
  line.at = Math.min(Math.max(time, 0), line.end);
  const window = nearest(line.at);
  const [low, high] = state.model.label_range;
  const score = window.score === null ? (low + high) / 2 : window.score;
  line.head.setAttribute("transform", `translate(${across(line.at)} 0)`);
  line.head.lastChild.setAttribute("cy", TOP + (BOTTOM - TOP) * (high - score) / (high - low));
  const told = `${clock(line.at)}: ${number(window.score)}${window.sentiment ? `, ${window.sentiment}` : ", nothing to go by"}`;
  $("readout").textContent = told + (window.text ? ` – “${window.text}”` : "");
  $("timeline").setAttribute("aria-valuenow", line.at.toFixed(1));
  $("timeline").setAttribute("aria-valuetext", told);
}

function seek(time) {
  const to = Math.min(Math.max(time, 0), line.end);
  if (playable()) player.currentTime = to;
  moveHead(to);
}

function follow() {
  moveHead(player.currentTime);
  if (!player.paused && !player.ended) requestAnimationFrame(follow);
}

player.addEventListener("play", follow);
for (const event of ["timeupdate", "seeked"]) player.addEventListener(event, () => moveHead(player.currentTime));

$("timeline").addEventListener("pointerdown", (event) => {
  const point = (moved) => {
    const box = $("timeline").getBoundingClientRect();
    const x = (moved.clientX - box.left) * line.width / box.width;
    seek(line.end * (x - LEFT) / (line.width - LEFT - RIGHT));
  };
  const done = () => {
    $("timeline").removeEventListener("pointermove", point);
    removeEventListener("pointerup", done);
    removeEventListener("pointercancel", done);
  };
  $("timeline").setPointerCapture(event.pointerId);
  $("timeline").addEventListener("pointermove", point);
  addEventListener("pointerup", done);
  addEventListener("pointercancel", done);
  point(event);
});

$("timeline").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
  if (step) seek(line.at + step);
  else if (event.key === "Home") seek(0);
  else if (event.key === "End") seek(line.end);
  else if (event.key === " " && playable()) player.paused ? player.play() : player.pause();
  else return;
  event.preventDefault();
});

new ResizeObserver(() => {
  if (state.result && $("result").clientWidth && $("result").clientWidth !== drawn.width) draw();
}).observe($("result"));

load();
