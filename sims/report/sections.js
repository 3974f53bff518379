// The sections of charts: links, mesh, inference. Each card says why it is empty when it is.
"use strict";

/** Bars of equal width on a logarithmic axis. The content of a bin of the recorder is divided among them by overlap. */
function histogram(spread, colour) {
  const low = Math.log(Math.max(spread.edges[0], spread.edges[spread.edges.length - 1] / 1e6));
  const high = Math.log(spread.edges[spread.edges.length - 1]);
  const number = Math.min(36, Math.max(1, Math.round((high - low) / Math.log(1.09)))),
    width = (high - low) / number;
  const shares = new Array(number).fill(0);
  for (let index = 1; index < spread.edges.length; index++) {
    const from = Math.log(Math.max(spread.edges[index - 1], Math.exp(low))),
      to = Math.max(Math.log(spread.edges[index]), from + 1e-12);
    for (let bar = Math.max(0, Math.floor((from - low) / width)); bar < number && low + bar * width < to; bar++) {
      const overlap = Math.min(to, low + (bar + 1) * width) - Math.max(from, low + bar * width);
      shares[bar] += (Math.max(0, overlap) / (to - from)) * (spread.counts[index] / spread.count);
    }
  }
  const points = shares.map((share, bar) => [Math.exp(low + bar * width), Math.exp(low + (bar + 1) * width), share]);
  const { unit, quantiles } = spread;
  const marks = ["p50", "p95", "p99"]
    .filter((name) => quantiles[name] > 0)
    .map((name) => ({ x: quantiles[name], label: name }));
  return chart({
    x: { label: unit === "s" ? "seconds" : "milliseconds", unit, log: true },
    y: { label: "% of all", percent: true },
    series: [{ name: "", color: colour, kind: "bars", points }],
    marks,
  });
}

function quantiles(spread) {
  const words = ["p50", "p90", "p95", "p99", "max"]
    .filter((name) => name in spread.quantiles)
    .map((name) => `${name} ${short(spread.quantiles[name])}`);
  return `${short(spread.count)} values, in ${spread.unit}: mean ${short(spread.mean)}, ${words.join(", ")}`;
}

function spreadCard(title, spread, colour, empty) {
  return card(title, spread.count ? quantiles(spread) : "", spread.count ? histogram(spread, colour) : null, empty);
}

const faultBands = () => page.faults.slice(0, 100).map((fault) => [fault.at, fault.until]);

function overDistance() {
  const { distances } = page;
  const line = (parts, wholes) =>
    wholes
      .map((whole, index) => [(index + 0.5) * distances.width_m, whole ? parts[index] / whole : 0, parts[index], whole])
      .filter((point) => point[3] > 0);
  const more = (point) => `(${short(point[2])} of ${short(point[3])})`;
  const series = [
    {
      name: "readings delivered",
      color: color(0),
      kind: "line",
      points: line(distances.delivered, distances.wanted),
      more,
    },
    {
      name: "neighbours known",
      color: color(1),
      kind: "line",
      points: line(distances.known, distances.in_range),
      more,
    },
  ].filter((one) => one.points.length);
  if (!series.length) return null;
  return chart({
    x: { label: "metres between the two", unit: "m", low: 0 },
    y: { label: "%", percent: true, high: 1.04 },
    series,
  });
}

function linkCharts() {
  byId("link-charts").append(
    card(
      "Delivery and awareness over distance",
      "Of readings that somebody wanted, how many came; of nodes in range, how many are known.",
      overDistance(),
      "Nothing was wanted by anybody and no pair was in range, or this harness does not know the distances.",
    ),
    spreadCard(
      "Latency of readings",
      page.latency,
      color(0),
      "No reading was delivered: the scenario has no traffic, or nobody was in reach.",
    ),
    ...(page.urgent.count || page.goodput.urgent_wanted ? [urgentCard()] : []),
    spreadCard(
      "Age of information",
      page.age,
      color(6),
      "Not sampled: there was never a pair in range whose readings were wanted.",
    ),
    card(
      "Channel load",
      `Mean share of time that the channel is busy${page.faults.length ? "; shaded: faults" : ""}.`,
      loadChart(),
      "Not measured: the scenario's radio is not shared, or this harness can't see it.",
    ),
  );
}

function urgentCard() {
  const { urgent_wanted: wanted, urgent_missed: missed } = page.goodput;
  const spread = page.urgent;
  return card(
    "Latency of urgent readings",
    `${spread.count ? `${quantiles(spread)}; ` : ""}${short(missed)} of ${short(wanted)} did not come within their lifespan`,
    spread.count ? histogram(spread, color(3)) : null,
    "No reading of priority 6 or 7 came.",
  );
}

function loadChart() {
  const points = page.load.map((value, index) => [index * page.load_every_s, value]).filter((point) => point[1] >= 0);
  if (!points.length) return null;
  return chart({
    x: { label: "seconds", unit: "s", low: 0, high: page.virtual_s },
    y: { label: "% busy", percent: true },
    bands: faultBands(),
    series: [{ name: "", color: color(2), kind: "area", points }],
  });
}

function meshCharts() {
  let met = 0;
  const steps = page.meetings.map((count, index) => [(index + 1) * page.meetings_every_s, (met += count)]);
  const convergence = steps.length
    ? chart({
        x: { label: "seconds", unit: "s", low: 0, high: page.virtual_s },
        y: { label: "meetings so far" },
        bands: faultBands(),
        series: [
          {
            name: "",
            color: color(2),
            kind: "step",
            points: [[0, 0], ...steps, [Math.max(page.virtual_s, steps.length * page.meetings_every_s), met]],
          },
        ],
      })
    : null;
  byId("mesh-charts").append(
    spreadCard(
      "Discovery",
      page.discovery,
      color(2),
      "Nobody met anybody: no two nodes were ever in range, or the run was too short.",
    ),
    card(
      "Convergence",
      `A node that meets another counts once${page.faults.length ? "; shaded: faults" : ""}.`,
      convergence,
      "Nobody met anybody.",
    ),
    card(
      "Dissemination of gossip entries",
      page.dissemination.length
        ? "Share of the nodes that have an entry, since it was put in; each line is an entry."
        : "",
      spreadingChart(),
      "No gossip entry was put in: the scenario has no [[gossip]].",
    ),
    el("div", { class: "card" }, el("h3", {}, "How fast entries spread"), spreadingTable()),
  );
}

function spreadingChart() {
  const entries = page.dissemination.filter((entry) => entry.curve.length);
  if (!entries.length) return null;
  const high =
    most(
      entries.map(
        (entry) => entry.t100_s ?? Math.max(page.virtual_s - entry.made_s, entry.curve[entry.curve.length - 1][0]),
      ),
    ) || 1;
  const [unit, scale] = high < 1 ? ["ms", 1000] : ["s", 1];
  const series = entries.slice(0, 60).map((entry, index) => ({
    name: entryName(entry),
    color: color(index),
    kind: "step",
    thin: entries.length > 6,
    points: [
      ...entry.curve.map(([later, count]) => [later * scale, count / entry.there]),
      ...(entry.t100_s === null
        ? [[Math.max(page.virtual_s - entry.made_s, 0) * scale, entry.holders / entry.there]]
        : []),
    ],
  }));
  return chart({
    x: { label: `${unit === "s" ? "seconds" : "milliseconds"} since it was put in`, unit, low: 0, high: high * scale },
    y: { label: "% of the nodes", percent: true, high: 1.04 },
    series,
    hideKeys: entries.length > 8,
  });
}

function spreadingTable() {
  if (!page.dissemination.length) return el("p", { class: "empty" }, "No gossip entry was put in.");
  const time = (value) => (value === null ? "never" : lasting(value).join(" "));
  const rows = page.dissemination
    .slice(0, 100)
    .map((entry) => [
      entryName(entry),
      `${short(entry.made_s)} s`,
      time(entry.t50_s),
      time(entry.t90_s),
      time(entry.t100_s),
      `${entry.holders} of ${entry.there || page.nodes}`,
    ]);
  return el(
    "div",
    { class: "scroll" },
    table(
      el("table"),
      [["entry"], ["put in at", true], ["t50", true], ["t90", true], ["t100", true], ["have it", true]],
      rows,
    ),
  );
}

function computeCharts() {
  const rows = Object.entries(page.inference_by)
    .sort((one, other) => other[1] - one[1])
    .map(([name, count]) => [name, count, name.startsWith("failed")]);
  byId("compute-charts").append(
    spreadCard(
      "Time to the answer",
      page.inference,
      color(4),
      "No inference was answered: the scenario has no [[inference]].",
    ),
    card(
      "Who computed it",
      rows.length ? "Answers by the group of the node that computed them." : "",
      rows.length ? bars(rows) : null,
      "No inference was asked for: the scenario has no [[inference]].",
    ),
    ...(page.parts.length ? [partsCard()] : []),
  );
}

/** Who ran which part of the requests that several nodes computed together. */
function partsCard() {
  const answers = page.inference.count;
  const { pipeline = 0, shards = 0, here = 0 } = page.inference_by;
  const share = (count) => `${short(count)} (${((100 * count) / answers || 0).toFixed(0)} %)`;
  const ways = [
    ["by a pipeline", pipeline],
    ["by shards", shards],
    ["by the whole model at a neighbour", answers - pipeline - shards - here],
    ["by the node that asked", here],
  ].filter(([, count]) => count > 0);
  const replays = page.parts.reduce((sum, part) => sum + part[8], 0);
  const rows = page.parts.map(
    ([model, kind, index, of, between, by, device, runs, further, took, computed, taken, given]) => [
      model,
      `${kind}${of ? ` ${index + 1} of ${of}` : ""}${between ? `: ${between}` : ""}`,
      by === "here" ? `here (${device})` : `${by} (${device})`,
      short(runs),
      short(took),
      short(computed),
      `${short(taken / 1000)} → ${short(given / 1000)}`,
      further ? short(further) : "",
    ],
  );
  return el(
    "div",
    { class: "card wide" },
    el("h3", {}, "Who ran which part"),
    el(
      "p",
      {},
      `Answered ${ways.map(([way, count]) => `${way}: ${share(count)}`).join("; ")}. ` +
        `${short(replays)} further ${replays === 1 ? "run was" : "runs were"} begun, because one was late, lost or failed.`,
    ),
    el(
      "div",
      { class: "scroll" },
      table(
        el("table"),
        [
          ["model"],
          ["part"],
          ["run by"],
          ["runs", true],
          ["median ms", true],
          ["computing", true],
          ["kB in → out", true],
          ["further", true],
        ],
        rows,
      ),
    ),
  );
}
