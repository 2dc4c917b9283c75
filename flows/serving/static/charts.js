// SVG charts of a result: its score on the label range, contributions of modalities, and the time line.
// Times are seconds from the clip's start; `range` is [lowest label, highest label].

export function formatNumber(value, digits = 2, sign = false) {
  if (value === null || value === undefined) return "–";
  return (sign && value >= 0 ? "+" : "") + value.toFixed(digits).replace("-", "−");
}

export function formatClock(seconds) {
  if (seconds < 59.95) return `0:${seconds.toFixed(1).padStart(4, "0")}`;
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const rest = String(whole % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

function shape(name, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

function points(pairs) {
  return pairs.map(([x, y]) => `${x},${y}`).join(" ");
}

// ---- the score on the label range, with its interval

export function scaleChart(result, [low, high], width) {
  const [margin, y] = [14, 18];
  const x = (value) => margin + (width - 2 * margin) * (value - low) / (high - low);
  const scale = `${formatNumber(low, 0)} to ${formatNumber(high, 0)}`;
  const label = `score ${formatNumber(result.score)} on a scale from ${scale}`;
  const chart = shape("svg", { viewBox: `0 0 ${width} 46`, role: "img", "aria-label": label });
  chart.append(shape("line", { class: "axis", x1: margin, x2: width - margin, y1: y, y2: y }));
  for (const value of [low, (low + high) / 2, high]) {
    chart.append(shape("line", { class: "axis", x1: x(value), x2: x(value), y1: 12, y2: 24 }));
    chart.append(shape("text", { x: x(value), y: 42, "text-anchor": "middle" }, formatNumber(value, 0)));
  }
  if (result.interval) {
    const [first, last] = [x(result.interval.low), x(result.interval.high)];
    chart.append(shape("rect", { class: "band", x: first, y: y - 6, width: last - first, height: 12, rx: 6 }));
  }
  chart.append(shape("circle", { class: "dot", cx: x(result.score), cy: y, r: 6 }));
  return chart;
}

// ---- one modality's contribution, as a bar to the left or right of zero

export function contributionChart(value, max) {
  const chart = shape("svg", {
    viewBox: "-100 0 200 12", preserveAspectRatio: "none", height: 12, "aria-hidden": "true",
  });
  const length = 100 * value / max;
  chart.append(shape("rect", { class: "bar", x: Math.min(length, 0), y: 2, width: Math.abs(length), height: 8 }));
  chart.append(shape("line", { class: "axis", x1: 0, x2: 0, y1: 0, y2: 12, "vector-effect": "non-scaling-stroke" }));
  return chart;
}

// ---- the time line: scores of windows with their intervals, and a movable head

const HEIGHT = 150, TOP = 10, BOTTOM = 124, LEFT = 26, RIGHT = 12;

const center = (window) => (window.start + window.end) / 2;

export class Timeline {
  constructor(windows, duration, range, width) {
    this.windows = windows;
    this.range = range;
    this.width = width;
    this.end = Math.max(duration || 0, windows[windows.length - 1].end);
    this.head = shape("g", {});
    this.head.append(shape("line", { class: "head", x1: 0, x2: 0, y1: TOP - 4, y2: BOTTOM + 4 }));
    this.head.append(shape("circle", { class: "knob", cx: 0, cy: 0, r: 6 }));
    this.svg = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
    this.#drawAxes();
    for (const segment of segments(windows)) this.#drawSegment(segment);
    this.svg.append(this.head);
  }

  x(time) {
    return LEFT + (this.width - LEFT - RIGHT) * time / this.end;
  }

  y(score) {
    const [low, high] = this.range;
    return TOP + (BOTTOM - TOP) * (high - score) / (high - low);
  }

  timeAt(x) {
    return this.end * (x - LEFT) / (this.width - LEFT - RIGHT);
  }

  windowAt(time) {
    const distance = (window) => Math.abs(center(window) - time);
    return this.windows.reduce((best, window) => (distance(window) < distance(best) ? window : best));
  }

  moveHead(time) {
    const [low, high] = this.range;
    this.head.setAttribute("transform", `translate(${this.x(time)} 0)`);
    this.head.lastChild.setAttribute("cy", this.y(this.windowAt(time).score ?? (low + high) / 2));
  }

  #drawAxes() {
    const [low, high] = this.range;
    const right = this.width - RIGHT;
    for (const value of [low, (low + high) / 2, high]) {
      const y = this.y(value);
      this.svg.append(shape("line", { class: "axis", x1: LEFT, x2: right, y1: y, y2: y }));
      this.svg.append(shape("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, formatNumber(value, 0)));
    }
    this.svg.append(shape("text", { x: LEFT, y: HEIGHT - 6 }, "0:00"));
    this.svg.append(shape("text", { x: right, y: HEIGHT - 6, "text-anchor": "end" }, formatClock(this.end)));
  }

  #drawSegment(windows) {
    const line = windows.map((window) => [this.x(center(window)), this.y(window.score)]);
    if (windows.every((window) => window.interval)) {
      const bound = (name) => windows.map((window) => [this.x(center(window)), this.y(window.interval[name])]);
      const outline = [...bound("high"), ...bound("low").reverse()];
      this.svg.append(shape("polygon", { class: "band", points: points(outline) }));
    }
    this.svg.append(shape("polyline", { class: "mark", points: points(line) }));
    for (const [x, y] of line) this.svg.append(shape("circle", { class: "dot", cx: x, cy: y, r: 2.5 }));
  }
}

function segments(windows) { // the line is broken at windows without a score
  const found = [[]];
  for (const window of windows) {
    if (window.score === null) found.push([]);
    else found[found.length - 1].push(window);
  }
  return found.filter((segment) => segment.length);
}
