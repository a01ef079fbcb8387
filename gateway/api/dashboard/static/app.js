// The page: asks /v1/stats every two seconds and shows what it says.

import { call, Problem } from "./api.js";
import { Chart, sparkline } from "./charts.js";
import { Devices } from "./devices.js";
import * as dialogs from "./dialogs.js";
import { element, hide, keyed, show } from "./dom.js";
import { ago, bytes, clock, duration, percent, rate, ratio, whole } from "./format.js";
import { STATES } from "./map.js";
import { startTheme } from "./theme.js";

const POLL_MILLISECONDS = 2000;
const SOURCES = [
  ["upstream", "upstream"],
  ["disk", "disk"],
  ["local", "this machine"],
  ["memory", "memory"],
];
const LEGEND = { memory: "memory", disk: "disk", fetching: "being fetched", failed: "failed", dropped: "dropped", never: "never read" };

const perSecond = (value) => `${bytes(Math.round(value)).replace(/\.0+(?= )|(\.\d)0(?= )/, "$1")}/s`;
const bytesChart = new Chart(document.getElementById("bytes-chart"), { label: "Bytes per second by source, last 15 minutes", axis: perSecond });
const ratioChart = new Chart(document.getElementById("ratio-chart"), {
  label: "Share of bytes that did not come from upstream, last 15 minutes",
  axis: (share) => `${Math.round(share * 100)} %`,
  line: true,
});
const askToken = dialogs.token(() => poll());
const askDelete = dialogs.remove(
  (name, work) => devices.without(name, work),
  () => poll(),
);
const askRegister = dialogs.register(() => poll());
const devices = new Devices(document.querySelector(".devices"), askDelete);
let seenAt = null;
let asking = false;

document.getElementById("register").addEventListener("click", askRegister);
document.getElementById("bytes-legend").append(...SOURCES.toReversed().map(([colour, name]) => key(colour, name)));
document.getElementById("map-legend").append(
  ...STATES.map((state) => key(state, LEGEND[state])),
  element("li", { text: "stronger: read more often" }),
);
startTheme(document.getElementById("theme"), () => devices.repaint());
setInterval(poll, POLL_MILLISECONDS);
setInterval(showAge, 1000);
document.addEventListener("visibilitychange", () => poll());
poll();

function key(colour, name) {
  return element("li", { data: { colour } }, element("i", { "aria-hidden": "true" }), name);
}

async function poll() {
  if (document.hidden || asking) return;
  asking = true;
  try {
    const stats = await call("GET", "/v1/stats");
    seenAt = performance.now();
    render(stats);
  } catch (error) {
    if (error instanceof Problem && (error.status === 401 || error.status === 403)) askToken();
    lost(error);
  } finally {
    asking = false;
  }
  showAge();
}

function lost(error) {
  document.body.classList.add("stale");
  document.getElementById("live").dataset.on = "false";
  const status = document.getElementById("status");
  status.dataset.level = "trouble";
  show("status-level", "No answer");
  show("status-reason", error instanceof Problem ? error.message : "The gateway cannot be reached; what is shown is old.");
}

function showAge() {
  if (seenAt === null) return;
  const seconds = (performance.now() - seenAt) / 1000;
  show("live-text", seconds < 5 ? "Live" : ago(seconds));
}

function render(stats) {
  document.body.classList.remove("stale");
  document.getElementById("live").dataset.on = "true";
  document.documentElement.dataset.generatedAt = stats.generated_at;
  show("version", `${stats.version}${stats.workers > 1 ? ` · ${stats.workers} workers` : ""}`);
  renderStatus(stats.status);
  renderTraffic(stats.traffic, stats.series);
  renderCharts(stats.series, stats.bytes);
  renderUpstream(stats.upstream);
  renderCaches(stats.caches, stats.bytes);
  devices.update(stats.devices, stats.devices_total);
  renderNodes(stats.nodes, new Date(stats.generated_at));
  renderEvents(stats.events);
}

function renderStatus({ level, reason }) {
  document.getElementById("status").dataset.level = level;
  show("status-level", level === "ok" ? "All good" : "Trouble");
  show("status-reason", reason);
}

function renderTraffic(traffic, series) {
  // The last step is not over: drawn, it would look like a fall.
  const complete = (values) => values.slice(0, -1);
  show("reads", rate(traffic.per_second), traffic.per_second);
  show("reads-total", `${whole(traffic.requests)} in all`, traffic.requests);
  for (const name of ["p50", "p99"]) {
    const [figure, unit] = duration(traffic[`${name}_seconds`]);
    show(name, figure, traffic[`${name}_seconds`]);
    show(`${name}-unit`, unit);
    sparkline(document.getElementById(`spark-${name}`), complete(series[`${name}_seconds`]));
  }
  show("errors", rate(traffic.errors_per_second), traffic.errors_per_second);
  show("errors-total", `${whole(traffic.errors)} in all`, traffic.errors);
  document.getElementById("errors-tile").dataset.bad = traffic.errors_per_second > 0;
  sparkline(document.getElementById("spark-reads"), complete(series.requests));
  sparkline(document.getElementById("spark-errors"), complete(series.errors), { bad: true });
}

function renderCharts(series, sent) {
  const start = new Date(series.start).getTime();
  const times = series.requests.slice(0, -1).map((_, index) => new Date(start + index * series.step_seconds * 1000));
  const bands = SOURCES.map(([name, label]) => ({
    name: label,
    colour: name,
    values: series[name].slice(0, -1).map((count) => count / series.step_seconds),
  }));
  bytesChart.update(times, bands, `Since the start: ${SOURCES.map(([name, label]) => `${bytes(sent[name])} from ${label}`).join(", ")}`);
  const hits = [{ name: "Hit ratio", colour: "memory", values: series.hit_ratio.slice(0, -1) }];
  ratioChart.update(times, hits, `Since the start: ${percent(sent.hit_ratio)}`);
  show("hit-ratio", percent(sent.hit_ratio), sent.hit_ratio);
  document.getElementById("hit-ratio").title = "Since the start";
}

function renderUpstream(registries) {
  hide("upstream-empty", registries.length > 0);
  document.querySelector("table.plain").hidden = registries.length === 0;
  const columns = ["attempts", "failures", "retries", "received", "p50", "p99"];
  keyed(
    document.getElementById("upstream"),
    registries,
    (entry) => entry.registry,
    (entry) =>
      element(
        "tr",
        {},
        element("td", { text: entry.registry }),
        element("td", {}, element("span", { class: "chip" })),
        ...columns.map(() => element("td", { class: "n" })),
      ),
    (row, entry) => {
      const chip = row.querySelector(".chip");
      const well = entry.p50_seconds === null ? ["no answer yet", "warn"] : ["answers", "good"];
      const [words, tone] = { closed: well, half_open: ["being tried", "warn"], open: ["not asked", "bad"] }[entry.breaker];
      show(chip, words);
      chip.dataset.tone = tone;
      const seconds = (value) => duration(value).join(" ");
      const shown = [whole(entry.attempts), whole(entry.failures), whole(entry.retries), bytes(entry.received_bytes), seconds(entry.p50_seconds), seconds(entry.p99_seconds)];
      shown.forEach((text, index) => show(row.children[index + 2], text));
    },
  );
}

function renderCaches(caches, sent) {
  for (const tier of ["memory", "disk"]) {
    const [used, budget] = [caches[`${tier}_bytes`], caches[`${tier}_budget_bytes`]];
    show(`cache-${tier}`, `${bytes(used)} of ${bytes(budget)}`, used);
    document.getElementById(`cache-${tier}-bar`).style.width = `${budget ? Math.min(100, (used / budget) * 100).toFixed(1) : 0}%`;
  }
  show("amplification", ratio(sent.amplification), sent.amplification);
  const notes = [];
  if (caches.disk_bypassed) notes.push("disk cannot be written");
  else if (caches.disk_errors) notes.push(`${whole(caches.disk_errors)} disk errors`);
  if (caches.evictions) notes.push(`${whole(caches.evictions)} evicted`);
  show("cache-note", notes.join(", "));
}

function renderNodes(nodes, now) {
  hide("nodes-empty", nodes.length > 0);
  show("nodes-count", nodes.length ? String(nodes.length) : "");
  keyed(
    document.getElementById("nodes"),
    nodes,
    (node) => node.name,
    (node) =>
      element(
        "li",
        {},
        element("div", { class: "row" }, element("b", { text: node.name }), element("span", { class: "chip" }), element("small", { class: "age" })),
        element("div", { class: "attached" }),
      ),
    (item, node) => {
      const failed = node.devices.some((device) => device.state !== "connected");
      const chip = item.querySelector(".chip");
      show(chip, node.silent ? "silent" : failed ? "in trouble" : "well");
      chip.dataset.tone = node.silent ? "warn" : failed ? "bad" : "good";
      show(item.querySelector(".age"), `${node.version ? `${node.version}, ` : ""}${ago((now - new Date(node.reported_at)) / 1000)}`);
      const lines = node.devices.map((device) => {
        const place = [device.node_device, device.mountpoint].filter(Boolean).join(" on ");
        const parts = [device.name, place, device.state, `${bytes(device.read_bytes)} read`];
        if (device.errors) parts.push(`${whole(device.errors)} errors`);
        return parts.filter(Boolean).join(" · ");
      });
      const attached = item.querySelector(".attached");
      if (attached.dataset.shown !== lines.join("\n")) {
        attached.dataset.shown = lines.join("\n");
        attached.replaceChildren(...(lines.length ? lines : ["nothing attached"]).map((text) => element("div", { class: "mono", text })));
      }
    },
  );
}

function renderEvents(events) {
  hide("events-empty", events.length > 0);
  document.getElementById("events").hidden = events.length === 0;
  keyed(
    document.getElementById("events"),
    events,
    (event) => `${event.at} ${event.text}`,
    (event) => {
      const at = new Date(event.at);
      const told = element("div", { class: "text" });
      if (event.device) told.append(element("b", { text: event.device }), " ");
      told.append(event.text);
      return element("li", { data: { level: event.level } }, element("time", { datetime: event.at, title: at.toLocaleString(), text: clock(at) }), told);
    },
    () => {},
  );
}
