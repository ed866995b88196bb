// Recent calls, and why each went where it went; requests that were served.

import { el, empty, facts, panel, svg, table } from "./dom.js";
import { clock, milliseconds, span } from "./format.js";
import { code, link, opened, outcome, signed, sorting } from "./pieces.js";

/** A call does not change any more: it is asked for once. Of one that the process has forgotten, what the list said is left. */
export async function load(source, chosen) {
  const number = chosen.open;
  if (number === null) return null;
  const known = source.calls.get(number) ?? { row: source.model.calls.find((call) => call.number === number) ?? null };
  source.calls.set(number, known);
  known.decision ??= await source.get("mesh/call.json", { number });
  return known;
}

export function draw({ model, extra, chosen, choose, matches }) {
  const rows = model.calls.filter((call) =>
    matches(call.method, call.authority, call.path, call.status, call.flags, call.details, call.cluster ?? "", call.endpoint ?? "", call.route ?? ""),
  );
  const columns = [
    { name: "Call", whole: true, cell: (row) => link(`#/calls/${row.number}`, `${row.method} ${row.authority}${row.path}`) },
    { name: "Outcome", third: true, sort: (row) => row.status, cell: (row) => [outcome(row), row.flags === "-" ? null : ` ${row.flags}`] },
    { name: "Duration", number: true, third: true, sort: (row) => row.duration, cell: (row) => milliseconds(row.duration) },
    { name: "Attempts", number: true, third: true, sort: (row) => row.attempts, cell: (row) => row.attempts },
    { name: "Endpoint", cell: (row) => [row.cluster ?? "–", row.endpoint ? el("div", { class: "dim mono" }, row.endpoint) : null] },
    { name: "At", spare: true, sort: (row) => row.at, cell: (row) => clock(row.at) },
  ];
  const list = panel(
    "Recent calls",
    el("span", { class: "dim" }, `${model.calls.length}, newest first; failed ones are kept longer`),
    rows.length
      ? table(columns, rows, { caption: "Recent calls", key: (row) => row.number, chosen: (row) => row.number === chosen.open, ...sorting("calls", { chosen, choose }) })
      : empty(model.calls.length ? "No call fits the filter." : "No call has ended yet."),
  );
  return [extra ? el("div", { class: "split" }, list, opened(decision(extra))) : list, served(model, { chosen, choose, matches })];
}

function served(model, { chosen, choose, matches }) {
  if (!model.requests.length) return null;
  const rows = model.requests.filter((row) => matches(row.method, row.authority, row.path, row.operation, row.status, row.flags, row.details, row.peer ?? ""));
  const columns = [
    { name: "Request", whole: true, cell: (row) => code(`${row.method} ${row.path}`) },
    { name: "Outcome", third: true, sort: (row) => row.status, cell: (row) => [outcome(row), row.flags === "-" ? null : ` ${row.flags}`] },
    { name: "Duration", number: true, third: true, sort: (row) => row.duration, cell: (row) => milliseconds(row.duration) },
    { name: "Trace", third: true, cell: (row) => (row.trace ? link(`#/traces/${row.trace}`, "show") : "–") },
    { name: "From", whole: true, sort: (row) => row.peer, cell: (row) => (row.peer ? code(row.peer) : "–") },
    { name: "At", spare: true, sort: (row) => row.at, cell: (row) => clock(row.at) },
  ];
  return panel(
    "Requests served",
    null,
    rows.length ? table(columns, rows, { caption: "Requests served", key: (row) => row.number, ...sorting("served", { chosen, choose }) }) : empty("No request fits the filter."),
  );
}

function decision({ decision: found, row }) {
  const close = link("#/calls", "Close");
  if (!found) return panel("Why it went there", close, forgotten(row));
  const total = Math.max(found.duration ?? 0, ...found.attempts.map((each) => each.after + (each.duration ?? 0)), 1e-9);
  return panel(
    "Why it went there",
    close,
    facts([
      ["Request", code(`${found.method} ${found.scheme}://${found.authority}${found.path}`)],
      ["Listener", found.listener],
      ["Virtual host", found.virtual_host && `${found.virtual_host} of ${found.route_config}`],
      ["Route", found.route === null ? null : String(found.route)],
      ["Action", found.action],
      ["Cluster", found.cluster],
      ["Split", found.weighted_clusters.length ? found.weighted_clusters.map((each) => `${each.cluster} ${each.weight}`).join(", ") : null],
      ["Sent as", found.path_sent && code(`${found.authority_sent}${found.path_sent}`)],
      ["Timeout", found.timeout ? span(found.timeout) : null],
      ["Retries", found.retry && `${found.retry.on.join(", ")}; ${found.retry.attempts} attempts`],
      ["Endpoint", found.endpoint && code(`${found.endpoint} ${found.protocol}${found.secure ? ", TLS" : ""}`)],
      ["Status", found.grpc_status ? `${found.status}, gRPC ${found.grpc_status}` : String(found.status || "none")],
      ["Flags", found.flags === "-" ? null : found.flags],
      ["Details", code(found.details)],
      ["Error", found.error],
      ["Duration", milliseconds(found.duration === null ? null : found.duration * 1000)],
      ["Configuration", Object.entries(found.versions).map(([kind, version]) => `${kind} ${version}`).join(", ")],
      ["Not applied", found.unsupported.join(", ")],
      ["Trace", row?.trace && link(`#/traces/${row.trace}`, row.trace)],
    ]),
    found.attempts.length ? el("ol", { class: "attempts", "aria-label": "Attempts" }, found.attempts.map((each) => attempt(each, total))) : null,
  );
}

function forgotten(row) {
  if (!row) return empty("The process does not remember this call any longer.");
  return [
    el("p", { class: "empty" }, "The process has forgotten why; it remembers few calls. This much is known:"),
    facts([
      ["Request", code(`${row.method} ${row.authority}${row.path}`)],
      ["Route", row.route && `${row.route} of ${row.virtual_host}`],
      ["Cluster", row.cluster],
      ["Endpoint", row.endpoint && code(row.endpoint)],
      ["Status", outcome(row)],
      ["Flags", row.flags === "-" ? null : row.flags],
      ["Details", code(row.details)],
      ["Attempts", String(row.attempts)],
      ["Duration", milliseconds(row.duration)],
    ]),
  ];
}

function attempt(each, total) {
  const failed = each.failure || each.status === null || each.status >= 500;
  return el(
    "li",
    {},
    el(
      "div",
      { class: "row" },
      code(`${each.number}. ${each.endpoint}`),
      failed ? signed("bad", each.failure ?? String(each.status)) : signed("good", String(each.status)),
      each.retried ? el("span", { class: "dim" }, `retried: ${each.retried}`) : null,
      el("span", { class: "dim" }, milliseconds(each.duration === null ? null : each.duration * 1000)),
    ),
    svg(
      "svg",
      { viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: failed && "bad", x: (100 * each.after) / total, y: 0, width: Math.max(0.8, (100 * (each.duration ?? 0)) / total), height: 4 }),
    ),
  );
}
