// Certificates, and when they end.

import { el, empty, panel, pill, table } from "./dom.js";
import { moment, span } from "./format.js";
import { code } from "./pieces.js";

export function draw({ model, matches }) {
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
