// Elements, numbers and columns. Text always goes in as text nodes: nothing in a record is ever read as HTML.
"use strict";

const read = (id) => { const node = document.getElementById(id); return node ? JSON.parse(node.textContent) : null; };
const find = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// Columns of runs: {"all": value} or {"values": [...], "of": [...]}; undefined where a run has none.
const at = (column, run) => (column === undefined ? undefined : "all" in column ? column.all : column.values[column.of[run]]);
const words = (value) => (value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));

function significant(value, digits) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) {
    const [head, power] = value.toExponential(digits - 1).split("e");
    return `${head}e${Number(power)}`; // no "+"
  }
  return size >= 10 ** (digits - 1) ? value.toFixed(0) : value.toPrecision(digits);
}

// Forms: "2f" two decimals, "2e" the same with a power of ten, "3g" three digits, "b" bytes.
function show(value, form) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const digits = parseInt(form, 10);
  let text;
  if (form === "b") {
    const unit = [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["B", 1]].find(([, size]) => value >= size) || ["B", 1];
    text = `${significant(value / unit[1], 3)} ${unit[0]}`;
  } else if (form.endsWith("e")) text = value === 0 ? "0" : value.toExponential(digits);
  else text = form.endsWith("f") ? value.toFixed(digits) : significant(value, digits);
  if (Number(text) === 0) text = text.replace("-", "");
  return text.replace("e+", "e").replace(/-/g, "−");
}

// A cell of the report's tables: "+-" and "-" as print has them.
const pretty = (cell) => (cell === "-" ? "–" : cell.replace(/\+-/g, "±").replace(/(^|[\[\s])-(?=\d)/g, "$1−"));
function number(cell) {
  const found = /[-−]?\d+(\.\d+)?(e[-+]?\d+)?/i.exec(cell);
  return found && /^[\[~]?[-−]?\d/.test(cell) ? Number(found[0].replace("−", "-")) : null;
}
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
function deviation(values) {
  if (values.length < 2) return 0;
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}
const collator = new Intl.Collator("en", { numeric: true });

// What is chosen on the page is kept in the address, so that a link leads to the same view.
const state = {
  values: new URLSearchParams(),
  load() {
    const text = location.hash.slice(1);
    this.values = new URLSearchParams(text.includes("=") ? text : "");
  },
  get(name) { return this.values.get(name) || ""; },
  set(name, value) {
    if (value) this.values.set(name, value); else this.values.delete(name);
    history.replaceState(null, "", `#${this.values}`);
  },
};
state.load();
