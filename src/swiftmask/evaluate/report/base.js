"use strict";
// What every part of the page uses: the data, and elements made without a template.

const report = JSON.parse(document.getElementById("report-data").textContent);
const rowsByName = new Map(report.rows.map((row) => [row.name, row]));

const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

// SVG elements, in the namespace of the page's own drawing.
function shape(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(byId("plot-drawing").namespaceURI, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  if (chosen !== null) select.value = chosen;
}

// 3 digits without exponents: 0.0123, 1.23, 123, 12300.
function short(value) {
  if (value === 0) return "0";
  return String(Number(value.toFixed(digitsOf(value))));
}

function digitsOf(value) {
  return Math.min(8, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))));
}

// A spread says nothing beyond the digits of what it is the spread of.
function withSpread({ mean, spread }) {
  return spread && mean ? `${short(mean)} ± ${Number(spread.toFixed(digitsOf(mean)))}` : short(mean);
}

function seriesTitle(series) {
  return series === "vanilla" ? "full model, fewer steps" : series;
}

function rowTitle(row) {
  const steps = `${row.steps} steps`;
  if (row.series === "vanilla") return `full model, ${steps}`;
  return row.full_steps === row.steps ? `${row.series}, ${steps}` : `${row.series}, ${steps}, ${row.full_steps} full`;
}

function say(text) {
  byId("status").textContent = text;
}
