// Numbers, durations and moments as people read them.

const DASH = "–";

export const none = (value) => value === null || value === undefined || Number.isNaN(value);

/** 0.42, 7.3, 128, 12.4k */
export function count(value) {
  if (none(value)) return DASH;
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)}k`;
  if (value >= 100 || Number.isInteger(value)) return String(Math.round(value));
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export const rate = (value) => (none(value) ? DASH : `${count(value)}/s`);

/** value: milliseconds. */
export function milliseconds(value) {
  if (none(value)) return DASH;
  if (value < 1) return `${(value * 1000).toFixed(0)} µs`;
  if (value < 10) return `${value.toFixed(1)} ms`;
  if (value < 1000) return `${value.toFixed(0)} ms`;
  return `${(value / 1000).toFixed(value < 10000 ? 2 : 1)} s`;
}

/** value: 0 to 1. Never rounds a failure away: 99.99 %, and 100 % only without one. */
export function percent(value) {
  if (none(value)) return DASH;
  if (value === 0 || value === 1) return `${value * 100} %`;
  const text = (value * 100).toFixed(value > 0.99 || value < 0.01 ? 2 : 1);
  return `${text === "100.00" ? "99.99" : text} %`;
}

/** value: seconds. */
export function span(value) {
  if (none(value)) return DASH;
  const sign = value < 0 ? "-" : "";
  const seconds = Math.abs(Math.round(value));
  if (seconds < 90) return `${sign}${seconds} s`;
  if (seconds < 5400) return `${sign}${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${sign}${Math.round(seconds / 3600)} h`;
  return `${sign}${Math.round(seconds / 86400)} d`;
}

/** epoch: seconds since 1970. */
export function ago(epoch, now = Date.now() / 1000) {
  if (none(epoch)) return DASH;
  const past = now - epoch;
  if (past < -1) return `in ${span(-past)}`;
  return past < 1 ? "now" : `${span(past)} ago`;
}

export const clock = (epoch) =>
  none(epoch) ? DASH : new Date(epoch * 1000).toLocaleTimeString([], { hour12: false });

export const moment = (epoch) => (none(epoch) ? DASH : new Date(epoch * 1000).toLocaleString([], { hour12: false }));

/** How worrying a share of errors is. */
export const tone = (errors) => (none(errors) || errors === 0 ? "good" : errors < 0.05 ? "warn" : "bad");
