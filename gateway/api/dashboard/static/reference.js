// The API's reference: /openapi.json as a page.

import { call, Problem } from "./api.js";
import { element, show } from "./dom.js";

const METHODS = ["get", "head", "put", "post", "delete"];

load();

async function load() {
  try {
    render(await call("GET", "/openapi.json"));
  } catch (error) {
    const refused = error instanceof Problem && (error.status === 401 || error.status === 403);
    show("problem", refused ? "A token is needed: give it to the dashboard, then come back in the same tab." : error.message);
  }
}

function render(api) {
  show("version", api.info.version);
  document.getElementById("about").append(...prose(api.info.description), element("p", {}, "For programs: ", element("a", { href: "/openapi.json", text: "openapi.json" })));
  const groups = new Map();
  for (const [path, operations] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((name) => operations[name])) {
      const tag = operations[method].tags?.[0] ?? "other";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(operation(method, path, operations[method]));
    }
  }
  for (const [tag, entries] of [...groups].sort(([one], [other]) => one.localeCompare(other))) {
    document.getElementById("operations").append(element("section", { class: "card" }, element("header", {}, element("h2", { text: tag })), ...entries));
  }
  const schemas = document.getElementById("schemas");
  schemas.append(...Object.entries(api.components.schemas).map(([name, schema]) => documentOf(name, schema)));
  schemas.hidden = false;
  window.addEventListener("hashchange", reveal);
  reveal();
}

/** Open what the address names. */
function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target?.tagName !== "DETAILS") return;
  target.open = true;
  target.scrollIntoView();
}

function operation(method, path, told) {
  const parts = prose(told.description ?? "");
  if (told.parameters?.length) {
    parts.push(fields(told.parameters.map(({ name, in: place, required, schema, description }) => [name, [`${place}, `, ...type(schema)], required, description])));
  }
  for (const [kind, { schema }] of Object.entries(told.requestBody?.content ?? {})) {
    parts.push(element("p", {}, "Body: ", element("code", { text: kind }), ...(schema ? [", ", ...type(schema)] : [])));
  }
  const answers = Object.entries(told.responses).map(([status, { description, content }]) => {
    const schema = Object.values(content ?? {}).find((entry) => entry.schema)?.schema;
    return [status, schema ? type(schema) : [], true, description === "Successful Response" ? "" : description];
  });
  parts.push(fields(answers));
  return element(
    "details",
    { id: `${method}-${path}` },
    element("summary", {}, element("span", { class: "chip", text: method.toUpperCase() }), element("code", { text: path }), element("small", { text: told.summary ?? "" })),
    ...parts,
  );
}

function documentOf(name, schema) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([field, held]) => [field, type(held), required.has(field), held.description]);
  return element("details", { id: name }, element("summary", {}, element("code", { text: name })), ...prose(schema.description ?? ""), fields(rows));
}

/** Rows of name, type (nodes), whether it must be there, and what it means. */
function fields(rows) {
  return element(
    "table",
    { class: "plain" },
    element("tbody", {}, ...rows.map(([name, kind, required, meaning]) =>
      element("tr", {}, element("th", { scope: "row" }, element("code", { text: name }), required ? "" : element("small", { text: " optional" })), element("td", {}, ...kind), element("td", {}, ...marked(meaning ?? ""))),
    )),
  );
}

/** A schema in words, with links to the documents that it names. */
function type(schema) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1);
    return [element("a", { href: `#${name}`, text: name })];
  }
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.flatMap((choice, index) => [...(index ? [" or "] : []), ...type(choice)]);
  if (schema.type === "array") return ["list of ", ...type(schema.items ?? {})];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" or ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  return [[schema.type ?? "anything", schema.format].filter(Boolean).join(", ")];
}

function prose(text) {
  return text.split(/\n\n+/).filter(Boolean).map((paragraph) => element("p", {}, ...marked(paragraph)));
}

/** Text with `code` in it. */
function marked(text) {
  return text.split("`").map((part, index) => (index % 2 ? element("code", { text: part }) : part));
}
