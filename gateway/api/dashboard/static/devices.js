// The table of devices, with the map of each.

import { call, devicePath } from "./api.js";
import { element, hide, keyed, show } from "./dom.js";
import { bytes, clock, percent, ratio, whole } from "./format.js";
import { DeviceMap } from "./map.js";

const TONES = { ready: "good", indexing: "warn", failed: "bad", quarantined: "bad" };
const MAP_MILLISECONDS = 3000;

const phase = ({ phase, done, total }) => (total ? `${phase} ${bytes(done)} of ${bytes(total)}` : phase);
const waiting = ({ attempt, retry_at }) => `waiting after attempt ${attempt}${retry_at ? `, next at ${clock(new Date(retry_at))}` : ""}`;

export class Devices {
  constructor(table, onDelete) {
    this.table = table;
    this.onDelete = onDelete;
    this.rows = new Map();
    this.seen = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          const row = this.rows.get(entry.target.dataset.key);
          if (row) row.visible = entry.isIntersecting;
          if (row?.visible) this.refresh(row);
        }
      },
      { rootMargin: "200px" },
    );
    setInterval(() => {
      if (!document.hidden) for (const row of this.rows.values()) this.refresh(row);
    }, MAP_MILLISECONDS);
  }

  update(devices, total) {
    hide("devices-empty", devices.length > 0);
    hide("devices-more", total <= devices.length);
    show("devices-more", `The first ${whole(devices.length)} of ${whole(total)} devices by name. GET /v1/devices has all of them.`);
    this.table.hidden = devices.length === 0;
    keyed(
      this.table,
      devices,
      (device) => device.name,
      (device) => this.make(device),
      (body, device) => this.fill(this.rows.get(device.name), device),
    );
    const names = new Set(devices.map((device) => device.name));
    for (const name of [...this.rows.keys()]) if (!names.has(name)) this.rows.delete(name);
  }

  /** Draw all maps anew, in another theme's colours. */
  repaint() {
    for (const row of this.rows.values()) row.map.draw();
  }

  make(device) {
    const cell = (label, extra = "n") => element("td", { class: extra, data: { label } });
    const row = {
      name: device.name,
      visible: false,
      asking: null,
      serving: false,
      leaving: false,
      image: element("div", { class: "mono" }),
      chip: element("span", { class: "chip" }),
      health: element("span", { class: "health" }),
      note: element("small"),
      bar: element("i"),
      size: cell("Size"),
      served: cell("Served"),
      hits: cell("Hit ratio"),
      amplification: cell("Amplification"),
      trouble: element("p", { class: "trouble" }),
      map: new DeviceMap(),
    };
    row.meter = element("div", { class: "meter", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": `Progress of ${device.name}` }, row.bar);
    const remove = element("button", { type: "button", class: "quiet", "aria-label": `Delete ${device.name}`, text: "Delete", on: { click: () => this.onDelete(device.name) } });
    row.body = element(
      "tbody",
      {},
      element(
        "tr",
        {},
        element("td", {}, element("div", { class: "name", text: device.name }), row.image),
        element("td", {}, element("div", { class: "state" }, row.chip, row.health, row.note, row.meter)),
        row.size,
        row.served,
        row.hits,
        row.amplification,
        element("td", { class: "act n" }, remove),
      ),
      (row.more = element("tr", { class: "more" }, element("td", { colspan: "7" }, row.trouble, row.map.node))),
    );
    this.rows.set(device.name, row);
    queueMicrotask(() => this.seen.observe(row.body));
    return row.body;
  }

  fill(row, device) {
    row.serving = device.state === "ready";
    show(row.image, device.image);
    show(row.chip, device.state);
    row.chip.dataset.tone = TONES[device.state] ?? "";
    show(row.health, device.health);
    row.health.hidden = device.health === "ok";
    show(row.size, device.size === null ? "–" : bytes(device.size), device.size);
    show(row.served, bytes(device.served_bytes), device.served_bytes);
    show(row.hits, percent(device.hit_ratio), device.hit_ratio);
    show(row.amplification, ratio(device.amplification), device.amplification);
    this.progress(row, device);
    const error = device.error ?? device.progress?.error;
    const trouble = error ? `${error.code}: ${error.detail}` : "";
    show(row.trouble, trouble);
    row.trouble.hidden = !trouble;
    // What may pass by itself is less than what was given up.
    row.trouble.dataset.tone = row.serving || device.state === "indexing" ? "warn" : "bad";
    row.map.node.hidden = !row.serving;
    row.more.hidden = !trouble && !row.serving;
  }

  progress(row, device) {
    const { progress } = device;
    row.meter.hidden = !progress;
    if (!progress) {
      show(row.note, row.serving ? device.verification : "");
      row.note.hidden = !row.serving;
      return;
    }
    row.note.hidden = false;
    const share = progress.total ? progress.done / progress.total : 0;
    show(row.note, progress.phase === "waiting" ? waiting(progress) : phase(progress));
    row.bar.style.width = `${(share * 100).toFixed(1)}%`;
    row.meter.setAttribute("aria-valuenow", Math.round(share * 100));
  }

  /** Ask for no map of a device while `work` removes it: a map of what is gone is an error in the browser's console. */
  async without(name, work) {
    const row = this.rows.get(name);
    if (row) row.leaving = true;
    try {
      await row?.asking;
      await work();
    } catch (error) {
      if (row) row.leaving = false;
      throw error;
    }
  }

  refresh(row) {
    if (!row.visible || !row.serving || row.leaving || row.asking) return;
    row.asking = call("GET", devicePath(row.name, "/map"))
      .then((map) => row.map.update(map))
      .catch(() => {}) // the device is gone or does not serve any more: the next statistics will say so
      .finally(() => (row.asking = null));
  }
}
