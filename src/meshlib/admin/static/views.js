// The parts of the page. Each has an id, a title, draw({model, extra, chosen, choose, matches}), and if need be load(source, chosen)
// for what is not in mesh.json, and alarm(model): a number that the tab shows.

import { el, empty, facts, panel, pill, svg, table } from "./dom.js";
import { ago, clock, count, milliseconds, moment, percent, rate, span, tone } from "./format.js";
import { busiest, drawing, failing } from "./graph.js";
import { loadTraces, traces } from "./traces.js";

const PAGE = 100;
const MOST_EDGES = 24;
const MOST_ROWS = 400;

const signed = (value, text) => el("span", { class: `${value}-text` }, text);
const errors = (entry) => {
  const share = failing(entry);
  return share ? signed(tone(share), percent(share)) : share === 0 ? "0 %" : "–";
};
const code = (text) => el("span", { class: "mono wrap" }, text);
const link = (hash, text) => el("a", { href: hash, "data-key": hash }, text);

/** Rows beyond the most that a table shows are counted, not drawn. */
function limited(rows, most, draw) {
  return [
    draw(rows.slice(0, most)),
    rows.length > most ? el("p", { class: "empty" }, `${rows.length - most} more; the filter finds them`) : null,
  ];
}

const sorting = (view, { chosen, choose }, first) => ({
  order: chosen.orders[view] ?? first ?? null,
  change: (order) => choose({ orders: { ...chosen.orders, [view]: order } }),
});

// --- services -------------------------------------------------------------------------------------------------------

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

function spark(values = []) {
  const most = Math.max(1e-9, ...values);
  const x = (index) => (100 * index) / Math.max(1, values.length - 1);
  const d = values.map((value, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${(19 - (18 * value) / most).toFixed(1)}`).join("");
  return svg("svg", { class: "spark", viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path", { d }));
}

const security = (entry) =>
  entry.mtls ? pill("good", "mTLS") : entry.tls ? pill("good", "TLS") : el("span", { class: "dim" }, "plaintext");

function health(service) {
  if (!service.exists) return pill("bad", "does not exist");
  const { total, healthy, ejected, unhealthy } = service.endpoints;
  if (!total) return pill("bad", "no endpoints");
  const mood = healthy === total ? "good" : healthy ? "warn" : "bad";
  const rest = [ejected && `${ejected} ejected`, unhealthy && `${unhealthy} unhealthy`].filter(Boolean).join(", ");
  return [pill(mood, `${healthy} of ${total}`), rest ? el("div", { class: "dim" }, rest) : null];
}

function services({ model, chosen, choose, source, matches }) {
  const rows = model.services.filter((service) => matches(service.name, service.service));
  const columns = [
    { name: "Service", sort: (row) => row.name, cell: (row) => link(`#/endpoints/${encodeURIComponent(row.name)}`, row.name) },
    { name: "Last minutes", spare: true, cell: (row) => spark(source.rates.get(row.name)) },
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
        ? limited(rows, MOST_ROWS, (shown) => table(columns, shown, { caption: "Services", ...sorting("services", { chosen, choose }) }))
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
  return panel("Ejected endpoints", null, table(columns, rows, { caption: "Ejected endpoints" }));
}

// --- graph ----------------------------------------------------------------------------------------------------------

function graph({ model, extra, chosen, choose, matches }) {
  const whole = extra ?? model.graph;
  const edges = whole.edges.filter((edge) => matches(edge.source, edge.destination));
  const named = new Set(edges.flatMap((edge) => [edge.source, edge.destination]));
  const nodes = whole.nodes.filter((node) => named.has(node.id) || (node.kind === "self" && matches(node.id)));
  const shown = busiest({ nodes, edges }, MOST_EDGES);
  const columns = [
    { name: "From", sort: (row) => row.source, cell: (row) => row.source },
    { name: "To", sort: (row) => row.destination, cell: (row) => row.destination },
    { name: "Rate", number: true, third: true, sort: (row) => row.rate, cell: (row) => (row.rate === null ? `${count(row.total)} calls` : rate(row.rate)) },
    { name: "Errors", number: true, third: true, sort: (row) => failing(row), cell: errors },
    { name: "p99", number: true, third: true, sort: (row) => row.p99, cell: (row) => milliseconds(row.p99) },
    { name: "Security", cell: security },
    { name: "Principal", whole: true, cell: (row) => (row.principal ? code(row.principal) : "–") },
  ];
  const everywhere = el(
    "button",
    { type: "button", "data-key": "everywhere", "aria-pressed": String(chosen.everywhere), onclick: () => choose({ everywhere: !chosen.everywhere }) },
    el("span", { class: "dot", "aria-hidden": "true" }),
    "All processes",
  );
  return [
    panel(
      "Who calls whom",
      everywhere,
      nodes.length
        ? el("div", { class: "scroll", "data-scroll": "graph", tabindex: "0", role: "region", "aria-label": "The graph" },
            drawing(shown, {
              note: (node) => noteOf(node, model),
              pick: (id) => {
                location.hash = `#/endpoints/${encodeURIComponent(clusterOf(whole, id))}`;
              },
            }))
        : empty("No call fits the filter."),
      shown.left ? el("p", { class: "empty" }, `the ${MOST_EDGES} busiest of ${edges.length}; all are in the table`) : null,
    ),
    edges.length
      ? panel("Edges", null, limited(edges, MOST_ROWS, (rows) => table(columns, rows, { caption: "Edges", ...sorting("graph", { chosen, choose }) })))
      : null,
  ];
}

function noteOf(node, model) {
  if (node.kind !== "service") return node.kind === "self" ? "process" : "caller";
  const found = model.services.find((service) => service.exists && service.service === node.id);
  return found ? `${found.endpoints.healthy} of ${found.endpoints.total} endpoints` : "service";
}

const clusterOf = (whole, id) => whole.edges.find((edge) => edge.destination === id)?.cluster ?? id;

// --- endpoints ------------------------------------------------------------------------------------------------------

async function loadEndpoints(source, chosen) {
  const cluster = chosen.cluster ?? source.model.services.find((service) => service.exists)?.name;
  return cluster ? source.get("mesh/endpoints.json", { cluster, start: chosen.start, limit: PAGE }) : null;
}

function endpoints({ model, extra, chosen, choose, matches }) {
  const known = model.services.filter((service) => service.exists);
  const cluster = chosen.cluster ?? known[0]?.name;
  const service = model.services.find((each) => each.name === cluster);
  const pick = el(
    "label",
    {},
    el("span", { class: "hidden" }, "Service"),
    el(
      "select",
      { "data-key": "cluster", onchange: (event) => (location.hash = `#/endpoints/${encodeURIComponent(event.target.value)}`) },
      known.map((each) => el("option", { value: each.name, selected: each.name === cluster }, each.name)),
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
        ["Balancing", service?.lb_policy],
        ["Discovery", service?.discovery],
        ["Breaker", service?.breaker],
        ["Peer", service?.principals?.peer && code(service.principals.peer)],
      ]),
      rows.length
        ? table(columns, rows, { caption: `Endpoints of ${cluster}`, ...sorting("endpoints", { chosen, choose }) })
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

function state(row, now) {
  if (row.ejection) {
    const { reason, until } = row.ejection;
    return [pill("bad", "ejected"), el("div", { class: "dim" }, `${reason}, back ${until > now ? `in ${span(until - now)}` : "soon"}`)];
  }
  return pill(row.health === "HEALTHY" ? "good" : row.usable ? "warn" : "bad", row.health.toLowerCase());
}

// --- routes ---------------------------------------------------------------------------------------------------------

function routes({ model, chosen, choose, matches }) {
  const rows = model.routes.filter((row) =>
    matches(row.listener, row.route_config, row.virtual_host, row.route, row.match, row.cluster ?? "", row.domains.join(" "), ...row.split.map((each) => each.cluster)),
  );
  const columns = [
    { name: "Match", whole: true, sort: (row) => row.match, cell: (row) => [code(row.match), el("div", { class: "dim wrap" }, row.domains.join(", "))] },
    { name: "Route", sort: (row) => row.route, cell: (row) => [row.route, el("div", { class: "dim" }, `${row.virtual_host} of ${row.route_config}`)] },
    { name: "Goes to", whole: true, sort: (row) => row.cluster, cell: goal },
    { name: "Timeout", number: true, spare: true, sort: (row) => row.timeout, cell: (row) => (row.timeout === null ? "–" : row.timeout ? span(row.timeout) : "none") },
    { name: "Retries", spare: true, cell: (row) => row.retry ?? "–" },
    { name: "Rate", number: true, third: true, sort: (row) => row.rate, cell: (row) => rate(row.rate) },
    { name: "Errors", number: true, third: true, sort: (row) => failing(row), cell: errors },
    { name: "p99", number: true, third: true, sort: (row) => row.p99, cell: (row) => milliseconds(row.p99) },
  ];
  return panel(
    model.routes_total > model.routes.length ? `Routes, ${model.routes.length} of ${model.routes_total}` : "Routes",
    null,
    rows.length
      ? limited(rows, MOST_ROWS, (shown) => table(columns, shown, { caption: "Routes", ...sorting("routes", { chosen, choose }) }))
      : empty("No route fits the filter."),
  );
}

function goal(row) {
  if (!row.split.length) return row.cluster ?? row.action;
  let left = 0;
  const bars = row.split.map((each) => {
    const bar = svg("rect", { x: 100 * left, y: 0, width: 100 * each.share, height: 8 });
    left += each.share;
    return bar;
  });
  return [
    row.split.map((each) => el("div", {}, `${each.cluster} `, el("span", { class: "dim" }, percent(each.share)))),
    svg("svg", { class: "share", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, bars),
  ];
}

// --- calls ----------------------------------------------------------------------------------------------------------

const outcome = (call) => {
  const failed = call.status >= 500 || call.status === 0 || (call.grpc_status && call.grpc_status !== "0");
  const text = call.grpc_status ? `gRPC ${call.grpc_status}` : call.status || "none";
  return pill(failed ? "bad" : call.status >= 400 ? "warn" : "good", String(text));
};

/** A call does not change any more: it is asked for once. Of one that the process has forgotten, what the list said is left. */
async function loadCall(source, chosen) {
  const number = chosen.open;
  if (number === null) return null;
  const known = source.calls.get(number) ?? { row: source.model.calls.find((call) => call.number === number) ?? null };
  source.calls.set(number, known);
  known.decision ??= await source.get("mesh/call.json", { number });
  return known;
}

function calls({ model, extra, chosen, choose, matches }) {
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
      ? table(columns, rows, { caption: "Recent calls", chosen: (row) => row.number === chosen.open, ...sorting("calls", { chosen, choose }) })
      : empty(model.calls.length ? "No call fits the filter." : "No call has ended yet."),
  );
  return [extra ? el("div", { class: "split" }, list, decision(extra)) : list, served(model, { chosen, choose, matches })];
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
    rows.length ? table(columns, rows, { caption: "Requests served", ...sorting("served", { chosen, choose }) }) : empty("No request fits the filter."),
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

// --- configuration and certificates ---------------------------------------------------------------------------------

function configuration({ model, matches }) {
  const { process } = model;
  const plane = process.control_plane;
  const types = [
    { name: "Type", cell: (row) => row.type.toUpperCase() },
    { name: "Resources", number: true, third: true, cell: (row) => row.resources },
    { name: "Refused", number: true, third: true, cell: (row) => (row.nacked ? signed("bad", row.nacked) : 0) },
    { name: "Awaited", number: true, third: true, cell: (row) => row.awaited },
    { name: "Version", cell: (row) => (row.version ? code(row.version) : "–") },
    { name: "Last ACK", cell: (row) => (row.last_ack ? `${ago(row.last_ack.at, model.now)}` : "–") },
    { name: "Last NACK", cell: (row) => (row.last_nack ? signed("bad", ago(row.last_nack.at, model.now)) : "–") },
  ];
  const problems = model.problems.filter((row) => matches(row.type, row.name, row.reason));
  const refused = [
    { name: "Resource", cell: (row) => `${row.type} ${row.name}` },
    { name: "Version", third: true, cell: (row) => code(row.version || "–") },
    { name: "In force", third: true, cell: (row) => (row.in_force ? pill("warn", "an earlier version") : pill("bad", "nothing")) },
    { name: "When", third: true, cell: (row) => ago(row.at, model.now) },
    { name: "Why", whole: true, cell: (row) => code(row.reason) },
  ];
  const ignored = model.unsupported.filter((row) => matches(row.type, row.name, row.path));
  const fields = [
    { name: "Resource", cell: (row) => `${row.type} ${row.name}` },
    { name: "Field that has no effect", whole: true, cell: (row) => code(row.path) },
  ];
  return [
    plane.error ? el("p", { class: "note bad", role: "alert" }, plane.error) : null,
    panel(
      "Control plane",
      null,
      facts([
        ["Source", plane.kind === "files" ? "files" : code(plane.server)],
        ["Node", plane.node],
        ["Connected", plane.kind === "files" ? null : plane.connected ? `since ${moment(plane.connected_since)}` : "no"],
        ["Streams so far", plane.kind === "files" ? null : String(plane.streams)],
        ["Process", `${process.command} (Python ${process.python})`],
      ]),
      table(types, process.types, { caption: "Configuration by type" }),
    ),
    problems.length ? panel("Refused", null, table(refused, problems, { caption: "Refused resources" })) : null,
    ignored.length ? panel("Reported, not applied", null, table(fields, ignored, { caption: "Fields without effect" })) : null,
  ];
}

function certificates({ model, matches }) {
  const rows = model.certificates.filter((row) => matches(row.name, row.issuer, row.trust_domain, row.kind));
  const left = (row) => {
    const part = row.expires_in / Math.max(1, row.not_after - row.not_before);
    const mood = row.expires_in <= 0 ? "bad" : part < 0.15 ? "warn" : "good";
    return pill(mood, row.expires_in <= 0 ? `over for ${span(-row.expires_in)}` : `${span(row.expires_in)} left`);
  };
  const columns = [
    { name: "Name", cell: (row) => code(row.name) },
    { name: "Kind", third: true, cell: (row) => (row.kind === "own" ? "own" : `CA${row.trust_domain ? ` of ${row.trust_domain}` : ""}`) },
    { name: "Valid", third: true, cell: left },
    { name: "Until", third: true, cell: (row) => moment(row.not_after) },
    { name: "Issuer", cell: (row) => row.issuer },
    { name: "Serial", spare: true, cell: (row) => code(row.serial) },
  ];
  return panel(
    "Certificates",
    el("span", { class: "dim" }, "keys are never shown"),
    rows.length ? table(columns, rows, { caption: "Certificates" }) : empty("No part of the configuration uses certificates."),
  );
}

export const VIEWS = [
  { id: "services", title: "Services", draw: services, alarm: (model) => model.ejections.length },
  {
    id: "graph",
    title: "Graph",
    draw: graph,
    load: (source, chosen) => (chosen.everywhere ? source.get("mesh/graph.json") : null),
  },
  { id: "endpoints", title: "Endpoints", draw: endpoints, load: loadEndpoints },
  { id: "routes", title: "Routes", draw: routes },
  { id: "calls", title: "Calls", draw: calls, load: loadCall },
  { id: "traces", title: "Traces", draw: (view) => traces({ ...view, sorting }), load: loadTraces },
  { id: "configuration", title: "Configuration", draw: configuration, alarm: (model) => model.problems.length },
  {
    id: "certificates",
    title: "Certificates",
    draw: certificates,
    alarm: (model) => model.certificates.filter((each) => each.expires_in <= 0).length,
  },
];
