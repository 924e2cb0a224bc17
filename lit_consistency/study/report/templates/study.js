"use strict";
(() => {
const { $, make, shown, compare } = page;
const PAGE = 50; // rows of the table of cells that are made at once

// -------------------- the table of cells

const study = JSON.parse($("#cells-json").textContent);
const byName = new Map(study.cells.map((cell, index) => [cell.name, index]));
const signs = new Map(study.states);
const columns = [
  { name: "cell", value: (cell) => cell.name },
  { name: "state", text: true, value: (cell) => cell.state },
  ...(new Set(study.cells.map((cell) => cell.stage)).size > 1 ? [{ name: "stage", text: true, filter: true, value: (cell) => cell.stage }] : []),
  ...study.axes.map((axis, i) => ({ name: axis, text: true, filter: true, value: (cell) => cell.at[i] })),
  { name: "seconds", value: (cell) => cell.seconds },
  ...[...new Set([...study.shown, ...study.metrics])].map((metric) => { const i = study.metrics.indexOf(metric); return { name: metric, metric: true, off: !study.shown.includes(metric), value: (cell) => cell.of[i] }; }),
];
const chosen = new Map(); // name of a column -> the only value that is shown
let words = "", sorted = null, descending = false, rows = [], limit = PAGE;

function filters() {
  const form = $("#filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.append(make("input", { type: "search", placeholder: "Filter by words", "aria-label": "Filter by words", oninput: (event) => { words = event.target.value; update(); } }));
  for (const column of columns.filter((column) => column.filter || column.name === "state")) {
    const values = [...new Set(study.cells.map(column.value))].filter((value) => value !== null).sort((a, b) => compare(a, b, false));
    if (values.length < 2) continue;
    const choose = (event) => { if (event.target.selectedIndex) chosen.set(column, event.target.value); else chosen.delete(column); update(); };
    form.append(make("select", { "aria-label": column.name, onchange: choose }, make("option", {}, `${column.name}: all`), ...values.map((value) => make("option", { value }, value))));
  }
  const metrics = columns.filter((column) => column.metric);
  if (!metrics.length) return;
  const boxes = metrics.map((column) => make("label", {}, make("input", { type: "checkbox", checked: !column.off, onchange: (event) => { column.off = !event.target.checked; show(); } }), ` ${column.name}`));
  form.append(make("details", {}, make("summary", {}, `Columns: ${metrics.length} numbers`), ...boxes));
}

function head(visible) {
  const headers = visible.map((column) => {
    const sort = () => { descending = sorted === column && !descending; sorted = column; update(); $("#cell-table [aria-sort] button").focus(); };
    const header = make("th", { scope: "col", class: column.text ? "text" : null }, make("button", { type: "button", onclick: sort }, column.name));
    if (column === sorted) header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    return header;
  });
  $("#cell-table thead").replaceChildren(make("tr", {}, ...headers));
}

function update() {
  const parts = words.toLowerCase().split(/\s+/).filter(Boolean);
  rows = study.cells.filter((cell) => {
    for (const [column, value] of chosen) if (column.value(cell) !== value) return false;
    if (!parts.length) return true;
    const text = [cell.name, cell.stage, cell.state, ...cell.at].join(" ").toLowerCase();
    return parts.every((part) => text.includes(part));
  });
  if (sorted) rows.sort((a, b) => compare(sorted.value(a), sorted.value(b), descending));
  limit = PAGE;
  show();
}

function show() {
  // a column that is empty for all rows, as another stage's axis, only takes room; one that was chosen stays
  const visible = columns.filter((column) => !column.off && (column.metric || column === sorted || rows.some((cell) => column.value(cell) !== null)));
  head(visible);
  const line = (cell) => make("tr", { onclick: () => open(byName.get(cell.name)) }, ...visible.map((column, i) => {
    const value = column.value(cell);
    if (i === 0) return make("th", { scope: "row" }, make("button", { type: "button", title: value }, value));
    if (column.name === "state") return make("td", { class: `text ${cell.state}-state` }, `${signs.get(value) ?? ""} ${value}`);
    return make("td", { class: column.text ? "text" : null }, column.text ? value ?? "" : shown(value));
  }));
  $("#cell-table tbody").replaceChildren(...rows.slice(0, limit).map(line));
  $("#found").textContent = rows.length === study.cells.length ? `${rows.length.toLocaleString("en")} cells` : `${rows.length.toLocaleString("en")} of ${study.cells.length.toLocaleString("en")} cells`;
  const more = $("#more");
  more.hidden = rows.length <= limit;
  more.textContent = `Show ${Math.min(rows.length - limit, 4 * PAGE)} more of ${rows.length - limit}`;
}

// -------------------- one cell

document.addEventListener("click", (event) => {
  const marker = event.target instanceof Element ? event.target.closest("svg [data-cell]") : null;
  if (marker && byName.has(marker.dataset.cell)) open(byName.get(marker.dataset.cell));
});

let packed = null;

// Unpacked once, when the first cell is opened.
function unpack() {
  packed ??= (async () => {
    const bytes = Uint8Array.from(atob($("#cells-packed").textContent.trim()), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).json();
  })();
  return packed;
}

async function open(index) {
  const cell = study.cells[index], dialog = $("#cell");
  let more = null;
  try { more = (await unpack())[index]; } catch { /* a browser from before 2023 */ }
  const order = rows.length ? rows : study.cells, at = order.indexOf(cell);
  const step = (by, label, sign) => make("button", { type: "button", "aria-label": label, disabled: at < 0 || !order[at + by], onclick: () => open(byName.get(order[at + by].name)) }, sign);
  const facts = [["state", `${signs.get(cell.state) ?? ""} ${cell.state}`], ["stage", cell.stage], ...study.axes.map((axis, i) => [axis, cell.at[i]]).filter(([, value]) => value !== null), ["seconds", shown(cell.seconds)], ["folder", more?.folder]];
  dialog.replaceChildren(
    make("header", {}, make("h2", { id: "cell-title", tabindex: -1, autofocus: true }, cell.name), make("span", { class: "buttons" }, step(-1, "Previous cell", "←"), " ", step(1, "Next cell", "→"), " ", make("button", { type: "button", onclick: () => dialog.close() }, "Close"))),
    ...(more?.error ? [make("h3", {}, "What went wrong"), make("p", { class: "error" }, more.error)] : []),
    make("dl", { class: "environment" }, ...facts.filter(([, value]) => value).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    ...numbers(cell), ...(more ? [...curves(more.curve), ...texts(more)] : [make("p", { class: "error" }, "This browser cannot unpack the rest; one from 2023 or later can.")]),
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  history.replaceState(null, "", `#cell/${encodeURIComponent(cell.name)}`);
}

function numbers(cell) {
  const found = study.metrics.map((metric, i) => [metric, cell.of[i]]).filter(([metric, value]) => value !== null && !metric.endsWith(".stderr"));
  if (!found.length) return [];
  const error = (metric) => { const i = study.metrics.indexOf(`${metric}.stderr`); return i >= 0 && cell.of[i] !== null ? `±${shown(cell.of[i])}` : ""; };
  const body = found.map(([metric, value]) => make("tr", {}, make("th", { scope: "row", title: metric }, metric), make("td", {}, shown(value)), make("td", {}, error(metric))));
  return [make("h3", {}, "Final numbers"), make("div", { class: "scroll" }, make("table", {}, make("tbody", {}, ...body)))];
}

function texts(more) {
  const block = (title, text) => text ? [make("h3", {}, title), make("div", { class: "code" }, make("pre", { tabindex: 0 }, make("code", {}, text)), make("button", { type: "button", class: "copy" }, "Copy"))] : [];
  return [...block("Command", more.command), ...block("End of the log", more.log), ...block("Configuration", more.config)];
}

function curves(curve) {
  const steps = curve.step ?? [];
  const names = Object.keys(curve).filter((name) => name !== "step" && !name.endsWith(".stderr"));
  const charts = names.map((name) => spark(name, steps, curve[name])).filter((chart) => chart !== null);
  return charts.length ? [make("h3", {}, "Over the steps"), make("div", { class: "curves" }, ...charts)] : [];
}

// A small curve with its first and last number.
function spark(name, steps, values) {
  const points = steps.map((step, i) => [step, values[i]]).filter(([step, value]) => typeof step === "number" && typeof value === "number");
  if (!points.length) return null;
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  const scale = (list, size, pad) => { const low = Math.min(...list), high = Math.max(...list); return (value) => high > low ? pad + (size - 2 * pad) * (value - low) / (high - low) : size / 2; };
  const x = scale(xs, 200, 4), y = scale(ys, 56, 5);
  const drawn = points.map(([step, value]) => `${x(step).toFixed(1)} ${(56 - y(value)).toFixed(1)}`);
  const element = (tag, attributes, ...children) => { const node = document.createElementNS("http://www.w3.org/2000/svg", tag); for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value); node.append(...children); return node; };
  const text = `${name}: ${shown(ys[0])} at step ${shown(xs[0])}, ${shown(ys.at(-1))} at step ${shown(xs.at(-1))}`;
  const svg = element("svg", { viewBox: "0 0 200 56", role: "img", "aria-label": text });
  svg.append(element("path", { d: `M${drawn.join("L")}`, fill: "none", stroke: "var(--accent)", "stroke-width": 1.8 }));
  points.forEach(([step, value], i) => { const [cx, cy] = drawn[i].split(" "); const title = element("title", {}, `step ${shown(step)}: ${shown(value)}`); svg.append(element("circle", { cx, cy, r: 2.4, fill: "var(--accent)" }, title)); });
  return make("div", {}, make("p", {}, name), svg, make("p", {}, `${shown(ys[0])} → ${shown(ys.at(-1))}`));
}

function follow() {
  if (!location.hash.startsWith("#cell/")) return;
  let name = "";
  try { name = decodeURIComponent(location.hash.slice(6)); } catch { /* a broken link */ }
  if (byName.has(name)) open(byName.get(name));
}

if (study.cells.length) {
  filters();
  update();
  $("#more").addEventListener("click", () => { limit += 4 * PAGE; show(); });
  const dialog = $("#cell");
  dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  addEventListener("hashchange", follow);
  follow();
}
})();
