// Puts the page together.
"use strict";

const page = JSON.parse(byId("data").textContent);
page.discovery = inFitUnit(page.discovery);

// --- the top ---------------------------------------------------------------------------------------------------------
function header() {
  byId("scenario").textContent = page.scenario;
  byId("harness").textContent = page.harness === "emulator" ? "emulator: real processes" : page.harness;
  const broken = page.checks.filter((check) => check[2] > 0).length;
  const unused = page.checks.filter((check) => check[1] + check[2] === 0).length;
  const verdict = byId("verdict");
  if (!page.valid) verdict.textContent = "not valid";
  else if (page.checks.length === unused) verdict.textContent = "nothing was checked";
  else
    verdict.textContent = broken
      ? `${broken} of ${page.checks.length} checks broken`
      : unused
        ? `${page.checks.length - unused} checks kept`
        : `all ${page.checks.length} checks kept`;
  verdict.classList.add(!page.valid || page.checks.length === unused ? "warn" : broken ? "bad" : "good");
  const times =
    page.wall_s > 0 ? ` in ${short(page.wall_s)} s (${short(page.virtual_s / page.wall_s)} times real time)` : "";
  byId("summary").append(
    `seed ${page.seed} · ${page.nodes} nodes · ${short(page.virtual_s)} s of ${page.harness === "emulator" ? "real" : "virtual"} time`,
    page.harness === "emulator" ? "" : times,
    page.digest ? " · digest " : "",
    page.digest ? el("code", {}, page.digest.slice(0, 16)) : "",
  );
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
  return {
    ...spread,
    unit: "ms",
    mean: longer(spread.mean),
    edges: spread.edges.map(longer),
    quantiles: Object.fromEntries(Object.entries(spread.quantiles).map(([name, value]) => [name, longer(value)])),
  };
}

/** The name of an entry; its version only where there are several. */
function entryName(entry) {
  const versions = page.dissemination
    .filter((other) => other.author === entry.author)
    .map((other) => other.version)
    .sort((one, other) => one - other);
  return versions.length > 1
    ? `${entry.author} (${versions.indexOf(entry.version) + 1} of ${versions.length})`
    : entry.author;
}

function tile(what, value, unit, more, state) {
  return el(
    "div",
    { class: `tile ${state ?? ""}` },
    el("div", { class: "what" }, what),
    el("div", { class: "value" }, value, unit ? el("small", {}, unit) : null),
    el("div", { class: "more" }, more.replace(/ (ms|s|%)$/, "\u00a0$1")),
  );
}

function tiles() {
  const { distances, latency, discovery, age, dissemination } = page;
  const wanted = sum(distances.wanted),
    inRange = sum(distances.in_range);
  const used = page.checks.filter((check) => check[1] + check[2] > 0);
  const failed = used.filter((check) => check[2] > 0).length;
  const load = page.load.filter((value) => value >= 0);
  const complete = dissemination
    .filter((entry) => entry.t90_s !== null)
    .map((entry) => entry.t90_s)
    .sort((one, other) => one - other);
  byId("tiles").append(
    tile(
      "Checks kept",
      used.length ? `${used.length - failed}` : "–",
      used.length ? `of ${used.length}` : "",
      used.length < page.checks.length
        ? `${page.checks.length - used.length} more had nothing to judge`
        : `${short(sum(used.map((check) => check[1] + check[2])))} judgements`,
      used.length ? (failed ? "bad" : "good") : "",
    ),
    tile(
      "Delivered",
      wanted ? percent(sum(distances.delivered) / wanted) : short(page.counters.delivered ?? 0),
      "",
      wanted ? `of ${short(wanted)} wanted` : `of ${short(page.counters.published ?? 0)} published`,
    ),
    tile(
      "Latency, median",
      latency.count ? short(latency.quantiles.p50) : "–",
      latency.count ? "ms" : "",
      latency.count ? `99 % within ${short(latency.quantiles.p99)} ms` : "nothing was delivered",
    ),
    tile(
      "Age of information",
      age.count ? short(age.quantiles.p50) : "–",
      age.count ? "ms" : "",
      age.count ? `95 % within ${short(age.quantiles.p95)} ms` : "not sampled",
    ),
    tile(
      "Neighbours known",
      inRange ? percent(sum(distances.known) / inRange) : "–",
      "",
      inRange ? "of those in range" : "not sampled",
    ),
    tile(
      "Discovery, median",
      ...(discovery.count
        ? discovery.unit === "s"
          ? lasting(discovery.quantiles.p50)
          : [short(discovery.quantiles.p50), "ms"]
        : ["–", ""]),
      discovery.count ? `95 % within ${short(discovery.quantiles.p95)} ${discovery.unit}` : "nobody met",
    ),
    tile(
      "Spread to 90 %",
      ...(complete.length ? lasting(complete[complete.length >> 1]) : ["–", ""]),
      dissemination.length ? `median of ${dissemination.length} entries` : "no entries",
    ),
    tile(
      "Channel load",
      load.length ? percent(sum(load) / load.length) : "–",
      "",
      load.length ? `mean; at most ${percent(most(load))}` : "not measured",
    ),
  );
}

// --- checks ----------------------------------------------------------------------------------------------------------
function checks() {
  const rows = [...page.checks].sort(
    (one, other) => (other[2] > 0) - (one[2] > 0) || (one[1] === 0) - (other[1] === 0),
  );
  byId("check-list").append(
    ...rows.map(([name, passed, failed, details]) =>
      el(
        "div",
        { class: "check" },
        el(
          "span",
          { class: `badge ${failed ? "bad" : passed ? "good" : "warn"}` },
          failed ? "✗ broken" : passed ? "✓ kept" : "– unused",
        ),
        el("span", {}, name.replaceAll("_", " ").replaceAll("-", " ")),
        el(
          "span",
          { class: "count" },
          failed
            ? `${short(failed)} of ${short(passed + failed)} failed`
            : passed > 1
              ? `${short(passed)} times`
              : passed
                ? "once"
                : "never judged",
        ),
        details.length ? el("ul", {}, ...details.map((detail) => el("li", {}, detail))) : null,
      ),
    ),
  );
  if (!rows.length) byId("check-list").append(el("p", { class: "empty" }, "No checks ran: the result names none."));
}

// --- faults, timeline, numbers ----------------------------------------------------------------------------------------
const goTo = (time) =>
  el(
    "button",
    {
      type: "button",
      class: "quiet",
      title: "Show on the map",
      onclick: () => {
        player.message = null;
        player.seek(time);
        byId("map").scrollIntoView();
      },
    },
    `${time.toFixed(1)} s`,
  );

function faults() {
  byId("fault-list").append(
    page.faults.length
      ? table(
          el("table"),
          [["from", true], ["until", true], ["kind"], ["whom"]],
          page.faults
            .slice(0, 500)
            .map((fault) => [
              goTo(fault.at),
              fault.forever ? "the end" : `${short(fault.until)} s`,
              fault.kind,
              fault.kind === "relay-outage"
                ? "the relay"
                : who(page, fault.nodes) + (fault.others.length ? ` – ${who(page, fault.others)}` : ""),
            ]),
        )
      : el("p", { class: "empty" }, "Nothing went wrong on purpose: the scenario has no faults."),
  );
  const often = Object.entries(page.sometimes).sort((one, other) => other[1] - one[1]);
  byId("sometimes").append(
    often.length
      ? table(
          el("table"),
          [["what"], ["times", true]],
          often.map(([what, count]) => [what, short(count)]),
        )
      : el("p", { class: "empty" }, "Nothing of note happened."),
  );
  const kinds = [...new Set(page.happenings.map((row) => row[1]))];
  byId("kind").append(
    el("option", { value: "" }, "everything"),
    ...kinds.map((kind) => el("option", { value: kind }, page.texts[kind])),
  );
  byId("kind").addEventListener("change", timeline);
  timeline();
}

function timeline() {
  const kind = byId("kind").value;
  const rows = page.happenings.filter((row) => kind === "" || row[1] === Number(kind));
  if (!rows.length) {
    byId("happenings").replaceChildren(
      el("tbody", {}, el("tr", {}, el("td", { class: "empty" }, "Nothing happened."))),
    );
    return;
  }
  table(
    byId("happenings"),
    [["time", true], ["what"], ["node"], ["other"], ["detail"]],
    rows.slice(0, 400).map((row) => [goTo(row[0]), ...row.slice(1).map((text) => page.texts[text])]),
  );
  if (rows.length > 400)
    byId("happenings").append(
      el(
        "tfoot",
        {},
        el("tr", {}, el("td", { colspan: 5 }, `the first 400 of ${short(rows.length)}; all are in happenings.csv`)),
      ),
    );
}

function numbers() {
  const lines = (values) => Object.entries(values).map(([name, value]) => [name.replaceAll("_", " "), short(value)]);
  const listed = (title, values, empty) => {
    const rows = lines(values);
    return card(
      title,
      "",
      rows.length ? el("div", { class: "scroll" }, table(el("table"), [["what"], ["value", true]], rows)) : null,
      empty,
    );
  };
  const drops = Object.entries(page.drops)
    .sort((one, other) => other[1] - one[1])
    .slice(0, 40)
    .map(([why, count]) => [why, count, true]);
  const goodput = Object.fromEntries(Object.entries(page.goodput).filter(([, value]) => value !== null));
  const rules = table(
    el("table"),
    [["rule"], ["records", true], ["bytes", true]],
    page.rules.map(([name, records, bytes]) => [name, short(records), short(bytes)]),
  );
  byId("number-cards").append(
    card(
      "Drops",
      drops.length ? "Readings that were not delivered, by reason." : "",
      drops.length ? bars(drops) : null,
      "Nothing was dropped.",
    ),
    listed("Figures", { ...goodput, ...page.figures }, "The harness gave no single figures."),
    listed("Counters", page.counters, "Nothing was counted."),
    ...(page.rules.length ? [card("Records by rule", "What the relay has at the end.", rules)] : []),
    card(
      "This run",
      "",
      table(
        el("table"),
        [["what"], ["value"]],
        [
          ["scenario", page.scenario],
          ["harness", page.harness],
          ["seed", String(page.seed)],
          ["nodes", String(page.nodes)],
          ["virtual time", `${short(page.virtual_s)} s`],
          ["wall time", `${short(page.wall_s)} s`],
          ["digest", page.digest || "none"],
          ...Object.entries(page.versions),
        ],
      ),
    ),
  );
}

function footer() {
  if (page.left_out.length)
    byId("footer").append(
      "What this report leaves out:",
      el("ul", {}, ...page.left_out.map((note) => el("li", {}, note))),
    );
}

// --- start -------------------------------------------------------------------------------------------------------------
themeButton(() => {
  if (!window.meshReport) return;
  player.draw();
  player.drawStrip();
});
header();
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
/** For tests and other programs that drive the page from outside. */
window.meshReport = { page, player, messages };
