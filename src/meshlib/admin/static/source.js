// What the process says, and how often it was called before. The first question leaves with this module, before the others are here.

import { VIEWS, named } from "./views.js";

const KEPT = 60;
const LONGEST = 10;
const SELDOM = 5;
const PATIENCE = 10000;

class Source {
  constructor() {
    this.model = null;
    this.failed = null;
    this.totals = new Map();
    this.calls = new Map();
    this.traces = new Map();
    this.processes = [];
    this.found = () => null;
    this.asked = 0;
    this.process = new URLSearchParams(location.search).get("process");
    this.early = null;
  }

  /** The JSON of a path, null when there is none. */
  async get(path, parameters = {}, process = this.process) {
    const query = new URLSearchParams(parameters);
    if (process) query.set("process", process);
    const text = query.toString();
    const answer = await fetch(text ? `${path}?${text}` : path, { cache: "no-cache", signal: AbortSignal.timeout(PATIENCE) });
    if (answer.status === 404) return null;
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${(await answer.text()).slice(0, 200)}`);
    return answer.json();
  }

  /** Ask for these parts now; the next refresh for the same ones takes the answer. */
  begin(parts) {
    const answer = this.get("mesh.json", { parts });
    answer.catch(() => null); // said by refresh
    this.early = { parts: String(parts), answer };
  }

  /** Whether these parts are known. */
  has(parts) {
    return this.model !== null && parts.every((part) => part in this.model);
  }

  /** Ask anew for these parts. What was known stays, also when the process does not answer. */
  async refresh(parts) {
    try {
      const early = this.early?.parts === String(parts) ? this.early.answer : null;
      this.early = null;
      if (this.asked % SELDOM === 0) this.findProcesses();
      const found = await (early ?? this.get("mesh.json", { parts }));
      if (!found) throw new Error("there is no such process");
      this.model = { ...this.model, ...found };
      this.failed = null;
      this.asked += 1;
      for (const service of found.services ?? []) this.note(service, found);
    } catch (error) {
      this.asked = 0;
      this.failed = error instanceof Error && !(error instanceof TypeError) ? error.message : "the process does not answer";
    }
  }

  /** The other processes of this user; nothing waits for them. */
  async findProcesses() {
    try {
      this.processes = (await this.get("mesh/processes.json", {}, null)).processes;
      this.found();
    } catch {
      // said by the other question
    }
  }

  /** Its first moment is that of `window` seconds ago. */
  note(service, { now, window }) {
    const before = Math.min(window, LONGEST);
    const kept = this.totals.get(service.name) ?? [[now - before, service.total - service.rate * before]];
    kept.push([now, service.total]);
    if (kept.length > KEPT) kept.shift();
    this.totals.set(service.name, kept);
  }
}

export const ALL_PARTS = [...new Set(VIEWS.flatMap((view) => view.parts))];

export const source = new Source();

const { view } = named(location.hash);
source.begin(view.parts);
view.open().catch(() => null); // said when it is drawn
