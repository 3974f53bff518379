// Charts in SVG, and the few helpers that every part of the page uses. Texts of the result only ever become text nodes.
"use strict";

/** An HTML element: `el("p", {class: "note"}, "text", child)`. Attributes that are undefined are left out. */
function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== undefined && child !== null));
  return node;
}

const byId = (id) => document.getElementById(id);
const color = (index) => `var(--c${index % 8})`;
const sum = (values) => values.reduce((total, value) => total + value, 0);

/** A number for people: three significant digits, thousands apart. */
function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  if (size === 0) return "0";
  if (size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

const percent = (share) => `${share >= 0.9995 && share < 1 ? (share * 100).toFixed(2) : short(share * 100)} %`;

/** The least of the numbers 1, 2, 5, 10, 20 … that is not less than a value. */
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= value * 0.999);
}

/** Numbers at which an axis is labelled. */
function ticks(low, high, log, wanted = 6) {
  const found = [];
  if (log) {
    const decades = Math.log10(high / low);
    const steps = decades > 3 ? [1] : decades > 1.2 ? [1, 3] : [1, 2, 5];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const step of steps) found.push(step * 10 ** power);
    }
    return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  }
  const step = round((high - low) / wanted || 1);
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) {
    found.push(Number(value.toPrecision(12)));
  }
  return found;
}

const tip = el("div", { id: "tip", role: "status" });
document.body.append(tip);

function showTip(event, text) {
  tip.textContent = text;
  tip.style.opacity = "1";
  const right = event.clientX + tip.offsetWidth + 24 > innerWidth;
  tip.style.left = `${event.clientX + (right ? -tip.offsetWidth - 14 : 14)}px`;
  tip.style.top = `${Math.max(4, event.clientY - tip.offsetHeight - 8)}px`;
}

const hideTip = () => {
  tip.style.opacity = "0";
};

/** Charts are drawn in true pixels, so that their letters stay as large as those around them. */
const painters = new WeakMap();
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) painters.get(target)();
});

/**
 * A chart as an element, drawn as wide as its place.
 *
 * `x`, `y`: {label, unit, log, low, high, percent}; `series`: [{name, color, kind, points, more(point)}] with kind `line`,
 * `step`, `area`, `dots` (a point is [x, y, …]) or `bars` ([from, to, y]); a line with `dots` shows its points, too;
 * `marks`: [{x, label}]; `bands`: [[from, to]].
 */
function chart(options) {
  const { series, hideKeys = false } = options;
  const canvas = el("div", { class: "plot" });
  let painted = 0;
  painters.set(canvas, () => {
    const width = Math.round(canvas.clientWidth);
    if (!width || width === painted) return;
    painted = width;
    canvas.replaceChildren(paint(options, width));
  });
  resized.observe(canvas);
  if (series.length < 2 || hideKeys) return canvas;
  return el(
    "div",
    {},
    el(
      "div",
      { class: "keys" },
      ...series.map((one) => {
        const swatch = el("i");
        swatch.style.background = one.color;
        return el("span", {}, swatch, one.name);
      }),
    ),
    canvas,
  );
}

function paint({ x, y, series, marks = [], bands = [], height = 250 }, width) {
  const left = 48,
    right = 14,
    top = 24,
    bottom = 40;
  const spanX = (point, kind) => (kind === "bars" ? [point[0], point[1]] : [point[0]]);
  const allX = series
    .flatMap((one) => one.points.flatMap((point) => spanX(point, one.kind)))
    .filter((v) => !x.log || v > 0);
  const allY = series.flatMap((one) => one.points.map((point) => (one.kind === "bars" ? point[2] : point[1])));
  let lowX = x.low ?? least(allX),
    highX = x.high ?? most(allX);
  const highY = y.high ?? (most(allY) * 1.06 || 1),
    lowY = y.low ?? 0;
  if (x.log) lowX = Math.max(lowX, highX / 1e7);
  if (lowX === highX) [lowX, highX] = x.log ? [lowX / 2, highX * 2] : [lowX - 0.5, highX + 0.5];
  const placeX = (value) => {
    const share = x.log
      ? Math.log(Math.max(value, lowX) / lowX) / Math.log(highX / lowX)
      : (value - lowX) / (highX - lowX);
    return left + share * (width - left - right);
  };
  const placeY = (value) => height - bottom - ((value - lowY) / (highY - lowY)) * (height - top - bottom);
  const root = svg("svg", { width, height, class: "chart", role: "img", "aria-label": `${y.label} over ${x.label}` });
  for (const [from, to] of bands) {
    const start = placeX(Math.max(from, lowX));
    root.append(
      svg("rect", {
        class: "band",
        x: start,
        y: top,
        width: Math.max(1.5, placeX(Math.min(to, highX)) - start),
        height: height - top - bottom,
      }),
    );
  }
  for (const value of ticks(lowY, highY, false, 5)) {
    const at = placeY(value);
    root.append(svg("line", { class: "rule", x1: left, x2: width - right, y1: at, y2: at }));
    root.append(
      svg("text", { x: left - 7, y: at + 4, "text-anchor": "end" }, y.percent ? `${short(value * 100)}` : short(value)),
    );
  }
  for (const value of ticks(lowX, highX, x.log, width / 90)) {
    const at = placeX(value);
    root.append(svg("line", { class: "axis", x1: at, x2: at, y1: height - bottom, y2: height - bottom + 4 }));
    root.append(svg("text", { x: at, y: height - bottom + 17, "text-anchor": "middle" }, short(value)));
  }
  root.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  root.append(svg("text", { x: width - right, y: height - 5, "text-anchor": "end" }, x.label));
  root.append(svg("text", { x: 0, y: 11 }, y.label));
  for (const one of series) draw(root, one, placeX, placeY, placeY(lowY));
  let lastEnd = -100;
  for (const mark of marks) {
    const at = placeX(mark.x);
    root.append(svg("line", { class: "mark", x1: at, x2: at, y1: top, y2: height - bottom }));
    const end = Math.min(at, width - 24);
    if (end - lastEnd > 26) {
      root.append(svg("text", { x: end, y: top - 4, "text-anchor": "middle" }, mark.label));
      lastEnd = end;
    }
  }
  hover(root, { x, y, series, placeX, placeY, width, left, right, top, bottom, height });
  return root;
}

const least = (values) => values.reduce((low, value) => Math.min(low, value), Infinity);
const most = (values) => values.reduce((high, value) => Math.max(high, value), -Infinity);

function draw(root, one, placeX, placeY, floor) {
  const at = (point) => `${placeX(point[0]).toFixed(1)},${placeY(point[1]).toFixed(1)}`;
  if (one.kind === "bars") {
    for (const [from, to, value] of one.points) {
      const start = placeX(from),
        end = placeX(to);
      root.append(
        svg("rect", {
          x: start + 0.4,
          y: placeY(value),
          width: Math.max(0.8, end - start - 0.8),
          height: Math.max(0, floor - placeY(value)),
          style: `fill: ${one.color}`,
          rx: 1.5,
        }),
      );
    }
  } else if (one.kind === "dots") {
    for (const point of one.points)
      root.append(svg("circle", { cx: placeX(point[0]), cy: placeY(point[1]), r: 3.2, style: `fill: ${one.color}` }));
  } else if (one.points.length) {
    let path = `M${at(one.points[0])}`;
    for (const point of one.points.slice(1))
      path += one.kind === "step" ? `H${placeX(point[0]).toFixed(1)}V${placeY(point[1]).toFixed(1)}` : `L${at(point)}`;
    if (one.kind === "area") {
      const last = one.points[one.points.length - 1];
      root.append(
        svg("path", {
          d: `${path}L${placeX(last[0]).toFixed(1)},${floor}L${placeX(one.points[0][0]).toFixed(1)},${floor}Z`,
          style: `fill: ${one.color}; opacity: 0.16`,
        }),
      );
    }
    root.append(
      svg("path", {
        d: path,
        style: `fill: none; stroke: ${one.color}; stroke-width: ${one.thin ? 1 : 2}; opacity: ${one.thin ? 0.55 : 1}; stroke-linejoin: round`,
      }),
    );
    if (one.points.length === 1 || one.dots)
      for (const point of one.points)
        root.append(svg("circle", { cx: placeX(point[0]), cy: placeY(point[1]), r: 3, style: `fill: ${one.color}` }));
  }
}

/** A cross hair with the values beneath it. */
function hover(root, { x, y, series, placeX, placeY, width, left, right, top, bottom, height }) {
  const hair = svg("line", { class: "hair", y1: top, y2: height - bottom });
  root.append(hair);
  root.addEventListener("pointerleave", () => {
    hair.style.visibility = "hidden";
    hideTip();
  });
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const pointer = ((event.clientX - box.left) / box.width) * width;
    if (pointer < left || pointer > width - right) {
      hair.style.visibility = "hidden";
      hideTip();
      return;
    }
    const lines = [];
    let shown = null;
    for (const one of series.slice(0, 12)) {
      const middle = (point) => (one.kind === "bars" ? (placeX(point[0]) + placeX(point[1])) / 2 : placeX(point[0]));
      const near = one.points.reduce(
        (best, point) =>
          best === null || Math.abs(middle(point) - pointer) < Math.abs(middle(best) - pointer) ? point : best,
        null,
      );
      if (near === null) continue;
      if (shown === null) shown = near;
      const value = one.kind === "bars" ? near[2] : near[1];
      const more = one.more ? `  ${one.more(near)}` : "";
      lines.push(`${one.name ? `${one.name}: ` : ""}${y.percent ? percent(value) : short(value)}${more}`);
    }
    if (shown === null) return;
    const bar = series[0].kind === "bars";
    const where = bar ? (placeX(shown[0]) + placeX(shown[1])) / 2 : placeX(shown[0]);
    hair.setAttribute("x1", where);
    hair.setAttribute("x2", where);
    hair.style.visibility = "visible";
    showTip(
      event,
      `${bar ? `${short(shown[0])} to ${short(shown[1])}` : short(shown[0])} ${x.unit ?? ""}\n${lines.join("\n")}`,
    );
  });
}

/** Let the button of the page change between light and dark. `changed` is called after each change. */
function themeButton(changed) {
  const change = (next) => {
    document.documentElement.dataset.theme = next;
    changed();
  };
  change(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  byId("theme").addEventListener("click", () =>
    change(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
  );
}

/** A card with a title, a note and a chart, or with the reason why there is no chart. */
function card(title, note, content, empty) {
  return el(
    "div",
    { class: "card" },
    el("h3", {}, title),
    note ? el("p", { class: "note" }, note) : null,
    content ?? el("p", { class: "empty" }, empty),
  );
}

/** Horizontal bars: [[name, value, bad, shown]]. */
function bars(rows) {
  const highest = most(rows.map((row) => row[1])) || 1;
  return el(
    "div",
    { class: "bars" },
    ...rows.flatMap(([name, value, bad, shown]) => {
      const bar = el("div", { class: bad ? "bar bad" : "bar" });
      bar.style.width = `${(value / highest) * 100}%`;
      return [
        el("div", { class: "name" }, name),
        el("div", {}, bar),
        el("div", { class: "count" }, shown ?? short(value)),
      ];
    }),
  );
}

/** A table: `head` [[title, isNumber]], rows of texts or elements. */
function table(node, head, rows) {
  node.replaceChildren(
    el(
      "thead",
      {},
      el("tr", {}, ...head.map(([title, number]) => el("th", { class: number ? "number" : undefined }, title))),
    ),
    el(
      "tbody",
      {},
      ...rows.map((row) =>
        el("tr", {}, ...row.map((cell, index) => el("td", { class: head[index][1] ? "number" : undefined }, cell))),
      ),
    ),
  );
  return node;
}
