// Building elements. Text is only ever set as text: there is no way here to set markup.

export function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  const { text, data, on, ...rest } = options;
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(data ?? {})) made.dataset[name] = value;
  for (const [name, handler] of Object.entries(on ?? {})) made.addEventListener(name, handler);
  for (const [name, value] of Object.entries(rest)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function drawing(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Set text (and the exact value behind it) only where it changed, so that selections and screen readers are left alone. */
export function show(target, text, value) {
  const node = typeof target === "string" ? document.getElementById(target) : target;
  if (node.textContent !== text) node.textContent = text;
  if (value !== undefined) node.dataset.value = value === null ? "" : String(value);
  return node;
}

/** Make the children of a list be those for `items`, reusing what is there by key. */
export function keyed(parent, items, key, make, update) {
  const present = new Map([...parent.children].filter((node) => node.dataset.key).map((node) => [node.dataset.key, node]));
  let place = null;
  for (const item of items) {
    const name = key(item);
    let node = present.get(name);
    if (!node) {
      node = make(item);
      node.dataset.key = name;
    }
    present.delete(name);
    update(node, item);
    const wanted = place ? place.nextElementSibling : [...parent.children].find((child) => child.dataset.key) ?? null;
    if (wanted !== node) parent.insertBefore(node, wanted);
    place = node;
  }
  for (const node of present.values()) node.remove();
}

export function hide(id, hidden) {
  document.getElementById(id).hidden = hidden;
}
