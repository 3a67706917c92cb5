// A forest plot of each article's verdicts: the interval of a claim's effect against the range that the claim gives it.
(() => {
  const SCALES = {
    times: ["effect (×)", true], points: ["effect (points)", false], rate: ["learning rate", true],
    bits_per_byte: ["effect (bits per byte)", false],
  };
  const MARKS = { supported: "circle", refuted: "times", "too small to matter": "square", depends: "diamond", "not decided": "circle" };

  for (const article of block("verdicts")) {
    const target = document.getElementById(`${article.id}-forest`);
    const known = article.claims.filter((claim) => claim.effect?.[0] != null);
    const groups = d3.groups(known, (claim) => claim.place, (claim) => (claim.scale in SCALES ? claim.scale : claim.name));
    if (!target || !groups.length) continue;
    const paper = element("div", { class: "plot" });
    const note = "Dot: the effect, with its 95% interval. Band: where the claim puts it; pale: where it is too small to matter. ● supported, ✕ refuted, □ too small to matter, ◇ depends on the setting, ○ not decided.";
    target.append(paper, element("p", { class: "notes" }, note));
    let width = 0;
    new ResizeObserver(() => {
      if (!paper.clientWidth || paper.clientWidth === width) return;
      width = paper.clientWidth;
      paper.replaceChildren(...groups.flatMap(([place, scales]) => [
        place ? element("h3", {}, place) : "",
        ...scales.map(([scale, claims]) => forest(SCALES[scale] ?? ["effect", false], scale, claims, width)),
      ]));
    }).observe(paper);
  }

  function forest([label, log], scale, claims, width) {
    const factor = scale === "points" ? 100 : 1;
    const finite = (value) => value !== null && (!log || value > 0);
    const ends = claims.flatMap((claim) => claim.effect.filter(finite));
    const bounds = claims.flatMap((claim) => [...(claim.range ?? []), ...(claim.small ?? [])].filter(finite));
    const neutral = log ? (scale === "rate" ? [] : [1]) : [0];
    // Bounds far from every effect must not squeeze the intervals.
    let [low, high] = d3.extent([...ends, ...neutral]);
    const near = bounds.filter((bound) => (log ? bound > low / 4 && bound < high * 4 : bound > low - (high - low) && bound < high + (high - low)));
    [low, high] = d3.extent([low, high, ...near]);
    const domain = log ? [low / 1.15, high * 1.15] : [low - 0.06 * (high - low), high + 0.06 * (high - low)];
    const clip = (value, end) => factor * Math.min(domain[1], Math.max(domain[0], value ?? end));
    const rows = claims.map((claim, i) => ({
      i, claim, x: clip(claim.effect[0]), low: clip(claim.effect[1] ?? claim.effect[0]), high: clip(claim.effect[2] ?? claim.effect[0]),
      from: claim.range && clip(claim.range[0], domain[0]), to: claim.range && clip(claim.range[1], domain[1]),
      smallFrom: claim.small && clip(claim.small[0]), smallTo: claim.small && clip(claim.small[1]),
      title: `${claim.text}\n${claim.decision}: ${claim.shown}${claim.why ? `\n${claim.why}` : ""}`,
    }));
    const narrow = width < 560;
    const name = ({ claim }) => short(claim.name, narrow ? 18 : 30);
    const unit = { points: " points", bits_per_byte: " bits per byte" }[scale] ?? ""; // the axis says it
    const said = ({ claim }) => short(unit ? claim.shown.replaceAll(unit, "") : claim.shown, 34);
    return charts.plot({
      width, height: 56 + 24 * rows.length, marginLeft: narrow ? 130 : 200, marginRight: narrow ? 16 : 200, marginTop: 8, marginBottom: 38,
      x: { label, type: log ? "log" : "linear", domain: domain.map((end) => factor * end), grid: true, ticks: narrow ? 4 : 6, tickFormat: log ? (value) => significant(value, 2) : undefined },
      y: { type: "band", domain: d3.range(rows.length), tickFormat: (i) => name(rows[i]), label: null, tickSize: 0, padding: 0.2 },
      ariaLabel: "Effects of claims",
      marks: [
        Plot.barX(rows.filter((row) => row.claim.range), { x1: "from", x2: "to", y: "i", fill: "var(--link)", fillOpacity: 0.14 }),
        Plot.barX(rows.filter((row) => row.claim.small), { x1: "smallFrom", x2: "smallTo", y: "i", fill: "var(--link)", fillOpacity: 0.05 }),
        Plot.ruleX(neutral.map((value) => factor * value), { stroke: "var(--faint)", strokeDasharray: "3 3" }),
        Plot.ruleY(rows, { x1: "low", x2: "high", y: "i", stroke: "currentColor", strokeWidth: 2 }),
        Plot.dot(rows, { x: "x", y: "i", symbol: ({ claim }) => MARKS[claim.decision], r: 5, stroke: "currentColor", strokeWidth: 2, fill: ({ claim }) => (claim.decision === "supported" ? "currentColor" : "var(--ground)") }),
        narrow ? null : Plot.text(rows, { y: "i", text: said, frameAnchor: "right", dx: 8, textAnchor: "start", fill: "currentColor" }),
        charts.tip(rows, { x: "x", y: "i", title: "title" }, width),
      ],
    });
  }
})();
