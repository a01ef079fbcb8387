// Registering, deleting, and asking for a token.

import { call, devicePath, setToken } from "./api.js";
import { show } from "./dom.js";

export function register(done) {
  const form = document.getElementById("register-form");
  const open = prepare("register", async (fields) => {
    const body = {
      source: { image: fields.image.trim(), insecure: fields.insecure === "on" },
      layout: fields.layout,
    };
    if (fields.platform?.trim()) body.source.platform = fields.platform.trim();
    if (fields.credentials?.trim()) body.source.credentials = fields.credentials.trim();
    if (fields.layer?.trim()) body.layer = { index: Number(fields.layer) };
    await call("PUT", devicePath(fields.name.trim()), body);
    form.reset();
    done();
  });
  return () => open();
}

export function remove(without, done) {
  let name = "";
  const open = prepare("delete", async () => {
    await without(name, () => call("DELETE", devicePath(name)));
    done();
  });
  return (device) => {
    name = device;
    show("delete-name", device);
    open();
  };
}

export function token(done) {
  return prepare("token", async (fields) => {
    setToken(fields.token.trim());
    await call("GET", "/v1/stats");
    done();
  });
}

/** A dialog that stays open, saying why, while its action fails. Returns what opens it. */
function prepare(kind, action) {
  const dialog = document.getElementById(`${kind}-dialog`);
  const form = document.getElementById(`${kind}-form`);
  const problem = document.getElementById(`${kind}-problem`);
  const submit = form.querySelector("[type=submit]");
  form.querySelector("[data-close]")?.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    submit.disabled = true;
    show(problem, "");
    try {
      await action(Object.fromEntries(new FormData(form)));
      dialog.close();
    } catch (error) {
      show(problem, error.message);
    } finally {
      submit.disabled = false;
    }
  });
  return () => {
    if (dialog.open) return;
    show(problem, "");
    dialog.showModal();
  };
}
