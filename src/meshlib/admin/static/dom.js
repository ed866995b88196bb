// Making elements. Text is always set as text: nothing that a peer sends is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(9)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/** el("td", {class: "number"}, "12"): an HTML element. Attributes that are null, undefined or false are left out; onclick is a function. */
export const el = (name, attributes = {}, ...children) =>
  fill(document.createElement(name), attributes, children);

/** The same for SVG. */
export const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

// --- changing what is there ---

const HANDLERS = ["onclick", "onkeydown", "onchange"];

/**
 * Have the element hold these. What is the same stays the same node, so that the reader's place, selection and focus stay where
 * they are. Rows are told apart by data-row, what had the focus and had to be moved by data-key.
 */
export function replace(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const wanted = document.createDocumentFragment();
  wanted.append(...children.flat(9).filter(Boolean));
  patchChildren(element, wanted);
  if (focused && !element.contains(document.activeElement)) keyed(element, focused)?.focus({ preventScroll: true });
}

/** What has this data-key. */
export const keyed = (element, key) => element.querySelector(`[data-key="${CSS.escape(key)}"]`);

const nameOf = (node) => node.dataset?.row;

function patchChildren(old, fresh) {
  const rows = new Map();
  for (const child of old.childNodes) if (nameOf(child)) rows.set(nameOf(child), child);
  let next = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const found = nameOf(wanted) ? rows.get(nameOf(wanted)) : next && !nameOf(next) && next.nodeName === wanted.nodeName ? next : null;
    rows.delete(nameOf(wanted));
    if (!found) {
      old.insertBefore(wanted, next);
      continue;
    }
    if (found === next) next = next.nextSibling;
    else old.insertBefore(found, next);
    patch(found, wanted);
  }
  while (next) {
    const left = next;
    next = next.nextSibling;
    left.remove();
  }
}

function patch(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const name of HANDLERS) if (old[name] !== fresh[name]) old[name] = fresh[name];
  const select = old.nodeName === "SELECT" && fresh.value !== old.querySelector("[selected]")?.value; // else it is the reader's
  patchChildren(old, fresh);
  if (select) old.value = fresh.value;
}

// --- pieces of a page ---

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
 * key(row): what tells it apart from others. The roles are those of the elements, which a phone's grid would take from them.
 */
export function table(columns, rows, { caption, order = null, change = null, chosen = null, key = null } = {}) {
  const heading = (column, index) => {
    const turned = order && order.column === index ? (order.down ? "descending" : "ascending") : null;
    const arrow = turned ? (order.down ? " ▾" : " ▴") : "";
    const sortable = change && column.sort;
    const flip = () => change({ column: index, down: turned ? !order.down : Boolean(column.number) });
    return el(
      "th",
      { scope: "col", role: "columnheader", class: column.number && "number", "aria-sort": turned },
      sortable
        ? el("button", { type: "button", "data-key": `sort-${index}`, onclick: flip }, column.name + arrow)
        : column.name,
    );
  };
  const cell = (column, index, row) => {
    const kind = [column.number && "number", column.whole && "whole", column.third && "third", column.spare && "spare"];
    const attributes = { class: kind.filter(Boolean).join(" ") || null };
    return index === 0
      ? el("th", { scope: "row", role: "rowheader", ...attributes }, column.cell(row))
      : el("td", { role: "cell", ...attributes, "data-label": column.name }, column.cell(row));
  };
  const sorted = order && columns[order.column]?.sort ? [...rows].sort(by(columns[order.column].sort, order.down)) : rows;
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      { class: "narrow", role: "table" },
      el("caption", { class: "hidden" }, caption),
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, columns.map(heading))),
      el(
        "tbody",
        { role: "rowgroup" },
        sorted.map((row) =>
          el(
            "tr",
            { role: "row", class: chosen && chosen(row) && "chosen", "data-row": key && key(row) },
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
