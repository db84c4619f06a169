// The page: it keeps what the stream of patches tells (windlass.dashboard.feed), and shows what is in sight, once per patch.
"use strict";

const page = { at: 0, began: 0, sections: {}, tables: {}, samples: [], ended: "", live: false, heard: 0, heardAt: 0, moved: false, pause: 5 };
// moved: nobody knows this page at its address any more. pause: seconds until the stream is tried again that somebody else has answered.
/** Seconds without a patch after which the page says so; a dashboard tells of a manager that answers each second, of large ones each few. */
const SILENCE = 15;
const TABLES = ["workers", "pilots", "libraries", "causes", "files"];
for (const name of TABLES) page.tables[name] = new Map();
const timeline = new Timeline();
const tables = {
  workers: new LongTable(byId("workers"), "Workers", WORKER_COLUMNS, 14),
  pilots: new LongTable(byId("pilots"), "Pilots", PILOT_COLUMNS, 12),
  files: new LongTable(byId("files"), "Files", FILE_COLUMNS, 10),
};
/** How long updates took, in milliseconds, for who measures. */
window.windlass = { updates: 0, last: 0, longest: 0, page };

const clock = (seconds) => new Date((page.began + seconds) * 1000).toLocaleTimeString("en-GB");

// ---------------------------------------------------------------- what comes

function apply(patch) {
  if (patch.anew) { page.samples = []; timeline.forget(); }
  if (patch.whole) for (const table of Object.values(page.tables)) table.clear();
  page.at = patch.at;
  for (const name of ["manager", "calls", "transfers", "pools", "programs", "running", "record"]) if (name in patch) page.sections[name] = patch[name];
  if (patch.record) { page.began = patch.record.began_at; timeline.names = patch.record.names; }
  for (const name of TABLES) {
    if (!patch[name]) continue;
    const table = page.tables[name];
    for (const [key, row] of Object.entries(patch[name].set)) { row.key = key; table.set(key, row); }
    for (const key of patch[name].gone) table.delete(key);
  }
  if (patch.samples) for (const row of patch.samples) page.samples.push(row);
  if (page.samples.length > 1600) page.samples = page.samples.filter((_, place) => place % 2 === 0);
  if (patch.lanes) timeline.take(patch.lanes);
  timeline.now = page.at - page.began;
  timeline.running = page.sections.running || [];
}

/** A patch has come, as text: from here to the end of its drawing is what an update takes. */
function update(text) {
  const begun = performance.now();
  apply(JSON.parse(text));
  if (!document.hidden) render();
  const took = performance.now() - begun;
  Object.assign(window.windlass, { updates: window.windlass.updates + 1, last: took, longest: Math.max(window.windlass.longest, took) });
}

// ---------------------------------------------------------------- what is shown

function render() {
  if (!page.sections.manager) return;
  renderHead();
  renderCalls();
  renderCauses();
  timeline.draw();
  renderPools();
  renderLibraries();
  renderWorkers();
  renderTransfers();
}

function renderHead() {
  const { manager, record } = page.sections, run = record.run.replace(/-\d{8}-\d{6}$/, "");
  say(byId("name"), run);
  if (document.title !== run + " – Windlass") document.title = run + " – Windlass";
  const ended = page.ended || record.ended;
  const silent = (performance.now() - page.heardAt) / 1000;
  byId("light").className = "light " + (ended ? "idle" : !page.live ? "bad" : silent > SILENCE ? "warn" : "good");
  const words = ended ? "ended" : !page.live ? "not connected" : silent > SILENCE ? `the manager has not answered for ${span(silent)}` : "live";
  say(byId("about"), `${words} · ${manager.addresses.join(", ")} · recorded for ${span(page.at - page.began)}` + (manager.detached ? " · runs on its own" : ""));
  const banner = byId("banner");
  const lost = page.moved ? `The dashboard is not at this address any more: it was started anew. Open the address that this prints: windlass dashboard ${run}`
    : "The dashboard is not reached: it was ended, or the way to it is down. This page goes on by itself when it is back";
  const news = ended ? `As it was when the manager ended (${ended}).` : page.live || !page.heard ? "" : `${lost}. As it was at ${clock(page.at - page.began)}.`;
  banner.hidden = !news;
  say(banner, news);
}

const TILES = [
  ["waiting", "waiting", (calls) => waiting(calls)], ["running", "running", (calls) => calls.running - ahead(calls)], ["good", "done", (calls) => calls.done],
  ["bad", "failed", (calls) => calls.failed], ["", "per second", () => null],
];

/** Calls that have been sent to a worker and wait there behind others: people count them as waiting. */
function ahead(calls) {
  let inSlots = 0;
  for (const row of page.tables.workers.values()) inSlots += Math.min(row.running, row.slots);
  return Math.max(0, calls.running - inSlots);
}
const waiting = (calls) => calls.waiting + ahead(calls);

/** Calls per second between samples: [time, rate]. */
function rates() {
  const rows = [];
  for (let place = 1; place < page.samples.length; place++) {
    const [before, now] = [page.samples[place - 1], page.samples[place]], passed = now[0] - before[0];
    if (passed > 0) rows.push([now[0], Math.max(0, now[3] + now[4] - before[3] - before[4]) / passed]);
  }
  return rows;
}

/** Calls per second in about the last 5 s. */
function newestRate() {
  const last = page.samples[page.samples.length - 1];
  if (!last || page.sections.record.ended || page.ended) return 0;
  let place = page.samples.length - 1;
  while (place > 0 && last[0] - page.samples[place][0] < 5) place--;
  const before = page.samples[place];
  return last[0] > before[0] ? Math.max(0, last[3] + last[4] - before[3] - before[4]) / (last[0] - before[0]) : 0;
}

function renderCalls() {
  const { calls } = page.sections, tiles = byId("tiles");
  keep(tiles, TILES.map(([, name]) => name), (name) => make("div", "tile", "", make("b"), make("span", "", name)), (tile, name) => {
    const [kind, , value] = TILES.find((one) => one[1] === name), count = value(calls);
    say(tile.firstChild, count === null ? rate(newestRate()) : number(count));
    tile.className = "tile " + (count ? kind : "");
    if (name === "waiting") tile.title = `${number(calls.waiting_for_inputs)} for the results of others, ${number(calls.waiting_for_files)} for files, ${number(ahead(calls))} sent ahead to workers`;
  });
  const more = [["retried", calls.retried], ["attempts lost with workers", calls.lost_attempts], ["cancelled", calls.cancelled], ["remembered", calls.remembered]].filter(([, count]) => count);
  tiles.lastChild.title = more.map(([name, count]) => `${number(count)} ${name}`).join(", ");
  fillBar(byId("progress"), [["good", calls.done, "done"], ["bad", calls.failed, "failed"], ["idle", calls.cancelled, "cancelled"], ["running", calls.running - ahead(calls), "running"], ["waiting", waiting(calls), "waiting"]],
    calls.done + calls.failed + calls.cancelled + calls.running + calls.waiting);
  drawLines(byId("rate-chart"), rates(), [[1, "good", true]], "Calls per second", rate);
  drawLines(byId("running-chart"), page.samples.map((row) => [row[0], row[2], row[7]]), [[2, "muted", false], [1, "running", true]], "Calls running, and slots", number);
  let slots = 0;
  for (const row of page.tables.workers.values()) slots += row.slots;
  say(byId("rate-now"), rate(newestRate()));
  say(byId("running-now"), `${number(calls.running - ahead(calls))} of ${number(slots)}`);
}

function renderCauses() {
  const causes = [...page.tables.causes.values()].sort((one, other) => other.calls - one.calls || other.retried - one.retried);
  byId("errors").hidden = !causes.length;
  say(byId("errors-count"), `${plural(causes.length, "cause")}, ${plural(causes.reduce((sum, one) => sum + one.calls, 0), "call")}`);
  keep(byId("causes"), causes.map((one) => one.key), () => make("details", "cause", "",
    make("summary", "", "", make("b", "badge"), make("span", "what", "", make("code"), make("span", "message")), make("span", "muted when")),
    make("p", "muted facts"), make("pre")), (item, key) => {
    const one = page.tables.causes.get(key), [summary, facts, text] = item.children;
    say(summary.children[0], number(one.calls || one.retried));
    summary.children[0].className = "badge " + (one.calls ? "bad" : "warn");
    const [type, message] = summary.children[1].children;
    say(type, one.type ? one.type.replace(/^builtins\./, "") : one.kind);
    const short = one.message.startsWith(one.type.replace(/^.*\./, "") + ": ") ? one.message.replace(/^[^:]*: /, "") : one.message;
    say(message, `in ${one.function}` + (one.place ? ` at ${one.place}` : "") + (short ? `: ${short}` : ""));
    say(summary.children[2], page.sections.record.ended ? "" : ago(page.at - one.last_at));
    const hosts = Object.entries(one.hosts).map(([host, count]) => `${host} (${number(count)})`).join(", ");
    const parts = [`${plural(one.calls, "call")} ended so`];
    if (one.retried) parts.push(`${plural(one.retried, "attempt")} tried again`);
    parts.push(`first at ${new Date(one.first_at * 1000).toLocaleTimeString("en-GB")}` + (one.first_call ? ` (call ${one.first_call})` : ""));
    if (hosts) parts.push("on " + hosts);
    say(facts, parts.join(" · "));
    say(text, one.text || one.message || one.kind);
  });
}

function renderPools() {
  const pools = page.sections.pools || [], pilots = [...page.tables.pilots.values()];
  const live = pilots.filter((one) => one.phase !== "ended").length;
  say(byId("pilots-count"), pilots.length ? `${plural(live, "pilot")}, ${number(pilots.length - live)} ended` : "");
  keep(byId("pools"), pools.map((one) => one.factory + " " + one.name), () => make("article", "card", "",
    make("h3"), make("p", "muted"), make("div", "bar"), make("p", "states"), make("p", "notice bad"), make("p", "notice warn")), (card, key) => {
    const pool = pools.find((one) => one.factory + " " + one.name === key), [name, about, bar, states, paused, failure] = card.children;
    say(name, pool.name);
    const facts = [pool.backend, plural(pool.cores, "core")];
    if (pool.memory) facts.push(bytes(pool.memory));
    if (pool.gpus) facts.push(plural(pool.gpus, "GPU"));
    facts.push(pool.walltime ? "walltime " + span(pool.walltime) : "no walltime");
    say(about, facts.join(" · "));
    const counts = {};
    for (const one of pilots) if (one.pool === pool.name && one.phase !== "ended") counts[one.phase] = (counts[one.phase] || 0) + 1;
    const present = Object.keys(PHASES).filter((phase) => counts[phase]);
    fillBar(bar, present.map((phase) => [PHASES[phase], counts[phase], phase]), present.reduce((sum, phase) => sum + counts[phase], 0));
    keep(states, present, (phase) => make("span", "key", "", make("i", PHASES[phase]), make("span")), (item, phase) => say(item.lastChild, `${number(counts[phase])} ${phase}`));
    if (!present.length && !states.childNodes.length) states.append("no pilots now");
    else if (present.length) for (const node of [...states.childNodes]) if (node.nodeType === 3) node.remove();
    paused.hidden = !pool.paused;
    say(paused, pool.paused ? `Paused: ${pool.paused}\nwhen that is mended: windlass factory resume ${pool.name}` : "");
    failure.hidden = !pool.failure || pool.paused.includes(pool.failure);
    say(failure, pool.failure ? "Newest failure: " + pool.failure : "");
  });
  if (!pools.length) { if (!byId("pools").textContent) byId("pools").append(make("p", "muted", "No pools: a windlass.Factory, or `windlass factory run`, brings pilots.")); }
  else byId("pools").querySelector(":scope > p")?.remove();
  const groups = new Map();
  for (const one of pilots) {
    if (!one.failed) continue;
    const group = groups.get(one.pool + ": " + one.reason) || { count: 0, newest: one };
    group.count++;
    if (one.since >= group.newest.since) group.newest = one;
    groups.set(one.pool + ": " + one.reason, group);
  }
  keep(byId("pilot-failures"), [...groups.keys()], () => make("details", "cause", "",
    make("summary", "", "", make("b", "badge bad"), make("span", "what", "", make("span", "message")), make("span", "muted when")), make("p", "muted facts"), make("pre")), (item, key) => {
    const { count, newest } = groups.get(key), [summary, facts, text] = item.children;
    say(summary.children[0], number(count));
    say(summary.children[1].firstChild, `${count === 1 ? "pilot" : "pilots"} of ${newest.pool} failed: ${newest.reason || "no reason was given"}`);
    say(summary.children[2], page.sections.record.ended ? "" : ago(page.at - newest.since));
    say(facts, `the newest: ${newest.pilot}` + (newest.node ? ` on ${newest.node}` : "") + (newest.exit_status !== null ? `, exit status ${newest.exit_status}` : "") + (newest.log ? `, log ${newest.log}` : ""));
    text.hidden = !newest.words;
    say(text, newest.words);
  });
  byId("pilots-all").hidden = !pilots.length;
  if (byId("pilots-all").open) tables.pilots.show(pilots);
}

function renderLibraries() {
  const libraries = [...page.tables.libraries.values()];
  const saved = libraries.reduce((sum, one) => sum + one.saved_seconds, 0);
  say(byId("libraries-count"), saved > 0 ? `hoisting has saved ${span(saved)} of imports` : "");
  keep(byId("libraries"), libraries.map((one) => one.key), () => make("article", "card library", "",
    make("h3"), make("p", "muted"), make("div", "bar"), make("p", "states"), make("dl", "facts"), make("p", "imports"), make("p", "notice bad"), make("p", "notice warn")), (card, key) => {
    const one = page.tables.libraries.get(key), [name, about, bar, states, facts, imports, failed, notes] = card.children;
    say(name, one.name + (one.removed ? " (removed)" : ""));
    const functions = one.functions.slice(0, 4).join(", ") + (one.functions.length > 4 ? ` and ${one.functions.length - 4} more` : "");
    say(about, [functions, one.mode === "fork" ? "a fork for each call" : ""].filter(Boolean).join(" · "));
    fillBar(bar, [["good", one.done, "done"], ["running", one.running, "running"], ["waiting", one.waiting, "waiting"]], one.done + one.running + one.waiting);
    const counts = { done: one.done, running: one.running, waiting: one.waiting };
    keep(states, Object.keys(counts), (state) => make("span", "key", "", make("i", state === "done" ? "good" : state), make("span")), (item, state) => say(item.lastChild, `${number(counts[state])} ${state}`));
    const told = [["runs on", `${plural(one.slots, "slot")}, ${plural(one.instances, "instance")}`],
      ["a call takes", one.mean_seconds ? `${span(one.mean_seconds)}, at most ${span(one.longest_seconds)}` : "–"], ["hoisted", one.starts ? `${span(one.hoisted_seconds)} in ${plural(one.starts, "start")}` : "–"], ["saved", one.saved_seconds ? span(one.saved_seconds) : "–"]];
    keep(facts, told.map(([title]) => title), (title) => make("div", title === "saved" ? "good" : "", "", make("dt", "", title), make("dd")), (item, title) => say(item.lastChild, told.find((each) => each[0] === title)[1]));
    const modules = Object.entries(one.imports).sort((a, b) => b[1].seconds - a[1].seconds).slice(0, 8);
    imports.hidden = !modules.length;
    keep(imports, modules.map(([module]) => module), (module) => make("span", "chip"), (chip, module) => {
      const spent = one.imports[module];
      say(chip, spent.error ? `${module} failed` : `${module} ${span(spent.seconds)}`);
      chip.className = "chip" + (spent.error ? " bad" : "");
      chip.title = spent.error || "imported once per instance";
    });
    failed.hidden = !one.failed; say(failed, one.failed);
    notes.hidden = !one.notes.length; say(notes, one.notes.join("\n"));
  });
  byId("libraries-section").hidden = !libraries.length;
}

function renderWorkers() {
  const all = [...page.tables.workers.values()], wanted = byId("workers-filter").value.trim().toLowerCase();
  const shown = wanted ? all.filter((row) => `${row.host} ${row.pool} ${row.key} ${row.libraries.map(([name]) => name).join(" ")}`.toLowerCase().includes(wanted)) : all;
  const slots = all.reduce((sum, one) => sum + one.slots, 0), running = all.reduce((sum, one) => sum + Math.min(one.running, one.slots), 0);
  const used = all.reduce((sum, one) => sum + one.used, 0);
  say(byId("workers-count"), all.length ? (wanted ? `${number(shown.length)} of ` : "") + `${number(all.length)} · ${bytes(used)} in use` : "none yet");
  say(byId("slots-count"), all.length ? `${number(running)} of ${number(slots)} busy` : "");
  byId("workers").hidden = !shown.length;
  byId("workers-filter").hidden = all.length < 8;
  tables.workers.show(shown);
}

function renderTransfers() {
  const { transfers } = page.sections, files = [...page.tables.files.values()];
  const facts = [["files under way", number(transfers.under_way)], ["waiting for a source", number(transfers.waiting)], ["files sent by the manager", bytes(transfers.bytes_from_manager)],
    ["large arguments sent", bytes(transfers.object_bytes_out)], ["large results taken in", bytes(transfers.object_bytes_in)]];
  keep(byId("transfers"), facts.map(([name]) => name), (name) => make("div", "", "", make("dt", "", name), make("dd")), (item, name) => say(item.lastChild, facts.find((one) => one[0] === name)[1]));
  byId("files-all").hidden = !files.length;
  say(byId("files-all").firstChild, plural(files.length, "file"));
  if (byId("files-all").open) tables.files.show(files);
}

// ---------------------------------------------------------------- where it comes from

/** What patches come by. A browser opens few connections to one host, for all its tabs: with a stream in each of them the seventh would wait for ever.
 *  So a page that is hidden has none as soon as another one listens; one that nobody else needs it for goes on, and sees how the run ends. */
let stream = null;
const others = byId("report") ? null : new BroadcastChannel("windlass");

function listen() {
  rest();
  const mine = stream = new EventSource("events");
  mine.addEventListener("patch", (event) => { Object.assign(page, { live: true, moved: false, heard: page.heard + 1, heardAt: performance.now() }); update(event.data); });
  mine.addEventListener("ended", (event) => { page.ended = JSON.parse(event.data).reason || "closed"; rest(); render(); });
  mine.addEventListener("error", () => {
    page.live = false;
    render();
    // A browser tries again by itself when nobody answers. When somebody else does (a proxy, a dashboard that was started anew) it gives up.
    if (mine.readyState === EventSource.CLOSED) setTimeout(() => { if (stream === mine) listenAgain(); }, 1000 * page.pause);
  });
  others.postMessage("listens");
}

function rest() {
  stream?.close();
  stream = null;
}

/** A stream does not tell how it was refused; so something else is asked for, below the same path and with the same cookie. */
async function listenAgain() {
  const refused = stream, status = await fetch("page.css", { method: "HEAD", cache: "no-store" }).then((answer) => answer.status, () => 0);
  page.moved = [403, 404, 421].includes(status);
  render();
  if (stream === refused) listen();
}

function shown() {
  if (document.hidden) return;
  if (others && !stream && !page.ended) { page.heardAt = performance.now(); listen(); }
  render();
}

for (const id of ["pilots-all", "files-all"]) byId(id).addEventListener("toggle", render);
byId("workers-filter").addEventListener("input", renderWorkers);
window.addEventListener("resize", render);
document.addEventListener("visibilitychange", shown);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { forgetColours(); render(); });

const report = byId("report");
if (report) {
  byId("links").hidden = true;
  update(report.textContent);
  if (!page.sections.record.ended) { page.ended = "it still ran when this was written"; render(); }
} else {
  // The token has become a cookie; it is not to stand in the address bar, in bookmarks or on pictures of the screen.
  if (location.search) history.replaceState(null, "", location.pathname);
  others.addEventListener("message", () => { if (document.hidden) rest(); });
  listen();
  setInterval(() => { if (page.sections.manager && !document.hidden) renderHead(); }, 5000);
}
