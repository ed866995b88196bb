// Who calls whom: a picture of the busiest edges, and a table of all.

import { el, empty, panel, table } from "./dom.js";
import { busiest, drawing } from "./drawing.js";
import { count, milliseconds, rate } from "./format.js";
import { MOST_ROWS, code, errors, failing, limited, security, sorting } from "./pieces.js";
import { tree } from "./tree.js";

const MOST_EDGES = 24;

const narrow = matchMedia("(max-width: 40rem)");

export const load = (source, chosen) => (chosen.everywhere ? source.get("mesh/graph.json") : null);

export function draw({ model, extra, chosen, choose, matches }) {
  const whole = extra ?? model.graph;
  const edges = whole.edges.filter((edge) => matches(edge.source, edge.destination));
  const named = new Set(edges.flatMap((edge) => [edge.source, edge.destination]));
  const nodes = whole.nodes.filter((node) => named.has(node.id) || (node.kind === "self" && matches(node.id)));
  const shown = busiest({ nodes, edges }, MOST_EDGES);
  const columns = [
    { name: "From", sort: (row) => row.source, cell: (row) => row.source },
    { name: "To", whole: true, sort: (row) => row.destination, cell: (row) => row.destination },
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
        ? el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "The graph" },
            (narrow.matches ? tree : drawing)(shown, {
              note: (node) => noteOf(node),
              pick: (id) => {
                location.hash = `#/endpoints/${encodeURIComponent(clusterOf(whole, id))}`;
              },
            }))
        : empty("No call fits the filter."),
      shown.left ? el("p", { class: "empty" }, `the ${MOST_EDGES} busiest of ${edges.length}; all are in the table`) : null,
    ),
    edges.length
      ? panel("Edges", null, limited(edges, MOST_ROWS, (rows) => table(columns, rows, { caption: "Edges", key: (row) => `${row.source} ${row.destination} ${row.cluster}`, ...sorting("graph", { chosen, choose }) })))
      : null,
  ];
}

function noteOf({ kind, endpoints }) {
  if (kind !== "service") return kind === "self" ? "process" : "caller";
  return endpoints ? `${endpoints.healthy} of ${endpoints.total} endpoints` : "service";
}

const clusterOf = (whole, id) => whole.edges.find((edge) => edge.destination === id)?.cluster ?? id;
