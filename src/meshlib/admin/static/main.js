// The page: asks the process for its state every two seconds and draws the part that is looked at.

import { el, empty, keyed, pill, replace } from "./dom.js";
import { ago, span } from "./format.js";
import { ALL_PARTS, source } from "./source.js";
import { VIEWS, named } from "./views.js";

const INTERVAL = 2000;
const WARM = 300;

const at = (id) => document.getElementById(id);

/** What the reader has chosen. orders: of tables, by name; open: the number of the call, trace: the name of the trace that is shown in full. */
const chosen = { view: VIEWS[0], filter: "", live: true, orders: {}, open: null, trace: null, cluster: null, start: 0, everywhere: false };

let drawn = null;
let timer = null;

function place() {
  const { view, rest } = named(location.hash);
  chosen.view = view;
  if (view.id === "calls") chosen.open = /^\d+$/.test(rest) ? Number(rest) : null;
  if (view.id === "traces") chosen.trace = rest || null;
  if (view.id === "endpoints" && rest) [chosen.cluster, chosen.start] = [rest, 0];
}

/** Choose something else and draw anew. */
function choose(changes) {
  Object.assign(chosen, changes);
  return refresh();
}

/** Said to who does not see the page; only when it is something new. */
function tell(text) {
  if (at("told").textContent !== text) at("told").textContent = text;
}

// --- around the view ------------------------------------------------------------------------------------------------

/** How worrying, what, and since when. */
function stateOf({ process, now }) {
  const plane = process.control_plane;
  if (source.failed) return ["bad", source.failed, ""];
  if (!process.ready) return ["bad", process.why_not_ready, ""];
  if (plane.kind === "files") return ["good", "ready, from files", ""];
  return plane.connected ? ["good", "ready, connected", ago(plane.connected_since, now)] : ["warn", "ready, control plane lost", ""];
}

function header(model) {
  const { process } = model;
  document.title = `${process.service} · meshlib`;
  at("name").textContent = process.service;
  at("process").textContent =
    `pid ${process.pid} on ${process.host} · up ${span(model.now - process.started)} · meshlib ${process.meshlib}`;
  const [tone, text, since] = stateOf(model);
  const health = at("health");
  if (health.dataset.state !== undefined && health.dataset.state !== text) tell(`${process.service}: ${text}`);
  health.dataset.state = text;
  health.className = `pill ${tone}`;
  health.textContent = `${text} ${since}`.trim();
}

/** The other processes of this user, where there are any. */
function processes(model) {
  const label = at("processes");
  label.hidden = source.processes.length < 2;
  const select = label.querySelector("select");
  if (label.hidden || document.activeElement === select) return;
  const name = (each) => `${each.service || each.command || "process"} (${each.pid})`;
  replace(
    select,
    source.processes.map((each) => el("option", { value: each.name, selected: each.name === model.process.name }, name(each))),
  );
}

function tabs(model) {
  const mark = ([alarm, word]) =>
    model?.alarms[alarm] ? [" ", pill("bad", String(model.alarms[alarm])), el("span", { class: "hidden" }, ` ${word}`)] : null;
  const tab = (view) =>
    el("a", { href: `#/${view.id}`, "data-key": view.id, "aria-current": chosen.view === view ? "page" : null }, view.title, view.alarm && mark(view.alarm));
  replace(at("tabs"), VIEWS.map((view) => el("li", {}, tab(view))));
}

// --- the view -------------------------------------------------------------------------------------------------------

async function draw() {
  const { view } = chosen;
  if (!source.has(view.parts)) {
    tabs(source.model);
    return nothing(view, source.failed);
  }
  let extra;
  let shown;
  try {
    shown = await view.open();
    extra = (await shown.load?.(source, chosen)) ?? null;
  } catch (error) {
    source.failed ??= error instanceof TypeError ? "the process does not answer" : error.message;
    if (drawn !== view) nothing(view, source.failed);
    header(source.model);
    return null;
  }
  if (view !== chosen.view) return null; // another one was chosen meanwhile
  const { model } = source;
  header(model);
  processes(model);
  tabs(model);
  if (drawn !== view) at("view").replaceChildren();
  replace(at("view"), shown.draw({ model, extra, chosen, choose, source, matches: matching(chosen.filter) }));
  at("view").setAttribute("aria-label", view.title);
  if (drawn !== view) {
    tell(`${view.title} of ${model.process.service}`);
    keyed(at("tabs"), view.id)?.scrollIntoView({ block: "nearest", inline: "center" });
  }
  drawn = view;
  return null;
}

/** There is nothing to draw the view from. */
function nothing(view, why) {
  at("health").className = why ? "pill bad" : "pill";
  at("health").textContent = why ?? "loading";
  if (!why) return;
  drawn = null;
  at("view").replaceChildren(empty(`${view.title}: ${why}`));
  tell(why);
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
  if (chosen.live || !source.has(chosen.view.parts)) await source.refresh(chosen.view.parts);
  else source.failed = null;
  try {
    await draw();
  } finally {
    clearTimeout(timer); // of another refresh, which has begun meanwhile
    timer = chosen.live || source.failed ? setTimeout(() => (document.hidden ? null : refresh()), INTERVAL) : null;
  }
}

// --- what the reader does -------------------------------------------------------------------------------------------

/** What was opened beside a list gets the focus; who closes it comes back to where it was opened. */
function follow(before) {
  const what = chosen.view.id === "calls" ? "open" : "trace";
  if (chosen[what] === before[what]) return;
  const found = keyed(at("view"), chosen[what] === null ? `#/${chosen.view.id}/${before[what]}` : "opened");
  found?.focus({ preventScroll: true });
  const { top } = found?.getBoundingClientRect() ?? { top: 0 };
  if (top < at("tabs").getBoundingClientRect().bottom || top > innerHeight / 2) found?.scrollIntoView();
}

addEventListener("hashchange", async () => {
  const before = { ...chosen };
  place();
  if (chosen.view !== before.view) at("view").focus({ preventScroll: true });
  await refresh();
  if (chosen.view === before.view) follow(before);
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
at("live").addEventListener("click", async () => {
  const live = !chosen.live;
  at("live").setAttribute("aria-pressed", String(live));
  if (!live) await source.refresh(ALL_PARTS); // all views of the same moment
  choose({ live });
});
addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    at("filter").focus();
  } else if (event.key === "Escape" && event.target === at("filter")) {
    at("filter").value = "";
    at("filter").blur();
    choose({ filter: "" });
  } else if (event.key === "Escape" && !typing && (chosen.open !== null || chosen.trace !== null)) {
    location.hash = `#/${chosen.view.id}`;
  }
});

source.found = () => (source.model ? processes(source.model) : null);
place();
refresh().then(() => setTimeout(() => VIEWS.forEach((view) => view.open().catch(() => null)), WARM));
