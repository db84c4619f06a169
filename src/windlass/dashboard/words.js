// Numbers as people read them, and small help with elements. Texts go in by textContent only: what calls say is never markup.
"use strict";

const byId = (id) => document.getElementById(id);

/** An element with a class, text and children. */
function make(tag, name, text, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined && text !== null) element.textContent = text;
  element.append(...children);
  return element;
}

/** Set a text only when it is another one: unchanged text costs no layout. */
function say(element, text) {
  if (element.firstChild === null || element.textContent !== text) element.textContent = text;
}

function number(value) {
  if (value >= 1e9) return (value / 1e9).toFixed(1) + " G";
  if (value >= 1e7) return (value / 1e6).toFixed(1) + " M";
  return Math.round(value).toLocaleString("en");
}

function rate(value) {
  return value >= 100 ? number(value) : value >= 10 ? value.toFixed(0) : value >= 0.995 ? value.toFixed(1) : value > 0 ? value.toFixed(2) : "0";
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < 4) { value /= 1000; unit++; }
  return (unit === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)) + " " + units[unit];
}

function span(seconds) {
  if (seconds <= 0) return "0 s";
  if (seconds < 0.001) return (seconds * 1e6).toFixed(0) + " µs";
  if (seconds < 1) return Number((seconds * 1e3).toPrecision(3)) + " ms";
  if (seconds < 10) return seconds.toFixed(1) + " s";
  if (seconds < 120) return seconds.toFixed(0) + " s";
  if (seconds < 7200) return Math.round(seconds / 60) + " min";
  if (seconds < 2 * 86400) return Math.floor(seconds / 3600) + " h " + Math.floor(seconds % 3600 / 60) + " min";
  return Math.floor(seconds / 86400) + " d " + Math.floor(seconds % 86400 / 3600) + " h";
}

/** How long ago, in steps, so that it does not change every second. */
function ago(seconds) {
  return seconds < 5 ? "now" : seconds < 60 ? Math.floor(seconds / 5) * 5 + " s ago" : span(seconds) + " ago";
}

const plural = (count, word) => number(count) + " " + word + (count === 1 ? "" : "s");

/** A bar of parts [name of its colour, number, words]; the rest of ``total`` stays empty. */
function fillBar(bar, parts, total) {
  while (bar.children.length < parts.length) bar.append(make("span"));
  parts.forEach(([colour, count], place) => {
    const part = bar.children[place];
    part.className = "part " + colour;
    const width = total > 0 ? (100 * count / total).toFixed(2) + "%" : "0";
    if (part.style.width !== width) part.style.width = width;
  });
  while (bar.children.length > parts.length) bar.lastChild.remove();
  const words = parts.filter(([, count]) => count).map(([, count, name]) => number(count) + " " + name).join(", ");
  if (bar.title !== words) { bar.title = words; bar.setAttribute("aria-label", words); }
}

/** Children of a container, one for each key, in order; ``build(key)`` makes one, ``fill(child, key)`` brings it up to date. */
function keep(container, keys, build, fill) {
  const known = container.kept ??= new Map();
  const wanted = new Set(keys);
  for (const [key, child] of known) if (!wanted.has(key)) { child.remove(); known.delete(key); }
  let place = container.firstChild;
  for (const key of keys) {
    let child = known.get(key);
    if (!child) known.set(key, child = build(key));
    if (child === place) place = place.nextSibling;
    else container.insertBefore(child, place);
    fill(child, key);
  }
}
