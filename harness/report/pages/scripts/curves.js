// Losses by learning rate, scores by rank, and losses over a training, a line a method.
(() => {
  const found = block("curves");
  const here = (curve) => curve.place === study.at();
  const look = (curve) => study.methods[curve.method];
  const hidden = (curve) => !study.settings.some((setting) => setting.method === look(curve) && filters.shows(setting.index));

  // Curves of points {x, y, low, high, setting, lost, chosen, fresh}; `metric` names what is up. fresh: {y, low, high,
  // setting} of the fresh seeds that confirmed a chosen value, of which the point itself has none.
  function lines(curves, metric, width, options) {
    const shown = curves.filter((curve) => here(curve) && !hidden(curve));
    if (!shown.length) return "No method in this view was tried at several values.";
    const write = WRITTEN[study.metrics.get(metric)?.unit ?? "number"];
    const factor = study.metrics.get(metric)?.unit === "percent" ? 100 : 1;
    const points = shown.flatMap((curve) => curve.points.map((point) => ({
      ...point, curve, method: look(curve), grey: point.setting !== null && charts.grey(study.settings[point.setting]),
      y: point.y === null ? null : factor * point.y, low: point.low === null ? null : factor * point.low, high: point.high === null ? null : factor * point.high,
      title: [`${look(curve).name}, ${options.x.label} ${significant(point.x)}`, point.y === null ? "" : `${options.up}: ${write(point.y)}`, point.lost, point.chosen ? "chosen" : ""].filter(Boolean).join("\n"),
    })));
    const known = points.filter((point) => point.y !== null);
    const rings = known.filter((point) => point.chosen).map((point) => (point.fresh
      ? { ...point, ...point.fresh, title: `${look(point.curve).name}, ${options.x.label} ${significant(point.x)}\n${options.up}: ${write(point.fresh.y)}\nchosen, by fresh seeds` }
      : point));
    const lost = points.filter((point) => point.y === null);
    if (!known.length) return "No setting in this view finished.";
    const domain = options.domain?.(known) ?? d3.extent(known.flatMap((point) => [point.y, point.low, point.high].filter((y) => y !== null)));
    const colour = (point) => (point.grey ? GREY : point.method.colour);
    const ends = d3.groups(known, (point) => point.curve).map(([, own]) => own.at(-1));
    const labels = charts.apart(ends, 250, domain);
    return charts.plot({
      width, height: 320, marginLeft: 52, marginRight: width < 500 ? 60 : 90, marginBottom: 40, marginTop: 30,
      x: { ...options.x, type: "log", grid: true },
      y: { label: charts.fitted(options.up, width), domain, clamp: true, nice: true, grid: true },
      ariaLabel: `${options.up} by ${options.x.label}`,
      rows: points.map((point) => ({ method: point.method.name, [options.x.label]: point.x, [options.up]: point.y, low: point.low, high: point.high, chosen: point.chosen, lost: point.lost })),
      marks: [
        Plot.line(known, { x: "x", y: "y", z: (point) => point.method.name, stroke: (point) => point.method.colour, strokeWidth: 1.5 }),
        Plot.ruleX(known.filter((point) => point.low !== null), { x: "x", y1: "low", y2: "high", stroke: colour, strokeOpacity: 0.35 }),
        Plot.dot(known, { x: "x", y: "y", symbol: (point) => point.method.symbol, fill: colour, r: 4 }),
        Plot.ruleX(rings.filter((point) => point.fresh && point.low !== null), { x: "x", y1: "low", y2: "high", stroke: colour, strokeWidth: 1.5 }),
        Plot.dot(rings, { x: "x", y: "y", r: 9, stroke: colour, strokeWidth: 2 }),
        Plot.dot(lost, { x: "x", y: domain[1], symbol: "times", stroke: colour, r: 5 }),
        Plot.text(labels, { x: "x", y: "at", text: (point) => short(point.method.name, 12), dx: 14, textAnchor: "start", fill: "currentColor" }),
        charts.tip([...points, ...rings.filter((point) => point.fresh)], { x: "x", y: (point) => point.y ?? domain[1], title: "title" }, width),
      ],
    });
  }

  if (found.rates.length) {
    charts.frame({
      id: "rates", title: "Which learning rate", note: "Validation loss at each method's best rank for the rate. Ring: the chosen rate; where fresh seeds confirmed it, at their mean with its 95% interval, and lines are of the seeds that chose. ×: not every seed finished. Losses far above the others are drawn at the upper edge.",
      draw: (width) => lines(found.rates, "validation_loss", width, {
        x: { label: "learning rate", tickFormat: "~e" }, up: "validation loss",
        // one run that nearly diverged must not flatten all others
        domain: (points) => {
          const rings = points.filter((point) => point.chosen).flatMap(({ y, fresh }) => [y, ...(fresh ? [fresh.y, fresh.low ?? fresh.y, fresh.high ?? fresh.y] : [])]);
          return [d3.min([...points.map((point) => point.y), ...rings]), Math.max(d3.quantile(points, 0.8, (point) => point.y), ...rings) * 1.02];
        },
      }),
    });
  }
  if (found.ranks.length) {
    charts.frame({
      id: "ranks", title: "Which rank", note: "Each rank at its learning rate with the least validation loss. Bars: 95% intervals. Ring: the chosen rank.",
      draw: (width) => {
        const ranks = found.ranks.filter(here); // places may differ in the score that shows what was learned
        const metric = ranks[0]?.metric;
        const of = study.metrics.get(metric);
        return lines(ranks, metric, width, {
          x: { label: "rank", ticks: [...new Set(ranks.flatMap((curve) => curve.points.map((point) => point.x)))], tickFormat: (value) => String(value) },
          up: of ? `${of.label}${of.unit === "percent" ? " (%)" : ""}` : "validation loss",
        });
      },
    });
  }
  if (found.losses) {
    state.declare("over", "tokens");
    charts.frame({
      id: "losses", title: "How the loss falls", note: `Mean ${found.losses.kind} loss of the chosen settings over their seeds.`,
      controls: [charts.select("over", "Over", [["tokens", "training tokens"], ["seconds", "training time"]])],
      draw: losses,
    });
  }

  function losses(width) {
    const over = state.get("over");
    const points = found.losses.curves.flatMap((curve) => {
      const setting = study.settings[curve.setting];
      if (!charts.shows(setting)) return [];
      return curve[over].map((x, i) => ({ x, y: curve.losses[i], setting, title: `${setting.label}\n${significant(curve.losses[i])} ${found.losses.unit}` }));
    });
    if (!points.length) return "No setting in this view has several losses.";
    const colour = ({ setting }) => (charts.grey(setting) ? GREY : setting.method.colour);
    const ends = d3.groups(points, (point) => point.setting).map(([, own]) => own.at(-1));
    const labels = charts.apart(ends, 250, d3.extent(points, (point) => point.y));
    return charts.plot({
      width, height: 320, marginLeft: 52, marginRight: width < 500 ? 60 : 90, marginBottom: 40, marginTop: 30,
      x: { label: over === "tokens" ? "raw tokens" : "seconds of training steps", grid: true, tickFormat: over === "tokens" ? "~s" : undefined, ticks: width < 500 ? 4 : 8 },
      y: { label: `${found.losses.kind} loss (${found.losses.unit})`, grid: true, nice: true },
      ariaLabel: `${found.losses.kind} loss over ${over}`,
      rows: points.map(({ x, y, setting }) => ({ method: setting.method.name, setting: setting.setting, [over]: x, loss: y })),
      marks: [
        Plot.line(points, { x: "x", y: "y", z: (point) => point.setting.index, stroke: colour, strokeWidth: 1.5 }),
        Plot.dot(ends, { x: "x", y: "y", symbol: ({ setting }) => setting.method.symbol, fill: colour, r: 5 }),
        Plot.text(labels, { x: "x", y: "at", text: ({ setting }) => short(setting.method.name, 12), dx: 10, textAnchor: "start", fill: "currentColor" }),
        charts.tip(points, { x: "x", y: "y", title: "title" }, width),
      ],
    });
  }
})();
