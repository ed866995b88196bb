// Making elements. Text is always set as text: nothing that a peer sends is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(9)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/** el("td", {class: "number"}, "12"): an HTML element. Attributes that are null, undefined or false are left out. */
export const el = (name, attributes = {}, ...children) =>
  fill(document.createElement(name), attributes, children);

/** The same for SVG. */
export const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

/** Put these in the place of what the element holds; the focus stays on what has the same data-key. */
export function replace(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const scrolled = [...element.querySelectorAll("[data-scroll]")].map((each) => [each.dataset.scroll, each.scrollLeft]);
  element.replaceChildren(...children.flat(9).filter(Boolean));
  for (const [key, left] of scrolled) {
    const found = element.querySelector(`[data-scroll="${CSS.escape(key)}"]`);
    if (found) found.scrollLeft = left;
  }
  if (focused) element.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

export const pill = (tone, text) => el("span", { class: `pill ${tone}` }, text);

/** A panel with a heading; `tools` stand beside it. */
export const panel = (title, tools, ...children) =>
  el("section", { class: "panel" }, el("header", {}, el("h2", {}, title), tools), children);

export const empty = (text) => el("p", { class: "empty" }, text);

/** A list of terms and what they are; pairs without a value are left out. */
export const facts = (pairs) =>
  el(
    "dl",
    { class: "facts" },
    pairs
      .filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false)
      .map(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]),
  );

/**
 * A table. columns: [{name, cell(row), number, head, whole, third, spare, sort(row)}]; the first is each row's heading.
 * whole, third: how wide the cell is on a phone; spare: left out there. order: {column, down} or null, change(order): by a click.
 */
export function table(columns, rows, { caption, order = null, change = null, chosen = null, key = null } = {}) {
  const heading = (column, index) => {
    const turned = order && order.column === index ? (order.down ? "descending" : "ascending") : null;
    const arrow = turned ? (order.down ? " ▾" : " ▴") : "";
    const sortable = change && column.sort;
    const flip = () => change({ column: index, down: turned ? !order.down : Boolean(column.number) });
    return el(
      "th",
      { scope: "col", class: column.number && "number", "aria-sort": turned },
      sortable
        ? el("button", { type: "button", "data-key": `sort-${index}`, onclick: flip }, column.name + arrow)
        : column.name,
    );
  };
  const cell = (column, index, row) => {
    const kind = [column.number && "number", column.whole && "whole", column.third && "third", column.spare && "spare"];
    const attributes = { class: kind.filter(Boolean).join(" ") || null };
    return index === 0
      ? el("th", { scope: "row", ...attributes }, column.cell(row))
      : el("td", { ...attributes, "data-label": column.name }, column.cell(row));
  };
  const sorted = order && columns[order.column]?.sort ? [...rows].sort(by(columns[order.column].sort, order.down)) : rows;
  return el(
    "div",
    { class: "scroll", "data-scroll": caption, tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      { class: "narrow" },
      el("caption", { class: "hidden" }, caption),
      el("thead", {}, el("tr", {}, columns.map(heading))),
      el(
        "tbody",
        {},
        sorted.map((row) =>
          el(
            "tr",
            { class: chosen && chosen(row) && "chosen", "data-row": key && key(row) },
            columns.map((column, index) => cell(column, index, row)),
          ),
        ),
      ),
    ),
  );
}

function by(value, down) {
  const sign = down ? -1 : 1;
  return (one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === b) return 0;
    if (a === null || a === undefined) return 1;
    if (b === null || b === undefined) return -1;
    return (a < b ? -1 : 1) * sign;
  };
}
