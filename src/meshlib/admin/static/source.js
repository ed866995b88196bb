// What the process says, and what it said before: the rates of the last minutes.

const KEPT = 60;
const SELDOM = 5;

export class Source {
  constructor() {
    this.model = null;
    this.failed = null;
    this.rates = new Map();
    this.calls = new Map();
    this.traces = new Map();
    this.processes = [];
    this.asked = 0;
    this.process = new URLSearchParams(location.search).get("process");
  }

  /** The JSON of a path, null when there is none. */
  async get(path, parameters = {}, process = this.process) {
    const query = new URLSearchParams(parameters);
    if (process) query.set("process", process);
    const text = query.toString();
    const answer = await fetch(text ? `${path}?${text}` : path, { cache: "no-cache" });
    if (answer.status === 404) return null;
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${(await answer.text()).slice(0, 200)}`);
    return answer.json();
  }

  /** Ask anew. What was known stays when the process does not answer. */
  async refresh() {
    try {
      const asking = this.asked % SELDOM === 0 ? this.get("mesh/processes.json", {}, null) : null;
      const model = await this.get("mesh.json");
      if (!model) throw new Error("there is no such process");
      this.model = model;
      this.failed = null;
      this.asked += 1;
      if (asking) this.processes = (await asking).processes;
      for (const service of model.services) {
        const kept = this.rates.get(service.name) ?? [];
        kept.push(service.rate);
        if (kept.length > KEPT) kept.shift();
        this.rates.set(service.name, kept);
      }
    } catch (error) {
      this.asked = 0;
      this.failed = error instanceof TypeError ? "the process does not answer" : error.message;
    }
  }
}
