// Makes every table sortable and filterable, with columns to show and hide, and only the first rows of a long one shown.
// Without it they are plain tables.
const UNITS = {
  K: 1e3, M: 1e6, B: 1e9, T: 1e12, P: 1e15, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, ms: 1e-3, s: 1,
};
const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

// The first number of a cell such as "1.50 GiB (0.50×)" or "513 / 19 MiB" in base units; NaN if there is none. "< 1%" is
// just below 1, "> 99%" just above 99.
function number(text) {
  const found = /^(?:([<>]) |≤ )?([+−-]?)\$?([\d,]*\.?\d+(?:e[+-]?\d+)?)(?: \/ [\d.,–]+)* ?([A-Za-z]+)?/.exec(text);
  if (!found) return NaN;
  const size = Number(found[3].replaceAll(",", "")) * (UNITS[found[4]] ?? 1);
  const value = found[2] === "−" || found[2] === "-" ? -size : size;
  return value + ({ "<": -1, ">": 1 }[found[1]] ?? 0) * 1e-9 * size;
}

function interactive(table, rest) {
  const STEP = 200; // rows that are shown at once
  const [sorting, finding, hiding] = [`${table.id}.sort`, `${table.id}.find`, `${table.id}.hide`];
  for (const name of [sorting, finding, hiding]) state.declare(name, "");
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const names = headers.map((th) => th.textContent);
  const named = (name) => (name ? names.indexOf(name) : -1);
  const kinds = headers.map((th) => th.className);
  const head = [...(body.rows[0]?.cells ?? [])].findIndex((cell) => cell.tagName === "TH");
  const settings = table.dataset.settings ? table.dataset.settings.split(" ") : [];
  const rows = [...body.rows].map((tr) => ({ tr, texts: [...tr.cells].map((cell) => cell.textContent) }));
  rows.push(...rest.map((texts) => ({ tr: null, texts })));
  rows.forEach((row, i) => {
    row.words = row.texts.join("\n").toLowerCase();
    row.setting = /^\d+$/.test(settings[i] ?? "") ? study.settings[settings[i]] : null;
  });
  let limit = STEP;
  let printing = false; // paper has no button for more
  let sorted = rows;

  function element_of(row) {
    row.tr ??= element("tr", {}, ...row.texts.map((text, i) => element(i === head ? "th" : "td", { class: kinds[i] || null, scope: i === head ? "row" : null }, text)));
    return row.tr;
  }

  function sort() {
    const order = state.get(sorting); // a column's name; with - before it from the last to the first
    const column = named(order.replace(/^-/, ""));
    headers.forEach((th) => th.removeAttribute("aria-sort"));
    sorted = rows;
    if (!headers[column]) return;
    headers[column].setAttribute("aria-sort", order.startsWith("-") ? "descending" : "ascending");
    const sign = order.startsWith("-") ? -1 : 1;
    const text = kinds[column].includes("text");
    const compare = text ? words.compare : (one, other) => one - other;
    const keyed = rows.map((row) => {
      const shown = row.texts[column];
      const key = text ? shown : number(shown);
      return { row, key, absent: shown === "–" || Number.isNaN(key) };
    });
    // What is absent comes last either way; equal rows stay in the order they had.
    keyed.sort((a, b) => a.absent - b.absent || (a.absent ? 0 : sign * compare(a.key, b.key)));
    sorted = keyed.map(({ row }) => row);
  }

  function show() {
    const wanted = state.get(finding).toLowerCase().split(/\s+/).filter(Boolean);
    const hidden = new Set(state.get(hiding).split("|").map(named).filter((at) => at >= 0));
    const found = sorted.filter((row) => wanted.every((word) => row.words.includes(word)) && (!row.setting || filters.shows(row.setting.index)));
    headers.forEach((th, i) => { th.hidden = hidden.has(i); });
    const shown = found.slice(0, printing ? Infinity : limit).map((row) => {
      const tr = element_of(row);
      [...tr.cells].forEach((cell, i) => { cell.hidden = hidden.has(i); });
      tr.dataset.fits = (row.setting && card.fits(row.setting)) ?? "";
      return tr;
    });
    body.replaceChildren(...shown);
    output.value = `${found.length} of ${many(rows.length, "row")}`;
    bar.classList.toggle("narrowed", found.length < rows.length);
    more.hidden = found.length <= limit;
    more.textContent = `Show ${Math.min(STEP, found.length - limit)} more of ${found.length} rows`;
    boxes.forEach((box, i) => { box.checked = !hidden.has(i); });
    if (input.value !== state.get(finding)) input.value = state.get(finding);
  }

  headers.forEach((th, i) => {
    const button = element("button", { type: "button", onclick: () => state.set({ [sorting]: state.get(sorting) === names[i] ? `-${names[i]}` : names[i] }) });
    button.append(...th.childNodes);
    th.append(button);
  });
  const input = element("input", { type: "search", id: `${table.id}-filter`, oninput: () => state.set({ [finding]: input.value }, true) });
  const label = element("label", { for: input.id, id: `${table.id}-label` }, "Show rows with");
  input.setAttribute("aria-labelledby", `${label.id} ${table.caption.id}`); // which table's, too
  const output = element("output");
  const boxes = headers.map((th, i) => element("input", {
    type: "checkbox", id: `${table.id}-column-${i}`, onchange: () => state.set({ [hiding]: boxes.flatMap((box, at) => (box.checked ? [] : [names[at]])).join("|") }),
  }));
  const chooser = element("details", { class: "columns" }, element("summary", {}, "Columns"),
    element("div", {}, ...boxes.map((box, i) => element("label", { for: box.id }, box, headers[i].textContent))));
  const bar = element("div", { class: "filter" }, label, input, output, chooser);
  table.parentElement.before(bar);
  const more = element("button", { type: "button", class: "more", onclick: () => { limit += STEP; show(); } });
  table.parentElement.after(more);
  for (const event of ["beforeprint", "afterprint"]) {
    addEventListener(event, () => { printing = event === "beforeprint"; show(); });
  }
  state.onchange((names) => {
    if (names.has(sorting)) sort();
    if (names.has(finding)) limit = STEP;
    show();
  });
}
