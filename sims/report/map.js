// The map, its playback, and the strip that shows when things happened.
"use strict";

const FLASH_S = 0.45; // how long a delivery is shown, in real seconds
const RING_S = 1.6; // and an event at a node

/** Plays a result on two canvases. */
class Player {
  constructor(page) {
    this.page = page;
    this.track = new Track(page.places);
    this.end = page.virtual_s;
    this.time = 0;
    this.playing = false;
    this.chosen = null;
    this.message = null;
    this.canvas = byId("canvas");
    this.strip = byId("strip");
    this.messages = [...page.messages].sort((one, other) => one[0] - other[0]);
    this.groups = [...new Set(page.infos.map((info) => info[1]))];
    const speeds = [0.1, 0.5, 1, 2, 5, 10, 20, 60, 120];
    this.speed = speeds.find((speed) => this.end / speed <= 60) ?? 120;
    byId("speed").append(...speeds.map((speed) => el("option", { value: speed }, `${speed} ×`)));
    byId("speed").value = String(this.speed);
    byId("seek").max = String(this.end);
    this.legend();
    this.listen();
    const box = this.track.frames ? this.track.bounds() : [0, 0, 1, 1];
    const room = Math.max(40, 0.05 * Math.max(box[2] - box[0], box[3] - box[1]));
    this.box = [box[0] - room, box[1] - room, box[2] + room, box[3] + room];
    if (!this.track.frames) {
      byId("map-empty").hidden = false;
      byId("map-empty").textContent =
        "No places were recorded, so there is no map. What happened is on the strip below.";
    }
    new ResizeObserver(() => {
      this.fit();
      this.drawStrip();
    }).observe(this.canvas);
    this.fit();
    this.seek(0);
    requestAnimationFrame((now) => this.frame(now));
  }

  legend() {
    const role = (group) => this.page.infos.find((info) => info[1] === group)[0];
    byId("legend").append(
      ...this.groups.slice(0, 12).map((group, index) => {
        const dot = el("i", { class: role(group) === "rsu" ? "square" : undefined });
        dot.style.background = color(index);
        return el("span", {}, dot, group);
      }),
    );
  }

  listen() {
    byId("play").addEventListener("click", () => this.toggle());
    byId("seek").addEventListener("input", (event) => {
      this.message = null;
      this.seek(Number(event.target.value));
    });
    byId("speed").addEventListener("change", (event) => {
      this.speed = Number(event.target.value);
    });
    byId("fit").addEventListener("click", () => this.fit());
    this.strip.addEventListener("click", (event) => {
      const box = this.strip.getBoundingClientRect();
      this.message = null;
      this.seek(((event.clientX - box.left - 96) / (box.width - 108)) * this.end);
    });
    this.canvas.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 10 : 1;
      if (event.key === " ") this.toggle();
      else if (event.key === "ArrowRight") this.seek(this.time + step);
      else if (event.key === "ArrowLeft") this.seek(this.time - step);
      else return;
      event.preventDefault();
    });
    this.canvas.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && document.activeElement !== this.canvas) return; // the page scrolls over a map not in use
        event.preventDefault();
        this.zoom(event.offsetX, event.offsetY, Math.exp(-event.deltaY / 400));
      },
      { passive: false },
    );
    let drag = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      drag = { x: event.offsetX, y: event.offsetY, moved: 0 };
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (drag === null) return;
      const [x, y] = [event.offsetX - drag.x, event.offsetY - drag.y];
      drag.moved += Math.abs(x) + Math.abs(y);
      this.origin[0] += x;
      this.origin[1] += y;
      [drag.x, drag.y] = [event.offsetX, event.offsetY];
      this.draw();
    });
    this.canvas.addEventListener("pointerup", (event) => {
      if (drag !== null && drag.moved < 4) this.choose(this.nearest(event.offsetX, event.offsetY));
      drag = null;
    });
  }

  // --- time ---
  toggle() {
    if (!this.playing && this.time >= this.end) this.seek(0);
    this.playing = !this.playing;
    this.message = null;
    byId("play").textContent = this.playing ? "❚❚" : "▶";
    byId("play").setAttribute("aria-label", this.playing ? "Pause" : "Play");
  }

  seek(time) {
    this.time = Math.min(Math.max(time, 0), this.end);
    this.draw();
    this.drawStrip();
    this.tell();
  }

  frame(now) {
    const passed = Math.min(0.25, (now - (this.last ?? now)) / 1000);
    this.last = now;
    if (this.playing) {
      this.seek(this.time + passed * this.speed);
      if (this.time >= this.end) this.toggle();
    }
    requestAnimationFrame((next) => this.frame(next));
  }

  // --- the view ---
  fit() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    [this.canvas.width, this.canvas.height] = [width * ratio, height * ratio];
    const [x0, y0, x1, y1] = this.box;
    this.scale = Math.min(width / (x1 - x0), (height - 60) / (y1 - y0));
    this.origin = [width / 2 - ((x0 + x1) / 2) * this.scale, height / 2 + 8 + ((y0 + y1) / 2) * this.scale];
    this.draw();
  }

  zoom(x, y, factor) {
    const next = Math.min(Math.max(this.scale * factor, 1e-4), 50);
    this.origin = [x - ((x - this.origin[0]) * next) / this.scale, y - ((y - this.origin[1]) * next) / this.scale];
    this.scale = next;
    this.draw();
  }

  screen(place) {
    return [this.origin[0] + place[0] * this.scale, this.origin[1] - place[1] * this.scale];
  }

  nearest(x, y) {
    let best = null,
      least = 18;
    for (const node of this.track.nodes) {
      const place = this.track.place(node, this.time);
      if (place === null) continue;
      const [sx, sy] = this.screen(place);
      const far = Math.hypot(sx - x, sy - y);
      if (far < least) [best, least] = [node, far];
    }
    return best;
  }

  choose(node) {
    this.chosen = node;
    this.draw();
    this.tell();
  }

  /** Stop at a message, and draw its paths. */
  show(message) {
    if (this.playing) this.toggle();
    this.message = message;
    this.seek(message[0]);
  }

  activeFaults() {
    return this.page.faults.filter((fault) => fault.at <= this.time && (this.time < fault.until || fault.forever));
  }

  // --- drawing ---
  style(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  draw() {
    const ratio = devicePixelRatio || 1;
    const context = this.canvas.getContext("2d");
    const { clientWidth: width, clientHeight: height } = this.canvas;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!this.track.frames) return;
    this.drawGround(context, width, height);
    const faults = this.activeFaults();
    const hit = new Map(
      faults
        .flatMap((fault) => fault.nodes.map((node) => [node, fault.kind]))
        .sort((one, other) => (one[1] === "crash") - (other[1] === "crash")),
    );
    this.drawFaults(context, faults);
    this.drawDeliveries(context);
    const colors = this.groups.map((_, index) => this.style(`--c${index % 8}`));
    for (const node of this.track.nodes) this.drawNode(context, node, colors, hit.get(node));
    this.drawRings(context);
  }

  drawGround(context, width, height) {
    const step = round(70 / this.scale);
    context.strokeStyle = this.style("--faint");
    context.lineWidth = 1;
    context.beginPath();
    const pixels = step * this.scale;
    for (let x = this.origin[0] % pixels; x < width; x += pixels) {
      context.moveTo(x, 0);
      context.lineTo(x, height);
    }
    for (let y = this.origin[1] % pixels; y < height; y += pixels) {
      context.moveTo(0, y);
      context.lineTo(width, y);
    }
    context.stroke();
    context.strokeStyle = context.fillStyle = this.style("--soft");
    context.beginPath();
    context.moveTo(14, height - 20);
    context.lineTo(14, height - 14);
    context.lineTo(14 + pixels, height - 14);
    context.lineTo(14 + pixels, height - 20);
    context.stroke();
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "left";
    context.fillText(step >= 1000 ? `${step / 1000} km` : `${short(step)} m`, 20, height - 20);
  }

  drawNode(context, node, colors, fault) {
    const down = fault === "crash";
    const place = down ? this.track.lastPlace(node, this.time) : this.track.place(node, this.time);
    if (place === null) return;
    const [x, y] = this.screen(place);
    const [role, group] = this.page.infos[node] ?? ["vehicle", ""];
    const size = (this.track.nodes.length > 120 ? 4.2 : 6) * (role === "rsu" ? 1.15 : 1);
    context.fillStyle = context.strokeStyle = down
      ? this.style("--bad")
      : (colors[this.groups.indexOf(group)] ?? "#888");
    context.lineWidth = 1.6;
    context.beginPath();
    if (role === "rsu") context.rect(x - size, y - size, 2 * size, 2 * size);
    else if (place[2] === null) context.arc(x, y, size, 0, 7);
    else {
      const turn = (angle, far) => [x + Math.cos(-place[2] + angle) * far, y + Math.sin(-place[2] + angle) * far];
      context.moveTo(...turn(0, size * 1.6));
      context.lineTo(...turn(2.45, size * 1.25));
      context.lineTo(...turn(-2.45, size * 1.25));
      context.closePath();
    }
    if (down) context.stroke();
    else context.fill();
    if (down) {
      context.beginPath();
      context.moveTo(x - size, y - size);
      context.lineTo(x + size, y + size);
      context.moveTo(x + size, y - size);
      context.lineTo(x - size, y + size);
      context.stroke();
    } else if (fault !== undefined) {
      context.strokeStyle = this.style("--bad");
      context.beginPath();
      context.arc(x, y, size * 2, 0, 7);
      context.stroke();
    }
    if (node === this.chosen) {
      context.strokeStyle = context.fillStyle = this.style("--ink");
      context.beginPath();
      context.arc(x, y, size * 2.4, 0, 7);
      context.stroke();
      context.font = "600 13px system-ui, sans-serif";
      context.fillText(this.page.texts[node], x + size * 2.8, y - size);
    }
  }

  line(context, one, other) {
    const from = this.track.place(one, this.time),
      to = this.track.place(other, this.time);
    if (from === null || to === null) return;
    context.moveTo(...this.screen(from));
    context.lineTo(...this.screen(to));
  }

  /** The pairs that a partition separates: at most a few dozen lines, because more would only blacken the map. */
  drawFaults(context, faults) {
    context.strokeStyle = this.style("--bad");
    context.lineWidth = 1;
    context.globalAlpha = 0.5;
    context.setLineDash([4, 4]);
    for (const fault of faults) {
      if (!fault.others.length || fault.nodes.length * fault.others.length > 60) continue;
      context.beginPath();
      for (const node of fault.nodes) for (const other of fault.others) this.line(context, node, other);
      context.stroke();
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  drawDeliveries(context) {
    context.strokeStyle = this.style("--c2");
    context.lineWidth = this.message === null ? 1.3 : 1.8;
    const seen = FLASH_S * this.speed;
    const from = firstFrom(this.messages, this.time - seen);
    const shown =
      this.message === null ? this.messages.slice(from, firstFrom(this.messages, this.time)) : [this.message];
    for (const message of shown) {
      context.globalAlpha = this.message === null ? 0.25 + 0.65 * (1 - (this.time - message[0]) / seen) : 0.9;
      context.beginPath();
      for (let index = 0; index < message[4].length; index += 2) this.line(context, message[1], message[4][index]);
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  drawRings(context) {
    const { happenings, texts } = this.page;
    const seen = RING_S * Math.max(1, this.speed);
    const until = firstFrom(happenings, this.time + 1e-9);
    context.lineWidth = 1.6;
    for (let index = until - 1; index >= 0 && until - index < 80; index--) {
      const [at, kind, node] = happenings[index];
      if (this.time - at > seen) break;
      const place = this.track.place(node, this.time);
      if (place === null) continue;
      const age = (this.time - at) / seen;
      context.strokeStyle = this.style(tone(texts[kind]));
      context.globalAlpha = (1 - age) * 0.8;
      context.beginPath();
      context.arc(...this.screen(place), 6 + 16 * age, 0, 7);
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  /** Faults and the kinds of happenings in lanes, with the time that is shown. */
  drawStrip() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.strip;
    if (this.lanes === undefined) this.lanes = lanes(this.page);
    if (
      this.painted === undefined ||
      this.painted.width !== width * ratio ||
      this.paintedTheme !== document.documentElement.dataset.theme
    ) {
      this.painted = Object.assign(document.createElement("canvas"), {
        width: Math.max(1, width * ratio),
        height: Math.max(1, height * ratio),
      });
      this.paintedTheme = document.documentElement.dataset.theme;
      this.paintLanes(this.painted.getContext("2d"), ratio, width, height);
    }
    [this.strip.width, this.strip.height] = [width * ratio, height * ratio];
    const context = this.strip.getContext("2d");
    context.drawImage(this.painted, 0, 0);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const at = 96 + (this.time / this.end) * (width - 108);
    context.fillStyle = this.style("--ink");
    context.fillRect(at - 0.75, 0, 1.5, height);
  }

  paintLanes(context, ratio, width, height) {
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const rows = this.lanes.slice(0, 6);
    const each = Math.min(20, (height - 22) / Math.max(1, rows.length));
    const place = (time) => 96 + (time / this.end) * (width - 108);
    context.font = "11px system-ui, sans-serif";
    rows.forEach((lane, row) => {
      const top = 4 + row * each;
      context.fillStyle = this.style("--soft");
      context.textAlign = "right";
      context.fillText(lane.name.length > 15 ? `${lane.name.slice(0, 14)}…` : lane.name, 88, top + each / 2 + 3);
      context.fillStyle = this.style("--faint");
      context.fillRect(96, top + 2, width - 108, each - 4);
      context.fillStyle = this.style(lane.tone);
      for (const [from, to] of lane.spans) {
        context.globalAlpha = lane.solid ? 0.75 : 0.4;
        context.fillRect(place(from), top + 2, Math.max(1.5, place(to) - place(from)), each - 4);
      }
      context.globalAlpha = 1;
    });
    context.fillStyle = this.style("--soft");
    context.textAlign = "center";
    for (const value of ticks(0, this.end, false, 8))
      context.fillText(`${short(value)} s`, Math.min(place(value), width - 20), height - 5);
  }

  // --- words ---
  tell() {
    const { page, time } = this;
    byId("clock").textContent = `${time.toFixed(1)} s`;
    byId("seek").value = String(time);
    const faults = this.activeFaults();
    byId("active").replaceChildren(
      ...(faults.length
        ? faults
            .slice(0, 5)
            .map((fault) =>
              el(
                "li",
                {},
                `${fault.kind}: ${who(page, fault.nodes)}${fault.forever ? "" : ` until ${short(fault.until)} s`}`,
              ),
            )
        : [el("li", { class: "none" }, page.faults.length ? "no fault at this time" : "no faults in this run")]),
    );
    const until = firstFrom(page.happenings, time + 1e-9);
    byId("recent").replaceChildren(
      ...page.happenings
        .slice(Math.max(0, until - 14), until)
        .reverse()
        .map((row) => el("li", {}, el("time", {}, `${row[0].toFixed(1)} s`), el("span", {}, sentence(page, row)))),
    );
    if (until === 0) byId("recent").append(el("li", {}, el("span"), el("span", {}, "nothing yet")));
    this.tellNode();
  }

  tellNode() {
    const { page, time, chosen } = this;
    const box = byId("node");
    byId("node-title").textContent = chosen === null ? "Node" : page.texts[chosen];
    box.classList.toggle("none", chosen === null);
    if (chosen === null) {
      box.textContent = "Click a node on the map.";
      return;
    }
    const [role, group, device] = page.infos[chosen];
    const place = this.track.place(chosen, time);
    const heard = this.messages.filter(
      (message) =>
        message[0] <= time &&
        message[0] > time - 10 &&
        message[4].some((value, index) => index % 2 === 0 && value === chosen),
    );
    box.replaceChildren(
      el("div", {}, `${role} of ${group}, ${device}`),
      el("div", {}, place === null ? "not on the map now" : `at ${place[0].toFixed(0)} m, ${place[1].toFixed(0)} m`),
      el("div", {}, "followed messages heard in 10 s: ", el("b", {}, String(heard.length))),
    );
  }
}

/** The colour of a kind of happening. */
function tone(kind) {
  if (/fail|dead|death|crash|lost|kill|broken|refused|expired/.test(kind)) return "--bad";
  if (/met|alive|restart|heal|back|rejoin/.test(kind)) return "--c2";
  return "--c6";
}

function lanes(page) {
  const found = [];
  if (page.faults.length)
    found.push({
      name: "faults",
      tone: "--bad",
      solid: false,
      spans: page.faults.map((fault) => [fault.at, fault.until]),
    });
  const kinds = new Map();
  for (const [at, kind] of page.happenings) {
    if (!kinds.has(kind)) kinds.set(kind, []);
    kinds.get(kind).push([at, at]);
  }
  const rows = [...kinds].map(([kind, spans]) => ({
    name: page.texts[kind],
    tone: tone(page.texts[kind]),
    solid: true,
    spans,
  }));
  rows.sort(
    (one, other) =>
      (other.name === "check-failed") - (one.name === "check-failed") || other.spans.length - one.spans.length,
  );
  return found.concat(rows);
}

/** Some names, or how many. */
function who(page, nodes) {
  if (!nodes.length) return "everybody";
  const names = nodes
    .slice(0, 4)
    .map((node) => page.texts[node])
    .join(", ");
  return nodes.length > 4 ? `${names} and ${nodes.length - 4} more` : names;
}

/** A happening in words. */
function sentence(page, [, kind, node, other, detail]) {
  const { texts } = page;
  const parts = [
    texts[kind],
    texts[node],
    texts[other] ? `– ${texts[other]}` : "",
    texts[detail] ? `(${texts[detail]})` : "",
  ];
  return parts.filter(Boolean).join(" ");
}
