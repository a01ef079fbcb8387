// Numbers as people read them. Pure.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const WHOLE = new Intl.NumberFormat("en");

/** 1536 → "1.50 KiB": three digits that count. */
export function bytes(count) {
  let unit = 0;
  let value = count;
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit ? digits(value) : value} ${UNITS[unit]}`;
}

/** 0.00042 → ["420", "µs"]; null where nothing was measured. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return ["–", ""];
  if (seconds < 0.0009995) return [digits(seconds * 1e6), "µs"];
  if (seconds < 0.9995) return [digits(seconds * 1e3), "ms"];
  return [digits(seconds), "s"];
}

export function whole(count) {
  return WHOLE.format(Math.round(count));
}

/** Rates: 0, 0.03, 4.21, 97.1, 1,204. */
export function rate(value) {
  if (value === 0) return "0";
  return value >= 1000 ? whole(value) : digits(value);
}

export function percent(share) {
  if (share === null || share === undefined) return "–";
  const shown = share * 100;
  return `${shown >= 99.95 || shown === 0 ? Math.round(shown) : shown.toFixed(1)} %`;
}

export function ratio(value) {
  return value === null || value === undefined ? "–" : `${digits(value)}×`;
}

export function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

export function clock(date, withSeconds = true) {
  const parts = [date.getHours(), date.getMinutes(), ...(withSeconds ? [date.getSeconds()] : [])];
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

function digits(value) {
  if (value >= 99.95) return String(Math.round(value));
  return value >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}
