// Cost against score: what each chosen setting costs, in dollars at the reader's rate for an hour of a device, else in time.
(() => {
  const found = block("costs");
  if (!found.fronts.length && !found.refused) return;
  state.declare("rate", found.price === null ? "" : String(found.price));
  state.declare("task", "");
  const tasks = [...new Map(found.fronts.map((front) => [front.score, front.task]))];
  const here = () => found.fronts.filter((front) => front.place === study.at());
  const shown = () => here().find((front) => front.score === state.get("task")) ?? here()[0];

  const field = element("input", { type: "number", min: "0", step: "any", id: "choose-rate", placeholder: "2.50", oninput: () => state.set({ rate: field.value }, true) });
  state.onchange(() => { if (field.value !== state.get("rate")) field.value = state.get("rate"); });
  const controls = [element("span", { class: "field" }, element("label", { for: field.id }, "Dollars per hour and device"), field)];
  if (tasks.length > 1) controls.unshift(charts.select("task", "Score", tasks, () => shown()?.score ?? ""));
  charts.frame({
    id: "costs", title: "What a score costs", wide: true, draw, controls: found.refused ? [] : controls,
    note: found.refused ? "" : "Cost: the time of a cell's whole job × its devices, mean over seeds, without the search for the setting. Bars: 95% intervals. Line: no setting scores at least as high for less, as measured. Faint: another setting is significantly better. Ring: the cheapest that no other beats significantly. Filters hide settings; the line and the sentence are those of all.",
  });

  // How costs are written: the factor for device-hours, the axis' title, and an amount as text.
  function scale(most) {
    const rate = Number(state.get("rate"));
    if (rate > 0) return { factor: rate, label: "cost of a cell ($), lower is better", write: (hours) => dollars(rate * hours) };
    const [factor, unit] = most >= 2 ? [1, "h"] : most >= 2 / 60 ? [60, "min"] : [3600, "s"];
    return { factor, label: `device time of a cell (${unit}), lower is better`, write: (hours) => WRITTEN.seconds(3600 * hours) };
  }

  // As `units.dollars` writes them.
  function dollars(value) {
    const digits = value >= 0.1 || value === 0 ? 2 : Math.min(8, 1 - Math.floor(Math.log10(value)));
    return `$${value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })}`;
  }

  function remark() {
    const rate = state.get("rate");
    if (Number(rate) > 0) return Number(rate) === found.price ? "The rate is that of the card's file; change it to yours." : "";
    return rate === "" ? "Without a rate, the cost is device time." : `The rate must be positive, got ${rate}; the cost is device time.`;
  }

  function draw(width) {
    if (found.refused) return found.refused;
    const front = shown();
    if (!front) return "No setting in this view has a score and a time.";
    const { factor, label, write } = scale(d3.max(front.settings, (each) => each.hours));
    const sentence = front.sentence.map((part) => (typeof part === "number" ? ` ${write(part)}` : part)).join("");
    const percent = study.metrics.get(front.score)?.unit === "percent";
    const times = (value, by) => (value === null ? null : value * by);
    const all = front.settings.map((each, i) => ({
      ...each, of: study.settings[each.setting], ring: i === front.cheapest,
      x: times(each.hours, factor), x1: times(each.hours_low, factor), x2: times(each.hours_high, factor),
      y: times(each.value, percent ? 100 : 1), y1: times(each.low, percent ? 100 : 1), y2: times(each.high, percent ? 100 : 1),
    }));
    const points = d3.sort(all.filter(({ of }) => charts.shows(of)), (point) => point.ring, (point) => point.front); // the last are on top
    const said = element("div", {}, element("p", { class: "answer next" }, sentence));
    if (remark()) said.append(element("p", { class: "notes" }, remark()));
    if (points.length) said.append(picture(width, points, all, front, label, write));
    else said.append(element("p", {}, "No setting in this view has a score and a time."));
    said.rows = points.map((point) => ({
      method: point.of.method.name, setting: point.of.setting, score: front.score, value: point.value, low: point.low, high: point.high,
      device_hours: point.hours, device_hours_low: point.hours_low, device_hours_high: point.hours_high,
      dollars: Number(state.get("rate")) > 0 ? point.x : null, on_front: point.front, beaten_by: point.beaten.join(", "),
    }));
    return said;
  }

  function picture(width, points, all, front, label, write) {
    const metric = study.metrics.get(front.score);
    const narrow = width < 500;
    const log = d3.max(all, (point) => point.x) > 30 * d3.min(all, (point) => point.x);
    const line = all.filter((point) => point.front); // to the right of its last point nothing scores higher
    const steps = [...line, { ...line.at(-1), x: d3.max(all, (point) => point.x) }];
    const colour = (point) => (charts.grey(point.of) ? GREY : point.of.method.colour);
    const strong = (point) => (point.beaten.length ? 0.35 : 1);
    const names = narrow ? [] : [...points].reverse().filter((point) => points.length <= 12 || point.front);
    const name = (point) => point.of.method.name;
    const better = metric?.better === "low" ? "lower is better" : "higher is better";
    const plot = charts.plot({
      width, height: Math.min(420, Math.max(300, width * 0.5)), marginLeft: 52, marginRight: narrow ? 20 : 80, marginBottom: 40, marginTop: 30,
      x: { label: charts.fitted(label, width), type: log ? "log" : "linear", domain: log ? undefined : [0, d3.max(all, (point) => Math.max(point.x, Math.min(point.x2 ?? 0, 2 * point.x)))], clamp: true, grid: true, nice: true, ticks: narrow ? 4 : undefined },
      y: { label: charts.fitted(`${metric?.label ?? front.task}${metric?.unit === "percent" ? " (%)" : ""}, ${better}`, width), grid: true, nice: true },
      ariaLabel: `${metric?.label ?? front.task} against cost`,
      marks: [
        Plot.line(steps, { x: "x", y: "y", curve: "step-after", stroke: "var(--faint)", strokeWidth: 1 }),
        Plot.ruleX(points.filter((point) => point.y1 !== null), { x: "x", y1: "y1", y2: "y2", stroke: colour, strokeOpacity: strong, strokeWidth: 1.5 }),
        Plot.ruleY(points.filter((point) => point.x1 !== null && !(log && point.x1 <= 0)), { y: "y", x1: "x1", x2: "x2", stroke: colour, strokeOpacity: strong, strokeWidth: 1.5 }),
        Plot.dot(points, { x: "x", y: "y", symbol: (point) => point.of.method.symbol, fill: colour, fillOpacity: strong, stroke: "var(--ground)", r: 7 }),
        Plot.dot(points.filter((point) => point.ring), { x: "x", y: "y", r: 12, stroke: "currentColor", strokeWidth: 2 }),
        Plot.text(names, { ariaDescription: "names", x: "x", y: "y", text: name, dx: 14, textAnchor: "start", fill: "currentColor", stroke: "var(--ground)" }),
        charts.tip(points, { x: "x", y: "y", title: (point) => [point.of.label, `${metric?.label ?? front.task}: ${written(front.score, point.setting)}`, `Cost: ${write(point.hours)}`, point.beaten.length ? `Beaten by ${point.beaten.join(", ")}` : ""].filter(Boolean).join("\n") }, width),
      ],
    });
    charts.thin(plot, names, name);
    plot.addEventListener("click", () => { if (plot.value) state.set({ pick: plot.value.of.id }); });
    return plot;
  }
})();
