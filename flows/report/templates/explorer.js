"use strict";
// The table of clips: search, filter, sort, and open a clip. #clip-data has one entry for each row.
(() => {
  const data = JSON.parse(document.getElementById("clip-data").textContent);
  const get = (id) => document.getElementById(id);
  const panel = get("clip-table"), body = panel.querySelector("tbody"), more = get("more");
  const rows = [...body.rows];
  const LEVELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"; // as in explorer.py
  const otherAnchor = ["audio", "vision"].includes(data.anchor); // then its steps attend to the words, not the reverse
  const PAGE = 20, COLUMNS = 64, MINUS = "\u2212";
  const state = { sort: "error", ascending: false, shown: PAGE, open: new Map() };

  // --- helpers ---------------------------------------------------------------------------------------------
  const element = (tag, attributes = {}, ...content) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...content); // strings become text nodes, never markup
    return node;
  };
  const shape = (tag, attributes, ...content) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...content);
    return node;
  };
  const signed = (value, digits = 2) => (value < 0 ? MINUS : "+") + Math.abs(value).toFixed(digits);
  const level = (character) => (character === " " ? null : LEVELS.indexOf(character) / (LEVELS.length - 1));
  const error = (clip) => (clip.label === null ? null : clip.prediction - clip.label);

  // --- filtering and sorting -------------------------------------------------------------------------------
  const ERRORS = {
    wrong: (clip) => clip.label * clip.prediction < 0 || (clip.label !== 0 && clip.prediction === 0),
    right: (clip) => clip.label * clip.prediction > 0,
    high: (clip) => error(clip) > 0,
    low: (clip) => error(clip) < 0,
  };
  const KEYS = {
    seconds: (clip) => clip.seconds,
    label: (clip) => clip.label,
    prediction: (clip) => clip.prediction,
    error: (clip) => (clip.label === null ? null : Math.abs(error(clip))),
  };

  function matches(clip) {
    const query = get("find").value.trim().toLowerCase();
    if (query && !`${clip.id} ${clip.text}`.toLowerCase().includes(query)) return false;
    const errors = get("errors-of").value;
    if (errors && (clip.label === null || !ERRORS[errors](clip))) return false;
    const lacking = get("lacking").value, missing = clip.missing || [];
    if (lacking && !(lacking === "none" ? !missing.length : missing.includes(lacking))) return false;
    const subgroup = get("subgroup").value;
    return !subgroup || (clip.subgroups || []).includes(Number(subgroup));
  }

  function update() {
    const key = KEYS[state.sort], sign = state.ascending ? 1 : -1;
    const order = data.clips.map((clip, index) => index).filter((index) => matches(data.clips[index]));
    order.sort((a, b) => {
      const [left, right] = [key(data.clips[a]), key(data.clips[b])];
      if (left === null || right === null) return (left === null) - (right === null) || a - b; // unknown values last
      return sign * (left - right) || a - b;
    });
    for (const row of rows) row.hidden = true;
    for (const [place, index] of order.entries()) {
      rows[index].hidden = place >= state.shown;
      body.append(rows[index]);
      const detail = state.open.get(index);
      if (detail) rows[index].after(detail);
    }
    for (const [index, detail] of state.open) detail.hidden = rows[index].hidden;
    get("count").textContent =
      order.length === rows.length ? `${rows.length} clips` : `${order.length} of ${rows.length} clips`;
    more.hidden = order.length <= state.shown;
  }

  // --- an open clip -------------------------------------------------------------------------------------
  function toggle(index) {
    const button = rows[index].querySelector(".toggle");
    const opened = state.open.get(index);
    if (opened) {
      opened.remove();
      state.open.delete(index);
    } else {
      const detail = element("tr", { class: "detail", id: `clip-${index}` }, element("td", { colspan: 6 }, clipDetail(data.clips[index])));
      detail.addEventListener("keydown", (event) => {
        if (event.key !== "Escape") return;
        toggle(index);
        button.focus();
      });
      state.open.set(index, detail);
      rows[index].after(detail);
    }
    rows[index].classList.toggle("open", !opened);
    button.setAttribute("aria-expanded", String(!opened));
  }

  function clipDetail(clip) {
    const box = element("div");
    const view = { clip, lanes: [], listeners: [] };
    box.append(transcript(view));
    if (clip.tracks || (clip.words || []).some((word) => word[1] !== null)) box.append(lanes(view));
    else box.append(element("p", { class: "caption" }, "No time lines: the clip’s steps are unknown."));
    if (clip.contributions || clip.own_labels) box.append(contributions(clip));
    select(view, null);
    return box;
  }

  const select = (view, word) => view.listeners.forEach((listen) => listen(word));

  // The transcript with its words as buttons: one is in the tab order, arrow keys move between them.
  function transcript(view) {
    const { clip } = view;
    const line = element("p", { class: "transcript", lang: clip.lang, dir: "auto" });
    if (!clip.words) {
      line.append(clip.text || "No transcript.");
      return line;
    }
    const buttons = [];
    let at = 0;
    for (const [index, [word]] of clip.words.entries()) {
      const start = clip.text.indexOf(word, at);
      if (start >= 0) {
        line.append(clip.text.slice(at, start));
        at = start + word.length;
      }
      const button = element("button", { class: "word", type: "button", tabindex: index ? -1 : 0 }, word);
      button.addEventListener("focus", () => select(view, index));
      button.addEventListener("blur", () => select(view, null));
      button.addEventListener("mouseenter", () => select(view, index));
      button.addEventListener("mouseleave", () => select(view, null));
      button.addEventListener("keydown", (event) => {
        const next = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: buttons.length - 1 }[event.key];
        if (next === undefined || !buttons[next]) return;
        event.preventDefault();
        button.tabIndex = -1;
        buttons[next].tabIndex = 0;
        buttons[next].focus();
      });
      buttons.push(button);
      line.append(button);
    }
    line.append(clip.text.slice(at));
    view.listeners.push((word) => buttons.forEach((button, index) => button.classList.toggle("at", index === word)));
    return line;
  }

  // Lanes on a common time axis: words, then the sparklines and the attention of each modality.
  function lanes(view) {
    const { clip } = view;
    const grid = element("div", { class: "lanes" });
    const add = (name, lane, first) => {
      lane.classList.add("lane");
      grid.append(element("div", { class: `lane-name${first ? " first" : ""}` }, name), lane);
      if (first) lane.classList.add("first");
    };
    if ((clip.words || []).some((word) => word[1] !== null)) add("words", wordLane(view), false);
    const captions = [];
    for (const [modality, track] of Object.entries(clip.tracks || {})) {
      for (const [index, line] of track.lines.entries()) {
        const [name, correlation] = data.features[modality][index];
        const lane = sparkline(line, track.states);
        if (correlation !== null) lane.title = `${modality}: correlates ${signed(correlation)} with the label`;
        add(name.replace(/_/g, "_\u200b"), lane, index === 0); // may break at underscores
      }
      const attention = (clip.attention || {})[modality];
      if (attention) {
        const { lane, describe } = attentionStrip(view, attention);
        add("attention", lane, false);
        captions.push([modality, describe]);
      }
    }
    add("", axis(clip.seconds), false);
    const here = element("i");
    const overlay = element("div", { class: "overlay" }, here);
    overlay.style.gridRow = `1 / ${grid.children.length / 2}`;
    grid.append(overlay);
    for (const [place, cell] of [...grid.children].slice(0, -1).entries()) {
      cell.style.gridRow = Math.floor(place / 2) + 1;
      cell.style.gridColumn = (place % 2) + 1;
    }
    const caption = element("p", { class: "caption" });
    view.listeners.push((word) => {
      const times = word === null ? [] : clip.words[word].slice(1);
      here.hidden = !times.length || times[0] === null;
      if (!here.hidden) {
        here.style.left = `${(100 * times[0]) / clip.seconds}%`;
        here.style.width = `${(100 * (times[1] - times[0])) / clip.seconds}%`;
      }
      caption.textContent = describeWord(clip, word, captions);
    });
    return element("div", {}, grid, caption);
  }

  function describeWord(clip, word, captions) {
    if (word === null) {
      const direction = otherAnchor ? "attention to the words" : "attention of the words";
      return captions.length ? `Mean ${direction}; point at a word for its own. ${legend(clip)}` : legend(clip);
    }
    const [name, start, end] = clip.words[word];
    const when = start === null ? "" : `, ${start.toFixed(2)} to ${end.toFixed(2)} s`;
    return [`“${name}”${when}`, ...captions.map(([modality, describe]) => `${modality}: ${describe(word)}`)].join("; ") + ".";
  }

  function legend(clip) {
    const states = Object.values(clip.tracks || {}).map((track) => track.states).join("");
    const shades = [];
    if (states.includes("2")) shades.push("dark shade: masked");
    if (states.includes("1")) shades.push("light shade: not valid, for example unvoiced");
    const shares = Object.entries(clip.anchors || {}).map(([name, share]) => `${name} ${Math.round(100 * share)} %`);
    if (shares.length) shades.push(`anchors: ${shares.join(", ")}`);
    return shades.length ? `${shades.join("; ")}.`.replace(/^./, (letter) => letter.toUpperCase()) : "";
  }

  function wordLane(view) {
    const { clip } = view;
    const lane = element("div", { class: "words", "aria-hidden": "true" });
    for (const [index, [word, start, end]] of clip.words.entries()) {
      if (start === null) continue;
      const block = element("span", {}, word);
      block.style.left = `${(100 * start) / clip.seconds}%`;
      block.style.width = `${(100 * (end - start)) / clip.seconds}%`;
      block.addEventListener("mouseenter", () => select(view, index));
      block.addEventListener("mouseleave", () => select(view, null));
      view.listeners.push((at) => block.classList.toggle("at", at === index));
      lane.append(block);
    }
    return lane;
  }

  function sparkline(line, states) {
    const svg = shape("svg", { viewBox: `0 0 ${COLUMNS} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const run of states.matchAll(/([1-3])\1*/g))
      svg.append(shape("rect", { class: `state-${run[1]}`, x: run.index, y: 0, width: run[0].length, height: 1 }));
    svg.append(shape("line", { class: "zero", x1: 0, x2: COLUMNS, y1: 0.5, y2: 0.5 }));
    let path = "", pen = "M";
    for (const [column, character] of [...line].entries()) {
      const value = level(character);
      if (value !== null) path += `${pen}${column + 0.5} ${(0.95 - 0.9 * value).toFixed(3)}`;
      pen = value === null ? "M" : "L";
    }
    svg.append(shape("path", { class: "line", d: path }));
    return element("div", {}, svg);
  }

  // A strip of the attention over time, of one word or the mean over all.
  function attentionStrip(view, attention) {
    const svg = shape("svg", { viewBox: `0 0 ${COLUMNS} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const cells = Array.from({ length: COLUMNS }, (_, column) => shape("rect", { x: column, y: 0, width: 1, height: 1 }));
    svg.append(...cells);
    const strips = attention.rows.map((row) => [...row].map(level));
    const used = strips.filter((strip) => strip.length);
    const mean = cells.map((_, column) => {
      const values = used.map((strip) => strip[column]).filter((value) => value !== null);
      return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
    });
    view.listeners.push((word) => {
      const strip = word === null ? mean : strips[word] || [];
      for (const [column, cell] of cells.entries()) cell.setAttribute("fill-opacity", strip[column] ?? 0);
    });
    const describe = (word) => {
      const strip = strips[word] || [];
      if (!strip.length) return "no attention stored for this word";
      const multiple = (attention.max * Math.max(...strip)).toFixed(1);
      const cls = otherAnchor ? "" : `, ${Math.round(100 * attention.cls[word])} % on [CLS]`;
      return `at most ${multiple} times uniform attention${cls}`;
    };
    return { lane: element("div", { class: "heat" }, svg), describe };
  }

  function axis(seconds) {
    const lane = element("div", { class: "axis", "aria-hidden": "true" });
    const step = [0.5, 1, 2, 5, 10, 20, 60, 120, 300].find((size) => seconds / size <= 6) || seconds;
    const ticks = [];
    for (let time = 0; time < seconds - step / 2; time += step) ticks.push(time);
    for (const time of [...ticks, seconds]) {
      const tick = element("span", {}, time === seconds ? `${seconds.toFixed(1)} s` : String(time));
      tick.style.left = `${(100 * time) / seconds}%`;
      lane.append(tick);
    }
    return lane;
  }

  // The effect of each modality on the prediction, beside its own label.
  function contributions(clip) {
    const names = ["text", "audio", "vision"].filter((name) => name in (clip.contributions || {}) || name in (clip.own_labels || {}));
    const max = Math.max(0.25, ...Object.values(clip.contributions || {}).map(Math.abs));
    const head = element("tr", {}, element("th", { scope: "col" }, "Modality"));
    if (clip.contributions) head.append(element("th", { scope: "col", colspan: 2 }, "Effect on the prediction"));
    if (clip.own_labels) head.append(element("th", { scope: "col", class: "number" }, "Its own label"));
    const table = element("table", { class: "contributions" }, element("thead", {}, head));
    const lines = element("tbody");
    for (const name of names) {
      const line = element("tr", {}, element("th", { scope: "row" }, name));
      if (clip.contributions) {
        const value = (clip.contributions || {})[name];
        const bar = element("div", { class: "bar" });
        if (value !== undefined) {
          const part = element("i", { class: value < 0 ? "less" : "" });
          part.style.left = `${50 + Math.min(0, (50 * value) / max)}%`;
          part.style.width = `${(50 * Math.abs(value)) / max}%`;
          bar.append(part);
        }
        line.append(element("td", {}, bar), element("td", { class: "number" }, value === undefined ? "\u2013" : signed(value)));
      }
      if (clip.own_labels) line.append(element("td", { class: "number" }, name in clip.own_labels ? signed(clip.own_labels[name], 1) : "\u2013"));
      lines.append(line);
    }
    table.append(lines);
    return table;
  }

  // --- activate the table ---------------------------------------------------------------------------------
  for (const [index, row] of rows.entries()) {
    const code = row.querySelector("code");
    const button = element("button", { class: "toggle", type: "button", "aria-expanded": "false", "aria-controls": `clip-${index}` });
    code.before(button);
    button.append(code);
    row.addEventListener("click", (event) => {
      if (event.target.closest("button") || !getSelection().toString()) toggle(index);
    });
  }
  for (const head of panel.querySelectorAll("th[data-sort]")) {
    const button = element("button", { class: "sort", type: "button" }, head.textContent);
    head.replaceChildren(button);
    if (head.dataset.sort === state.sort) head.setAttribute("aria-sort", "descending");
    button.addEventListener("click", () => {
      const same = state.sort === head.dataset.sort;
      state.ascending = same ? !state.ascending : false;
      state.sort = head.dataset.sort;
      for (const other of panel.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", state.ascending ? "ascending" : "descending");
      update();
    });
  }
  for (const id of ["find", "errors-of", "lacking", "subgroup"])
    get(id).addEventListener("input", () => {
      state.shown = PAGE;
      update();
    });
  more.addEventListener("click", () => {
    state.shown += PAGE;
    update();
  });
  panel.classList.add("live");
  panel.removeAttribute("tabindex");
  get("controls").hidden = false;
  get("without-script").remove();
  update();
})();
