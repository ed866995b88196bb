// The configuration in force: where it comes from, its versions, what was refused and what has no effect.

import { el, facts, panel, pill, table } from "./dom.js";
import { ago, moment } from "./format.js";
import { code, signed } from "./pieces.js";

export function draw({ model, matches }) {
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
