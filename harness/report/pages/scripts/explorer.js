// Any metric against any other, a point a setting; beside it, all that is known of the setting that was picked.
(() => {
  const known = [...study.metrics.values()].map((metric) => [metric.id, metric.label]);
  const COSTS = { train_allocated_peak: "memory", train_reserved_p99: "memory", trainable: "trainable parameters", seconds: "time of the job" };
  const cost = Object.keys(COSTS).find((id) => study.metrics.get(id)?.values.some((value) => value > 0)); // nothing is trained of untuned models
  if (known.length < 2 || !cost) return;
  state.declare("x", cost);
  state.declare("y", ""); // the score that decides in the place that is shown
  state.declare("pick", "");
  state.declare("against", "");
  const headline = () => study.places[study.at()]?.score ?? (study.metrics.has("validation_loss") ? "validation_loss" : known[0][0]);
  const valid = (name) => (study.metrics.has(state.get(name)) ? state.get(name) : name === "x" ? cost : headline());

  const picked = () => study.withCell(state.get("pick"));

  const detail = element("div", { class: "detail", id: "detail" });
  const told = element("p", { class: "unseen", role: "status" }); // the setting in short: a screen reader would read all of `detail` again
  const made = charts.frame({
    id: "score", title: "Compare any two metrics", wide: true, draw: explore,
    controls: [charts.select("y", "Vertical axis", known, () => valid("y")), charts.select("x", "Horizontal axis", known, () => valid("x"))],
    note: "Large: the setting chosen for each method, with 95% intervals. Line: the chosen settings that no other beats in both metrics; none where memory was measured by two instruments, or costs on two kinds of device. Faint: other settings. Dashed: untuned models. Grey cross: does not fit the card. To see a setting's numbers, point at it, tap it, or use the arrow keys in the chart.",
  });
  made.section.append(told, detail);
  made.paper.tabIndex = 0;
  made.paper.setAttribute("role", "group");
  made.paper.setAttribute("aria-label", "Chart of settings. The arrow keys move from setting to setting; each is described below.");
  let order = [];
  made.paper.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !order.length) return;
    event.preventDefault();
    const at = order.indexOf(picked());
    const next = at < 0 ? (step > 0 ? 0 : order.length - 1) : (at + step + order.length) % order.length;
    state.set({ pick: order[next].id }, true);
  });

  // decided: whether the axes are those of the chosen settings, where there are any.
  function points(x, y, decided) {
    const here = study.settings.filter((setting) => charts.shows(setting));
    const chosen = here.filter((setting) => setting.chosen && [x, y].every((id) => study.value(id, setting.index) !== null));
    const axis = (id) => axisOf(id, decided && chosen.length ? chosen.map((setting) => study.value(id, setting.index)) : study.metrics.get(id).values);
    const [across, up] = [axis(x), axis(y)];
    const scaled = (axis, value) => (value === null ? null : value * axis.factor);
    const made = here.map((setting) => {
      const [rangeX, rangeY] = [study.interval(x, setting.index), study.interval(y, setting.index)];
      return {
        setting, grey: charts.grey(setting),
        x: scaled(across, study.value(x, setting.index)), y: scaled(up, study.value(y, setting.index)),
        x1: scaled(across, rangeX?.[0] ?? null), x2: scaled(across, rangeX?.[1] ?? null),
        y1: scaled(up, rangeY?.[0] ?? null), y2: scaled(up, rangeY?.[1] ?? null),
      };
    });
    return { across, up, all: made };
  }

  // Those that no other beats in both, best in x first; none where they do not compare in both.
  function front(all, x, y) {
    if (![x, y].every((id) => study.comparable(id, all.map((point) => point.setting)))) return [];
    const [signX, signY] = [x, y].map((id) => (study.metrics.get(id).better === "high" ? -1 : 1));
    const sorted = d3.sort(all, (one, other) => signX * (one.x - other.x) || signY * (one.y - other.y));
    const found = [];
    for (const point of sorted) if (!found.length || signY * point.y < signY * found.at(-1).y) found.push(point);
    return found;
  }

  // The decision as a picture, beside its sentences: the score that decides against memory.
  charts.frame({
    id: "first", title: `Quality against ${COSTS[cost]}`, into: "first-chart",
    draw: (width) => {
      const plot = draw(width, cost, headline(), Math.min(370, Math.max(280, width * 0.6)), true);
      if (typeof plot !== "string") plot.addEventListener("click", () => { if (plot.value) made.section.scrollIntoView(); });
      return plot;
    },
    controls: study.places.length > 1 ? [charts.select("at", "Study of", study.places.map((place) => [place.id, place.title]), () => study.places[study.at()].id, "first")] : [],
  });

  function tip({ setting }, x, y) {
    const said = [setting.label, ...[y, x].map((id) => `${study.metrics.get(id).label}: ${written(id, setting.index)}`)];
    return [...said, card.sentence(setting)].filter(Boolean).join("\n");
  }

  function explore(width) {
    const plot = draw(width, valid("x"), valid("y"), Math.min(460, Math.max(320, width * 0.55)));
    order = plot.settings ?? [];
    const focused = detail.contains(document.activeElement) ? document.activeElement.id : "";
    describe();
    document.getElementById(focused)?.focus({ preventScroll: true }); // its element was made anew
    const said = picked() ? tip({ setting: picked() }, valid("x"), valid("y")) : "";
    if (told.textContent !== said) told.textContent = said;
    return plot;
  }

  // The axis of the decision: untuned models and settings that were not chosen may be so far off that they would squeeze
  // the differences that matter.
  function near(points, log) {
    const ends = points.flatMap((point) => [point.y, point.y1 ?? point.y, point.y2 ?? point.y]);
    const [low, high] = d3.extent(log ? ends.filter((end) => end > 0) : ends);
    if (log) {
      const ratio = Math.max(1.05, (high / low) ** 0.08);
      return [low / ratio, high * ratio];
    }
    const margin = 0.08 * (high - low) || Math.abs(high) * 0.05 || 1;
    return [low - margin, high + margin];
  }

  // The models beyond one edge of the axis in one text, as several would hide each other.
  function outside(below, points, y, width) {
    const write = WRITTEN[study.metrics.get(y).unit];
    const named = points.map(({ setting }) => `${setting.method.name} ${write(study.value(y, setting.index))}`);
    return short(`${below ? "↓" : "↑"} ${named.join(", ")}`, Math.floor((width - 80) / 6.6));
  }

  // decided: only the settings that are compared, and a scale for their scores.
  function draw(width, x, y, height, decided = false) {
    const { across, up, all } = points(x, y, decided);
    const drawn = all.filter((point) => point.x !== null && point.y !== null && !(across.log && point.x <= 0) && !(up.log && point.y <= 0));
    const level = all.filter((point) => point.setting.untuned && point.y !== null && point.x === null);
    const settings = d3.sort(drawn, (point) => point.x).map((point) => point.setting);
    if (!drawn.length && !level.length) return "No setting in this view has both metrics.";
    const grey = drawn.filter((point) => point.grey);
    const chosen = drawn.filter((point) => point.setting.chosen && !point.grey);
    const focused = decided && chosen.length > 0;
    const others = focused ? [] : drawn.filter((point) => !point.setting.chosen && !point.grey);
    const domain = focused ? near(chosen, up.log) : undefined;
    const beyond = focused ? level.filter((point) => point.y < domain[0] || point.y > domain[1]) : [];
    const inside = level.filter((point) => !beyond.includes(point));
    const colour = (point) => point.setting.method.colour;
    const dot = { x: "x", y: "y", symbol: (point) => point.setting.method.symbol, fill: colour };
    const narrow = width < 500;
    const best = front(chosen, x, y);
    const labels = narrow ? [] : chosen.length <= 12 ? chosen : best; // of many methods those that no other beats
    const plot = charts.plot({
      width, height, marginLeft: 52, marginRight: narrow ? 20 : 70, marginBottom: 40, marginTop: 30,
      x: { label: charts.fitted(across.label, width), type: across.log ? "log" : "linear", grid: true, nice: true, tickFormat: across.log ? "~s" : undefined, ticks: narrow ? 4 : undefined },
      y: { label: charts.fitted(up.label, width), domain, type: up.log ? "log" : "linear", grid: true, nice: true, tickFormat: up.log ? "~s" : undefined },
      ariaLabel: `${up.label} against ${across.label}`,
      rows: [...drawn, ...level].map(({ setting }) => ({
        method: setting.method.name, setting: setting.setting, chosen: setting.chosen ? 1 : 0,
        ...Object.fromEntries([x, y].flatMap((id) => {
          const [low, high] = study.interval(id, setting.index) ?? [null, null];
          return [[id, study.value(id, setting.index)], [`${id} low`, low], [`${id} high`, high]];
        })),
      })),
      marks: [
        Plot.text(d3.groups(beyond, (point) => point.y < domain[0]), { y: ([below]) => domain[below ? 0 : 1], text: ([below, own]) => outside(below, own, y, width), frameAnchor: "right", textAnchor: "end", dy: -7, fill: "var(--faint)" }),
        Plot.ruleY(inside, { y: "y", stroke: colour, strokeDasharray: "5 4" }),
        Plot.text(inside, { y: "y", text: (point) => point.setting.method.name, frameAnchor: "right", textAnchor: "end", dy: -7, fill: "currentColor" }),
        Plot.line(best, { x: "x", y: "y", stroke: "var(--faint)", strokeWidth: 1 }),
        Plot.dot(focused ? grey.filter((point) => point.setting.chosen) : grey, { x: "x", y: "y", symbol: "times", stroke: GREY, strokeWidth: 2, r: 4 }),
        Plot.dot(others, { ...dot, fillOpacity: 0.35, r: 3 }),
        Plot.ruleX(chosen.filter((point) => point.y1 !== null), { x: "x", y1: "y1", y2: "y2", stroke: colour, strokeWidth: 1.5 }),
        Plot.ruleY(chosen.filter((point) => point.x1 !== null), { y: "y", x1: "x1", x2: "x2", stroke: colour, strokeWidth: 1.5 }),
        Plot.dot(chosen, { ...dot, stroke: "var(--ground)", r: 7 }),
        Plot.text(labels, { ariaDescription: "names", x: "x", y: "y", text: (point) => point.setting.method.name, dx: 10, textAnchor: "start", fill: "currentColor", stroke: "var(--ground)" }),
        charts.tip(focused ? drawn.filter((point) => point.setting.chosen) : drawn, { x: "x", y: "y", title: (point) => tip(point, x, y) }, width),
      ],
    });
    plot.settings = settings; // from left to right
    charts.thin(plot, labels, (point) => point.setting.method.name);
    plot.addEventListener("click", () => { if (plot.value) state.set({ pick: plot.value.setting.id }); });
    const ringed = (focused ? drawn.filter((point) => point.setting.chosen) : drawn).find((point) => point.setting === picked());
    if (ringed) {
      const [px, py] = [plot.scale("x").apply(ringed.x), plot.scale("y").apply(ringed.y)];
      d3.select(plot).append("circle").attr("cx", px).attr("cy", py).attr("r", 12).attr("class", "picked");
    }
    return plot;
  }

  // All that is known of a setting, and the command that runs it again.
  function describe() {
    const setting = picked();
    if (!setting) {
      return detail.replaceChildren(element("p", { class: "notes" }, "Pick a setting in the chart to see all its numbers and the command that reruns it."));
    }
    const facts = element("dl");
    for (const [id, label] of known) {
      if (study.value(id, setting.index) !== null) facts.append(element("div", {}, element("dt", {}, label), element("dd", {}, written(id, setting.index))));
    }
    const command = study.command(setting.index);
    const about = [setting.status === "ok" ? null : setting.status, setting.seeds > 1 ? many(setting.seeds, "seed") : null, setting.chosen ? "chosen for its method" : null, card.sentence(setting) || null];
    detail.replaceChildren(
      element("h4", {}, setting.label), element("p", {}, about.filter(Boolean).join(" · ")), facts,
      command ? element("pre", { tabindex: "0", id: "command" }, command) : element("p", { class: "notes" }, "No command reruns it: it was imported, or its record can't be run as it is; `harness verify` says why."),
      command ? copier(command) : "", against(setting),
    );
  }

  // A choice of another setting, and the comparison with the one that is chosen.
  function against(setting) {
    const other = study.withCell(state.get("against"));
    const choose = element("select", { id: "choose-against", onchange: () => state.set({ against: choose.value }) }, element("option", { value: "" }, "…"));
    const others = d3.sort(study.settings.filter((each) => each !== setting && each.place === setting.place), (each) => !each.chosen && each !== other);
    for (const each of others) choose.append(element("option", { value: each.id }, `${each.label || each.method.name}${each.chosen ? " (chosen)" : ""}`));
    choose.value = other && other !== setting ? other.id : "";
    const field = element("p", { class: "field" }, element("label", { for: choose.id }, "Compare with"), choose);
    const shown = choose.value ? comparer.beside(setting, other, Math.min(760, detail.clientWidth)) : null;
    return element("div", {}, field, shown);
  }

  function copier(text) {
    const button = element("button", { type: "button", id: "copy-command", onclick: copy }, "Copy the command");
    async function copy() {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch { // a page from a file may not: select it for the reader
        getSelection().selectAllChildren(button.previousElementSibling);
        button.textContent = "Selected: press Ctrl+C";
      }
    }
    return button;
  }
})();
