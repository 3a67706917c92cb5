// Tells on a page of `harness view` how a sweep goes on: cells that are over, those that run with their losses, the time
// left, and when there are new results. A page in a file has no news.
(() => {
  const live = block("live");
  if (!live) return;
  const SECONDS = 3;
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"];
  const waits = document.getElementById("running"); // a page without results, which shows them as soon as there are any
  const said = element("span");
  const done = element("progress", { hidden: true, "aria-label": "Cells that are over" });
  const again = element("button", { type: "button", hidden: true, onclick: () => location.reload() }, "New results: show them");
  document.body.prepend(element("div", { id: "live", role: "status" }, done, said, again)); // a reload keeps the fragment
  const panel = element("section", { id: "running-cells", hidden: true });
  if (waits) waits.append(panel);
  else document.querySelector("main").prepend(panel);

  function look_of(names) {
    return new Map(names.map((name, i) => [name, COLOURS[i % COLOURS.length]]));
  }

  function table(running, colours) {
    const head = element("tr", {}, ...["Running cell", "Phase", "Step", "Loss", "To go"].map((text) => element("th", { scope: "col" }, text)));
    const rows = running.map((cell) => element("tr", {},
      element("th", { scope: "row" }, element("span", { class: "swatch", style: `background: ${colours.get(cell.name)}` }), cell.name),
      element("td", {}, cell.phase), element("td", {}, cell.step === null ? "–" : `${cell.step}${cell.of === null ? "" : ` of ${cell.of}`}`),
      element("td", {}, cell.loss === null ? "–" : cell.loss.toFixed(3)), element("td", {}, cell.to_go || "–")));
    const made = element("table", {}, element("caption", { class: "unseen" }, "Running cells"), element("thead", {}, head), element("tbody", {}, ...rows));
    return element("div", { class: "scroll" }, made);
  }

  // The losses that `harness view` has heard of since it began.
  function curves(running, colours) {
    const points = running.flatMap(({ name, losses }) => losses.map(([x, y]) => ({ name, x, y })));
    if (d3.rollups(points, (own) => own.length, (point) => point.name).every(([, n]) => n < 2)) return null;
    const width = Math.min(700, panel.clientWidth || 700);
    const plot = Plot.plot({
      width, height: 220, marginLeft: 48, style: { background: "transparent", color: "currentColor", fontSize: "12px" },
      x: { label: "step", grid: true }, y: { label: "training loss", grid: true, nice: true },
      ariaLabel: "Training losses of running cells",
      marks: [
        Plot.line(points, { x: "x", y: "y", z: "name", stroke: ({ name }) => colours.get(name), strokeWidth: 1.6 }),
        Plot.dot(d3.groups(points, (point) => point.name).map(([, own]) => own.at(-1)), { x: "x", y: "y", fill: ({ name }) => colours.get(name), r: 3.5 }),
      ],
    });
    plot.setAttribute("role", "img");
    return plot;
  }

  function show({ running, over, cells }) {
    done.hidden = cells === 0 || over === cells;
    done.max = Math.max(1, cells);
    done.value = over;
    panel.hidden = running.length === 0;
    const colours = look_of(running.map((cell) => cell.name));
    panel.replaceChildren(...[element("h2", {}, "Running"), table(running, colours), curves(running, colours)].filter(Boolean));
  }

  // A text that is set again is read out again.
  function say(text) {
    if (said.textContent !== text) said.textContent = text;
  }

  async function look() {
    try {
      const news = await (await fetch(live.news, { cache: "no-store" })).json();
      if (waits && news.version !== live.version) location.reload();
      say(news.said);
      again.hidden = news.version === live.version;
      show(news);
    } catch {
      say("`harness view` has ended; this page stays as it is.");
    }
    setTimeout(look, 1000 * SECONDS);
  }
  look();
})();
