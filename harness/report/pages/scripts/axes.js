// The grid's axes side by side, a line a setting, and how much each axis matters. A range of an axis is a filter.
(() => {
  const places = block("curves").axes;
  if (!places.length) return;
  const MOST = 2000; // lines that can still be told from each other, and drawn at once
  const here = () => places.find((place) => place.place === study.at());
  const clear = element("button", { type: "button", hidden: true, onclick: () => state.set({ within: "" }) }, "Clear the ranges");
  const frame = charts.frame({
    id: "axes", title: "The grid, axis by axis", wide: true, draw: parallel, controls: [clear],
    note: "Each line is a setting. The last axis is the outcome: the better it is, the darker the line. Grey dashes do not fit the card. Axes are in the order of their importance. Drag along an axis, or move its ends with the arrow keys, to show only the settings in that range on the whole page. Escape clears the range.",
  });
  const LEAST = 0.2; // share of the variance that a forest explains: with less there is nothing to rely on
  const relied = (place) => place.importance && place.explained >= LEAST;
  if (places.some(relied)) charts.frame({ id: "importance", title: "Which axis matters", draw: bars });

  const position = new Map(places.flatMap((place) => place.settings.map((index, i) => [index, { place, i }])));

  // A setting's value on an axis, or of the metric that is the outcome.
  function valueOf(name, index) {
    if (study.metrics.has(name)) return study.value(name, index);
    const found = position.get(index);
    return found?.place.axes[name]?.[found.i] ?? null;
  }

  // The least and the greatest value of each axis that has a range.
  function ranges() {
    try {
      return Object.fromEntries(Object.entries(JSON.parse(state.get("within"))).filter(([, range]) => range.length === 2));
    } catch { // there is none, or the address has nonsense
      return {};
    }
  }

  function inside(value, [low, high]) {
    if (typeof low === "number") return typeof value === "number" && low <= value && value <= high;
    return value !== null && low <= String(value) && String(value) <= high;
  }

  filters.also("within", () => {
    const chosen = Object.entries(ranges());
    return (setting) => chosen.every(([name, range]) => inside(valueOf(name, setting.index), range));
  });

  // Where each value stands on an axis, from 0 to 1, the values in order, and those to write beside it.
  function scale(values) {
    const known = d3.sort(new Set(values.filter((value) => value !== null)));
    if (known.every((value) => typeof value === "number")) {
      const [low, high] = d3.extent(known);
      const log = low > 0 && high / low >= 8;
      const at = log ? d3.scaleLog([low, high], [0, 1]) : d3.scaleLinear([low, high], [0, 1]);
      const ticks = known.length <= 8 ? known : log ? [low, Math.sqrt(low * high), high] : [low, (low + high) / 2, high];
      return { at, stops: known, ticks: ticks.map((value) => [at(value), significant(value, 3)]) };
    }
    const texts = d3.sort(known.map(String));
    const at = (value) => (texts.length > 1 ? texts.indexOf(String(value)) / (texts.length - 1) : 0.5);
    const every = Math.ceil(texts.length / 14);
    return { at, stops: texts, ticks: texts.filter((_, i) => i % every === 0).map((text) => [at(text), text]) };
  }

  function parallel(width) {
    const found = here();
    if (!found) return "This part of the study has no grid of several axes.";
    const outcome = study.metrics.get(found.outcome);
    const last = found.outcome;
    const label = (name) => (name === last ? outcome?.label ?? last : name.replace(/^(method\.knobs|train)\./, ""));
    const names = [...Object.keys(found.axes).slice(0, width < 500 ? 3 : 8), last];
    const sign = outcome?.better === "high" ? 1 : -1;
    const rows = found.settings.map((index) => ({ setting: study.settings[index], outcome: study.value(last, index) }))
      .filter(({ setting, outcome }) => charts.shows(setting, "within") && outcome !== null);
    if (!rows.length) return "No setting in this view has an outcome.";
    const kept = rows.filter(({ setting }) => filters.shows(setting.index));
    const ranked = d3.sort(kept, (row) => -sign * row.outcome);
    const shown = ranked.slice(0, MOST).reverse(); // the best are drawn last
    const scales = new Map(names.map((name) => [name, scale(name === last ? rows.map((row) => row.outcome) : found.axes[name])]));
    if (sign < 0) { // better is up
      const { at, stops, ticks } = scales.get(last);
      scales.set(last, { at: (value) => 1 - at(value), stops: [...stops].reverse(), ticks: ticks.map(([y, text]) => [1 - y, text]) });
    }
    const place = new Map(ranked.map((row, rank) => [row, 1 - rank / Math.max(1, ranked.length - 1)]));
    const along = (lines) => lines.flatMap((row) => names.map((name) => {
      const value = valueOf(name, row.setting.index);
      return value === null ? null : { row, name, y: scales.get(name).at(value), title: `${row.setting.label}\n${label(last)}: ${written(last, row.setting.index)}` };
    })).filter(Boolean);
    const points = along(shown);
    const grey = points.filter(({ row }) => charts.grey(row.setting));
    const bright = points.filter(({ row }) => !charts.grey(row.setting));
    const beyond = along(rows.filter(({ setting }) => !filters.shows(setting.index)).slice(0, MOST));
    const apart = (ticks) => ticks.filter(([y], i) => !ticks.slice(0, i).some(([before]) => Math.abs(y - before) < 0.04));
    const ticks = [...scales].flatMap(([name, { ticks }]) => apart(ticks).map(([y, text]) => ({ name, y, text: short(text, 12) })));
    const faintest = Math.min(0.35, Math.max(0.04, 8 / shown.length)); // many lines are a ground, few can be followed
    const line = { x: "name", y: "y", z: ({ row }) => row.setting.index };
    const plot = charts.plot({
      width, height: 380, marginLeft: width < 500 ? 58 : 70, marginRight: width < 500 ? 32 : 70, marginTop: 34, marginBottom: 14,
      x: { type: "point", domain: names, axis: "top", label: null, tickSize: 0, tickFormat: (name) => short(label(name), width < 500 ? 10 : 20) },
      y: { axis: null, domain: [0, 1] },
      ariaLabel: "Settings over the grid's axes",
      rows: kept.map(({ setting }) => ({ method: setting.method.name, setting: setting.setting, ...Object.fromEntries(names.map((name) => [name, valueOf(name, setting.index)])) })),
      marks: [
        Plot.ruleX(names, { stroke: "var(--line)", strokeWidth: 1.5 }),
        Plot.line(beyond, { ...line, stroke: "var(--line)", strokeOpacity: 0.4 }),
        Plot.line(grey, { ...line, stroke: GREY, strokeDasharray: "3 3" }),
        Plot.line(bright, { ...line, stroke: "var(--link)", strokeOpacity: ({ row }) => faintest + (0.8 - faintest) * place.get(row) ** 3, strokeWidth: ({ row }) => (row.setting.chosen ? 2.5 : 1) }),
        Plot.text(ticks, { x: "name", y: "y", text: "text", dx: -6, textAnchor: "end", fill: "currentColor", stroke: "var(--ground)", strokeWidth: 4, fontSize: 11 }),
        charts.tip(bright, { x: "name", y: "y", title: "title" }, width),
      ],
    });
    plot.setAttribute("role", "group"); // not one image: the ends of the ranges are controls
    for (const name of names) range(plot, name, label(name), scales.get(name));
    clear.hidden = !Object.keys(ranges()).length;
    const focused = document.activeElement?.dataset.end; // of the drawing that this one replaces
    queueMicrotask(() => [...plot.querySelectorAll("[data-end]")].find((end) => end.dataset.end === focused)?.focus({ preventScroll: true }));
    return plot;
  }

  // The range of an axis: a strip to drag along, and two ends that arrow keys move. stops: its values, upwards.
  function range(plot, name, label, { at, stops }) {
    const [x, height] = [plot.scale("x").apply(name), plot.scale("y")];
    const y = (i) => height.apply(at(stops[i]));
    const last = stops.length - 1;
    const chosen = ranges()[name];
    const held = stops.flatMap((value, i) => (chosen && !inside(value, chosen) ? [] : [i]));
    const [from, to] = held.length ? [held[0], held.at(-1)] : [0, last];

    function choose(from, to, typed = false) {
      const { [name]: _, ...others } = ranges();
      const wanted = from > 0 || to < last ? { ...others, [name]: d3.sort([stops[from], stops[to]]) } : others;
      state.set({ within: Object.keys(wanted).length ? JSON.stringify(wanted) : "" }, typed);
      frame.redraw(); // what was dragged snaps to values, also where they are those of before
    }

    const strip = d3.select(plot).append("g").attr("class", "range").attr("transform", `translate(${x},0)`);
    const brush = d3.brushY().extent([[-11, height.apply(1) - 7], [11, height.apply(0) + 7]]);
    brush.on("end", ({ selection, sourceEvent }) => {
      if (!sourceEvent) return; // moved below, not by the reader
      const found = d3.range(stops.length).filter((i) => selection && selection[0] <= y(i) && y(i) <= selection[1]);
      choose(found[0] ?? 0, found.at(-1) ?? last);
    });
    strip.call(brush);
    if (chosen) strip.call(brush.move, [y(to) - 6, y(from) + 6]);

    for (const [end, i, [least, most]] of [["lower", from, [0, to]], ["upper", to, [from, last]]]) {
      const step = Math.max(1, Math.round(last / 20));
      const moves = { ArrowUp: step, ArrowRight: step, ArrowDown: -step, ArrowLeft: -step, Home: -last, End: last };
      const handle = strip.append("path").attr("class", "end").attr("d", end === "lower" ? "M-7,1h14l-7,6z" : "M-7,-1h14l-7,-6z")
        .attr("transform", `translate(0,${y(i)})`).attr("tabindex", 0).attr("role", "slider").attr("data-end", `${name} ${end}`)
        .attr("aria-label", `${label}, ${end} end of the range`).attr("aria-orientation", "vertical")
        .attr("aria-valuemin", 0).attr("aria-valuemax", last).attr("aria-valuenow", i)
        .attr("aria-valuetext", typeof stops[i] === "number" ? significant(stops[i], 3) : stops[i]);
      handle.on("keydown", (event) => {
        if (event.key === "Escape") return choose(0, last);
        if (!(event.key in moves)) return;
        event.preventDefault();
        const next = Math.min(most, Math.max(least, i + moves[event.key]));
        choose(end === "lower" ? next : from, end === "lower" ? to : next, true);
      });
    }
  }

  function bars(width) {
    const found = here();
    if (!found || !relied(found)) return "The runs of this part of the study do not show which axis matters.";
    const lost = Object.entries(found.importance).filter(([, value]) => value > 0).map(([name, value]) => [name.replace(/^(method\.knobs|train)\./, ""), value]);
    const all = d3.sum(lost, ([, value]) => value) || 1;
    const rows = lost.map(([name, value]) => ({ name, value: (100 * value) / all }));
    const outcome = study.metrics.get(found.outcome)?.label ?? found.outcome;
    const plot = charts.plot({
      width, height: 50 + 24 * rows.length, marginLeft: 140, marginRight: 50, marginTop: 8, marginBottom: 36,
      x: { label: "share of the importance (%)", grid: true, nice: true, ticks: 4 },
      y: { type: "band", domain: rows.map((row) => row.name), label: null, padding: 0.25, tickSize: 0, tickFormat: (name) => short(name, 18) },
      ariaLabel: "Importance of each axis",
      rows: lost.map(([name, value]) => ({ axis: name, lost_r2: value })),
      marks: [
        Plot.barX(rows, { x: "value", y: "name", fill: "var(--link)" }),
        Plot.text(rows, { x: "value", y: "name", text: (row) => `${fixed(row.value, 0)}%`, dx: 6, textAnchor: "start", fill: "currentColor" }),
      ],
    });
    const said = `Permutation importance for ${outcome.toLowerCase()} (by rank), from a random forest over ${found.records} runs: how much less it explains when the values of one axis are shuffled. The forest explains ${(100 * Math.max(0, found.explained)).toFixed(0)}% of the variance of runs that it has not seen.`;
    const shown = element("div", {}, plot, element("p", { class: "notes" }, said));
    shown.rows = plot.rows;
    return shown;
  }
})();
