// The service graph where there is no room for columns: who is called stands below who calls, a little to the right.

import { svg } from "./dom.js";
import { box, figuresOf, label, layers, lineOf } from "./drawing.js";

const IN = 24;
const DEEPEST = 4;
const DOWN = 12;
const EDGE = 2;
const TRUNK = 12;
const GUTTER = 20;
const BOX = { width: 284, height: 62 };

/** As `drawing`, which see. */
export function tree({ nodes, edges }, { note, pick }) {
  const columns = layers(nodes, edges);
  const depth = new Map(columns.flatMap((column, index) => column.map((node) => [node.id, index])));
  const order = below(columns, edges);
  const deepest = Math.min(DEEPEST, columns.length - 1);
  const width = deepest * IN + BOX.width + GUTTER + EDGE;
  const height = order.length * (BOX.height + DOWN);
  const where = new Map(
    order.map(({ id }, row) => [id, { x: EDGE + Math.min(DEEPEST, depth.get(id)) * IN, y: EDGE + row * (BOX.height + DOWN) }]),
  );
  const drawn = edges.filter((edge) => where.has(edge.source) && where.has(edge.destination));
  const into = (node) => drawn.filter((edge) => edge.destination === node.id);
  return svg(
    "svg",
    { class: "graph", viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": label(where, drawn) },
    drawn.map((edge) => path(edge, where.get(edge.source), where.get(edge.destination))),
    order.map((node) => box(node, where.get(node.id), into(node), { note, pick, size: BOX, more: together(into(node)) })),
  );
}

/** Each node once, below the one that calls it most. */
function below(columns, edges) {
  const order = [];
  const seen = new Set();
  const busiest = (id) => edges.filter((edge) => edge.destination === id && edge.source !== id).sort((a, b) => b.total - a.total)[0]?.source;
  const parents = new Map(columns.flat().map((node) => [node.id, busiest(node.id)]));
  const visit = (node) => {
    if (seen.has(node.id)) return;
    seen.add(node.id);
    order.push(node);
    columns.flat().filter((each) => parents.get(each.id) === node.id).forEach(visit);
  };
  columns.flat().forEach((node) => (columns[0].includes(node) ? visit(node) : null));
  columns.flat().forEach(visit); // those of circles
  return order;
}

/** What several callers do is summed; of latencies the worst is shown. */
function together(edges) {
  if (!edges.length) return null;
  const sum = (name) => edges.reduce((all, edge) => all + (edge[name] ?? 0), 0);
  const worst = (name) => edges.reduce((most, edge) => Math.max(most ?? 0, edge[name] ?? 0) || null, null);
  const known = edges.some((edge) => edge.rate !== null);
  const all = { rate: known ? sum("rate") : null, error_rate: sum("error_rate"), total: sum("total"), errors_total: sum("errors_total") };
  return figuresOf({ ...all, p50: worst("p50"), p99: worst("p99") }).join(" · ");
}

function path(edge, from, to) {
  const [x1, y1, x2, y2] = [from.x + TRUNK, from.y + BOX.height, to.x, to.y + BOX.height / 2];
  const right = [from.x + BOX.width, from.y + BOX.height / 2, to.x + BOX.width];
  const out = Math.max(right[0], right[2]) + GUTTER - EDGE;
  const d = x2 > x1 && y2 > y1 ? `M${x1} ${y1}V${y2}H${x2}` : `M${right[0]} ${right[1]}C${out} ${right[1]} ${out} ${y2} ${right[2]} ${y2}`;
  return lineOf(edge, d);
}
