
// Makes every table sortable and filterable. Without it they are plain tables, all rows shown.
"use strict";

const UNITS = {
  K: 1e3, M: 1e6, B: 1e9, T: 1e12, P: 1e15, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, ms: 1e-3, s: 1,
};
const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

// The first number of a cell such as "1.50 GiB (0.50×)" or "513 / 19 MiB" in base units; NaN if there is none.
function number(text) {
  const found = /^([+−-]?)([\d,]*\.?\d+(?:e[+-]?\d+)?)(?: \/ [\d.,–]+)* ?([A-Za-z]+)?/.exec(text);
  if (!found) return NaN;
  const value = Number(found[2].replaceAll(",", "")) * (UNITS[found[3]] ?? 1);
  return found[1] === "−" || found[1] === "-" ? -value : value;
}

function sort(table, th, column) {
  const order = th.ariaSort === "ascending" ? "descending" : "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const text = th.classList.contains("text");
  const keyed = [...table.tBodies[0].rows].map((row) => {
    const shown = row.cells[column].textContent;
    const key = text ? shown : number(shown);
    return { row, key, absent: shown === "–" || Number.isNaN(key) };
  });
  const compare = text ? words.compare : (one, other) => one - other;
  // What is absent comes last either way; sorting is stable, so equal rows stay in the order they had.
  keyed.sort((a, b) => a.absent - b.absent || (a.absent ? 0 : sign * compare(a.key, b.key)));
  table.tBodies[0].append(...keyed.map(({ row }) => row));
}

function filter(table, text, output) {
  const wanted = text.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...table.tBodies[0].rows];
  for (const row of rows) {
    const cells = [...row.cells].map((cell) => cell.textContent.toLowerCase()).join("\n");
    row.hidden = !wanted.every((word) => cells.includes(word));
  }
  output.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
}

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((th, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...th.childNodes);
    button.addEventListener("click", () => sort(table, th, column));
    th.append(button);
  });
  const form = document.createElement("div");
  const label = document.createElement("label");
  const input = document.createElement("input");
  const output = document.createElement("output");
  form.className = "filter";
  input.type = "search";
  input.id = `${table.id}-filter`;
  label.htmlFor = input.id;
  label.id = `${table.id}-label`;
  label.textContent = "Show rows with";
  input.setAttribute("aria-labelledby", `${label.id} ${table.caption.id}`); // which table's, too
  input.addEventListener("input", () => filter(table, input.value, output));
  form.append(label, input, output);
  table.parentElement.before(form);
  filter(table, "", output);
}
