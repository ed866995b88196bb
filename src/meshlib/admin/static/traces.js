// Traces: one request on its way through several processes, as a list and as a waterfall.

import { el, empty, facts, panel, pill, svg, table } from "./dom.js";
import { clock, count, milliseconds, moment } from "./format.js";
import { code, link, opened, sorting } from "./pieces.js";

const DEEPEST = 8;
const LEAST = 4;

/** The list, and of the chosen trace what was last known: processes forget. */
export async function load(source, chosen) {
  const found = await source.get("mesh/traces.json", {}, null);
  const name = chosen.trace;
  if (!name) return { ...found, open: null };
  const listed = found.traces.find((trace) => trace.id === name);
  const open = (listed?.spans.length === listed?.size ? listed : null) ?? (await source.get("mesh/trace.json", { id: name }, null));
  if (open && open.size >= (source.traces.get(name)?.size ?? 0)) source.traces.set(name, open);
  return { ...found, open: source.traces.get(name) ?? null };
}

export function draw({ model, extra, chosen, choose, matches }) {
  const rows = extra.traces.filter((trace) => matches(trace.name, trace.id, ...trace.services, ...trace.spans.map((span) => span.name)));
  const columns = [
    { name: "Request", whole: true, cell: (row) => [link(`#/traces/${row.id}`, row.name), el("div", { class: "dim" }, row.service)] },
    { name: "Outcome", third: true, sort: (row) => row.errors, cell: outcome },
    { name: "Duration", number: true, third: true, sort: (row) => row.duration, cell: (row) => milliseconds(row.duration) },
    { name: "Spans", number: true, third: true, sort: (row) => row.size, cell: (row) => count(row.size) },
    { name: "Services", whole: true, sort: (row) => row.services.length, cell: (row) => row.services.join(", ") },
    { name: "At", spare: true, sort: (row) => row.at, cell: (row) => clock(row.at) },
  ];
  const known = extra.processes.length;
  const list = panel(
    "Recent traces",
    el("span", { class: "dim" }, `of ${known} ${known === 1 ? "process" : "processes"}, newest first`),
    rows.length
      ? table(columns, rows, { caption: "Recent traces", key: (row) => row.id, chosen: (row) => row.id === chosen.trace, ...sorting("traces", { chosen, choose }) })
      : extra.traces.length
        ? empty("No trace fits the filter.")
        : nothing(extra.processes),
  );
  return [chosen.trace ? opened(one(extra.open, model)) : null, list];
}

/** Failed for whoever asked, or failures that nobody outside has seen. */
function outcome(trace) {
  if (trace.failed) return pill("bad", "failed");
  if (!trace.errors) return pill("good", "ok");
  return [pill("warn", "ok"), el("div", { class: "dim" }, `${count(trace.errors)} failed inside`)];
}

function nothing(processes) {
  const remembered = processes.reduce((all, each) => all + each.remembered, 0);
  if (!remembered) return empty("No call has been made, and no request been served yet.");
  return el(
    "div",
    { class: "empty" },
    el("p", {}, `None of the ${count(remembered)} calls and requests that are remembered has been recorded by OpenTelemetry.`),
    el("p", {}, "Nothing records as long as no TracerProvider is set, or its sampler says no. At the start of each process:"),
    el("pre", { class: "mono" }, "from opentelemetry import trace\nfrom opentelemetry.sdk.trace import TracerProvider\n\ntrace.set_tracer_provider(TracerProvider())"),
    el("p", {}, "That is enough for this page; an exporter is needed only to send the traces elsewhere, too."),
  );
}

function one(trace, model) {
  const close = link("#/traces", "Close");
  if (!trace) return panel("Trace", close, empty("No process remembers anything of this trace any longer."));
  const columns = [
    { name: "What", whole: true, cell: (row) => el("div", { class: `depth-${Math.min(row.depth, DEEPEST)}` }, what(row, model)) },
    { name: "Where", third: true, cell: (row) => [row.service, el("div", { class: "dim" }, row.process)] },
    { name: "Outcome", third: true, cell: result },
    { name: "Duration", number: true, third: true, cell: (row) => milliseconds(row.duration) },
    { name: "When", whole: true, cell: (row) => bar(row, trace) },
  ];
  return panel(
    `${trace.name}`,
    close,
    facts([
      ["Trace", code(trace.id)],
      ["Began", moment(trace.at)],
      ["Took", milliseconds(trace.duration)],
      ["Services", trace.services.join(", ")],
      ["Failures", trace.errors ? `${count(trace.errors)} of ${count(trace.size)} spans` : null],
    ]),
    el("div", { class: "waterfall" }, table(columns, trace.spans, { caption: "Spans of the trace" })),
    trace.spans.length < trace.size ? el("p", { class: "empty" }, `${trace.size - trace.spans.length} more`) : null,
  );
}

const KINDS = { request: "serves", call: "calls", attempt: "attempt at" };

/** A call leads to why it went there, in the process that made it. */
function what(span, model) {
  const why = span.process === model.process.name ? `#/calls/${span.number}` : `?${new URLSearchParams({ process: span.process })}#/calls/${span.number}`;
  return [
    el("span", { class: "dim" }, `${KINDS[span.kind]} `),
    span.number === null ? el("span", { class: "wrap" }, span.name) : el("a", { class: "wrap", href: why, "data-key": `why-${span.process}-${span.number}` }, span.name),
    span.note && span.kind !== "attempt" ? el("div", { class: "dim wrap" }, span.kind === "call" ? `cluster ${span.note}` : `for ${span.note}`) : null,
  ];
}

function result(span) {
  const text = span.grpc_status && span.kind !== "attempt" ? `gRPC ${span.grpc_status}` : String(span.status || "none");
  const beside = [span.flags === "-" ? null : span.flags, span.kind === "attempt" ? span.note : null].filter(Boolean).join(", ");
  return [pill(span.failed ? "bad" : span.status >= 400 ? "warn" : "good", text), beside ? el("div", { class: "dim wrap" }, beside) : null];
}

function bar(span, trace) {
  const total = Math.max(trace.duration, 0.001);
  const x = Math.min(996, (1000 * 1000 * (span.at - trace.at)) / total);
  const width = Math.max(LEAST, Math.min(1000 - x, (1000 * span.duration) / total));
  return svg(
    "svg",
    { class: "bar", viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img", "aria-label": `after ${milliseconds((span.at - trace.at) * 1000)}` },
    svg("rect", { class: span.failed ? "bad" : span.kind, x: x.toFixed(1), y: 0, width: width.toFixed(1), height: 10 }),
  );
}
