// The frontier: a point a row, the Pareto front, the budget; every point is reached by mouse and keyboard.

const COSTS = [
  { key: "gflop", label: "GFLOP per image", unit: "GFLOP" },
  { key: "ms", label: "ms per image (token decode)", unit: "ms" },
];
const MARKS = [
  (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
  (r) => `M${-r},${-r}H${r}V${r}H${-r}Z`,
  (r) => `M0,${-1.2 * r}L${1.1 * r},${0.9 * r}H${-1.1 * r}Z`,
  (r) => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0Z`,
  (r) => `M0,${1.2 * r}L${1.1 * r},${-0.9 * r}H${-1.1 * r}Z`,
  (r) => `M${-r},${-r / 3}H${-r / 3}V${-r}H${r / 3}V${-r / 3}H${r}V${r / 3}H${r / 3}V${r}H${-r / 3}V${r / 3}H${-r}Z`,
];

const allSeries = [...new Set(["vanilla", ...report.rows.map((row) => row.series)])].filter((series) =>
  report.rows.some((row) => row.series === series),
);
const plot = { quantity: report.quantities[0], cost: COSTS[0], hidden: new Set(), budget: NaN, current: null };

const quality = (row) => row.values[plot.quantity.key].mean;
const better = (value, other) => (plot.quantity.higher_is_better ? value > other : value < other);
const seriesClass = (series) => `series-${allSeries.indexOf(series) % MARKS.length}`;

// Where colours begin again, shapes are one further: six times six methods look different.
function mark(series, radius) {
  const index = allSeries.indexOf(series);
  return MARKS[(index + Math.floor(index / MARKS.length)) % MARKS.length](radius);
}

function shownRows() {
  const rows = report.rows.filter((row) => !plot.hidden.has(row.series));
  return rows.sort((one, other) => one[plot.cost.key] - other[plot.cost.key]);
}

// Cheapest first, each better than all before it.
function paretoFront(rows) {
  const front = [];
  for (const row of rows) {
    if (!front.length || better(quality(row), quality(front[front.length - 1]))) front.push(row);
  }
  return front;
}

function bestOf(rows) {
  return rows.reduce((best, row) => (best === null || better(quality(row), quality(best)) ? row : best), null);
}

function describe(row) {
  const { label, key } = plot.quantity;
  return [
    `${label} ${withSpread(row.values[key])}`,
    ...report.quantities
      .filter((other) => other.key !== key)
      .slice(0, 3)
      .map((other) => `${other.label} ${short(row.values[other.key].mean)}`),
    `${short(row.gflop)} GFLOP, ${short(row.ms)} ms`,
  ];
}

function drawPlot() {
  const drawing = byId("plot-drawing");
  const focused = drawing.contains(document.activeElement) ? document.activeElement.dataset.row : null;
  const width = byId("plot").clientWidth;
  const height = Math.round(Math.min(460, Math.max(280, width * 0.5)));
  const box = { left: 52, right: width - 14, top: 26, bottom: height - 44 };
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawing.setAttribute("height", height);
  const rows = shownRows();
  if (!rows.length) {
    drawing.replaceChildren(shape("text", { x: width / 2, y: height / 2, class: "axis-label" }, "No method is chosen."));
    return;
  }
  const scales = plotScales(rows, box);
  const front = paretoFront(rows);
  const vanilla = rows.filter((row) => row.series === "vanilla");
  drawing.replaceChildren(
    ...axes(box, scales, width),
    ...budgetShapes(box, scales.x),
    ...floorShapes(box, scales.y),
    shape("path", { class: "vanilla-line", d: line(vanilla, scales) }),
    shape("path", { class: "front", d: stairs(front, scales, box.right) }),
    ...rows.map((row) => pointShape(row, scales)),
    ...labels(front, vanilla, scales, box),
  );
  makeCurrent(plot.current !== null && rows.includes(plot.current) ? plot.current : front[0]);
  if (focused !== null) drawing.querySelector(".point[tabindex='0']").focus();
}

function plotScales(rows, box) {
  const values = rows.flatMap((row) => {
    const { mean, spread } = row.values[plot.quantity.key];
    return [mean, mean - spread, mean + spread];
  });
  const floor = plot.quantity.floor;
  const seen = plot.quantity.higher_is_better || floor === null ? values : [...values, floor];
  const log = !plot.quantity.higher_is_better && Math.min(...seen) > 0;
  return {
    x: makeScale(rows.map((row) => row[plot.cost.key]), { log: true, from: box.left, to: box.right, room: 0.06 }),
    y: makeScale(seen, { log, from: box.bottom, to: box.top, room: 0.07 }),
  };
}

function axes(box, { x, y }, width) {
  const parts = [];
  for (const tick of x.ticks(width < 520 ? 5 : 9)) {
    const at = x.place(tick);
    parts.push(shape("line", { class: "grid", x1: at, x2: at, y1: box.top, y2: box.bottom }));
    parts.push(shape("text", { class: "tick", x: at, y: box.bottom + 18 }, short(tick)));
  }
  for (const tick of y.ticks(6)) {
    const at = y.place(tick);
    parts.push(shape("line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at }));
    parts.push(shape("text", { class: "tick end", x: box.left - 8, y: at + 4 }, short(tick)));
  }
  parts.push(shape("text", { class: "axis-label", x: (box.left + box.right) / 2, y: box.bottom + 38 }, plot.cost.label));
  parts.push(shape("text", { class: "quality-label", x: 0, y: 13 }, plot.quantity.label));
  return parts;
}

function budgetShapes(box, x) {
  if (!(plot.budget > 0)) return [];
  const at = Math.min(box.right, Math.max(box.left, x.place(plot.budget)));
  const height = box.bottom - box.top;
  const parts = [shape("rect", { class: "over-budget", x: at, y: box.top, width: box.right - at, height })];
  if (plot.budget < x.low || plot.budget > x.high) return parts;
  parts.push(shape("line", { class: "budget", x1: at, x2: at, y1: box.top, y2: box.bottom }));
  const late = at > box.right - 60;
  parts.push(
    shape("text", { class: `budget-label${late ? " end" : ""}`, x: at + (late ? -5 : 5), y: box.bottom - 7 }, "budget"),
  );
  return parts;
}

function floorShapes(box, y) {
  const { floor } = plot.quantity;
  if (floor === null || floor < y.low || floor > y.high) return [];
  const at = y.place(floor);
  return [
    shape("line", { class: "floor", x1: box.left, x2: box.right, y1: at, y2: at }),
    shape("text", { class: "floor-label", x: box.left + 6, y: at - 5 }, "floor: real against real"),
  ];
}

function line(rows, { x, y }) {
  return rows.map((row, index) => `${index ? "L" : "M"}${x.place(row[plot.cost.key])},${y.place(quality(row))}`).join("");
}

function stairs(front, { x, y }, right) {
  const steps = front.map((row, index) => {
    const [at, height] = [x.place(row[plot.cost.key]), y.place(quality(row))];
    return index ? `H${at}V${height}` : `M${at},${height}`;
  });
  return `${steps.join("")}H${right}`;
}

function pointShape(row, { x, y }) {
  const { mean, spread } = row.values[plot.quantity.key];
  const over = row[plot.cost.key] > plot.budget;
  const point = shape("g", {
    class: `point ${seriesClass(row.series)}${over ? " over" : ""}`,
    transform: `translate(${x.place(row[plot.cost.key])},${y.place(mean)})`,
    role: "button",
    tabindex: "-1",
    "data-row": row.name,
    "aria-label": `${row.name}: ${describe(row).join(", ")}`,
  });
  if (spread) {
    const reach = (value) => Math.round((y.place(Math.max(value, y.low)) - y.place(mean)) * 10) / 10;
    point.append(shape("path", { class: "bar", d: `M0,${reach(mean - spread)}V${reach(mean + spread)}` }));
  }
  point.append(shape("circle", { class: "target", r: 13 }), shape("path", { class: "mark", d: mark(row.series, 5.5) }));
  point.addEventListener("pointerenter", () => showTip(row, point));
  point.addEventListener("pointerleave", hideTip);
  point.addEventListener("focus", () => {
    makeCurrent(row);
    showTip(row, point);
  });
  point.addEventListener("blur", hideTip);
  point.addEventListener("click", () => chooseRow(row.name));
  return point;
}

// Numbers beside the points on the front and beside the full model's, where they do not meet.
function labels(front, vanilla, { x, y }, box) {
  const taken = [];
  const parts = [];
  for (const row of [...front.filter((row) => row.series !== "vanilla"), ...vanilla]) {
    const text = row.name.replace(`${row.series}-`, "");
    const below = row.series === "vanilla" && front.some((other) => other.series !== "vanilla");
    const [at, height] = [x.place(row[plot.cost.key]), y.place(quality(row)) + (below ? 21 : -12)];
    const half = 4 + text.length * 3.6;
    const clash = taken.some(([otherX, otherY, otherHalf]) => Math.abs(at - otherX) < half + otherHalf && Math.abs(height - otherY) < 14);
    if (clash || height < box.top + 6 || height > box.bottom - 2) continue;
    taken.push([at, height, half]);
    parts.push(shape("text", { class: `point-label ${seriesClass(row.series)}`, x: at, y: height }, text));
  }
  return parts;
}

// One point is in the tab order; arrows move it.
function makeCurrent(row) {
  plot.current = row;
  for (const point of byId("plot-drawing").querySelectorAll(".point")) {
    point.setAttribute("tabindex", point.dataset.row === row.name ? "0" : "-1");
  }
}

function movePoint(event) {
  const rows = shownRows();
  const index = rows.indexOf(plot.current);
  const to = { ArrowRight: index + 1, ArrowUp: index + 1, ArrowLeft: index - 1, ArrowDown: index - 1, Home: 0, End: rows.length - 1 }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    const row = rows[Math.min(rows.length - 1, Math.max(0, to))];
    byId("plot-drawing").querySelector(`[data-row="${CSS.escape(row.name)}"]`).focus();
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    chooseRow(plot.current.name);
  } else if (event.key === "Escape") {
    hideTip();
  }
}

function showTip(row, point) {
  const tip = byId("plot-tip");
  const onFront = paretoFront(shownRows()).includes(row);
  const lines = describe(row).map((text) => make("div", {}, text));
  tip.replaceChildren(make("strong", {}, row.name), make("div", { class: "muted" }, rowTitle(row)), ...lines);
  if (onFront) tip.append(make("div", { class: "muted" }, "on the Pareto front"));
  tip.hidden = false;
  const [frame, place] = [byId("plot").getBoundingClientRect(), point.querySelector(".mark").getBoundingClientRect()];
  const middle = place.left + place.width / 2 - frame.left;
  const left = Math.min(frame.width - tip.offsetWidth - 4, Math.max(4, middle - tip.offsetWidth / 2));
  const above = place.top - frame.top - tip.offsetHeight - 10;
  tip.style.left = `${left}px`;
  tip.style.top = `${above >= 0 ? above : place.bottom - frame.top + 10}px`;
}

function hideTip() {
  byId("plot-tip").hidden = true;
}

// A difference within the larger spread is none; one evaluation seed has no spread, and shows none.
function isTie(one, other) {
  const noise = Math.max(...[one, other].map((row) => row.values[plot.quantity.key].spread));
  return report.seeds === 1 || Math.abs(quality(one) - quality(other)) <= noise;
}

// The first few names, and how many more there are.
function some(names, limit = 4) {
  return names.slice(0, limit).join(", ") + (names.length > limit ? ` and ${names.length - limit} more` : "");
}

function showVerdict() {
  const within = shownRows().filter((row) => row[plot.cost.key] <= plot.budget);
  const best = bestOf(within);
  const fewer = bestOf(within.filter((row) => row.series === "vanilla"));
  const other = best !== null && best === fewer ? bestOf(within.filter((row) => row.series !== "vanilla")) : fewer;
  const value = (row) => `${row.name} (${plot.quantity.label} ${short(quality(row))} at ${short(row[plot.cost.key])} ${plot.cost.unit})`;
  let text = "Give a budget to see the best row within it.";
  if (plot.budget > 0 && best === null) text = "No row is that cheap.";
  else if (best !== null) {
    const kind = best === fewer ? "the other rows" : "fewer steps alone";
    const alone = other === null ? `none of ${kind} is that cheap` : `the best of ${kind} is ${value(other)}`;
    const ties = within.filter((row) => row !== best && isTie(best, row)).map((row) => row.name);
    text = `Best within the budget: ${value(best)}; ${alone}.`;
    if (report.meaningless) return void (byId("plot-verdict").textContent = `${report.meaningless}: no row is called better.`);
    if (ties.length > 0) text += ` No difference ${report.seeds === 1 ? "that one evaluation seed can show" : "beyond the spread"}: ${some(ties)}.`;
  }
  byId("plot-verdict").textContent = text;
}

// Half of what the full model costs, what "twice as fast" asks for; rounded up, so that half the steps fit.
// Half of the full model, with a hundredth more: half the steps count, though a step's cost is not quite the same.
function defaultBudget() {
  const half = (1.01 * (rowsByName.get(report.full) ?? bestOf(shownRows()))[plot.cost.key]) / 2;
  const digit = 10 ** (Math.floor(Math.log10(half)) - 2);
  return Number(short(Math.ceil(half / digit - 1e-9) * digit));
}

function makeLegend() {
  const entries = allSeries.map((series) => {
    const box = make("input", { type: "checkbox", checked: "" });
    box.addEventListener("change", () => {
      plot.hidden[box.checked ? "delete" : "add"](series);
      drawPlot();
      showVerdict();
    });
    const sample = shape("svg", { viewBox: "-9 -9 18 18", width: 18, height: 18, "aria-hidden": "true", class: seriesClass(series) });
    sample.append(shape("path", { class: "mark", d: mark(series, 5.5) }));
    return make("label", {}, box, sample, seriesTitle(series));
  });
  byId("plot-legend").append(...entries);
}

function startPlot() {
  if (!report.rows.length) return;
  byId("frontier").hidden = false;
  fillSelect(byId("plot-quantity"), report.quantities.map((one) => [one.key, `${one.label}, ${one.higher_is_better ? "higher" : "lower"} is better`]), null);
  fillSelect(byId("plot-cost"), COSTS.map((one) => [one.key, one.label]), null);
  const budget = byId("plot-budget");
  const refresh = () => {
    byId("plot-direction").textContent = plot.quantity.higher_is_better ? "Up" : "Down";
    drawPlot();
    showVerdict();
  };
  const reset = () => {
    plot.budget = defaultBudget();
    budget.value = plot.budget;
    byId("plot-unit").textContent = plot.cost.unit;
  };
  byId("plot-quantity").addEventListener("change", (event) => {
    plot.quantity = report.quantities.find((one) => one.key === event.target.value);
    refresh();
  });
  byId("plot-cost").addEventListener("change", (event) => {
    plot.cost = COSTS.find((one) => one.key === event.target.value);
    reset();
    refresh();
  });
  budget.addEventListener("input", () => {
    plot.budget = budget.valueAsNumber;
    refresh();
  });
  byId("plot-drawing").addEventListener("keydown", movePoint);
  makeLegend();
  reset();
  refresh();
  let width = byId("plot").clientWidth;
  new ResizeObserver(() => {
    if (byId("plot").clientWidth === width) return; // its height follows from what is drawn
    width = byId("plot").clientWidth;
    drawPlot();
  }).observe(byId("plot"));
}
