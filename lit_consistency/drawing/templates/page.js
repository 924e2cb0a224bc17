"use strict";
// Nothing that a page names is ever parsed as HTML here: text enters the page as text nodes only.
const page = (() => {
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function shown(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  const size = Math.abs(value);
  const text = value === 0 ? "0" : size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return text.replace(/^-/, "−");
}

// -------------------- light and dark

$("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* storage is off: the choice holds until reload */ }
});

// -------------------- copying

async function copy(button) {
  const code = $("code", button.parentElement);
  let done = true;
  try { await navigator.clipboard.writeText(code.textContent); } catch {
    // without permission, or in an old browser: by selecting the text
    getSelection().selectAllChildren(code);
    done = document.execCommand("copy");
  }
  button.textContent = done ? "Copied" : "Press Ctrl-C";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

document.addEventListener("click", (event) => {
  const target = event.target;
  if (!(target instanceof Element)) return;
  if (target.matches(".copy")) copy(target);
  if (target.matches("[data-save]")) save(target);
});

// -------------------- saving a figure, with the colours of the theme that is shown

function save(button) {
  const picture = $$("svg", button.closest("figure")).find((svg) => svg.getClientRects().length);
  const { width, height } = picture.viewBox.baseVal;
  const clone = picture.cloneNode(true);
  const style = getComputedStyle(document.documentElement);
  clone.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  clone.setAttribute("width", width);
  clone.setAttribute("height", height);
  clone.setAttribute("font-family", getComputedStyle(document.body).fontFamily);
  clone.insertAdjacentHTML("afterbegin", '<rect width="100%" height="100%" fill="var(--paper)"/>');
  const text = new XMLSerializer().serializeToString(clone).replace(/var\((--[a-z0-9]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  const url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  if (button.dataset.save === "svg") { download(url, `${button.dataset.name}.svg`); return; }
  const image = new Image();
  image.onload = () => {
    const canvas = make("canvas", { width: 2 * width, height: 2 * height });
    canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
    canvas.toBlob((blob) => download(URL.createObjectURL(blob), `${button.dataset.name}.png`));
  };
  image.src = url;
}

function download(url, name) {
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// -------------------- one series at a time: the pointer chooses it, a click keeps it

for (const svg of $$("svg")) {
  let kept = null;
  const choose = (name) => {
    svg.classList.toggle("dimmed", name !== null);
    for (const group of $$("g[data-series]", svg)) group.classList.toggle("chosen", group.dataset.series === name);
  };
  for (const group of $$("g[data-series]", svg)) {
    group.addEventListener("pointerenter", () => choose(group.dataset.series));
    group.addEventListener("pointerleave", () => choose(kept));
    group.addEventListener("click", () => { kept = kept === group.dataset.series ? null : group.dataset.series; choose(kept); });
  }
}

// -------------------- sorting

// A missing number is last, whichever way a column is sorted.
function compare(a, b, descending) {
  const missing = (value) => value === null || value === undefined || value === "" || value === "–";
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const numbers = [Number(String(a).replace("−", "-").replace("∞", "Infinity")), Number(String(b).replace("−", "-").replace("∞", "Infinity"))];
  const order = numbers.some(Number.isNaN) ? String(a).localeCompare(String(b), "en", { numeric: true }) : numbers[0] < numbers[1] ? -1 : Number(numbers[0] > numbers[1]);
  return descending ? -order : order;
}

function mark(header, descending) {
  for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

for (const table of $$("table.sortable")) {
  $$("thead th", table).forEach((header, column) => $("button", header).addEventListener("click", () => {
    const descending = header.getAttribute("aria-sort") === "ascending";
    const value = (row) => row.children[column].textContent;
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b), descending));
    table.tBodies[0].append(...rows);
    mark(header, descending);
  }));
}

// -------------------- the section that is being read

const links = new Map($$("nav li a").map((link) => [link.getAttribute("href").slice(1), link]));
const reading = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-20% 0px -70% 0px" });
for (const section of $$("main section")) reading.observe(section);

return { $, $$, make, shown, compare };
})();
