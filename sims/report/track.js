// The positions of all nodes at any time, from the 16-bit places of the page.
"use strict";

const ABSENT = -32768;
const TOO_FAST_MPS = 120; // a node that moves faster has re-entered elsewhere, so no path is drawn

/** The positions of all nodes at any time. */
class Track {
  constructor({ frames, every_s, nodes, x0, y0, scale, data }) {
    this.frames = frames;
    this.every_s = every_s;
    this.nodes = nodes;
    if (!frames) return;
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    this.values = new Int16Array(bytes.length / 2);
    for (let index = 0; index < this.values.length; index++) this.values[index] = view.getInt16(2 * index, true);
    [this.x0, this.y0, this.scale] = [x0, y0, scale];
    this.row = new Map(nodes.map((node, row) => [node, row]));
  }

  point(row, frame) {
    const at = 2 * (row * this.frames + Math.min(frame, this.frames - 1));
    if (this.values[at] === ABSENT) return null;
    return [this.x0 + this.values[at] * this.scale, this.y0 + this.values[at + 1] * this.scale];
  }

  /** [x, y, heading or null] of a node, or null when it is not there. */
  place(node, time) {
    const row = this.row?.get(node);
    if (row === undefined) return null;
    const frame = Math.min(Math.floor(time / this.every_s), this.frames - 1);
    const here = this.point(row, frame),
      next = this.point(row, frame + 1);
    if (here === null) return null;
    const before = frame > 0 ? this.point(row, frame - 1) : null;
    const farthest = TOO_FAST_MPS * this.every_s;
    const near = (one, other) => one && other && Math.hypot(one[0] - other[0], one[1] - other[1]) < farthest;
    if (!near(here, next)) return [...here, near(before, here) ? direction(before, here) : null];
    const share = Math.min(1, time / this.every_s - frame);
    const heading = direction(here, next) ?? (near(before, here) ? direction(before, here) : null);
    return [here[0] + (next[0] - here[0]) * share, here[1] + (next[1] - here[1]) * share, heading];
  }

  /** Where a node was last seen, for one that is down and so not there now. */
  lastPlace(node, time) {
    const row = this.row?.get(node);
    if (row === undefined) return null;
    for (let frame = Math.min(Math.floor(time / this.every_s), this.frames - 1); frame >= 0; frame--) {
      const point = this.point(row, frame);
      if (point !== null) return [...point, null];
    }
    return null;
  }

  /** [least x, least y, most x, most y]. */
  bounds() {
    const found = [Infinity, Infinity, -Infinity, -Infinity];
    for (let row = 0; row < this.nodes.length; row++) {
      for (let frame = 0; frame < this.frames; frame++) {
        const point = this.point(row, frame);
        if (point === null) continue;
        found[0] = Math.min(found[0], point[0]);
        found[1] = Math.min(found[1], point[1]);
        found[2] = Math.max(found[2], point[0]);
        found[3] = Math.max(found[3], point[1]);
      }
    }
    return found;
  }
}

function direction(from, to) {
  const x = to[0] - from[0],
    y = to[1] - from[1];
  return Math.hypot(x, y) < 0.2 ? null : Math.atan2(y, x);
}

/** Index of the first row whose time (by `key`) is not before `time`. */
function firstFrom(rows, time, key = (row) => row[0]) {
  let low = 0,
    high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (key(rows[middle]) < time) low = middle + 1;
    else high = middle;
  }
  return low;
}
