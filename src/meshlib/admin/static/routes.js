// What routes match, where they lead, and how the calls fare that take them.

import { el, empty, panel, svg, table } from "./dom.js";
import { milliseconds, percent, rate, span } from "./format.js";
import { MOST_ROWS, code, errors, failing, limited, sorting } from "./pieces.js";

export function draw({ model, chosen, choose, matches }) {
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
      ? limited(rows, MOST_ROWS, (shown) => table(columns, shown, { caption: "Routes", key: (row) => [row.listener, row.virtual_host, row.route].join(" "), ...sorting("routes", { chosen, choose }) }))
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
