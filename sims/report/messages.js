// One message on its way: which node got it, and when.
"use strict";

class Messages {
  constructor(page, player) {
    this.page = page;
    this.player = player;
    const origins = [...new Set(page.messages.map((message) => message[1]))].sort((one, other) => one - other);
    if (!origins.length) {
      byId("message-chart").append(
        el(
          "p",
          { class: "empty" },
          "No message was followed: nothing was published by the nodes whose messages are traced.",
        ),
      );
      byId("messages").querySelector(".controls").hidden = true;
      return;
    }
    byId("message-origin").append(...origins.map((origin) => el("option", { value: origin }, page.texts[origin])));
    byId("message-origin").addEventListener("change", () => this.chooseOrigin());
    byId("message-key").addEventListener("change", () => this.chooseKey());
    byId("message-seek").addEventListener("input", (event) => this.choose(Number(event.target.value)));
    byId("message-back").addEventListener("click", () => this.choose(this.number - 1));
    byId("message-next").addEventListener("click", () => this.choose(this.number + 1));
    byId("message-show").addEventListener("click", () => {
      player.choose(this.rows[this.number][1]);
      player.show(this.rows[this.number]);
      byId("map").scrollIntoView();
    });
    const widest = page.messages.reduce((best, message) => (message[4].length > best[4].length ? message : best));
    byId("message-origin").value = String(widest[1]);
    this.chooseOrigin(widest);
  }

  chooseOrigin(message) {
    const origin = Number(byId("message-origin").value);
    this.ofOrigin = this.page.messages.filter((row) => row[1] === origin);
    const keys = [...new Set(this.ofOrigin.map((row) => row[2]))];
    byId("message-key").replaceChildren(...keys.map((key) => el("option", { value: key }, this.page.texts[key])));
    if (message !== undefined) byId("message-key").value = String(message[2]);
    this.chooseKey(message);
  }

  chooseKey(message) {
    const key = Number(byId("message-key").value);
    this.rows = this.ofOrigin.filter((row) => row[2] === key);
    byId("message-seek").max = String(this.rows.length - 1);
    this.choose(message === undefined ? 0 : Math.max(0, this.rows.indexOf(message)));
  }

  choose(number) {
    this.number = Math.min(Math.max(number, 0), this.rows.length - 1);
    byId("message-seek").value = String(this.number);
    const [published, origin, , , flat] = this.rows[this.number];
    const arrivals = [];
    for (let index = 0; index < flat.length; index += 2) arrivals.push([flat[index + 1], flat[index]]);
    arrivals.sort((one, other) => one[0] - other[0]);
    byId("message-what").textContent =
      `${this.number + 1} of ${this.rows.length}, published at ${published.toFixed(3)} s, reached ${arrivals.length}`;
    const box = byId("message-chart");
    table(
      byId("message-table"),
      [["node"], ["after", true], ["distance", true]],
      arrivals.map(([later, node]) => [
        this.page.texts[node],
        `${short(later)} ms`,
        this.distance(origin, node, published),
      ]),
    );
    if (!arrivals.length) {
      box.replaceChildren(
        el(
          "p",
          { class: "empty" },
          "Nobody had this one: no subscriber was in reach, or it was lost or dropped on every way.",
        ),
      );
      return;
    }
    const points = arrivals.map(([later, node], index) => [later, index + 1, node]);
    const line = [[0, 0], ...points.map(([later, count]) => [later, count])];
    box.replaceChildren(
      chart({
        x: { label: "ms since it was published", unit: "ms", low: 0 },
        y: { label: "nodes that have it", high: Math.max(4, arrivals.length * 1.08) },
        series: [
          { name: "", color: color(0), kind: "dots", points, more: (point) => this.page.texts[point[2]] },
          { name: "", color: color(0), kind: "step", points: line },
        ],
        height: 270,
        hideKeys: true,
      }),
    );
  }

  distance(origin, node, time) {
    const from = this.player.track.place(origin, time),
      to = this.player.track.place(node, time);
    return from && to ? `${Math.hypot(from[0] - to[0], from[1] - to[1]).toFixed(0)} m` : "–";
  }
}
