// The details of one result: reasons to doubt it, score, contributions, transcript, and the time line, which follows the
// video and seeks in it. The video plays from the browser's own copy of the file; stills of the server take its place
// where the browser cannot play it. Times are seconds from the clip's start.
import { contributionChart, formatClock, formatNumber, scaleChart, Timeline } from "./charts.js";
import { $, element, show } from "./dom.js";

const GENERATED_TRAINING = "generated_training"; // the page states it at its top
const TRANSCRIPT_TITLES = { asr: "Transcript, by speech recognition", given: "Transcript, as given" };

const player = $("player");
const state = {
  model: null, // response of GET /model
  result: null,
  timeline: null,
  time: 0, // position of the time line's head
  drawnWidth: 0,
};

export const formatInterval = ({ low, high }) => `${formatNumber(low)} to ${formatNumber(high)}`;
export const labelOf = (result, model) => model.classes[result.class] || result.sentiment;
export const doubts = (result) => result.warnings.filter((warning) => warning.code !== GENERATED_TRAINING);

// ---- what the page shows of a result

export function showResult(body, model) {
  const [result] = body.results;
  const { interval } = result;
  Object.assign(state, { model, result });
  $("result-name").textContent = result.file;
  $("warning-list").replaceChildren(...doubts(result).map((warning) => element("li", {}, warning.message)));
  show($("warnings"), doubts(result).length > 0);
  $("score").textContent = formatNumber(result.score);
  $("sentiment").textContent = labelOf(result, model);
  $("from").textContent = `from ${result.used.join(", ")}`;
  if (result.duration !== null) $("from").textContent += `; ${formatClock(result.duration)}`;
  if (interval) {
    $("from").textContent += `; ${Math.round(100 * interval.level)} % interval ${formatInterval(interval)}`;
  }
  $("result-player").append(player, $("unplayable"));
  showFrames(result.frames || []);
  showContributions(result.contributions);
  $("transcript-title").textContent = TRANSCRIPT_TITLES[result.text_source] || "Transcript";
  $("transcript-text").textContent = result.text;
  show($("transcript"), Boolean(result.text));
  showWindows(result.windows);
  offer($("download"), body);
  show($("result"));
  drawCharts();
  $("result-name").focus();
}

export function offer(link, body) { // as `dashfusion predict --json` prints it, which has no frames
  const results = body.results.map(({ frames, ...result }) => result);
  URL.revokeObjectURL(link.href);
  const json = new Blob([JSON.stringify({ ...body, results }, null, 2)], { type: "application/json" });
  link.href = URL.createObjectURL(json);
}

function showFrames(frames) {
  $("frames").replaceChildren(...frames.map(({ time, image }) => {
    const button = element("button", { type: "button", class: "frame" });
    button.append(element("img", { src: image, alt: `Frame at ${formatClock(time)}` }));
    button.append(element("span", {}, formatClock(time)));
    button.addEventListener("click", () => seek(time));
    return button;
  }));
  show($("frames"), frames.length > 0);
  if (!frames.length) return;
  show(player, false);
  $("unplayable").textContent = "This browser cannot play the file; these are frames of it.";
  show($("unplayable"));
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
const clampTime = (time) => Math.min(Math.max(time, 0), state.timeline ? state.timeline.end : Infinity);

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
