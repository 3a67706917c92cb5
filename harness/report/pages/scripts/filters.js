// What is shown, on the whole page: methods, capabilities, words of a setting, and what a chart adds by `also`.
const filters = (() => {
  const CAPABILITIES = [
    ["plain", "Served as plain weights", "merged for inference, or without an adapter"],
    ["quantised", "Quantised base", "the base's weights have 4 or 8 bits"],
    ["optimizer", "Optimizer only", "trains the weights themselves, without an adapter"],
    ["free", "Free licence", "needs no package under a licence for non-commercial use"],
  ];
  state.declare("find", "");
  state.declare("can", "");
  state.declare("without", "");
  state.declare("at", "");
  const listed = (name) => new Set(state.get(name).split(",").filter(Boolean));
  const joined = (set) => [...set].join(",");
  let shown = study.settings.map(() => true);
  const others = new Map(); // by their names in the state

  // Show only settings that pass(): a function of a setting, made anew when `name` changes in the state.
  function also(name, pass) {
    state.declare(name, "");
    others.set(name, { pass, shown });
    state.onchange((names) => {
      if (names.has(name)) others.get(name).shown = study.settings.map(pass());
    });
  }

  // but: the name of an addition that is not to count.
  const shows = (index, but) => shown[index] && [...others].every(([name, other]) => name === but || other.shown[index]);

  state.onchange((names) => {
    if (!["find", "can", "without"].some((name) => names.has(name))) return;
    const [can, without] = [listed("can"), listed("without")];
    const words = state.get("find").toLowerCase().split(/\s+/).filter(Boolean);
    shown = study.settings.map((setting) => {
      const text = `${setting.label} ${setting.status}`.toLowerCase();
      return !without.has(setting.method.name) && [...can].every((name) => setting.can[name] === true)
        && words.every((word) => text.includes(word));
    });
  });

  function toggle(name, value) {
    const chosen = listed(name);
    if (!chosen.delete(value)) chosen.add(value);
    state.set({ [name]: joined(chosen) });
  }

  function symbol(method) {
    const svg = d3.create("svg").attr("viewBox", "-7 -7 14 14").attr("aria-hidden", "true");
    svg.append("path").attr("d", d3.symbol(method.symbol, 64)()).attr("fill", method.colour);
    return svg.node();
  }

  function build(panel) {
    const input = element("input", { type: "search", id: "filters-find", oninput: () => state.set({ find: input.value }, true) });
    panel.append(element("span", { class: "field" }, element("label", { for: input.id }, "Settings with"), input));
    for (const [name, label, title] of CAPABILITIES) {
      const values = study.settings.map((setting) => setting.can[name] === true);
      if (new Set(values).size < 2) continue; // it would show all or nothing
      const box = element("input", { type: "checkbox", id: `filters-${name}`, onchange: () => toggle("can", name) });
      panel.append(element("span", { class: "tick", title }, box, element("label", { for: box.id }, label)));
      state.onchange(() => { box.checked = listed("can").has(name); });
    }
    const output = element("output");
    const clear = element("button", { type: "button", onclick: () => state.clear() }, "Reset the view");
    panel.append(clear, output);
    const legend = element("div", { class: "legend", role: "group", "aria-label": "Methods shown" });
    for (const method of study.methods) {
      const chip = element("button", { type: "button", class: "chip", onclick: () => toggle("without", method.name) }, symbol(method), method.name);
      legend.append(chip);
      state.onchange(() => chip.setAttribute("aria-pressed", String(!listed("without").has(method.name))));
    }
    panel.append(legend);
    state.onchange(() => {
      if (input.value !== state.get("find")) input.value = state.get("find");
      output.value = `${shown.filter((_, i) => shows(i)).length} of ${many(shown.length, "setting")} shown`;
    });
  }

  return { build, also, shows, symbol };
})();
