// What is drawn: lines of numbers over time, and the time line of slots. Colours come from the style sheet, so light and dark are its matter.
"use strict";

const PALETTE = 8;

/** A canvas of its element's size, sharp on any screen; its context, width and height in CSS pixels. */
function sized(canvas, height) {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth || canvas.parentElement.clientWidth;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = height + "px";
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

let colours = null;
function colour(name) {
  if (!colours) {
    colours = {};
    const style = getComputedStyle(document.documentElement);
    for (const each of ["text", "muted", "line", "running", "good", "bad", "card", "idle"]) colours[each] = style.getPropertyValue("--" + each).trim();
    for (let place = 0; place < PALETTE; place++) colours["c" + place] = style.getPropertyValue("--c" + place).trim();
  }
  return colours[name];
}
const forgetColours = () => { colours = null; };

/** Rows of [time, value, ...] as areas; ``series``: [place in the row, colour, filled]. */
function drawLines(canvas, rows, series, label, show) {
  const [context, width, height] = sized(canvas, 88);
  const most = Math.max(1e-9, ...rows.map((row) => Math.max(...series.map(([place]) => row[place]))));
  const top = 14, bottom = height - 2;
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = colour("muted");
  if (rows.length < 2) {
    context.fillText("not enough to draw yet", 2, height / 2);
    return;
  }
  const first = rows[0][0], last = rows[rows.length - 1][0];
  const x = (time) => (time - first) / (last - first || 1) * width, y = (value) => bottom - value / most * (bottom - top);
  for (const [place, name, filled] of series) {
    context.beginPath();
    rows.forEach((row, at) => at ? context.lineTo(x(row[0]), y(row[place])) : context.moveTo(x(row[0]), y(row[place])));
    context.strokeStyle = colour(name);
    context.lineWidth = 1.5;
    context.stroke();
    if (filled) {
      context.lineTo(width, bottom); context.lineTo(0, bottom); context.closePath();
      context.globalAlpha = 0.16; context.fillStyle = colour(name); context.fill(); context.globalAlpha = 1;
    }
  }
  context.strokeStyle = colour("line");
  context.lineWidth = 1;
  context.beginPath(); context.moveTo(0, bottom + 0.5); context.lineTo(width, bottom + 0.5); context.stroke();
  context.fillStyle = colour("muted");
  context.fillText("at most " + show(most), 2, 10);
  const words = "the last " + span(last - first);
  context.fillText(words, width - context.measureText(words).width - 2, 10);
  canvas.setAttribute("aria-label", `${label}: now ${show(rows[rows.length - 1][series[0][0]])}, at most ${show(most)} in the last ${span(last - first)}`);
}

/** The time line of slots: a row for each lane, of which only those in sight are drawn. */
class Timeline {
  constructor() {
    this.lanes = new Map();  // worker → {host, lanes: [blocks]}
    this.running = [];
    this.names = [];
    this.now = 0;
    this.shown = 0;  // seconds; 0: from the beginning
    this.box = byId("timeline"); this.canvas = byId("timeline-canvas"); this.space = byId("timeline-space");
    this.box.addEventListener("scroll", () => this.draw());
    this.canvas.addEventListener("mousemove", (event) => this.point(event));
    this.canvas.addEventListener("mouseleave", () => { byId("tip").hidden = true; });
    keep(byId("spans"), [60, 600, 3600, 0], (seconds) => {
      const button = make("button", "", seconds ? span(seconds) : "all");
      button.addEventListener("click", () => { this.shown = seconds; this.draw(); });
      return button;
    }, () => {});
  }

  forget() { this.lanes.clear(); }

  /** Lanes that have changed: [worker, host, lane, blocks]; they take the place of what began with the first of these blocks or later. */
  take(rows) {
    for (const [worker, host, lane, blocks] of rows) {
      let known = this.lanes.get(worker);
      if (!known) this.lanes.set(worker, known = { host, lanes: [] });
      const line = known.lanes[lane] ??= [];
      while (line.length && blocks.length && line[line.length - 1][0] >= blocks[0][0]) line.pop();
      for (const block of blocks) line.push(block);
      if (line.length > 6000) line.splice(0, line.length - 4000);
    }
  }

  /** Rows with their places: [worker, host, blocks, top, height, first of its worker]. */
  layout() {
    const rows = [];
    let count = 0;
    for (const { lanes } of this.lanes.values()) count += lanes.length;
    const each = Math.max(3, Math.min(16, Math.floor(300 / Math.max(1, count))));
    const gap = each > 6 ? 3 : 1;
    let top = 0;
    for (const [worker, { host, lanes }] of this.lanes) {
      lanes.forEach((blocks, lane) => { rows.push([worker, host, blocks || [], top, each, lane === 0, lanes.length]); top += each + (each > 6 ? 1 : 0); });
      top += gap;
    }
    return [rows, top];
  }

  /** Hosts may have several workers; the pool tells them apart for people, the tip says which worker it is. */
  label(worker, host) {
    const row = page.tables.workers.get(worker);
    return row ? `${host.replace(/\..*/, "")} ${row.pool}` : host + " (left)";
  }

  draw() {
    const [rows, total] = this.layout();
    this.box.hidden = byId("axis").hidden = !rows.length;
    byId("no-slots").hidden = rows.length > 0;
    if (!rows.length) return;
    const height = Math.min(320, total);
    this.box.style.height = height + "px";
    this.space.style.height = Math.max(0, total - height) + "px";
    const [context, width] = sized(this.canvas, height);
    const labels = width < 500 ? 64 : 130;
    let first = this.now;
    for (const row of rows) if (row[2].length && row[2][0][0] < first) first = row[2][0][0];
    if (this.shown) first = Math.max(first, this.now - this.shown);
    const last = Math.max(this.now, first + 1e-3), scale = (width - labels) / (last - first);
    this.place = { rows, first, last, scale, labels };
    const scrolled = this.box.scrollTop, busy = new Map();
    const running = new Map();
    for (const one of this.running) { if (!running.has(one[0])) running.set(one[0], []); running.get(one[0]).push(one); }
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "top";
    for (const [worker, host, blocks, above, each, leads, lanes] of rows) {
      const top = above - scrolled;
      if (top > height) break;
      if (top + each * lanes < 0) continue;
      context.fillStyle = colour("idle");
      context.fillRect(labels, top, width - labels, each);
      if (leads && each * lanes >= 10) {
        context.fillStyle = colour("muted");
        context.save(); context.beginPath(); context.rect(0, top, labels - 6, each * lanes); context.clip();
        context.fillText(this.label(worker, host), 0, top + Math.max(0, (Math.min(each * lanes, 16) - 11) / 2)); context.restore();
      }
      let at = blocks.length;
      while (at > 0 && blocks[at - 1][1] > first) at--;
      for (; at < blocks.length; at++) {
        const [start, end, what, calls, spent, failed] = blocks[at];
        const left = labels + (Math.max(start, first) - first) * scale, wide = Math.max(1, (end - Math.max(start, first)) * scale - 0.5);
        context.globalAlpha = 0.35 + 0.65 * Math.min(1, spent / Math.max(1e-6, end - start));
        context.fillStyle = failed === calls ? colour("bad") : colour("c" + what % PALETTE);
        context.fillRect(left, top, wide, each);
        if (failed && failed < calls) { context.fillStyle = colour("bad"); context.fillRect(left, top + each - Math.max(1, each / 4), wide, Math.max(1, each / 4)); }
        busy.set(what, (busy.get(what) || 0) + spent);
      }
      context.globalAlpha = 1;
      const goesOn = (running.get(worker) || []);
      const free = goesOn.findIndex((one) => !blocks.length || blocks[blocks.length - 1][1] <= one[3] + 0.05);
      if (free >= 0) {
        const [[, , what, since]] = goesOn.splice(free, 1);
        const left = labels + (Math.max(since, first) - first) * scale;
        context.globalAlpha = 0.45; context.fillStyle = colour("c" + what % PALETTE);
        context.fillRect(left, top, Math.max(1, width - left), each);
        context.globalAlpha = 1;
        busy.set(what, (busy.get(what) || 0) + last - since);
      }
    }
    const buttons = byId("spans").children;
    [60, 600, 3600, 0].forEach((seconds, place) => buttons[place].setAttribute("aria-pressed", String(seconds === this.shown)));
    const axis = byId("axis");
    if (!axis.firstChild) axis.append(make("span"), make("span"), make("span"));
    axis.style.paddingLeft = labels + "px";
    say(axis.children[0], this.shown ? span(last - first) + " ago" : "begin");
    say(axis.children[1], clock((first + last) / 2));
    say(axis.children[2], clock(last));
    const names = [...busy].sort((one, other) => other[1] - one[1]).slice(0, PALETTE).map(([what]) => what);
    keep(byId("legend"), names.sort((one, other) => one - other), (what) => make("span", "key", "", make("i", "c" + what % PALETTE), make("span", "", this.names[what])), () => {});
    this.canvas.setAttribute("aria-label", `Time line of ${rows.length} slots on ${this.lanes.size} workers`);
  }

  point(event) {
    const tip = byId("tip"), place = this.place;
    if (!place) return;
    const box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top + this.box.scrollTop;
    const row = place.rows.find(([, , , top, each]) => y >= top && y <= top + each);
    const time = place.first + (x - place.labels) / place.scale;
    const block = row && x >= place.labels && row[2].find(([start, end]) => time >= start - 1 / place.scale && time <= end + 1 / place.scale);
    tip.hidden = !row;
    if (!row) return;
    let words = `${row[1]}, worker ${row[0]}`;
    if (block) {
      const [start, end, what, calls, spent, failed, call] = block;
      words = calls === 1 ? `${this.names[what]}, call ${call}: ${span(end - start)}` : `${this.names[what]}: ${number(calls)} calls in ${span(end - start)}, ${Math.round(100 * Math.min(1, spent / (end - start || 1)))} % busy`;
      if (failed) words += calls === 1 ? ", failed" : `, ${number(failed)} failed`;
      words += ` (${row[1]}, ${clock(start)})`;
    }
    say(tip, words);
    tip.style.left = Math.min(event.clientX + 12, window.innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = event.clientY + 14 + "px";
  }
}
