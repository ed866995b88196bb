// The page: asks the process for its state every two seconds and draws the part that is looked at.

import { el, pill, replace } from "./dom.js";
import { ago, span } from "./format.js";
import { Source } from "./source.js";
import { VIEWS } from "./views.js";

const INTERVAL = 2000;

const source = new Source();
const at = (id) => document.getElementById(id);

/** What the reader has chosen. orders: of tables, by view; open: the number of the call, trace: the name of the trace that is shown in full. */
const chosen = { view: "services", filter: "", live: true, orders: {}, open: null, trace: null, cluster: null, start: 0, everywhere: false };

let drawn = null;
let timer = null;

function place() {
  const [view, ...rest] = decodeURIComponent(location.hash.slice(2)).split("/");
  const known = VIEWS.some((each) => each.id === view) ? view : "services";
  const moved = known !== chosen.view;
  chosen.view = known;
  if (known === "calls") chosen.open = rest[0] ? Number(rest[0]) : null;
  if (known === "traces") chosen.trace = rest[0] || null;
  if (known === "endpoints" && rest.length) [chosen.cluster, chosen.start] = [rest.join("/"), 0];
  return moved;
}

/** Choose something else and draw anew. */
function choose(changes) {
  Object.assign(chosen, changes);
  return refresh();
}

function header(model) {
  const { process } = model;
  document.title = `${process.service} · meshlib`;
  at("name").textContent = process.service;
  at("process").textContent =
    `pid ${process.pid} on ${process.host} · up ${span(model.now - process.started)} · meshlib ${process.meshlib}`;
  const plane = process.control_plane;
  const state = !process.ready
    ? ["bad", process.why_not_ready]
    : plane.kind === "files"
      ? ["good", "ready, from files"]
      : plane.connected
        ? ["good", `ready, connected ${ago(plane.connected_since, model.now)}`]
        : ["warn", "ready, control plane lost"];
  const [tone, text] = source.failed ? ["bad", source.failed] : state;
  at("health").className = `pill ${tone}`;
  if (at("health").textContent !== text) at("health").textContent = text;
}

/** The other processes of this user, where there are any. */
function processes(model) {
  const label = at("processes");
  label.hidden = source.processes.length < 2;
  const select = label.querySelector("select");
  if (label.hidden || document.activeElement === select) return;
  const name = (each) => `${each.service || each.command || "process"} (${each.pid})`;
  select.replaceChildren(
    ...source.processes.map((each) => el("option", { value: each.name, selected: each.name === model.process.name }, name(each))),
  );
}

function tabs(model) {
  const mark = (view) => {
    const number = view.alarm?.(model) ?? 0;
    return number ? pill("bad", String(number)) : null;
  };
  replace(
    at("tabs"),
    VIEWS.map((view) =>
      el(
        "li",
        {},
        el(
          "a",
          { href: `#/${view.id}`, "data-key": view.id, "aria-current": chosen.view === view.id ? "page" : null },
          view.title,
          " ",
          mark(view),
        ),
      ),
    ),
  );
}

async function draw() {
  const model = source.model;
  const view = VIEWS.find((each) => each.id === chosen.view);
  if (!model) {
    at("health").className = "pill bad";
    at("health").textContent = source.failed ?? "loading";
    return;
  }
  const extra = view.load ? await view.load(source, chosen) : null;
  if (view.id !== chosen.view) return; // another one was chosen meanwhile
  header(model);
  processes(model);
  tabs(model);
  replace(at("view"), view.draw({ model, extra, chosen, choose, source, matches: matching(chosen.filter) }));
  at("view").setAttribute("aria-label", view.title);
  if (drawn !== view.id) {
    at("told").textContent = `${view.title} of ${model.process.service}`;
    drawn = view.id;
  }
}

/** Whether a text contains every word of the filter. */
function matching(filter) {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  return (...texts) => {
    const text = texts.join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  };
}

async function refresh() {
  clearTimeout(timer);
  if (chosen.live || !source.model) await source.refresh();
  await draw();
  timer = setTimeout(() => (document.hidden ? null : refresh()), INTERVAL);
}

addEventListener("hashchange", () => {
  if (place()) at("view").focus({ preventScroll: true });
  refresh();
});
document.addEventListener("visibilitychange", () => document.hidden || refresh());
at("filter").addEventListener("input", (event) => {
  chosen.filter = event.target.value;
  chosen.start = 0;
  draw();
});
at("processes").addEventListener("change", (event) => {
  const other = source.processes.find((each) => each.name === event.target.value);
  location.search = other.self ? "" : `?${new URLSearchParams({ process: other.name })}`;
});
at("live").addEventListener("click", () => {
  at("live").setAttribute("aria-pressed", String(!chosen.live));
  choose({ live: !chosen.live });
});
addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    at("filter").focus();
  } else if (event.key === "Escape" && typing) {
    at("filter").value = "";
    at("filter").blur();
    choose({ filter: "" });
  }
});

place();
refresh();
