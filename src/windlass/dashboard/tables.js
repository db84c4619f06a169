// Tables of any length: only the rows in sight are elements, and these are used again.
"use strict";

const ROW = 30;

class LongTable {
  /** ``columns``: {title, name (its class), sort(row), fill(cell, row)}; the rows come by `show`. */
  constructor(element, label, columns, most) {
    this.columns = columns;
    this.rows = [];
    this.most = most;
    this.by = 0;
    this.down = false;
    this.head = make("div", "row head");
    this.head.setAttribute("role", "row");
    columns.forEach((column, place) => {
      const title = make("button", "cell " + column.name, column.title);
      title.setAttribute("role", "columnheader");
      title.addEventListener("click", () => { this.down = this.by === place ? !this.down : false; this.by = place; this.show(this.rows); });
      this.head.append(title);
    });
    this.body = make("div", "body");
    this.space = make("div", "space");
    this.body.append(this.space);
    this.body.tabIndex = 0;
    this.body.addEventListener("scroll", () => this.draw());
    element.classList.add("table");
    element.setAttribute("role", "table");
    element.setAttribute("aria-label", label);
    element.append(this.head, this.body);
    this.pool = [];
  }

  show(rows) {
    const { sort } = this.columns[this.by], sign = this.down ? -1 : 1;
    const keys = new Map(rows.map((row) => [row, sort(row)]));
    this.rows = [...rows].sort((one, other) => {
      const a = keys.get(one), b = keys.get(other);
      return sign * (a < b ? -1 : a > b ? 1 : one.key < other.key ? -1 : one.key > other.key ? 1 : 0);
    });
    [...this.head.children].forEach((title, place) => {
      if (place === this.by) title.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else title.removeAttribute("aria-sort");
    });
    this.draw();
  }

  draw() {
    const total = this.rows.length * ROW, height = Math.min(this.most * ROW, total);
    if (this.space.style.height !== total + "px") this.space.style.height = total + "px";
    if (this.body.style.height !== height + "px") this.body.style.height = height + "px";
    const first = Math.max(0, Math.floor(this.body.scrollTop / ROW) - 1);
    const last = Math.min(this.rows.length, first + this.most + 3);
    for (let place = first; place < last; place++) {
      const at = place - first;
      let line = this.pool[at];
      if (!line) {
        line = this.pool[at] = make("div", "row");
        line.setAttribute("role", "row");
        for (const column of this.columns) {
          const cell = make("div", "cell " + column.name);
          cell.setAttribute("role", "cell");
          line.append(cell);
        }
        this.space.append(line);
      }
      if (line.hidden) line.hidden = false;
      const top = place * ROW + "px";
      if (line.style.top !== top) line.style.top = top;
      this.columns.forEach((column, number) => column.fill(line.children[number], this.rows[place]));
    }
    for (let at = last - first; at < this.pool.length; at++) this.pool[at].hidden = true;
  }
}

/** A cell with a bar and a number beside it. */
function gauge(cell, parts, total, words) {
  if (!cell.firstChild) cell.append(make("div", "bar small"), make("span"));
  fillBar(cell.firstChild, parts, total);
  say(cell.lastChild, words);
}

function plain(title, name, value, show) {
  return { title, name, sort: value, fill: (cell, row) => { const words = (show || String)(value(row), row); say(cell, words); if (cell.title !== words) cell.title = words; } };
}

const WORKER_COLUMNS = [
  { title: "host", name: "host", sort: (row) => row.host, fill: (cell, row) => {
    if (!cell.firstChild) cell.append(make("i"), make("span"));
    cell.firstChild.className = "dot " + (!row.connected ? "bad" : row.draining ? "warn" : row.held ? "running" : "idle");
    const words = !row.connected ? "its connection is cut" : row.draining ? "draining: " + row.draining : row.held ? "at work" : row.idle ? "idle for " + span(page.at - row.idle) : "idle";
    cell.title = `${row.host}, worker ${row.key}: ${words}`;
    say(cell.lastChild, row.host);
  } },
  plain("pool", "pool", (row) => row.pool),
  { title: "slots", name: "gauge slots", sort: (row) => row.running / (row.slots || 1), fill: (cell, row) =>
    gauge(cell, [["running", Math.min(row.running, row.slots), "running"]], row.slots || 1, `${row.running}/${row.slots}`) },
  plain("queued", "number queued", (row) => Math.max(0, row.held - row.running), (value) => value ? number(value) : ""),
  { title: "memory", name: "gauge memory", sort: (row) => row.used / (row.memory || 1), fill: (cell, row) =>
    gauge(cell, [[row.used > 0.9 * row.memory ? "bad" : row.used > 0.75 * row.memory ? "warn" : "good", row.used, "bytes used"]], row.memory, `${bytes(row.used)} of ${bytes(row.memory)}`) },
  plain("cache", "number cache", (row) => row.cache, (value, row) => value ? bytes(value) : row.files ? plural(row.files, "file") : ""),
  plain("libraries", "words", (row) => row.libraries.map(([name, slots, phase]) => phase === "ready" ? `${name} ${slots}` : `${name} ${phase}`).join(", ")),
  plain("time left", "number left", (row) => row.ends || Infinity, (value) => value === Infinity ? "∞" : span(value - page.at)),
];

const PILOT_COLUMNS = [
  { title: "pilot", name: "host", sort: (row) => row.pilot, fill: (cell, row) => {
    if (!cell.firstChild) cell.append(make("i"), make("span"));
    cell.firstChild.className = "dot " + (row.failed ? "bad" : PHASES[row.phase] || "idle");
    cell.title = row.log ? "its log: " + row.log : "";
    say(cell.lastChild, row.pilot);
  } },
  plain("pool", "pool", (row) => row.pool),
  plain("state", "state", (row) => row.failed ? "failed" : row.phase),
  plain("for", "number", (row) => row.phase === "ended" ? row.ran : page.at - row.since, (value, row) => row.phase === "ended" && !row.ran ? "" : span(value)),
  plain("node", "pool", (row) => row.node),
  plain("reason", "words", (row) => row.reason),
];

const FILE_COLUMNS = [
  plain("file", "words", (row) => row.source || row.key),
  plain("size", "number", (row) => row.size, (value) => value < 0 ? "?" : bytes(value)),
  plain("replicas", "number", (row) => row.replicas),
  plain("waiting", "number", (row) => row.waiting),
  plain("reads of origin", "number", (row) => row.origin_reads),
  plain("", "words", (row) => row.lost),
];

/** Phases of pilots and their colours, in the order of a pilot's life. */
const PHASES = { held: "bad", queued: "waiting", running: "warn", serving: "good", leaving: "idle", cancelling: "idle", ending: "idle" };
