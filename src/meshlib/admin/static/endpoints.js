// The endpoints of one cluster, with their health, and why they were ejected.

import { el, empty, facts, panel, pill, table } from "./dom.js";
import { count, milliseconds, none, rate, span } from "./format.js";
import { code, errors, sorting } from "./pieces.js";

const PAGE = 100;

export function load(source, { cluster, start }) {
  if (!cluster && !source.model.clusters.length) return null;
  return source.get("mesh/endpoints.json", { ...(cluster ? { cluster } : {}), start, limit: PAGE });
}

export function draw({ model, extra, chosen, choose, matches }) {
  const cluster = extra?.cluster ?? chosen.cluster;
  const service = extra?.service;
  const pick = el(
    "label",
    {},
    el("span", { class: "hidden" }, "Service"),
    el(
      "select",
      { "data-key": "cluster", onchange: (event) => (location.hash = `#/endpoints/${encodeURIComponent(event.target.value)}`) },
      model.clusters.map((name) => el("option", { value: name, selected: name === cluster }, name)),
    ),
  );
  if (!extra) return panel("Endpoints", pick, empty(cluster ? `There is no service ${cluster}.` : "The configuration has no cluster yet."));
  const rows = extra.endpoints.filter((row) => matches(row.address, row.hostname, row.locality, row.health));
  const columns = [
    { name: "Address", sort: (row) => row.address, cell: (row) => [code(row.address), row.hostname ? el("div", { class: "dim" }, row.hostname) : null] },
    { name: "Health", sort: (row) => row.usable, cell: (row) => state(row, model.now) },
    { name: "Active", number: true, third: true, sort: (row) => row.active, cell: (row) => count(row.active) },
    { name: "Connections", number: true, third: true, sort: (row) => row.connections, cell: (row) => count(row.connections) },
    { name: "Waiting", number: true, spare: true, sort: (row) => row.waiting, cell: (row) => count(row.waiting) },
    { name: "Failures in a row", number: true, spare: true, sort: (row) => row.failures, cell: (row) => count(row.failures) },
    { name: "Weight", number: true, third: true, sort: (row) => row.weight, cell: (row) => count(row.weight) },
    { name: "Priority", number: true, spare: true, sort: (row) => row.priority, cell: (row) => count(row.priority) },
    { name: "Locality", spare: true, sort: (row) => row.locality, cell: (row) => row.locality || "–" },
    { name: "Security", spare: true, cell: (row) => (row.tls ? pill("good", "TLS") : el("span", { class: "dim" }, "plaintext")) },
  ];
  const last = Math.min(extra.start + PAGE, extra.total);
  const step = (start, text, usable) =>
    el("button", { type: "button", "data-key": text, disabled: !usable, onclick: () => choose({ start }) }, text);
  return [
    panel(
      `Endpoints of ${cluster}`,
      pick,
      facts([
        ["Rate", rate(service?.rate)],
        ["Errors", service ? errors(service) : null],
        ["Latency", `${milliseconds(service?.p50)} · p90 ${milliseconds(service?.p90)} · p99 ${milliseconds(service?.p99)}`],
        ["Balancing", service?.lb_policy && balancing(service)],
        ["Discovery", service?.discovery],
        ["Breaker", service?.breaker],
        ["Peer", service?.principals?.peer && code(service.principals.peer)],
      ]),
      rows.length
        ? table(columns, rows, { caption: `Endpoints of ${cluster}`, key: (row) => `${row.priority} ${row.address}`, ...sorting("endpoints", { chosen, choose }) })
        : empty(extra.total ? "No endpoint of this part fits the filter." : "It has no endpoints."),
      extra.total > PAGE
        ? el(
            "div",
            { class: "more" },
            step(Math.max(0, extra.start - PAGE), "Earlier", extra.start > 0),
            el("span", { class: "dim" }, `${extra.start + 1} to ${last} of ${extra.total}`),
            step(extra.start + PAGE, "Later", last < extra.total),
          )
        : null,
    ),
  ];
}

function balancing({ lb_policy, subset_size }) {
  return none(subset_size) ? lb_policy : `${lb_policy} over ${count(subset_size)} endpoints of each process's own`;
}

function state(row, now) {
  if (row.ejection) {
    const { reason, until } = row.ejection;
    return [pill("bad", "ejected"), el("div", { class: "dim" }, `${reason}, back ${until > now ? `in ${span(until - now)}` : "soon"}`)];
  }
  return pill(row.health === "HEALTHY" ? "good" : row.usable ? "warn" : "bad", row.health.toLowerCase());
}
