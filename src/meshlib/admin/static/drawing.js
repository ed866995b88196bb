// The service graph as a picture: columns from those who call to those who are called.

import { svg } from "./dom.js";
import { milliseconds, percent, rate, tone } from "./format.js";
import { failing } from "./pieces.js";

const BOX = { width: 184, height: 46 };
const { width: WIDTH, height: HEIGHT } = BOX;
const DOWN = 20;
const EDGE = 4;
const WIDE = 1180;
const LEAST_ACROSS = 180;
const MOST_ACROSS = 420;
const HIGHEST = 240;

/**
 * The drawing. nodes: [{id, kind}]; edges: [{source, destination, rate, error_rate, total, errors_total, p50, p99, tls, mtls}].
 * note(node): the second line of its box; pick(id): a node was chosen.
 */
export function drawing({ nodes, edges }, { note, pick }) {
  const columns = layers(nodes, edges);
  const tallest = Math.max(1, ...columns.map((column) => column.length));
  const height = tallest * (HEIGHT + DOWN) + 2 * EDGE;
  const between = (WIDE - columns.length * WIDTH) / Math.max(1, columns.length - 1);
  const across = Math.round(Math.min(MOST_ACROSS, Math.max(LEAST_ACROSS, between)));
  const width = columns.length * WIDTH + (columns.length - 1) * across + 2 * EDGE;
  const where = new Map();
  columns.forEach((column, index) => {
    const free = (height - column.length * (HEIGHT + DOWN) + DOWN) / 2;
    const top = Math.min(free, HIGHEST); // who calls many is seen without scrolling
    column.forEach((node, row) =>
      where.set(node.id, { x: EDGE + index * (WIDTH + across), y: top + row * (HEIGHT + DOWN) }),
    );
  });
  const drawn = edges.filter((edge) => where.has(edge.source) && where.has(edge.destination));
  return svg(
    "svg",
    { class: "graph", viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": label(where, drawn) },
    drawn.map((edge) => path(edge, ends(edge, where))),
    drawn.map((edge) => figures(edge, ends(edge, where))), // above all lines
    columns.flat().map((node) => box(node, where.get(node.id), drawn.filter((edge) => edge.destination === node.id), { note, pick, size: BOX })),
  );
}

/** Of the whole picture. */
export const label = (where, edges) =>
  edges.length ? `${where.size} services and ${edges.length} edges; the table has them, too` : "no calls yet";

/** What an edge is, in words. */
export const said = (edge) =>
  [
    edge.rate === null ? `${edge.total} calls` : rate(edge.rate),
    `${percent(failing(edge) ?? 0)} failing`,
    edge.mtls ? "mutual TLS" : edge.tls ? "TLS" : "plaintext",
  ].join(", ");

/** Nodes by how far they are from who begins. */
export function layers(nodes, edges) {
  const depth = new Map(nodes.map((node) => [node.id, 0]));
  for (let round = 0; round < nodes.length; round += 1) {
    let moved = false;
    for (const { source, destination } of edges) {
      if (source === destination || !depth.has(source) || !depth.has(destination)) continue;
      const wanted = depth.get(source) + 1;
      if (wanted > depth.get(destination) && wanted < nodes.length) {
        depth.set(destination, wanted);
        moved = true;
      }
    }
    if (!moved) break;
  }
  const used = [...new Set(depth.values())].sort((a, b) => a - b);
  const calls = new Map();
  for (const edge of edges) calls.set(edge.destination, (calls.get(edge.destination) ?? 0) + edge.total);
  const most = (a, b) => (calls.get(b.id) ?? 0) - (calls.get(a.id) ?? 0);
  const columns = used.map((level) => nodes.filter((node) => depth.get(node.id) === level).sort(most));
  for (let index = 1; index < columns.length; index += 1) {
    const above = new Map(columns[index - 1].map((node, row) => [node.id, row]));
    const pull = (node) => {
      const rows = edges.filter((edge) => edge.destination === node.id).map((edge) => above.get(edge.source) ?? 0);
      return rows.length ? rows.reduce((sum, row) => sum + row, 0) / rows.length : 0;
    };
    columns[index].sort((a, b) => pull(a) - pull(b));
  }
  return columns;
}

/** Where an edge begins and ends. */
function ends({ source, destination }, where) {
  const [from, to] = [where.get(source), where.get(destination)];
  return { x1: from.x + WIDTH, y1: from.y + HEIGHT / 2, x2: to.x, y2: to.y + HEIGHT / 2 };
}

function path(edge, { x1, y1, x2, y2 }) {
  const bend = x2 > x1 ? (x2 - x1) / 2 : LEAST_ACROSS / 2;
  return lineOf(edge, `M${x1} ${y1} C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`);
}

/** d: of the path. */
export function lineOf(edge, d) {
  const mood = tone(failing(edge));
  const thick = edge.rate ? Math.min(6, 1.5 + Math.log10(1 + edge.rate)) : 1.2;
  return svg(
    "g",
    { role: "img", "aria-label": `${edge.source} calls ${edge.destination}, ${said(edge)}` },
    svg("title", {}, `${edge.source} → ${edge.destination}: ${said(edge)}`),
    svg("path", { class: mood === "good" ? "edge" : `edge ${mood}`, d, "stroke-width": thick.toFixed(1) }),
  );
}

/** Rate and failures, and latency, as far as they are known. */
export function figuresOf(edge) {
  const share = failing(edge);
  const first = [edge.rate === null ? `${edge.total} calls` : rate(edge.rate), share ? `${percent(share)} failing` : null];
  const latency = edge.p99 === null || edge.p99 === undefined ? null : `${milliseconds(edge.p50)} · p99 ${milliseconds(edge.p99)}`;
  return [first.filter(Boolean).join(" · "), latency].filter(Boolean);
}

/** Where the edge ends; its name has them, too. */
function figures(edge, { x1, y1, x2, y2 }) {
  const { x, y } = x2 > x1 ? { x: x2 - 8, y: y2 - 6 } : { x: (x1 + x2) / 2, y: (y1 + y2) / 2 };
  return svg(
    "g",
    { "aria-hidden": "true" },
    figuresOf(edge).map((text, line) => svg("text", { class: "small", x, y: y + 19 * line, "text-anchor": "end" }, text)),
  );
}

/** into: the edges that end here; more: a third line. */
export function box(node, { x, y }, into, { note, pick, size, more = null }) {
  const worst = Math.max(0, ...into.map((edge) => failing(edge) ?? 0));
  const kind = node.kind === "self" ? "self" : worst ? tone(worst) : "";
  const most = Math.floor((size.width - 44) / 7);
  const short = node.id.length > most ? `${node.id.slice(0, most - 1)}…` : node.id;
  const act = pick && node.kind === "service" ? { role: "link", tabindex: "0", "data-key": `node-${node.id}` } : {};
  const go = () => pick?.(node.id);
  return svg(
    "g",
    {
      class: kind,
      transform: `translate(${x} ${y})`,
      ...act,
      onclick: act.role && go,
      onkeydown: act.role && ((event) => event.key === "Enter" && go()),
    },
    svg("title", {}, node.id),
    svg("rect", { class: "box", ...size, rx: 8 }),
    svg("text", { class: "name", x: 12, y: 20 }, short),
    svg("text", { class: "small", x: 12, y: 36 }, note(node)),
    more ? svg("text", { class: "small", x: 12, y: 53 }, more) : null,
    into.length ? lock(into, size.width) : null,
  );
}

/** Closed where every call comes over mutual TLS, open where one comes in plaintext. */
function lock(into, width) {
  const [closed, plain] = [into.every((edge) => edge.mtls), into.some((edge) => !edge.tls)];
  const words = closed ? "mutual TLS" : plain ? "plaintext" : "TLS, callers show no certificate";
  return svg(
    "g",
    { class: closed ? "lock" : "open", transform: `translate(${width - 24} 9)` },
    svg("title", {}, words),
    svg("path", { d: plain ? "M3 6V4a3 3 0 0 1 5.6-1.5" : "M3 6V4a3 3 0 0 1 6 0v2", fill: "none", stroke: "currentColor", "stroke-width": 1.6 }),
    svg("rect", { x: 1, y: 6, width: 10, height: 7, rx: 1.5 }),
  );
}

/** The busiest edges, what they join, and how many are left out. */
export function busiest({ nodes, edges }, most) {
  if (edges.length <= most) return { nodes, edges, left: 0 };
  const weight = (edge) => (edge.rate ?? 0) * 1e6 + (edge.total ?? 0);
  const kept = [...edges].sort((a, b) => weight(b) - weight(a)).slice(0, most);
  const names = new Set(kept.flatMap((edge) => [edge.source, edge.destination]));
  return { nodes: nodes.filter((node) => names.has(node.id)), edges: kept, left: edges.length - kept.length };
}
