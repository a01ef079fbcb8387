// Talking to the gateway: JSON in, JSON out, problems as errors, a token where one is needed.

const TOKEN = "blockgate-token";

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

export async function call(method, path, body) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.authorization = `Bearer ${token}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(path, {
    method,
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(15000),
    cache: "no-store",
  });
  if (answer.status === 204) return null;
  const told = await answer.json().catch(() => null);
  if (!answer.ok) throw new Problem(answer.status, told?.detail ?? `The gateway answered ${answer.status}.`);
  return told;
}

export function devicePath(name, rest = "") {
  return `/v1/devices/${encodeURIComponent(name)}${rest}`;
}
