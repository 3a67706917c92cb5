// Memory by kind: what a training step holds at its peak, a bar a setting, against the card's line.
(() => {
  const groups = block("curves").memory;
  if (!groups.length) return;
  const KINDS = [["weights", "#0072B2"], ["optimizer", "#56B4E9"], ["adapters", "#F0E442"], ["gradients", "#D55E00"], ["activations", "#999999"], ["beside", "#CC79A7"]];
  const said = { beside: "allocator's remainder" };
  state.declare("group", "");
  const shown = () => groups.find((group) => group.title === state.get("group")) ?? groups[0];
  const used = KINDS.filter(([kind]) => study.settings.some((setting) => setting.memory[kind] > 0));
  const controls = groups.length > 1 ? [charts.select("group", "Of", groups.map((group) => [group.title, group.title || "all"]), () => shown().title)] : [];
  charts.frame({
    id: "memory", title: "Where the memory goes", draw,
    controls: [...controls, charts.swatches(used.map(([kind, colour]) => [said[kind] ?? kind, colour]))],
    note: "Live tensors at the peak of a training step as measured, at the study's own batch; of an untuned model, of a forward pass. Line: my card.",
  });

  function draw(width) {
    const group = shown();
    const settings = group.settings.map((index) => study.settings[index]).filter((setting) => filters.shows(setting.index));
    if (!settings.length) return "No setting in this view has its memory by kind.";
    const several = d3.rollup(settings, (of) => of.length, (setting) => setting.method);
    const name = (setting) => short(several.get(setting.method) > 1 ? setting.label : setting.method.name, width < 500 ? 16 : 28) + (charts.grey(setting) ? " ✗" : "");
    const names = new Map(settings.map((setting, i) => [i, name(setting)]));
    const parts = settings.flatMap((setting, i) => {
      let before = 0;
      return used.filter(([kind]) => setting.memory[kind] > 0).map(([kind, colour]) => {
        const size = setting.memory[kind] / 2 ** 30;
        const part = { i, kind, colour, size, x1: before, x2: before + size, setting };
        before = part.x2;
        return part;
      });
    });
    const room = Number(state.get("gib")) || null;
    const most = d3.max(parts, (part) => part.x2);
    const near = room !== null && room < 3 * most; // the line of a far larger card would squeeze the bars
    return charts.plot({
      width, height: 60 + 26 * settings.length, marginLeft: width < 500 ? 110 : 190, marginRight: 20, marginTop: 20, marginBottom: 36,
      x: { label: "GiB", grid: true, domain: [0, near ? Math.max(room, most) : most], nice: true },
      y: { type: "band", domain: d3.range(settings.length), tickFormat: (i) => names.get(i), label: null, padding: 0.2, tickSize: 0 },
      ariaLabel: "Memory by kind",
      rows: parts.map(({ setting, kind, size }) => ({ method: setting.method.name, setting: setting.setting, kind: said[kind] ?? kind, bytes: size * 2 ** 30 })),
      marks: [
        Plot.barX(parts, { x1: "x1", x2: "x2", y: "i", fill: "colour", stroke: "var(--ground)", fillOpacity: ({ setting }) => (charts.grey(setting) ? 0.3 : 1) }),
        near ? Plot.ruleX([room], { stroke: "currentColor", strokeWidth: 2, strokeDasharray: "4 3" }) : null,
        room && !near ? Plot.text([`${room} GiB →`], { text: (said) => said, frameAnchor: "top-right", dy: -14, fill: "currentColor" }) : null,
        charts.tip(parts, { x: (part) => (part.x1 + part.x2) / 2, y: "i", title: (part) => `${part.setting.label}\n${said[part.kind] ?? part.kind}: ${bytes(part.size * 2 ** 30)}` }, width),
      ],
    });
  }
})();
