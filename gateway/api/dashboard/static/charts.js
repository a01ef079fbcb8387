// Charts of the last quarter of an hour, drawn by hand as SVG.

import { drawing, element } from "./dom.js";
import { clock } from "./format.js";

const LEFT = 58;
const BOTTOM = 20;
const TOP = 6;

/** A small line without axes. `values` may hold nulls, which are gaps. */
export function sparkline(target, values, { bad = false } = {}) {
  const width = target.clientWidth;
  const height = target.clientHeight;
  const most = Math.max(...values.map((value) => value ?? 0), 1e-12);
  const x = (index) => (index / (values.length - 1)) * width;
  const y = (value) => height - 1.5 - (value / most) * (height - 3);
  const parts = [];
  for (const run of runs(values)) {
    const points = run.map(([index, value]) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
    if (points.length === 1) points.push(`${(x(run[0][0]) + 1).toFixed(1)},${y(run[0][1]).toFixed(1)}`);
    const tone = most <= 1e-12 ? " flat" : bad ? " bad" : "";
    parts.push(
      drawing("path", {
        class: `under${tone}`,
        d: `M${points.join("L")}L${x(run.at(-1)[0]).toFixed(1)},${height}L${x(run[0][0]).toFixed(1)},${height}Z`,
      }),
      drawing("path", { class: `line${tone}`, d: `M${points.join("L")}` }),
    );
  }
  target.replaceChildren(drawing("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...parts));
}

function runs(values) {
  const found = [];
  let current = null;
  values.forEach((value, index) => {
    if (value === null) current = null;
    else if (current) current.push([index, value]);
    else found.push((current = [[index, value]]));
  });
  return found;
}

/**
 * A chart with axes and a read-out under the pointer or, with the arrow keys, under the focus.
 * `bands` are stacked areas; `line` is one line from 0 to 1. `axis` formats the scale's values.
 */
export class Chart {
  constructor(target, { label, axis, line = false }) {
    this.target = target;
    this.axis = axis;
    this.line = line;
    this.label = label;
    this.picked = null;
    target.tabIndex = 0;
    target.setAttribute("role", "img");
    this.tip = element("div", { class: "tip" });
    this.tip.hidden = true;
    target.addEventListener("pointermove", (event) => {
      const box = target.getBoundingClientRect();
      this.pick(Math.round(((event.clientX - box.left - LEFT) / (box.width - LEFT)) * (this.count - 1)));
    });
    target.addEventListener("pointerleave", () => this.pick(null));
    target.addEventListener("blur", () => this.pick(null));
    target.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || !this.count) return;
      event.preventDefault();
      this.pick((this.picked ?? this.count - (step > 0 ? 2 : 0)) + step);
    });
    new ResizeObserver(() => this.draw()).observe(target);
  }

  /** `bands`: [{name, colour, values}], `times`: when each step began, `summary`: the chart in words. */
  update(times, bands, summary) {
    this.times = times;
    this.bands = bands;
    this.target.setAttribute("aria-label", `${this.label}. ${summary}`);
    this.draw();
  }

  get count() {
    return this.times?.length ?? 0;
  }

  pick(index) {
    this.picked = index === null || !this.count ? null : Math.max(0, Math.min(this.count - 1, index));
    this.draw();
  }

  draw() {
    if (!this.count) return;
    const width = this.target.clientWidth;
    const height = this.target.clientHeight;
    const floor = height - BOTTOM;
    const sums = this.times.map((_, index) => this.bands.reduce((sum, band) => sum + (band.values[index] ?? 0), 0));
    const most = this.line ? 1 : niceCeiling(Math.max(...sums));
    const x = (index) => LEFT + (index / (this.count - 1)) * (width - LEFT);
    const y = (value) => floor - (value / most) * (floor - TOP);
    const parts = [...this.scale(most, y, width), ...this.clock(x, height)];
    parts.push(...(this.line ? this.curve(x, y, floor) : this.stack(x, y)));
    if (this.picked !== null) {
      const at = x(this.picked);
      parts.push(drawing("line", { class: "cross", x1: at, x2: at, y1: TOP, y2: floor }));
    }
    const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...parts);
    this.describe(x, width);
    this.target.replaceChildren(svg, this.tip);
  }

  scale(most, y, width) {
    return [0, 0.5, 1].flatMap((share) => {
      const at = y(most * share);
      return [
        drawing("line", { class: "grid", x1: LEFT, x2: width, y1: at, y2: at }),
        drawing("text", { x: LEFT - 8, y: at + 4, "text-anchor": "end", text: this.axis(most * share) }),
      ];
    });
  }

  clock(x, height) {
    const last = this.count - 1;
    return [0, 1 / 3, 2 / 3, 1].map((share) => {
      const index = Math.round(last * share);
      const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
      return drawing("text", { x: x(index), y: height - 4, "text-anchor": anchor, text: clock(this.times[index], false) });
    });
  }

  stack(x, y) {
    const base = this.times.map(() => 0);
    return this.bands.map((band) => {
      const lower = base.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
      band.values.forEach((value, index) => (base[index] += value));
      const upper = base.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
      return drawing("path", { class: `area fill-${band.colour}`, d: `M${upper.join("L")}L${lower.reverse().join("L")}Z` });
    });
  }

  curve(x, y, floor) {
    return runs(this.bands[0].values).flatMap((run) => {
      const points = run.map(([index, value]) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
      if (points.length === 1) points.push(`${(x(run[0][0]) + 2).toFixed(1)},${y(run[0][1]).toFixed(1)}`);
      const [from, to] = [x(run[0][0]), x(run.at(-1)[0])].map((value) => value.toFixed(1));
      return [
        drawing("path", { class: "under memory", d: `M${points.join("L")}L${to},${floor}L${from},${floor}Z` }),
        drawing("path", { class: "line memory", d: `M${points.join("L")}` }),
      ];
    });
  }

  describe(x, width) {
    this.tip.hidden = this.picked === null;
    if (this.tip.hidden) return;
    const index = this.picked;
    const rows = [...this.bands].reverse().map((band) =>
      element(
        "div",
        { data: { colour: band.colour } },
        element("span", {}, ...(this.line ? [] : [element("i")]), band.name),
        element("span", { text: band.values[index] === null ? "nothing read" : this.axis(band.values[index]) }),
      ),
    );
    this.tip.replaceChildren(element("b", { text: clock(this.times[index]) }), ...rows);
    const right = x(index) > width / 2;
    this.tip.style.left = right ? "" : `${x(index) + 12}px`;
    this.tip.style.right = right ? `${width - x(index) + 12}px` : "";
  }
}

/** The next scale whose half reads well in binary units. */
function niceCeiling(value) {
  if (value <= 0) return 1024;
  const unit = 1024 ** Math.max(0, Math.floor(Math.log(value) / Math.log(1024)));
  for (const step of [1, 2, 3, 4, 6, 8, 10, 20, 30, 40, 60, 80, 100, 200, 300, 400, 600, 800, 1000, 1024]) if (step * unit >= value) return step * unit;
  return value;
}
