// What several views are made of.

import { el, pill } from "./dom.js";
import { count, percent, tone } from "./format.js";

export const MOST_ROWS = 400;

export const code = (text) => el("span", { class: "mono wrap" }, text);

export const link = (hash, text) => el("a", { href: hash, "data-key": hash }, text);

export const signed = (mood, text) => el("span", { class: `${mood}-text` }, text);

/** The share of calls that fail now, or since the beginning when there are none now; null without any. */
export function failing(entry) {
  if (entry.rate) return entry.error_rate / entry.rate;
  return entry.total ? entry.errors_total / entry.total : null;
}

export function errors(entry) {
  const share = failing(entry);
  return share ? signed(tone(share), percent(share)) : share === 0 ? "0 %" : "–";
}

export const security = (entry) =>
  entry.mtls ? pill("good", "mTLS") : entry.tls ? pill("good", "TLS") : el("span", { class: "dim" }, "plaintext");

/** Of a call or a request. */
export function outcome(call) {
  const failed = call.status >= 500 || call.status === 0 || (call.grpc_status && call.grpc_status !== "0");
  const text = call.grpc_status ? `gRPC ${call.grpc_status}` : call.status || "none";
  return pill(failed ? "bad" : call.status >= 400 ? "warn" : "good", String(text));
}

/** Rows beyond the most that a table shows are counted, not drawn. */
export function limited(rows, most, draw) {
  return [
    draw(rows.slice(0, most)),
    rows.length > most ? el("p", { class: "empty" }, `${count(rows.length - most)} more; the filter finds them`) : null,
  ];
}

/** The order of a table, as it was chosen last. */
export const sorting = (table, { chosen, choose }) => ({
  order: chosen.orders[table] ?? null,
  change: (order) => choose({ orders: { ...chosen.orders, [table]: order } }),
});

/** A panel that was opened beside a list gets the focus; whoever closes it comes back to the list. */
export const opened = (panel) => {
  panel.setAttribute("tabindex", "-1");
  panel.setAttribute("data-key", "opened");
  return panel;
};
