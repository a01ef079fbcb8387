// The map of a device: bands for metadata and layers, a cell for each span (or for a few of them).

import { element } from "./dom.js";
import { bytes, percent, whole } from "./format.js";

export const STATES = ["memory", "disk", "fetching", "failed", "dropped", "never"];
const WORDS = {
  memory: "in memory",
  disk: "on disk",
  fetching: "being fetched",
  failed: "could not be read",
  dropped: "read, not here any more",
  never: "never read",
};
const GAP = 2;
const BAND_GAP = 8;
const LABEL_WIDTH = 168;
const LABEL_HEIGHT = 18;

/** What a segment is called: "metadata", "layer 1 · gzip"; a layer that is alone may be any of its image's and has no number. */
export function bandNames(segments) {
  const many = segments.filter((segment) => segment.kind !== "metadata").length > 1;
  let layer = 0;
  return segments.map(({ kind }) => (kind === "metadata" ? kind : `${many ? `layer ${layer++}` : "layer"} · ${kind}`));
}

export class DeviceMap {
  constructor() {
    this.canvas = element("canvas", { tabindex: "0", role: "img", height: "1" });
    this.readout = element("p", { class: "readout", "aria-live": "polite" });
    this.node = element("figure", { class: "map waiting" }, this.canvas, this.readout);
    this.data = null;
    this.picked = null;
    this.boxes = [];
    this.canvas.addEventListener("pointermove", (event) => this.pick(this.at(event.offsetX, event.offsetY)));
    this.canvas.addEventListener("pointerdown", (event) => this.pick(this.at(event.offsetX, event.offsetY)));
    this.canvas.addEventListener("pointerleave", () => this.pick(null));
    this.canvas.addEventListener("blur", () => this.pick(null));
    this.canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns }[event.key];
      if (!step || !this.data) return;
      event.preventDefault();
      const last = this.boxes.length - 1;
      this.pick(Math.max(0, Math.min(last, this.picked === null ? 0 : this.picked + step)));
    });
    new ResizeObserver(() => this.draw()).observe(this.node);
  }

  update(data) {
    this.data = data;
    this.node.classList.remove("waiting");
    const count = data.cells.state.length;
    const here = data.cells.state.filter((state) => state === "memory" || state === "disk").length;
    const failed = data.cells.state.filter((state) => state === "failed").length;
    this.canvas.setAttribute(
      "aria-label",
      `Map of ${data.name}: ${here} of ${count} cells are here` + (failed ? `, ${failed} could not be read` : ""),
    );
    this.draw();
  }

  at(x, y) {
    const found = this.boxes.findIndex(([left, top, size]) => x >= left && x < left + size + GAP && y >= top && y < top + size + GAP);
    return found < 0 ? null : found;
  }

  pick(index) {
    if (index === this.picked) return;
    this.picked = index;
    this.draw();
  }

  draw() {
    if (!this.data || !this.node.clientWidth) return;
    const { cells, segments } = this.data;
    const width = this.node.clientWidth;
    const narrow = width < 560;
    const left = narrow ? 0 : LABEL_WIDTH;
    const size = cells.state.length > 1200 ? 7 : cells.state.length > 300 ? 9 : 11;
    this.columns = Math.max(1, Math.floor((width - left + GAP) / (size + GAP)));
    const bands = this.bands(segments, cells);
    let top = 0;
    this.boxes = [];
    for (const band of bands) {
      band.top = top;
      const first = top + (narrow ? LABEL_HEIGHT : 0);
      band.cells.forEach((_, place) =>
        this.boxes.push([left + (place % this.columns) * (size + GAP), first + Math.floor(place / this.columns) * (size + GAP), size]),
      );
      const rows = Math.ceil(band.cells.length / this.columns);
      const height = rows * (size + GAP) - GAP;
      top = first + Math.max(height, narrow ? 0 : LABEL_HEIGHT - 4) + BAND_GAP;
    }
    this.paint(width, Math.max(1, top - BAND_GAP), bands);
    this.describe(bands);
  }

  /** Cells by segment. */
  bands(segments, cells) {
    const names = bandNames(segments.filter((segment) => segment.kind !== "zero"));
    let cell = 0;
    return segments
      .filter((segment) => segment.kind !== "zero")
      .map((segment, index) => {
        const mine = [];
        const end = segment.offset + segment.length;
        while (cell < cells.offset.length && cells.offset[cell] < end) mine.push(cell++);
        return { name: names[index], length: segment.length, cells: mine };
      });
  }

  paint(width, height, bands) {
    const scale = window.devicePixelRatio || 1;
    const { canvas } = this;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(document.documentElement);
    const colour = Object.fromEntries(STATES.map((state) => [state, style.getPropertyValue(`--${state}`)]));
    const { state, reads, spans } = this.data.cells;
    const busiest = Math.log1p(Math.max(1, ...reads.map((count, index) => count / spans[index])));
    pen.textBaseline = "top";
    for (const band of bands) {
      pen.font = "12px system-ui, sans-serif";
      pen.fillStyle = style.getPropertyValue("--soft");
      pen.fillText(band.name, 0, band.top + 1);
      const used = pen.measureText(band.name).width;
      pen.fillStyle = style.getPropertyValue("--faint");
      pen.fillText(bytes(band.length), used + 10, band.top + 1);
    }
    this.boxes.forEach(([left, top, size], index) => {
      const steady = state[index] === "never" || state[index] === "failed" || state[index] === "fetching";
      // How often it was read, as strength of colour: what was never read but is here (read ahead) is palest.
      pen.globalAlpha = steady ? 1 : 0.35 + (0.65 * Math.log1p(reads[index] / spans[index])) / busiest;
      pen.fillStyle = colour[state[index]];
      pen.beginPath();
      pen.roundRect(left, top, size, size, 2);
      pen.fill();
      if (index === this.picked) {
        pen.globalAlpha = 1;
        pen.strokeStyle = style.getPropertyValue("--text");
        pen.lineWidth = 1.5;
        pen.strokeRect(left - 0.5, top - 0.5, size + 1, size + 1);
      }
    });
    pen.globalAlpha = 1;
  }

  describe(bands) {
    const { cells } = this.data;
    const index = this.picked;
    if (index === null) {
      const total = cells.reads.reduce((sum, count) => sum + count, 0);
      const whole_ = cells.length.reduce((sum, length) => sum + length, 0);
      const here = cells.length.reduce((sum, length, at) => sum + length * cells.cached[at], 0);
      this.readout.textContent = `${percent(whole_ ? here / whole_ : 0)} is here · ${whole(total)} span ${total === 1 ? "read" : "reads"}`;
      return;
    }
    const band = bands.find((candidate) => candidate.cells.includes(index));
    const many = cells.spans[index] > 1 ? `${cells.spans[index]} spans, ` : "";
    const reads = cells.reads[index];
    this.readout.textContent =
      `${band ? band.name : ""} · ${many}${bytes(cells.length[index])} at byte ${whole(cells.offset[index])} · ` +
      `${WORDS[cells.state[index]]} · read ${reads === 1 ? "once" : `${whole(reads)} times`}`;
  }
}
