// The page of a sweep: figures over the setting that varied, for each combination of the others.
"use strict";

const page = JSON.parse(byId("data").textContent);
const MILLISECONDS = { label: "milliseconds" };
/** [title, note, y axis, [[name, figure]], why it may be empty] */
const CHARTS = [
  [
    "Readings offered and useful",
    "Offered: readings times the nodes in range that want them. Useful: those that came within their lifespan.",
    { label: "readings a second" },
    [
      ["offered", "offered_per_s"],
      ["useful", "useful_per_s"],
    ],
    "No run has published anything, or the runs are of an older version.",
  ],
  [
    "Age of information",
    "How old the newest reading of a neighbour in range is; while nothing has come, since when it could have.",
    MILLISECONDS,
    [
      ["p50", "age_p50_ms"],
      ["p95", "age_p95_ms"],
    ],
    "Not sampled: there was never a pair in range whose readings were wanted.",
  ],
  [
    "Latency of urgent readings",
    "Readings of priority 6 and 7 that came.",
    MILLISECONDS,
    [
      ["p50", "urgent_p50_ms"],
      ["p99", "urgent_p99_ms"],
    ],
    "No urgent reading came: no traffic of the scenario has priority 6 or 7.",
  ],
  [
    "Urgent readings that did not come in time",
    "Share of those that nodes in range wanted.",
    { label: "%", percent: true },
    [["", "urgent_missed_share"]],
    "None was wanted: no traffic of the scenario has priority 6 or 7.",
  ],
  [
    "Channel load",
    "Mean share of time that the channel is busy.",
    { label: "% busy", percent: true },
    [["", "load_share"]],
    "Not measured: the scenario's radio is not shared.",
  ],
  [
    "Discovery",
    "From when two nodes could first hear each other until one has met the other.",
    { label: "seconds" },
    [
      ["p50", "discovery_p50_s"],
      ["p95", "discovery_p95_s"],
    ],
    "Nobody met anybody.",
  ],
];
const COLUMNS = [
  ["offered\n/s", "offered_per_s", 1],
  ["useful\n/s", "useful_per_s", 1],
  ["delivered\n%", "delivered_share", 100],
  ["latency\np50 ms", "latency_p50_ms", 1],
  ["latency\np99 ms", "latency_p99_ms", 1],
  ["age\np50 ms", "age_p50_ms", 1],
  ["age\np95 ms", "age_p95_ms", 1],
  ["urgent\np50 ms", "urgent_p50_ms", 1],
  ["urgent\np99 ms", "urgent_p99_ms", 1],
  ["urgent\nmissed %", "urgent_missed_share", 100],
  ["discovery\np95 s", "discovery_p95_s", 1],
  ["load\n%", "load_share", 100],
];

function header() {
  byId("scenario").textContent = page.scenario;
  const verdict = byId("verdict");
  verdict.textContent = page.broken ? `${page.broken} of ${page.runs} runs broken` : "all checks kept";
  verdict.classList.add(page.broken ? "bad" : "good");
  byId("summary").textContent = [
    `${short(page.runs)} runs`,
    `${page.rows.length} combinations`,
    `${page.seeds} ${page.seeds === 1 ? "seed" : "seeds"}`,
    page.paths.length ? `varied: ${page.paths.join(", ")}` : "nothing varied but the seed",
  ].join(" · ");
}

/** One chart over the varied setting, or null when no run has any of its figures. */
function over(points, yAxis, lines) {
  const series = lines
    .map(([name, figure], index) => ({
      name,
      color: color(index),
      kind: "line",
      dots: true,
      points: points
        .filter(([, row]) => figure in page.rows[row][3])
        .map(([x, row]) => [x, page.rows[row][3][figure][0], page.rows[row][3][figure], page.rows[row][1]]),
      more: ([, , span, runs]) => {
        const shown = yAxis.percent ? percent : short;
        return runs > 1 ? `(${shown(span[1])} to ${shown(span[2])} in ${runs} runs)` : "";
      },
    }))
    .filter((one) => one.points.length);
  if (!series.length) return null;
  return chart({ x: { label: page.axis }, y: yAxis, series });
}

function families() {
  if (!page.families.length) {
    byId("families").append(
      el("p", { class: "empty" }, "No charts: no setting that varied has more than one number as its value."),
    );
    return;
  }
  for (const [name, points] of page.families)
    byId("families").append(
      el(
        "section",
        {},
        el("h2", {}, name ? `Over ${page.axis}, with ${name}` : `Over ${page.axis}`),
        el(
          "div",
          { class: "grid" },
          ...CHARTS.map(([title, note, yAxis, lines, empty]) => card(title, note, over(points, yAxis, lines), empty)),
        ),
      ),
    );
}

function medians() {
  const columns = COLUMNS.filter(([, figure]) => page.rows.some((row) => figure in row[3]));
  table(
    byId("table"),
    [
      ...page.paths.map((path) => [path.replaceAll(".", ".\n")]),
      ["runs", true],
      ["broken", true],
      ...columns.map(([title]) => [title, true]),
    ],
    page.rows.map(([values, runs, broken, figures]) => [
      ...values,
      short(runs),
      broken ? short(broken) : "",
      ...columns.map(([, figure, factor]) => (figure in figures ? short(figures[figure][0] * factor) : "–")),
    ]),
  );
}

function footer() {
  byId("footer").append(
    "Medians over the seeds. Point at a chart to see the least and the most of them. All runs are in sweep.csv.",
    page.left_out.length ? el("ul", {}, ...page.left_out.map((note) => el("li", {}, note))) : "",
  );
}

themeButton(() => {});
header();
families();
medians();
footer();
/** For tests and other programs that drive the page from outside. */
window.meshReport = { page };
