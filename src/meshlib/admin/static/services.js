// The services that are called, and their golden signals; endpoints that are ejected.

import { el, empty, panel, pill, svg, table } from "./dom.js";
import { ago, count, milliseconds, percent, rate, span, tone } from "./format.js";
import { MOST_ROWS, code, errors, failing, limited, link, security, sorting } from "./pieces.js";

function signals(model) {
  const called = model.services.filter((service) => service.total);
  const sum = (name) => called.reduce((all, service) => all + service[name], 0);
  const all = { rate: sum("rate"), error_rate: sum("error_rate"), total: sum("total"), errors_total: sum("errors_total") };
  const slowest = called.reduce((worst, each) => ((each.p99 ?? -1) > (worst?.p99 ?? -1) ? each : worst), null);
  const fullest = model.services.reduce(
    (worst, each) => ((each.saturation?.share ?? 0) > (worst?.saturation?.share ?? 0) ? each : worst),
    null,
  );
  const share = failing(all);
  const one = (term, value, note, mood = null) =>
    el("div", { class: "panel signal" }, el("dt", { class: "dim" }, term), el("dd", { class: mood && `${mood}-text` }, value), el("dd", {}, note));
  return el(
    "dl",
    { class: "signals" },
    one("Traffic", rate(all.rate), `${count(all.total)} calls in ${span(model.now - model.process.started)}`),
    one("Errors", percent(share), `${count(all.errors_total)} in all`, share ? tone(share) : null),
    one("Latency, p99", milliseconds(slowest?.p99), slowest?.p99 ? `slowest: ${slowest.name}` : `of the last ${count(model.window)} s`),
    one("Saturation", percent(fullest?.saturation.share ?? 0), fullest ? `${fullest.saturation.resource} of ${fullest.name}` : "no limit is near"),
    one("Event loops", model.process.loop_lag ? milliseconds(model.process.loop_lag * 1000) : "none", "lag of the latest"),
  );
}

/** totals: [when, how many calls by then]. */
function spark(totals = []) {
  const rates = totals.slice(1).map(([at, total], index) => [at, Math.max(0, total - totals[index][1]) / Math.max(1e-3, at - totals[index][0])]);
  if (rates.length) rates.unshift([totals[0][0], rates[0][1]]);
  const most = Math.max(1e-9, ...rates.map(([, value]) => value));
  const [first, last] = [rates.at(0)?.[0], rates.at(-1)?.[0]];
  const x = (at) => (100 * (at - first)) / Math.max(1e-3, last - first);
  const d = rates.map(([at, value], index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${(19 - (18 * value) / most).toFixed(1)}`).join("");
  return svg("svg", { class: "spark", viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path", { d }));
}

function health(service) {
  if (!service.exists) return pill("bad", "does not exist");
  const { total, healthy, ejected, unhealthy } = service.endpoints;
  if (!total) return pill("bad", "no endpoints");
  const mood = healthy === total ? "good" : healthy ? "warn" : "bad";
  const rest = [ejected && `${ejected} ejected`, unhealthy && `${unhealthy} unhealthy`].filter(Boolean).join(", ");
  return [pill(mood, `${healthy} of ${total}`), rest ? el("span", { class: "dim" }, ` ${rest}`) : null];
}

export function draw({ model, chosen, choose, source, matches }) {
  const rows = model.services.filter((service) => matches(service.name, service.service));
  const columns = [
    { name: "Service", sort: (row) => row.name, cell: (row) => link(`#/endpoints/${encodeURIComponent(row.name)}`, row.name) },
    { name: "Last minutes", spare: true, cell: (row) => spark(source.totals.get(row.name)) },
    { name: "Rate", number: true, third: true, sort: (row) => row.rate, cell: (row) => rate(row.rate) },
    { name: "Errors", number: true, third: true, sort: (row) => failing(row), cell: errors },
    { name: "p50", number: true, spare: true, sort: (row) => row.p50, cell: (row) => milliseconds(row.p50) },
    { name: "p99", number: true, third: true, sort: (row) => row.p99, cell: (row) => milliseconds(row.p99) },
    {
      name: "Saturation",
      number: true,
      spare: true,
      sort: (row) => row.saturation?.share,
      cell: (row) => (row.saturation?.share ? `${percent(row.saturation.share)} ${row.saturation.resource}` : "–"),
    },
    { name: "Endpoints", sort: (row) => row.endpoints?.total, cell: health },
    { name: "Security", cell: security },
  ];
  return [
    signals(model),
    panel(
      `${rows.length} ${rows.length === 1 ? "service" : "services"}`,
      el("span", { class: "dim" }, `rates of the last ${count(model.window)} s`),
      rows.length
        ? limited(rows, MOST_ROWS, (shown) => table(columns, shown, { caption: "Services", key: (row) => row.name, ...sorting("services", { chosen, choose }) }))
        : empty(model.services.length ? "No service fits the filter." : "The configuration has no cluster yet."),
    ),
    ejected(model, matches),
  ];
}

function ejected(model, matches) {
  const rows = model.ejections.filter((entry) => matches(entry.cluster, entry.endpoint));
  if (!rows.length) return null;
  const columns = [
    { name: "Endpoint", cell: (row) => code(row.endpoint) },
    { name: "Service", cell: (row) => row.cluster },
    { name: "Why", cell: (row) => `${row.reason}${row.failures ? ` (${row.failures})` : ""}` },
    { name: "Since", cell: (row) => ago(row.at, model.now) },
    { name: "Back", cell: (row) => (row.until > model.now ? `in ${span(row.until - model.now)}` : "with the next call") },
    { name: "Times", number: true, cell: (row) => row.times },
  ];
  return panel("Ejected endpoints", null, table(columns, rows, { caption: "Ejected endpoints", key: (row) => `${row.cluster} ${row.endpoint}` }));
}
