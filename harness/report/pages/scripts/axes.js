// The grid's axes side by side, a line a setting, and how much each axis matters.
(() => {
  const places = block("curves").axes;
  if (!places.length) return;
  const MOST = 2000; // lines that can still be told from each other, and drawn at once
  const here = () => places.find((place) => String(place.place) === state.get("at"));
  charts.frame({
    id: "axes", title: "The grid, axis by axis", wide: true, draw: parallel,
    note: "A line is a setting. Darker lines have the better outcome, the last axis; grey dashes do not fit the card. Axes stand in the order of their importance.",
  });
  charts.frame({ id: "importance", title: "Which axis matters", draw: bars });

  // Where each value stands on an axis, from 0 to 1, and the values to write beside it.
  function scale(values) {
    const known = [...new Set(values.filter((value) => value !== null))];
    if (known.every((value) => typeof value === "number")) {
      const [low, high] = d3.extent(known);
      const log = low > 0 && high / low >= 8;
      const at = log ? d3.scaleLog([low, high], [0, 1]) : d3.scaleLinear([low, high], [0, 1]);
      const ticks = known.length <= 8 ? d3.sort(known) : log ? [low, Math.sqrt(low * high), high] : [low, (low + high) / 2, high];
      return { at, ticks: ticks.map((value) => [at(value), significant(value, 3)]) };
    }
    const texts = known.map(String).sort();
    const at = (value) => (texts.length > 1 ? texts.indexOf(String(value)) / (texts.length - 1) : 0.5);
    const every = Math.ceil(texts.length / 14);
    return { at, ticks: texts.filter((_, i) => i % every === 0).map((text) => [at(text), text]) };
  }

  function parallel(width) {
    const found = here();
    if (!found) return "This part of the study has no grid of several axes.";
    const outcome = study.metrics.get(found.outcome);
    const last = outcome ? outcome.label : found.outcome;
    const names = Object.keys(found.axes).slice(0, width < 500 ? 3 : 8);
    const values = new Map(names.map((name) => [name, found.axes[name]]));
    values.set(last, found.settings.map((index) => study.value(found.outcome, index)));
    const sign = outcome?.better === "high" ? 1 : -1;
    const rows = found.settings.map((index, i) => ({ setting: study.settings[index], i, outcome: values.get(last)[i] }))
      .filter(({ setting, outcome }) => charts.shows(setting) && outcome !== null);
    if (!rows.length) return "No setting in this view has an outcome.";
    const ranked = d3.sort(rows, (row) => -sign * row.outcome);
    const shown = ranked.slice(0, MOST).reverse(); // the best are drawn last
    const scales = new Map([...values].map(([name, of]) => [name, scale(name === last ? rows.map((row) => row.outcome) : of)]));
    if (sign < 0) { // better is up
      const { at, ticks } = scales.get(last);
      scales.set(last, { at: (value) => 1 - at(value), ticks: ticks.map(([y, text]) => [1 - y, text]) });
    }
    const place = new Map(ranked.map((row, rank) => [row, 1 - rank / Math.max(1, ranked.length - 1)]));
    const points = shown.flatMap((row) => [...values.keys()].map((name) => {
      const value = values.get(name)[row.i];
      return value === null ? null : { row, name, y: scales.get(name).at(value), title: `${row.setting.label}\n${last}: ${written(found.outcome, row.setting.index)}` };
    })).filter(Boolean);
    const grey = points.filter(({ row }) => charts.grey(row.setting));
    const bright = points.filter(({ row }) => !charts.grey(row.setting));
    const apart = (ticks) => ticks.filter(([y], i) => !ticks.slice(0, i).some(([before]) => Math.abs(y - before) < 0.04));
    const ticks = [...scales].flatMap(([name, { ticks }]) => apart(ticks).map(([y, text]) => ({ name, y, text: short(text, 12) })));
    const faintest = Math.min(0.35, Math.max(0.04, 8 / shown.length)); // many lines are a ground, few can be followed
    const line = { x: "name", y: "y", z: ({ row }) => row.i };
    return charts.plot({
      width, height: 380, marginLeft: width < 500 ? 58 : 70, marginRight: width < 500 ? 32 : 70, marginTop: 34, marginBottom: 14,
      x: { type: "point", domain: [...values.keys()], axis: "top", label: null, tickSize: 0, tickFormat: (name) => short(name.replace(/^(method\.knobs|train)\./, ""), width < 500 ? 10 : 20) },
      y: { axis: null, domain: [0, 1] },
      ariaLabel: "Settings over the grid's axes",
      marks: [
        Plot.ruleX([...values.keys()], { stroke: "var(--line)", strokeWidth: 1.5 }),
        Plot.line(grey, { ...line, stroke: GREY, strokeDasharray: "3 3" }),
        Plot.line(bright, { ...line, stroke: "var(--link)", strokeOpacity: ({ row }) => faintest + (0.8 - faintest) * place.get(row) ** 3, strokeWidth: ({ row }) => (row.setting.chosen ? 2.5 : 1) }),
        Plot.text(ticks, { x: "name", y: "y", text: "text", dx: -6, textAnchor: "end", fill: "currentColor", stroke: "var(--ground)", strokeWidth: 4, fontSize: 11 }),
        charts.tip(bright, { x: "name", y: "y", title: "title" }, width),
      ],
    });
  }

  function bars(width) {
    const found = here();
    if (!found?.importance) return "Too few finished runs to say which axis matters: 20 of two varied axes are needed.";
    const lost = Object.entries(found.importance).map(([name, value]) => [name.replace(/^(method\.knobs|train)\./, ""), Math.max(0, value)]);
    const all = d3.sum(lost, ([, value]) => value) || 1;
    const rows = lost.map(([name, value]) => ({ name, value: (100 * value) / all }));
    const outcome = study.metrics.get(found.outcome)?.label ?? found.outcome;
    const plot = charts.plot({
      width, height: 50 + 24 * rows.length, marginLeft: 140, marginRight: 50, marginTop: 8, marginBottom: 36,
      x: { label: "share of the importance (%)", grid: true, nice: true, ticks: 4 },
      y: { type: "band", domain: rows.map((row) => row.name), label: null, padding: 0.25, tickSize: 0, tickFormat: (name) => short(name, 18) },
      ariaLabel: "Importance of each axis",
      marks: [
        Plot.barX(rows, { x: "value", y: "name", fill: "var(--link)" }),
        Plot.text(rows, { x: "value", y: "name", text: (row) => `${row.value.toFixed(0)}%`, dx: 6, textAnchor: "start", fill: "currentColor" }),
      ],
    });
    const said = `Permutation importance for ${outcome.toLowerCase()} (by rank), of a random forest over ${found.records} runs: how much less it explains if an axis is shuffled. On runs it has not seen the forest explains ${(100 * Math.max(0, found.explained)).toFixed(0)}% of the variance.`;
    return element("div", {}, plot, element("p", { class: "notes" }, said + (found.explained < 0.2 ? " That is too little to rely on." : "")));
  }
})();
