// Puts the page together.
"use strict";

const page = JSON.parse(byId("data").textContent);
page.discovery = inFitUnit(page.discovery);

// --- the top ---------------------------------------------------------------------------------------------------------
function top_() {
  byId("scenario").textContent = page.scenario;
  byId("harness").textContent = page.harness === "emulator" ? "emulator: real processes" : page.harness;
  const broken = page.checks.filter((check) => check[2] > 0).length;
  const unused = page.checks.filter((check) => check[1] + check[2] === 0).length;
  const verdict = byId("verdict");
  if (!page.valid) verdict.textContent = "not valid";
  else if (page.checks.length === unused) verdict.textContent = "nothing was checked";
  else verdict.textContent = broken ? `${broken} of ${page.checks.length} checks broken` : unused ? `${page.checks.length - unused} checks kept` : `all ${page.checks.length} checks kept`;
  verdict.classList.add(!page.valid || page.checks.length === unused ? "warn" : broken ? "bad" : "good");
  const times = page.wall_s > 0 ? ` in ${short(page.wall_s)} s (${short(page.virtual_s / page.wall_s)} times real time)` : "";
  byId("summary").append(`seed ${page.seed} · ${page.nodes} nodes · ${short(page.virtual_s)} s of ${page.harness === "emulator" ? "real" : "virtual"} time`,
    page.harness === "emulator" ? "" : times, page.digest ? " · digest " : "", page.digest ? el("code", {}, page.digest.slice(0, 16)) : "");
  if (!page.valid) {
    byId("invalid").hidden = false;
    byId("invalid").textContent = `This run proves nothing: ${page.why_invalid || "it was marked as not valid"}.`;
  }
}

/** Seconds as [value, unit]. */
const lasting = (seconds) => (seconds < 1 ? [short(seconds * 1000), "ms"] : [short(seconds), "s"]);

/** A distribution in milliseconds when most of it is shorter than a second. */
function inFitUnit(spread) {
  if (spread.unit !== "s" || !(spread.quantiles.p99 < 1)) return spread;
  const longer = (value) => value * 1000;
  return { ...spread, unit: "ms", mean: longer(spread.mean), edges: spread.edges.map(longer),
    quantiles: Object.fromEntries(Object.entries(spread.quantiles).map(([name, value]) => [name, longer(value)])) };
}

/** The name of an entry; its version only where there are several. */
function entryName(entry) {
  const versions = page.dissemination.filter((other) => other.author === entry.author).map((other) => other.version).sort((one, other) => one - other);
  return versions.length > 1 ? `${entry.author} (${versions.indexOf(entry.version) + 1} of ${versions.length})` : entry.author;
}

function tile(what, value, unit, more, state) {
  return el("div", { class: `tile ${state ?? ""}` }, el("div", { class: "what" }, what),
    el("div", { class: "value" }, value, unit ? el("small", {}, unit) : null), el("div", { class: "more" }, more));
}

function tiles() {
  const { distances, latency, discovery, age, dissemination } = page;
  const wanted = sum(distances.wanted), inRange = sum(distances.in_range);
  const used = page.checks.filter((check) => check[1] + check[2] > 0);
  const failed = used.filter((check) => check[2] > 0).length;
  const load = page.load.filter((value) => value >= 0);
  const complete = dissemination.filter((entry) => entry.t90_s !== null).map((entry) => entry.t90_s).sort((one, other) => one - other);
  byId("tiles").append(
    tile("Checks kept", used.length ? `${used.length - failed}` : "–", used.length ? `of ${used.length}` : "",
      used.length < page.checks.length ? `${page.checks.length - used.length} more had nothing to judge` : `${short(sum(used.map((check) => check[1] + check[2])))} judgements`,
      used.length ? (failed ? "bad" : "good") : ""),
    tile("Delivered", wanted ? percent(sum(distances.delivered) / wanted) : short(page.counters.delivered ?? 0), "",
      wanted ? `of ${short(wanted)} wanted` : `of ${short(page.counters.published ?? 0)} published`),
    tile("Latency, median", latency.count ? short(latency.quantiles.p50) : "–", latency.count ? "ms" : "",
      latency.count ? `99 % within ${short(latency.quantiles.p99)} ms` : "nothing was delivered"),
    tile("Age of information", age.count ? short(age.quantiles.p50) : "–", age.count ? "ms" : "", age.count ? `95 % within ${short(age.quantiles.p95)} ms` : "not sampled"),
    tile("Neighbours known", inRange ? percent(sum(distances.known) / inRange) : "–", "", inRange ? "of those in range" : "not sampled"),
    tile("Discovery, median", discovery.count ? short(discovery.quantiles.p50) : "–", discovery.count ? discovery.unit : "", discovery.count ? `95 % within ${short(discovery.quantiles.p95)} ${discovery.unit}` : "nobody met"),
    tile("Spread to 90 %", ...(complete.length ? lasting(complete[complete.length >> 1]) : ["–", ""]),
      dissemination.length ? `median of ${dissemination.length} entries` : "no entries"),
    tile("Channel load", load.length ? percent(sum(load) / load.length) : "–", "", load.length ? `mean; at most ${percent(most(load))}` : "not measured"),
  );
}

// --- checks ----------------------------------------------------------------------------------------------------------
function checks() {
  const rows = [...page.checks].sort((one, other) => (other[2] > 0) - (one[2] > 0) || (one[1] === 0) - (other[1] === 0));
  byId("check-list").append(...rows.map(([name, passed, failed, details]) => el("div", { class: "check" },
    el("span", { class: `badge ${failed ? "bad" : passed ? "good" : "warn"}` }, failed ? "✗ broken" : passed ? "✓ kept" : "unused"),
    el("span", {}, name.replaceAll("_", " ").replaceAll("-", " ")),
    el("span", { class: "count" }, failed ? `${short(failed)} of ${short(passed + failed)} failed` : passed ? `${short(passed)} times` : "never judged"),
    details.length ? el("ul", {}, ...details.map((detail) => el("li", {}, detail))) : null)));
  if (!rows.length) byId("check-list").append(el("p", { class: "empty" }, "No checks ran: the result names none."));
}

// --- charts ----------------------------------------------------------------------------------------------------------
/** Bars of equal width on a logarithmic axis; what a bin of the recorder holds is shared out by overlap. */
function histogram(spread, colour) {
  const low = Math.log(Math.max(spread.edges[0], spread.edges[spread.edges.length - 1] / 1e6));
  const high = Math.log(spread.edges[spread.edges.length - 1]);
  const number = Math.min(36, Math.max(1, Math.round((high - low) / Math.log(1.09)))), width = (high - low) / number;
  const shares = new Array(number).fill(0);
  for (let index = 1; index < spread.edges.length; index++) {
    const from = Math.log(Math.max(spread.edges[index - 1], Math.exp(low))), to = Math.max(Math.log(spread.edges[index]), from + 1e-12);
    for (let bar = Math.max(0, Math.floor((from - low) / width)); bar < number && low + bar * width < to; bar++) {
      const overlap = Math.min(to, low + (bar + 1) * width) - Math.max(from, low + bar * width);
      shares[bar] += (Math.max(0, overlap) / (to - from)) * (spread.counts[index] / spread.count);
    }
  }
  const points = shares.map((share, bar) => [Math.exp(low + bar * width), Math.exp(low + (bar + 1) * width), share]);
  const { unit, quantiles } = spread;
  const marks = ["p50", "p95", "p99"].filter((name) => quantiles[name] > 0).map((name) => ({ x: quantiles[name], label: name }));
  return chart({ x: { label: unit === "s" ? "seconds" : "milliseconds", unit, log: true }, y: { label: "% of all", percent: true },
    series: [{ name: "", color: colour, kind: "bars", points }], marks });
}

function quantiles(spread) {
  const words = ["p50", "p90", "p95", "p99", "max"].filter((name) => name in spread.quantiles).map((name) => `${name} ${short(spread.quantiles[name])}`);
  return `${short(spread.count)} values, in ${spread.unit}: mean ${short(spread.mean)}, ${words.join(", ")}`;
}

function spreadCard(title, spread, colour, empty) {
  return card(title, spread.count ? quantiles(spread) : "", spread.count ? histogram(spread, colour) : null, empty);
}

const faultBands = () => page.faults.slice(0, 100).map((fault) => [fault.at, fault.until]);

function overDistance() {
  const { distances } = page;
  const line = (parts, wholes) => wholes.map((whole, index) => [(index + 0.5) * distances.width_m, whole ? parts[index] / whole : 0, parts[index], whole]).filter((point) => point[3] > 0);
  const more = (point) => `(${short(point[2])} of ${short(point[3])})`;
  const series = [
    { name: "readings delivered", color: color(0), kind: "line", points: line(distances.delivered, distances.wanted), more },
    { name: "neighbours known", color: color(1), kind: "line", points: line(distances.known, distances.in_range), more },
  ].filter((one) => one.points.length);
  if (!series.length) return null;
  return chart({ x: { label: "metres between the two", unit: "m", low: 0 }, y: { label: "%", percent: true, high: 1.04 }, series });
}

function linkCharts() {
  byId("link-charts").append(
    card("Delivery and awareness over distance", "Of readings that somebody wanted, how many came; of nodes in range, how many are known.", overDistance(),
      "Nothing was wanted by anybody and no pair was in range, or this harness does not know the distances."),
    spreadCard("Latency of readings", page.latency, color(0), "No reading was delivered: the scenario has no traffic, or nobody was in reach."),
    spreadCard("Age of information", page.age, color(6), "Not sampled: there was never a pair in range whose readings were wanted."),
    card("Channel load", `Mean share of time that the channel is busy${page.faults.length ? "; shaded: faults" : ""}.`, loadChart(), "Not measured: the scenario's radio is not shared, or this harness can't see it."),
  );
}

function loadChart() {
  const points = page.load.map((value, index) => [index * page.load_every_s, value]).filter((point) => point[1] >= 0);
  if (!points.length) return null;
  return chart({ x: { label: "seconds", unit: "s", low: 0, high: page.virtual_s }, y: { label: "% busy", percent: true }, bands: faultBands(),
    series: [{ name: "", color: color(2), kind: "area", points }] });
}

function meshCharts() {
  let met = 0;
  const steps = page.meetings.map((count, index) => [(index + 1) * page.load_every_s, (met += count)]);
  const convergence = steps.length ? chart({ x: { label: "seconds", unit: "s", low: 0, high: page.virtual_s }, y: { label: "meetings so far" }, bands: faultBands(),
    series: [{ name: "", color: color(2), kind: "step", points: [[0, 0], ...steps, [Math.max(page.virtual_s, steps.length * page.load_every_s), met]] }] }) : null;
  byId("mesh-charts").append(
    spreadCard("Discovery", page.discovery, color(2), "Nobody met anybody: no two nodes were ever in range, or the run was too short."),
    card("Convergence", `A node that meets another counts once${page.faults.length ? "; shaded: faults" : ""}.`, convergence, "Nobody met anybody."),
    card("Dissemination of gossip entries", page.dissemination.length ? "Share of the nodes that have an entry, since it was put in; each line is an entry." : "", spreadingChart(), "No gossip entry was put in: the scenario has no [[gossip]]."),
    el("div", { class: "card" }, el("h3", {}, "How fast entries spread"), spreadingTable()),
  );
}

function spreadingChart() {
  const entries = page.dissemination.filter((entry) => entry.curve.length);
  if (!entries.length) return null;
  const high = most(entries.map((entry) => (entry.t100_s ?? Math.max(page.virtual_s - entry.made_s, entry.curve[entry.curve.length - 1][0])))) || 1;
  const [unit, scale] = high < 1 ? ["ms", 1000] : ["s", 1];
  const series = entries.slice(0, 60).map((entry, index) => ({
    name: entryName(entry), color: color(index), kind: "step", thin: entries.length > 6,
    points: [...entry.curve.map(([later, count]) => [later * scale, count / entry.there]), ...(entry.t100_s === null ? [[Math.max(page.virtual_s - entry.made_s, 0) * scale, entry.holders / entry.there]] : [])],
  }));
  return chart({ x: { label: `${unit === "s" ? "seconds" : "milliseconds"} since it was put in`, unit, low: 0, high: high * scale }, y: { label: "% of the nodes", percent: true, high: 1.04 }, series, hideKeys: entries.length > 8 });
}

function spreadingTable() {
  if (!page.dissemination.length) return el("p", { class: "empty" }, "No gossip entry was put in.");
  const time = (value) => (value === null ? "never" : lasting(value).join(" "));
  const rows = page.dissemination.slice(0, 100).map((entry) => [entryName(entry), `${short(entry.made_s)} s`, time(entry.t50_s), time(entry.t90_s), time(entry.t100_s), `${entry.holders} of ${entry.there || page.nodes}`]);
  return el("div", { class: "scroll" }, table(el("table"), [["entry"], ["put in at", true], ["t50", true], ["t90", true], ["t100", true], ["have it", true]], rows));
}

function computeCharts() {
  const rows = Object.entries(page.inference_by).sort((one, other) => other[1] - one[1]).map(([name, count]) => [name, count, name.startsWith("failed")]);
  byId("compute-charts").append(
    spreadCard("Time to the answer", page.inference, color(4), "No inference was answered: the scenario has no [[inference]]."),
    card("Who computed it", rows.length ? "Answers by the group of the node that computed them." : "", rows.length ? bars(rows) : null, "No inference was asked for: the scenario has no [[inference]]."),
  );
}

// --- faults, timeline, numbers ----------------------------------------------------------------------------------------
const goTo = (time) => el("button", { type: "button", class: "quiet", title: "Show on the map", onclick: () => { player.message = null; player.seek(time); byId("map").scrollIntoView(); } }, `${time.toFixed(1)} s`);

function faults() {
  byId("fault-list").append(page.faults.length
    ? table(el("table"), [["from", true], ["until", true], ["kind"], ["whom"]], page.faults.slice(0, 500).map((fault) => [
      goTo(fault.at), fault.forever ? "the end" : `${short(fault.until)} s`, fault.kind,
      fault.kind === "relay-outage" ? "the relay" : who(page, fault.nodes) + (fault.others.length ? ` – ${who(page, fault.others)}` : ""),
    ]))
    : el("p", { class: "empty" }, "Nothing went wrong on purpose: the scenario has no faults."));
  const often = Object.entries(page.sometimes).sort((one, other) => other[1] - one[1]);
  byId("sometimes").append(often.length
    ? table(el("table"), [["what"], ["times", true]], often.map(([what, count]) => [what, short(count)]))
    : el("p", { class: "empty" }, "Nothing of note happened."));
  const kinds = [...new Set(page.happenings.map((row) => row[1]))];
  byId("kind").append(el("option", { value: "" }, "everything"), ...kinds.map((kind) => el("option", { value: kind }, page.texts[kind])));
  byId("kind").addEventListener("change", timeline);
  timeline();
}

function timeline() {
  const kind = byId("kind").value;
  const rows = page.happenings.filter((row) => kind === "" || row[1] === Number(kind));
  if (!rows.length) { byId("happenings").replaceChildren(el("tbody", {}, el("tr", {}, el("td", { class: "empty" }, "Nothing happened.")))); return; }
  table(byId("happenings"), [["time", true], ["what"], ["node"], ["other"], ["detail"]], rows.slice(0, 400).map((row) => [goTo(row[0]), ...row.slice(1).map((text) => page.texts[text])]));
  if (rows.length > 400) byId("happenings").append(el("tfoot", {}, el("tr", {}, el("td", { colspan: 5 }, `the first 400 of ${short(rows.length)}; all are in happenings.csv`))));
}

function numbers() {
  const lines = (values) => Object.entries(values).map(([name, value]) => [name.replaceAll("_", " "), short(value)]);
  const listed = (title, values, empty) => {
    const rows = lines(values);
    return card(title, "", rows.length ? el("div", { class: "scroll" }, table(el("table"), [["what"], ["value", true]], rows)) : null, empty);
  };
  const drops = Object.entries(page.drops).sort((one, other) => other[1] - one[1]).slice(0, 40).map(([why, count]) => [why, count, true]);
  byId("number-cards").append(
    card("Drops", drops.length ? "Readings that were not delivered, by reason." : "", drops.length ? bars(drops) : null, "Nothing was dropped."),
    listed("Figures", page.figures, "The harness gave no single figures."),
    listed("Counters", page.counters, "Nothing was counted."),
    card("This run", "", table(el("table"), [["what"], ["value"]], [
      ["scenario", page.scenario], ["harness", page.harness], ["seed", String(page.seed)], ["nodes", String(page.nodes)],
      ["virtual time", `${short(page.virtual_s)} s`], ["wall time", `${short(page.wall_s)} s`], ["digest", page.digest || "none"],
      ...Object.entries(page.versions),
    ])),
  );
}

function footer() {
  if (page.left_out.length) byId("footer").append("What this report leaves out:", el("ul", {}, ...page.left_out.map((note) => el("li", {}, note))));
}

// --- start -------------------------------------------------------------------------------------------------------------
function theme(next) {
  document.documentElement.dataset.theme = next;
  if (window.meshReport) { player.draw(); player.drawStrip(); }
}

theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
byId("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
top_();
tiles();
const player = new Player(page);
const messages = new Messages(page, player);
checks();
linkCharts();
meshCharts();
computeCharts();
faults();
numbers();
footer();
/** For whoever drives the page from outside. */
window.meshReport = { page, player, messages };
