"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#2f6fde", "#e07b00", "#1f9d55", "#d33a2c", "#8a56d8", "#0f9aa8", "#c2478d", "#7a6a3a", "#5b6b7c", "#a5b400"];
const FEW = 15;  // points: each is drawn, and none is smoothed away
const WIDTH = 460, HEIGHT = 260, LEFT = 58, RIGHT = 24, TOP = 10, BOTTOM = 26;
const byId = (id) => document.getElementById(id);
const shown = () => data.runs.filter((run) => run.shown);
for (const run of data.runs) { run.colour = COLOURS[run.colour % COLOURS.length]; run.shown = true; }

function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "g", "rect", "circle"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function number(value) {
  if (value === null || value === undefined) return "";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e");
  return value.toLocaleString("en", { maximumSignificantDigits: 5 });
}

// A number beside an axis, where there is room for seven characters.
function label(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e15)) return value.toExponential(2).replace(/\.?0+e/, "e");
  return value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 5 });
}

// Curves

// Exponential moving average, corrected for its start as Adam's moments are.
function smoothed(points, weight) {
  let mean = 0, total = 0;
  return points.map(([step, value]) => {
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return [step, mean / total];
  });
}

function ticks(low, high, logarithmic) {
  if (logarithmic) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const part of [1, 2, 5]) found.push(part * 10 ** power);
    const inside = found.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
    const tens = inside.filter((tick) => Math.abs(Math.log10(tick) % 1) < 1e-9);
    return tens.length > 3 ? tens : inside;
  }
  const step = 10 ** Math.floor(Math.log10((high - low) / 4 || 1));
  const width = [1, 2, 5, 10].map((part) => part * step).find((part) => (high - low) / part <= 5);
  const found = [];
  for (let i = Math.ceil(low / width); i * width <= high + width * 1e-9; i++) found.push(i * width);
  return found;
}

// Values outside the given ones are placed at the edge.
function scale(values, from, to, logarithmic) {
  let low = Infinity, high = -Infinity;  // Math.min takes no more values than a call has arguments
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low === high) { low -= logarithmic ? low / 2 : Math.abs(low) / 10 || 1; high += Math.abs(high) / 10 || 1; }
  const f = logarithmic ? Math.log10 : (value) => value;
  const place = (value) => from + (to - from) * Math.max(0, Math.min(1, (f(value) - f(low)) / (f(high) - f(low))));
  return { place, ticks: ticks(low, high, logarithmic) };
}

function path(points, x, y) {
  return points.map(([step, value], i) => `${i ? "L" : "M"}${x.place(step).toFixed(1)},${y.place(value).toFixed(1)}`).join("");
}

const GROWS = /\/(loss|nll|perplexity|bits_per_byte|grad_norm)$/;  // what grows without bound in a run that diverges

// The points that decide the range of values: a run that diverged does not flatten the others.
function ranged(curves, metric) {
  const all = curves.flatMap(({ run, raw, points }) => raw.concat(points)
    .filter(([step]) => run.diverged === null || step < run.diverged || !GROWS.test(metric)));
  return all.length ? all : curves.flatMap(({ raw, points }) => raw.concat(points));
}

// A cross at the upper edge where a run diverged.
function cross(run, x) {
  const at = x.place(run.diverged);
  return element("path", { class: "diverged", stroke: run.colour,
    d: `M${at - 4},${TOP - 4}l8,8m0,-8l-8,8` });
}

function chart(metric) {
  const logX = byId("log-x").checked, logY = byId("log-y").checked, weight = Number(byId("smoothing").value);
  const usable = ([step, value]) => value !== null && (!logX || step > 0) && (!logY || value > 0);
  const curves = shown().filter((run) => run.series[metric])
    .map((run) => ({ run, raw: run.series[metric].filter(usable) })).filter((curve) => curve.raw.length);
  if (!curves.length) return null;
  for (const curve of curves) curve.points = weight && curve.raw.length >= FEW ? smoothed(curve.raw, weight) : curve.raw;
  const all = curves.flatMap((curve) => curve.raw.concat(curve.points));
  const x = scale(all.map((point) => point[0]), LEFT, WIDTH - RIGHT, logX);
  const y = scale(ranged(curves, metric).map((point) => point[1]), HEIGHT - BOTTOM, TOP, logY);
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": metric });
  for (const tick of y.ticks) {
    svg.append(element("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y.place(tick), y2: y.place(tick) }));
    svg.append(element("text", { x: LEFT - 6, y: y.place(tick) + 4, "text-anchor": "end" }, label(tick)));
  }
  for (const tick of x.ticks)
    svg.append(element("text", { x: x.place(tick), y: HEIGHT - 8, "text-anchor": "middle" }, label(tick)));
  for (const { run, raw, points } of curves) {
    if (raw !== points) svg.append(element("path", { class: "raw", d: path(raw, x, y), stroke: run.colour }));
    svg.append(element("path", { class: "curve", d: path(points, x, y), stroke: run.colour }));
    const reached = run.diverged !== null && run.series[metric].at(-1)[0] >= run.diverged;
    if (reached && GROWS.test(metric) && (!logX || run.diverged > 0)) svg.append(cross(run, x));
    if (points.length < FEW)
      for (const [step, value] of points)
        svg.append(element("circle", { cx: x.place(step), cy: y.place(value), r: 2.5, fill: run.colour }));
  }
  hover(svg, curves, x);
  const others = Object.keys(data.shared).filter((name) => data.shared[name] === metric);
  return element("figure", { "data-metric": metric }, element("figcaption", {}, [metric, ...others].join(", ")), svg);
}

function hover(svg, curves, x) {
  const guide = element("line", { class: "guide", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const tip = byId("tip");
  svg.append(guide);
  svg.addEventListener("mousemove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) * WIDTH / box.width;
    const lines = curves.map(({ run, points }) => {
      const near = points.reduce((a, b) => Math.abs(x.place(b[0]) - at) < Math.abs(x.place(a[0]) - at) ? b : a);
      return { run, near };
    });
    const nearest = lines.reduce((a, b) => Math.abs(x.place(b.near[0]) - at) < Math.abs(x.place(a.near[0]) - at) ? b : a);
    guide.setAttribute("x1", x.place(nearest.near[0]));
    guide.setAttribute("x2", x.place(nearest.near[0]));
    guide.setAttribute("visibility", "visible");
    tip.replaceChildren(...lines.map(({ run, near }) => element("div", {},
      element("span", { class: "swatch", style: `background:${run.colour}` }), `${run.name}: ${number(near[1])} at step ${number(near[0])}`)));
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY + 14}px`;
  });
  svg.addEventListener("mouseleave", () => { tip.hidden = true; guide.setAttribute("visibility", "hidden"); });
}

const FIRST = ["training/loss", "training/nll", "validation/nll", "validation/bits_per_byte", "validation/perplexity", "training/lr"];
function metrics() {
  const names = [...new Set(data.runs.flatMap((run) => Object.keys(run.series)))]
    .filter((name) => !name.endsWith("_stderr") && !(name in data.shared));
  const rank = (name) => (FIRST.indexOf(name) + 1 || FIRST.length + 1);
  return names.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

function drawCurves() {
  const figures = metrics().map(chart).filter((figure) => figure);
  byId("curves").replaceChildren(...(figures.length ? figures : [none("No run is chosen.")]));
}

// Tables

const none = (text) => element("p", { class: "none" }, text);

const numeric = (value) => typeof value === "number" || (value instanceof Node && value.classList.contains("number"));

function table(head, rows) {
  const cell = (tag, value) => {
    const made = element(tag, numeric(value) ? { class: "number" } : {});
    made.append(value instanceof Node ? value : typeof value === "number" ? number(value) : value ?? "");
    return made;
  };
  const body = rows.map((row) => element("tr", {}, ...row.map((value) => cell("td", value))));
  return element("div", { class: "scroll" }, element("table", {},
    element("thead", {}, element("tr", {}, ...head.map((value, i) => {
      const made = cell("th", value);
      made.classList.toggle("number", rows.length > 0 && rows.every((row) => numeric(row[i])));
      return made;
    }))), element("tbody", {}, ...body)));
}

function named(run) {
  const made = element("span", { class: "row", style: "gap:6px;flex-wrap:nowrap" },
    element("span", { class: "swatch", style: `background:${run.colour}` }), run.name);
  return made;
}

// A metric with its standard error, to two digits.
function measured(value, error) {
  if (typeof value !== "number" || typeof error !== "number") return value;
  const rounded = number(Number(error.toPrecision(2)));
  return element("span", { class: "number" }, number(value), element("span", { class: "error" }, ` ± ${rounded}`));
}

// The newest evaluation of each run, a table for each task, and all of them below it.
function drawEvaluations() {
  const tasks = [...new Set(shown().flatMap((run) => run.evaluations.map((row) => row.task)))].sort();
  const parts = tasks.flatMap((task) => {
    const rows = shown().flatMap((run) => run.evaluations.filter((row) => row.task === task).map((row) => ({ run, row })));
    const keys = [...new Set(rows.flatMap(({ row }) => Object.keys(row)))]
      .filter((key) => !["step", "task"].includes(key) && !key.endsWith("_stderr") && rows.some(({ row }) => typeof row[key] === "number"));
    const line = ({ run, row }) => [named(run), row.step, ...keys.map((key) => measured(row[key], row[`${key}_stderr`]))];
    const newest = shown().map((run) => rows.filter((one) => one.run === run).pop()).filter((one) => one);
    const all = element("details", {}, element("summary", {}, `all ${rows.length}`), table(["run", "step", ...keys], rows.map(line)));
    return [element("h2", {}, task), table(["run", "step", ...keys], newest.map(line)), all];
  });
  byId("evaluations").replaceChildren(...(parts.length ? parts : [none("These runs were not evaluated.")]));
}

function drawConfigs() {
  const runs = shown(), text = (run, key) => JSON.stringify(run.config[key]);
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.config)))].sort();
  const differs = (key) => key !== "model_path" && new Set(runs.map((run) => text(run, key))).size > 1;
  const wanted = byId("all-keys").checked ? keys : keys.filter(differs);
  const rows = wanted.map((key) => [key, ...runs.map((run) => element("code", {}, text(run, key) ?? "–"))]);
  byId("config-table").replaceChildren(rows.length ? table(["key", ...runs.map(named)], rows) : none("No key differs."));
}

// Samples

function drawSamples() {
  const runs = shown().filter((run) => run.samples.length), select = byId("sample-run");
  const before = select.value;
  select.replaceChildren(...runs.map((run) => element("option", { value: run.name }, run.name)));
  if (runs.some((run) => run.name === before)) select.value = before;
  const samples = (runs.find((run) => run.name === select.value) ?? { samples: [] }).samples, slider = byId("sample-step");
  if (slider.dataset.run !== select.value) { slider.max = Math.max(0, samples.length - 1); slider.value = slider.max; slider.dataset.run = select.value; }
  const [step, name, text] = samples[Number(slider.value)] ?? ["", "", "These runs wrote no samples."];
  byId("sample-name").textContent = name && `${name} (step ${number(step)})`;
  byId("sample-text").textContent = text;
}

// The page

function draw() { drawCurves(); drawEvaluations(); drawSamples(); drawConfigs(); }

byId("where").textContent = `${data.folder}, ${data.written}`;
byId("runs").append(...data.runs.map((run) => {
  const box = element("input", { type: "checkbox" });
  box.checked = true;
  box.addEventListener("change", () => { run.shown = box.checked; draw(); });
  return element("li", {}, element("label", {}, box, element("span", { class: "swatch", style: `background:${run.colour}` }), run.name,
    element("span", { class: `status ${run.status.split(",")[0]}` }, run.status),
    ...(run.diverged === null ? [] : [element("span", { class: "status failed" }, `diverged at step ${number(run.diverged)}`)])));
}));
for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => {
  for (const other of document.querySelectorAll("nav button")) {
    other.classList.toggle("chosen", other === button);
    byId(other.dataset.tab).hidden = other !== button;
  }
});
byId("smoothing").addEventListener("input", (event) => { byId("smoothing-value").textContent = event.target.value; drawCurves(); });
for (const id of ["log-x", "log-y"]) byId(id).addEventListener("change", drawCurves);
for (const id of ["sample-run", "sample-step"]) byId(id).addEventListener("input", drawSamples);
byId("all-keys").addEventListener("change", drawConfigs);
draw();
