// The markers of the figures (matplotlib's names), as d3 and Plot draw a symbol: with an area of about `size` pixels.
const SYMBOLS = (() => {
  const turned = (corners, turn, inner = 1) => d3.range(corners).map((i) => {
    const angle = 2 * Math.PI * (i / corners) + turn;
    const radius = i % 2 ? inner : 1;
    return [radius * Math.sin(angle), -radius * Math.cos(angle)];
  });
  const [a, b] = [0.35, 0.95]; // half of the width of a bar of the plus, and of its length
  const plus = [[-a, -b], [a, -b], [a, -a], [b, -a], [b, a], [a, a], [a, b], [-a, b], [-a, a], [-b, a], [-b, -a], [-a, -a]];
  const half = Math.SQRT1_2;
  const outlines = {
    _: [[-1, -0.2], [1, -0.2], [1, 0.2], [-1, 0.2]], "|": [[-0.2, -1], [0.2, -1], [0.2, 1], [-0.2, 1]],
    s: turned(4, Math.PI / 4, 1), D: turned(4, 0), d: turned(4, 0).map(([x, y]) => [0.6 * x, y]),
    "^": turned(3, 0).map(([x, y]) => [1.1 * x, 1.1 * y]), v: turned(3, Math.PI), "<": turned(3, -Math.PI / 2), ">": turned(3, Math.PI / 2),
    P: plus, X: plus.map(([x, y]) => [half * (x - y), half * (x + y)]), "*": turned(10, 0, 0.45).map(([x, y]) => [1.15 * x, 1.15 * y]),
    p: turned(5, 0), h: turned(6, 0),
  };
  const drawn = (outline) => ({
    draw(context, size) {
      const radius = Math.sqrt(size / 2.2);
      outline.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](radius * x, radius * y));
      context.closePath();
    },
  });
  const others = Object.fromEntries(Object.entries(outlines).map(([name, outline]) => [name, drawn(outline)]));
  return { ...others, o: d3.symbolCircle };
})();

// The study's settings as the charts use them, and how its numbers are written.
const study = (() => {
  const raw = block("settings");
  const metrics = new Map(raw.metrics.map((metric) => [metric.id, metric]));
  // Black and white trade places in the dark.
  const methods = raw.methods.map((method, index) => ({
    ...method, index, colour: method.colour === "#000000" ? "currentColor" : method.colour, symbol: SYMBOLS[method.shape],
  }));
  const settings = raw.place.map((place, index) => ({
    index, place, id: raw.ids[index][0], ids: raw.ids[index],
    method: methods[raw.method[index]],
    setting: raw.setting[index],
    label: `${methods[raw.method[index]].name} ${raw.setting[index]}`.trim(),
    status: raw.status[index],
    seeds: raw.seeds[index],
    chosen: raw.chosen[index] === 1,
    untuned: raw.untuned[index] === 1,
    tokens: raw.tokens[index], instruments: raw.instruments[index], devices: raw.devices[index],
    can: Object.fromEntries(Object.entries(raw.capabilities).map(([name, values]) => [name, values[index]])),
    memory: Object.fromEntries(Object.entries(raw.memory).map(([kind, values]) => [kind, values[index]])),
  }));
  const { shared, words, own } = raw.commands;
  const refused = new Set(block("refused"));
  const byId = new Map(settings.flatMap((setting) => setting.ids.map((id) => [id, setting])));

  return {
    places: raw.places, metrics, methods, settings,
    // The setting that has a cell of this id, or undefined.
    withCell: (id) => byId.get(id),
    // The position of the place that is shown: the first one if the address names none that there is.
    at: () => Math.max(0, raw.places.findIndex((place) => place.id === state.get("at"))),
    // The words of a setting's command that others of the study do not share.
    own: (index) => (own[index] ?? []).map((at) => words[at]),
    value: (id, index) => metrics.get(id)?.values[index] ?? null,
    interval(id, index) {
      const metric = metrics.get(id);
      const [low, high] = [metric?.low?.[index] ?? null, metric?.high?.[index] ?? null];
      return low === null || high === null ? null : [low, high];
    },
    // Whether a metric is one quantity in `settings`: memory by one instrument, and a cost on one kind of device.
    comparable(id, settings) {
      const kinds = (name) => new Set(settings.flatMap((setting) => setting[name])).size;
      const metric = metrics.get(id);
      return (id !== "train_allocated_peak" || kinds("instruments") < 2) && (!metric.of_device || kinds("devices") < 2);
    },
    // The command that runs a setting again, or null for what another project ran, or what its record may not run.
    command(index) {
      if (!own[index] || refused.has(index)) return null;
      return ["harness run", ...own[index].map((at) => words[at]), ...shared].join(" ");
    },
  };
})();

function many(n, what) {
  return `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
}

function significant(value, digits = 4) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace(/\.?0*e\+?/, "e");
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 });
}

// As Python and so the tables round: `toFixed`, but of a number just between two to the even one. A zero has no minus.
function fixed(value, digits) {
  const text = value.toFixed(digits);
  const between = Math.abs(value * 2 ** (digits + 1)) % 2 === 1; // exact: only such binary fractions lie between two
  const even = between && Number(text.at(-1)) % 2 ? text.slice(0, -1) + (Number(text.at(-1)) - 1) : text;
  return Number(even) === 0 ? even.replace("-", "") : even;
}

const grouped = (text) => text.replace(/^-?\d+/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, ","));

// As `units.significant` writes numbers in tables: to that many digits, zeros at the end too.
function tabled(value, digits = 4) {
  if (value === 0) return fixed(0, digits - 1);
  const size = Math.floor(Math.log10(Math.abs(value)));
  if (size < -4) return value.toExponential(digits - 1).replace(/e-(\d)$/, "e-0$1");
  if (size >= digits) return grouped(String(fixed(value / 10 ** (size + 1 - digits), 0) * 10 ** (size + 1 - digits)));
  const text = fixed(value, digits - 1 - size);
  return text.replace(/\D/g, "").replace(/^0+/, "").length > digits ? tabled(Number(text), digits) : text; // 9.9999 is 10.00
}

// As `units.size` and `units.count`.
function bytes(value) {
  for (const [unit, size, digits] of [["GiB", 2 ** 30, 2], ["MiB", 2 ** 20, 0]]) if (value >= size) return `${fixed(value / size, digits)} ${unit}`;
  return `${fixed(value / 2 ** 10, 0)} KiB`;
}

function count(value) {
  for (const [unit, size] of [["P", 1e15], ["T", 1e12], ["B", 1e9], ["M", 1e6], ["K", 1e3]]) if (value >= 0.9995 * size) return tabled(value / size, 3) + unit;
  return fixed(value, 0);
}

const WRITTEN = {
  bytes,
  count,
  percent: (value) => `${fixed(100 * value, 1)}%`,
  rate: (value) => (value >= 100 ? grouped(fixed(value, 0)) : tabled(value, 3)),
  seconds: (value) => (value < 120 ? `${significant(value, 3)} s` : value < 7200 ? `${fixed(value / 60, 1)} min` : `${fixed(value / 3600, 1)} h`),
  number: (value) => tabled(value),
};

// A metric's value as text, with its 95% interval where there is one.
function written(id, index) {
  const metric = study.metrics.get(id);
  const value = study.value(id, index);
  if (value === null) return "not measured";
  const write = WRITTEN[metric.unit];
  const interval = study.interval(id, index);
  const [low, high] = (interval ?? []).map(write);
  return write(value) + (interval && low !== high ? ` (${low} to ${high})` : "");
}

// How an axis shows a metric: the factor for its values, its title, and whether its scale is logarithmic.
function axisOf(id, values) {
  const metric = study.metrics.get(id);
  const known = values.filter((value) => value !== null);
  const most = d3.max(known) ?? 1;
  const least = d3.min(known) ?? 1;
  const way = metric.better === "high" ? "higher is better" : "lower is better";
  const [factor, unit] = {
    bytes: most >= 2 ** 30 ? [2 ** -30, "GiB"] : [2 ** -20, "MiB"], percent: [100, "%"], seconds: [1, "s"],
  }[metric.unit] ?? [1, ""];
  const log = metric.unit !== "percent" && least > 0 && most / least > 30;
  return { factor, log, label: `${metric.label}${unit && ` (${unit})`}, ${way}` };
}
