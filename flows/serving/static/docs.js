// The API page of `dashfusion serve`: shows openapi.json, and sends requests from forms that are made of it.
// All text is set as textContent. Addresses are relative, so that the page works below a proxy's sub-path.
const $ = (id) => document.getElementById(id);
const token = $("token");
let schemas = {};

// ---- helpers

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function withCode(text) { // `code` between backticks
  return text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part));
}

function prose(text) { // paragraphs and lists, as docstrings and the schema's descriptions have them
  return text.split(/\n\s*\n/).map((block) => {
    const lines = block.split("\n");
    if (!lines.every((line) => line.startsWith("- "))) return element("p", {}, ...withCode(lines.join(" ")));
    return element("ul", {}, ...lines.map((line) => element("li", {}, ...withCode(line.slice(2)))));
  });
}

function table(headings, rows) {
  const head = element("tr", {}, ...headings.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, ...cell))));
  const node = element("table", { class: "fields" }, element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { class: "scroll" }, node);
}

// ---- schemas

const refName = (schema) => (schema.$ref ? schema.$ref.split("/").pop() : "");
const resolve = (schema) => (schema.$ref ? schemas[refName(schema)] : schema);
const isFile = (schema) => schema.format === "binary" || Boolean(schema.contentMediaType);
const plain = (schema) => (schema.anyOf || []).find((option) => option.type !== "null") || schema; // without null

function describeType(schema) {
  const name = refName(schema);
  if (name) return [element("a", { href: `#schema-${name}` }, name)];
  if (schema.anyOf) return schema.anyOf.flatMap((option, i) => (i ? [" or ", ...describeType(option)] : describeType(option)));
  if (schema.enum || "const" in schema) return [(schema.enum || [schema.const]).map((v) => JSON.stringify(v)).join(" | ")];
  if (schema.type === "array" && schema.items) return ["array of ", ...describeType(schema.items)];
  if (schema.type === "object" && schema.additionalProperties) {
    return ["object of ", ...describeType(schema.additionalProperties)];
  }
  return [isFile(schema) ? "file" : schema.type || "any"];
}

function describeLimits(schema) {
  const limits = [];
  const { minimum, exclusiveMinimum, maximum, exclusiveMaximum, maxLength } = plain(schema);
  if (minimum !== undefined) limits.push(`at least ${minimum}`);
  if (exclusiveMinimum !== undefined) limits.push(`more than ${exclusiveMinimum}`);
  if (maximum !== undefined) limits.push(`at most ${maximum}`);
  if (exclusiveMaximum !== undefined) limits.push(`less than ${exclusiveMaximum}`);
  if (maxLength !== undefined) limits.push(`at most ${maxLength} characters`);
  if (schema.default !== undefined && schema.default !== "") limits.push(`default ${JSON.stringify(schema.default)}`);
  return limits.length ? ` (${limits.join(", ")})` : "";
}

function fieldTable(schema) {
  const required = schema.required || [];
  return table(["Name", "Type", "Meaning"], Object.entries(schema.properties || {}).map(([name, field]) => [
    [element("code", {}, name), required.includes(name) ? "" : " (optional)"],
    describeType(field),
    [...withCode(field.description || ""), describeLimits(field)],
  ]));
}

function schemaDetails(name) {
  const schema = schemas[name];
  const details = element("details", { id: `schema-${name}` }, element("summary", {}, name));
  details.append(...prose(schema.description || ""), fieldTable(schema));
  return details;
}

// ---- operations

function jsonSchema(content) {
  const media = content && content["application/json"];
  return media ? describeType(media.schema) : [];
}

function operation(path, method, spec) {
  const section = element("section", { class: "panel operation", id: `${method}${path.replaceAll("/", "-")}` });
  const title = element("h2", {}, element("span", { class: "method" }, method.toUpperCase()), element("code", {}, path));
  title.append(spec.summary || "");
  section.append(title, ...prose(spec.description || ""));
  const media = spec.requestBody && spec.requestBody.content["multipart/form-data"];
  const form = media ? resolve(media.schema) : { properties: {} };
  if (media) section.append(element("h3", {}, "Form fields (multipart/form-data)"), fieldTable(form));
  const responses = Object.entries(spec.responses).map(([status, response]) => [
    [element("code", {}, status)], jsonSchema(response.content), prose(response.description || ""),
  ]);
  const details = element("details", {}, element("summary", {}, "Responses"), table(["Status", "Body", "Meaning"], responses));
  section.append(details, tryForm(path, method, spec, form));
  return section;
}

function input(name, field, id) {
  const schema = plain(field);
  if (isFile(schema)) return element("input", { type: "file", id, name });
  if (schema.type === "boolean") {
    const options = ["true", "false"].map((value) => element("option", { value }, value));
    const select = element("select", { id, name }, ...options);
    select.value = String(field.default ?? true);
    return select;
  }
  if (schema.type === "number" || schema.type === "integer") {
    return element("input", { type: "number", step: "any", id, name, value: field.default ?? "" });
  }
  return element("textarea", { rows: 2, id, name }, field.default ?? "");
}

function tryForm(path, method, spec, schema) {
  const form = element("form", { class: "try" }, element("h3", {}, "Try it"));
  const inputs = Object.entries(schema.properties).map(([name, field]) => {
    const id = `${method}${path.replaceAll("/", "-")}-${name}`;
    const control = input(name, field, id);
    control.dataset.initial = control.type === "file" ? "" : control.value;
    form.append(element("label", { for: id }, name), control);
    return control;
  });
  const send = element("button", { class: "primary" }, "Send");
  const curl = element("pre", { class: "curl" });
  const status = element("p", { class: "status", role: "status" });
  const body = element("pre", { class: "body", tabindex: 0 });
  status.hidden = body.hidden = true;
  const needsToken = Boolean(spec.security);
  const update = () => { curl.textContent = curlCommand(path, method, inputs, needsToken); };
  form.append(element("h3", {}, "As a command"), curl, element("div", { class: "actions" }, send), status, body);
  form.addEventListener("input", update);
  token.addEventListener("input", update);
  update();
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    status.hidden = false;
    status.className = "status";
    status.textContent = "Sending";
    try {
      const answer = await request(path, method, inputs, needsToken);
      status.textContent = answer.status;
      status.classList.toggle("failed", !answer.ok);
      body.textContent = answer.body;
      body.hidden = false;
    } catch (error) {
      status.textContent = `The server does not answer (${error.message}).`;
      status.classList.add("failed");
    }
    send.disabled = false;
  });
  return form;
}

function entries(inputs) { // [name, value] of what was changed; for the rest the server has the defaults
  return inputs.flatMap((control) => {
    const value = control.type === "file" ? control.files[0] : control.value;
    return value && value !== control.dataset.initial ? [[control.name, value]] : [];
  });
}

async function request(path, method, inputs, needsToken) {
  const options = { method: method.toUpperCase(), headers: {} };
  if (needsToken && token.value) options.headers.Authorization = `Bearer ${token.value.trim()}`;
  if (inputs.length) {
    options.body = new FormData();
    for (const [name, value] of entries(inputs)) options.body.append(name, value);
  }
  const began = performance.now();
  const response = await fetch(path.slice(1), options);
  const text = await response.text();
  const seconds = ((performance.now() - began) / 1000).toFixed(2);
  let body = text;
  try { body = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: shown as it is */ }
  return { ok: response.ok, status: `${response.status} ${response.statusText} in ${seconds} s`, body };
}

function curlCommand(path, method, inputs, needsToken) {
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const parts = ["curl"];
  if (needsToken) parts.push('-H "Authorization: Bearer $DASHFUSION_TOKEN"');
  for (const [name, value] of entries(inputs)) {
    if (value instanceof File) parts.push("-F", quote(`${name}=@"${value.name.replace(/["\\]/g, "\\$&")}"`));
    else parts.push("--form-string", quote(`${name}=${value}`));
  }
  if (inputs.length && parts.every((part) => part !== "-F")) parts.push("-F 'file=@talk.mp4'");
  parts.push(quote(new URL(path.slice(1), location.href).href));
  return parts.join(" ");
}

// ---- start

function openTarget() { // a link to a schema opens it
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
}

async function start() {
  let api;
  try {
    api = await (await fetch("openapi.json")).json();
  } catch (error) {
    $("problem").textContent = `The schema cannot be loaded (${error.message}); load the page again.`;
    $("problem").hidden = false;
    return;
  }
  schemas = (api.components && api.components.schemas) || {};
  $("about").replaceChildren(`Version ${api.info.version}. `, ...withCode(api.info.description.replaceAll("\n", " ")));
  $("token-form").hidden = !(api.components && api.components.securitySchemes);
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, spec] of Object.entries(methods)) $("operations").append(operation(path, method, spec));
  }
  $("schemas").append(...Object.keys(schemas).filter((name) => !name.startsWith("Body_")).map(schemaDetails));
  $("schemas").hidden = false;
  openTarget();
  addEventListener("hashchange", openTarget);
}

try { token.value = sessionStorage.getItem("token") || ""; } catch { token.value = ""; } // storage may be disabled
token.addEventListener("input", () => {
  try { sessionStorage.setItem("token", token.value.trim()); } catch { return; }
});
$("token-form").addEventListener("submit", (event) => event.preventDefault());
start();
