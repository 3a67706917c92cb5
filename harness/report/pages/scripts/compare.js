// Two settings side by side: what differs in their settings, their numbers, their losses, and the items won and lost.
const comparer = (() => {
  const { trainings } = block("curves");
  const { sets } = block("items");

  function grid(caption, heads, rows) {
    const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
    const body = rows.map(([name, ...cells]) => element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((text) => element("td", {}, text))));
    return element("table", { class: "beside" }, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...body));
  }

  // The words of the commands in which two settings differ, by name.
  function differing(one, other) {
    const [ones, others] = [one, other].map(({ index }) => new Map(study.own(index).map((word) => {
      const bare = word.replace(/^'(.*)'$/, "$1").replace(/^\++/, "");
      const at = bare.indexOf("=");
      return [bare.slice(0, at), bare.slice(at + 1)];
    })));
    const names = [...new Set([...ones.keys(), ...others.keys()])];
    return names.filter((name) => ones.get(name) !== others.get(name) && name !== "seed")
      .map((name) => [name, ones.get(name) ?? "–", others.get(name) ?? "–"]);
  }

  // comparable: whether the metric is one quantity in both.
  function change(metric, value, from, comparable) {
    if (value === null || from === null || !comparable) return "–";
    if (metric.unit === "percent") {
      const points = fixed(100 * (value - from), 1);
      return `${points.startsWith("-") ? points.replace("-", "−") : `+${points}`} points`;
    }
    return from ? `${fixed(value / from, 2)}×` : "–";
  }

  function numbers(one, other) {
    return [...study.metrics.values()].flatMap((metric) => {
      const [value, from] = [study.value(metric.id, one.index), study.value(metric.id, other.index)];
      if (value === null && from === null) return [];
      return [[metric.label, written(metric.id, one.index), written(metric.id, other.index), change(metric, value, from, study.comparable(metric.id, [one, other]))]];
    });
  }

  // Items that most seeds of one setting have right, and most of the other wrong: half of them is neither.
  function items(one, other) {
    return sets.flatMap((set) => {
      const [m, n] = [one, other].map(({ ids }) => set.models.findIndex((model) => ids.includes(model.cell)));
      if (m < 0 || n < 0) return [];
      const shares = (k) => set.right[k].map((seeds) => seeds / set.models[k].seeds);
      const [ones, others] = [shares(m), shares(n)];
      const won = (these, those) => String(d3.range(these.length).filter((i) => these[i] > 0.5 && those[i] < 0.5).length);
      const name = [set.title, set.score].filter(Boolean).join(": ");
      const kept = ones.length < set.all ? ` (${ones.length.toLocaleString("en")} of ${many(set.all, "item")})` : "";
      return [[name + kept, won(ones, others), won(others, ones)]];
    });
  }

  function losses(one, other, width) {
    const points = [one, other].flatMap((setting) => {
      const curve = trainings.find((each) => each.setting === setting.index);
      return curve ? curve.tokens.map((x, i) => ({ x, y: curve.losses[i], setting, kind: curve.kind })) : [];
    });
    const kinds = new Set(points.map((point) => point.kind));
    if (!points.length || kinds.size > 1) return null;
    const dash = ({ setting }) => (setting === one ? null : "5 4"); // two settings of one method have one colour
    const ends = d3.groups(points, (point) => point.setting).map(([, own]) => own.at(-1));
    const domain = d3.extent(points, (point) => point.y);
    return charts.plot({
      width, height: 240, marginLeft: 52, marginRight: 100, marginBottom: 36, marginTop: 26,
      x: { label: "raw tokens", grid: true, tickFormat: "~s", ticks: width < 500 ? 4 : 8 },
      y: { label: `${[...kinds][0]} loss`, grid: true, nice: true },
      ariaLabel: "Losses of the two settings",
      marks: [
        ...[one, other].map((setting) => Plot.line(points.filter((point) => point.setting === setting), { x: "x", y: "y", stroke: setting.method.colour, strokeWidth: 1.8, strokeDasharray: dash({ setting }) })),
        Plot.text(charts.apart(ends, 180, domain), { x: "x", y: "at", text: ({ setting }) => short(setting === one ? "first" : "second", 12), dx: 8, textAnchor: "start", fill: "currentColor" }),
      ],
    });
  }

  // Everything that tells `one` from `other`.
  function beside(one, other, width) {
    const made = element("div", { class: "comparison" });
    const [first, second] = [one, other].map((setting) => setting.label || setting.method.name);
    made.append(element("h4", {}, `${first} (first) against ${second} (second)`));
    const settings = differing(one, other);
    if (settings.length) made.append(grid("Settings that differ", ["Setting", "First", "Second"], settings));
    made.append(grid("Numbers", ["Metric", "First", "Second", "First against second"], numbers(one, other)));
    const curves = losses(one, other, width);
    if (curves) made.append(element("div", { class: "plot" }, curves));
    const changed = items(one, other);
    if (changed.length) made.append(grid("Items, by most seeds", ["Test", "Only the first right", "Only the second right"], changed));
    return made;
  }

  return { beside };
})();
