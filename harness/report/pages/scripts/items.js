// Single items: which questions each model got right, what was expected and what it answered.
(() => {
  const { texts, sets } = block("items");
  if (!sets.length) {
    document.getElementById("items").remove();
    document.querySelector('a[href="#items"]')?.parentElement.remove();
    return;
  }
  const STEP = 50; // items of a page
  const OUTCOMES = [
    ["", "all items"], ["lost", "lost: base right, the model wrong"], ["won", "won: base wrong, the model right"],
    ["right", "right"], ["wrong", "wrong"], ["differ", "models differ"],
  ];
  for (const name of ["items.set", "items.model", "items.kind", "items.group", "items.find", "items.page"]) state.declare(name, "");
  const controls = document.getElementById("items-controls");
  const list = document.getElementById("items-list");
  const lower = texts.map((text) => text.toLowerCase());
  const named = (set) => [set.title, set.score].filter(Boolean).join(": ");
  const current = () => sets.find((set) => named(set) === state.get("items.set")) ?? sets[0];
  const chosen = (set) => set.models.findIndex((model) => model.label === state.get("items.model"));
  const everyone = (set) => set.models.map((_, i) => i);

  function fill(select, options, value) {
    select.replaceChildren(...options.map(([key, text]) => element("option", { value: key }, text)));
    select.value = value;
  }

  function field(name, label) {
    const select = element("select", { id: name.replace(".", "-"), onchange: () => state.set({ [name]: select.value, "items.page": "" }) });
    controls.append(element("span", { class: "field" }, element("label", { for: select.id }, label), select));
    return select;
  }

  const which = field("items.set", "Test");
  if (sets.length < 2) which.parentElement.hidden = true;
  const model = field("items.model", "Model");
  const kind = field("items.kind", "Show");
  const group = field("items.group", "Group");
  const find = element("input", { type: "search", id: "items-find", oninput: () => state.set({ "items.find": find.value, "items.page": "" }, true) });
  const output = element("output");
  controls.append(element("span", { class: "field" }, element("label", { for: find.id }, "Items with"), find), output);

  // How an item went: by the model that is chosen, or by any of those that are tuned.
  function passes(set, i, one, wanted) {
    const right = (m) => set.right[m][i] / set.models[m].seeds;
    const base = set.models.findIndex((each) => each.untuned);
    const asked = one >= 0 ? [one] : everyone(set).filter((m) => !set.models[m].untuned);
    if (wanted === "lost") return base >= 0 && right(base) === 1 && asked.some((m) => right(m) < 1);
    if (wanted === "won") return base >= 0 && right(base) === 0 && asked.some((m) => right(m) > 0);
    if (wanted === "right") return asked.length > 0 && asked.every((m) => right(m) === 1);
    if (wanted === "wrong") return asked.length > 0 && asked.every((m) => right(m) < 1);
    if (wanted === "differ") return new Set(everyone(set).map(right)).size > 1;
    return true;
  }

  function matches(set, i, words, shown) {
    if (!words.length) return true;
    const at = [set.question[i], set.target[i], ...shown.map((m) => set.answers[m][i])].filter((text) => text !== null);
    const named = `${set.subjects[set.subject[i]]} ${set.number[i]}`.toLowerCase();
    return words.every((word) => named.includes(word) || at.some((text) => lower[text].includes(word)));
  }

  function cell(set, m, i) {
    const { seeds } = set.models[m];
    const right = set.right[m][i];
    const said = seeds > 1 ? `${right} of ${seeds} right` : right ? "right" : "wrong";
    return element("td", { "data-right": right === seeds ? "yes" : "no", "data-of": set.models[m].label },
      element("span", { class: "mark" }, `${right === seeds ? "✓" : right ? "◐" : "✗"} ${said}`), texts[set.answers[m][i]]);
  }

  // A name such as high_school_mathematics may break after its underscores.
  const breakable = (name) => name.split(/(?<=_)/).flatMap((part, i) => (i ? [element("wbr"), part] : [part]));

  function turn(by, label, off) {
    return element("button", { type: "button", disabled: off, "data-turn": label, onclick: () => state.set({ "items.page": String(by) }) }, label);
  }

  function show() {
    const set = current();
    const one = chosen(set);
    const pressed = document.activeElement?.dataset.turn;
    const base = set.models.findIndex((each) => each.untuned);
    const shown = one < 0 ? everyone(set) : [...new Set([base, one])].filter((m) => m >= 0);
    const wanted = state.get("items.kind");
    const subject = set.subjects.indexOf(state.get("items.group"));
    const words = state.get("items.find").toLowerCase().split(/\s+/).filter(Boolean);
    const found = set.number.map((_, i) => i).filter((i) => (subject < 0 || set.subject[i] === subject)
      && passes(set, i, one, wanted) && matches(set, i, words, shown));
    const pages = Math.max(1, Math.ceil(found.length / STEP));
    const page = Math.min(Math.max(Number(state.get("items.page")) || 0, 0), pages - 1);
    const rows = found.slice(page * STEP, (page + 1) * STEP);
    const asked = set.question.some((question) => question !== null);

    fill(which, sets.map((each, i) => [i ? named(each) : "", named(each)]), set === sets[0] ? "" : named(set));
    fill(model, [["", "all"], ...set.models.map((each) => [each.label, `${each.label} ${each.setting}`.trim()])], one < 0 ? "" : state.get("items.model"));
    fill(kind, base < 0 ? OUTCOMES.filter(([key]) => key !== "lost" && key !== "won") : OUTCOMES, wanted);
    fill(group, [["", "all"], ...set.subjects.map((name) => [name, name])], subject < 0 ? "" : state.get("items.group"));
    group.parentElement.hidden = set.subjects.length < 2;
    if (find.value !== state.get("items.find")) find.value = state.get("items.find");
    output.value = `${found.length.toLocaleString("en")} of ${many(set.number.length, "item")}`;

    const head = element("tr", {}, element("th", { scope: "col" }, "Item"), asked ? element("th", { scope: "col" }, "Question") : null,
      element("th", { scope: "col" }, "Expected"), ...shown.map((m) => element("th", { scope: "col" }, set.models[m].label)));
    const body = rows.map((i) => element("tr", {},
      element("th", { scope: "row" }, ...breakable(set.subjects[set.subject[i]]), ` ${set.number[i]}`),
      asked ? element("td", { class: "question", "data-of": "Question" }, set.question[i] === null ? "not recorded" : texts[set.question[i]]) : null,
      element("td", { "data-of": "Expected" }, texts[set.target[i]]), ...shown.map((m) => cell(set, m, i))));
    const caption = element("caption", { id: "items-caption" }, `${set.score}, item by item`);
    const table = element("table", { id: "items-table" }, caption, element("thead", {}, head), element("tbody", {}, ...body));
    const notes = element("ul", { class: "notes" });
    if (set.number.length < set.all) {
      notes.append(element("li", {}, `This page holds ${set.number.length.toLocaleString("en")} of ${many(set.all, "item")}: first those on which models differ. NAME.items.parquet has all.`));
    }
    if (!asked) notes.append(element("li", {}, "These records were made before questions were kept. New cells have them."));
    notes.append(element("li", {}, "Of a long text, the end is shown."));
    list.replaceChildren(
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "items-caption" }, table),
      element("div", { class: "pages" }, turn(page - 1, "Previous", page === 0), turn(page + 1, "Next", page >= pages - 1),
        element("span", {}, `Page ${page + 1} of ${pages}`)),
      notes,
    );
    const turns = [...list.querySelectorAll("[data-turn]")].filter((button) => !button.disabled);
    if (pressed) (turns.find((button) => button.dataset.turn === pressed) ?? turns[0])?.focus();
  }

  state.onchange((names) => {
    if ([...names].some((name) => name.startsWith("items."))) show();
  });
})();
