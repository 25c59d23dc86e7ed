"use strict";
// Sends calls from the forms, and shows what the loaded model knows (from openapi.json).
const forms = [...document.querySelectorAll("form.try")];
const tokens = document.getElementById("tokens");
const examples = JSON.parse(document.getElementById("examples").textContent);

const address = (path) => new URL("." + path, location.href);
const tokenOf = (name) => (name && tokens.elements[name] ? tokens.elements[name].value.trim() : "");
const headersOf = (form) => {
  const token = tokenOf(form.dataset.token);
  return {
    ...(form.dataset.method === "POST" ? { "Content-Type": "application/json" } : {}),
    ...(token ? { Authorization: "Bearer " + token } : {}),
  };
};
// as the function `pretty` of api_page.py: what fits on a line has no line breaks
function pretty(content, indent = "") {
  if (content === null || typeof content !== "object") return JSON.stringify(content);
  const inner = indent + "  ";
  const isList = Array.isArray(content);
  const [open, close] = isList ? "[]" : "{}";
  const parts = Object.entries(content).map(([name, one]) => (isList ? "" : JSON.stringify(name) + ": ") + pretty(one, inner));
  const line = open + parts.join(", ") + close;
  if (indent.length + line.length <= 72 && !line.includes("\n")) return line;
  return open + "\n" + parts.map((part) => inner + part).join(",\n") + "\n" + indent + close;
}
function prettyText(text) {
  try {
    return pretty(JSON.parse(text));
  } catch {
    return text;
  }
}
const element = (name, text, ...children) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};

async function send(form) {
  const [button, status, answer] = [".buttons button", ".status", ".answer"].map((at) => form.querySelector(at));
  const area = form.querySelector("textarea");
  button.disabled = true;
  status.className = "meta status";
  status.textContent = "waiting for the answer …";
  const started = performance.now();
  try {
    const reply = await fetch(address(form.dataset.path), {
      method: form.dataset.method,
      headers: headersOf(form),
      body: area ? area.value : undefined,
    });
    const text = await reply.text();
    const version = reply.headers.get("X-Model-Version");
    const took = Math.round(performance.now() - started);
    status.textContent = `${reply.status} in ${took} ms` + (version ? `, model version ${version}` : "");
    status.classList.add(reply.ok ? "good" : "bad");
    const shown = prettyText(text);
    answer.textContent = shown.slice(0, 200000) + (shown.length > 200000 ? "\n… (shortened)" : "");
  } catch (error) {
    status.textContent = "no answer: " + error.message;
    status.classList.add("bad");
    answer.textContent = "";
  }
  answer.hidden = !answer.textContent;
  button.disabled = false;
}

function curl(form) {
  const quoted = (text) => "'" + text.replaceAll("'", "'\\''") + "'";
  const area = form.querySelector("textarea");
  const words = ["curl -s", quoted(String(address(form.dataset.path)))];
  for (const [name, value] of Object.entries(headersOf(form))) {
    words.push("-H " + (name === "Authorization" ? '"Authorization: Bearer $TOKEN"' : quoted(`${name}: ${value}`)));
  }
  if (area) words.push("-d " + quoted(area.value));
  return words.join(" ");
}

function choose(form, name) {
  const chosen = (examples[form.dataset.operation] || {})[name];
  const area = form.querySelector("textarea");
  if (!chosen) return;
  area.value = pretty(chosen.value);
  area.rows = Math.min(24, area.value.split("\n").length + 1);
  area.dataset.written = area.value;
}

function useExamples(api) {
  for (const operations of Object.values(api.paths)) {
    for (const operation of Object.values(operations)) {
      if (operation.requestBody) examples[operation.operationId] = operation.requestBody.content["application/json"].examples;
    }
  }
  for (const form of forms.filter((one) => examples[one.dataset.operation])) {
    const [select, area] = [form.querySelector("select"), form.querySelector("textarea")];
    const names = examples[form.dataset.operation];
    const isUntouched = area.value === area.dataset.written;
    const before = select.value;
    select.replaceChildren(...Object.entries(names).map(([name, one]) => {
      const option = element("option", one.summary);
      option.value = name;
      return option;
    }));
    if (before in names) select.value = before;
    if (isUntouched) choose(form, select.value);
  }
}

function showFacts(api) {
  const titles = { Filters: "Attributes of items, for filters", UserAttributes: "Attributes of users", Context: "Context columns" };
  const found = Object.entries(titles).map(([name, title]) => {
    const rows = Object.entries(api.components.schemas[name].properties || {}).map(([key, one]) =>
      element("tr", "", element("th", "", element("code", key)), element("td", one.description)));
    if (!rows.length) return element("div", "", element("h3", title), element("p", "none"));
    const table = element("table", "", element("tbody", "", ...rows));
    table.className = "fields";
    return element("div", "", element("h3", title), table);
  });
  const types = api.components.schemas.HistoryEvent.properties.event_type.anyOf[0].enum || [];
  const codes = types.flatMap((one, place) => [place ? ", " : "", element("code", one)]);
  found.push(element("div", "", element("h3", "Event types"), element("p", types.length ? "" : "none", ...codes)));
  document.getElementById("facts").replaceChildren(...found);
}

async function load() {
  const said = document.getElementById("loaded");
  const token = tokenOf("callerToken");
  if (tokens.elements.callerToken && !token) {
    said.textContent = "Enter the token of callers above to see it.";
    return;
  }
  try {
    const reply = await fetch(address("/openapi.json"), { headers: token ? { Authorization: "Bearer " + token } : {} });
    const content = await reply.json();
    if (!reply.ok) throw new Error(content.error);
    said.textContent = Object.entries(content.info["x-model"]).map(([uri, version]) => uri + (version && !uri.endsWith("/" + version) ? `, version ${version}` : "")).join("; ");
    showFacts(content);
    useExamples(content);
  } catch (error) {
    said.textContent = "It cannot be read: " + error.message;
    document.getElementById("facts").replaceChildren();
  }
}

for (const form of forms) {
  const [select, area] = [form.querySelector("select"), form.querySelector("textarea")];
  form.querySelector(".buttons").hidden = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form);
  });
  form.querySelector(".plain").addEventListener("click", async () => {
    const command = curl(form);
    const status = form.querySelector(".status");
    status.className = "meta status";
    try {
      await navigator.clipboard.writeText(command);
      status.textContent = "copied";
    } catch { // the clipboard needs HTTPS or localhost
      status.textContent = command;
    }
  });
  if (area) {
    area.dataset.written = area.value;
    area.rows = Math.min(24, area.value.split("\n").length + 1);
    select.hidden = false;
    select.addEventListener("change", () => choose(form, select.value));
  }
}
tokens.hidden = false;
tokens.addEventListener("submit", (event) => event.preventDefault());
tokens.addEventListener("change", (event) => event.target.name === "callerToken" && load());
document.getElementById("known").hidden = false;
load();
