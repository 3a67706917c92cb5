// The frame of a chart: a heading, controls, the drawing and a note. It draws when it is first seen, and again when the
// view or its width changes.
const charts = (() => {
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) entry.target.dispatchEvent(new Event("seen"));
  }, { rootMargin: "600px" });

  // draw(width) returns an element, or a sentence that says why there is none.
  function frame({ id, title, controls = [], note = "", draw, wide = false, into = "charts" }) {
    const head = element("h3", { id: `chart-${id}-title` }, title);
    const bar = element("div", { class: "controls" }, ...controls);
    const paper = element("div", { class: "plot" });
    const after = element("p", { class: "notes" }, note);
    const section = element("section", { class: `chart${wide ? " wide" : ""}`, id: `chart-${id}`, "aria-labelledby": head.id }, head, bar, paper, after);
    bar.append(exporter.buttons(id, () => paper.querySelector("svg"), () => drawing?.rows ?? []));
    let [visible, asked, width] = [false, false, 0];
    let drawing; // what is shown

    function redraw() {
      if (!visible || asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        width = paper.clientWidth;
        if (!width) return;
        const drawn = draw(width, paper);
        drawing = drawn;
        paper.replaceChildren(typeof drawn === "string" ? element("p", {}, drawn) : drawn);
      });
    }

    section.addEventListener("seen", () => { visible = true; seen.unobserve(section); redraw(); });
    seen.observe(section);
    new ResizeObserver(() => { if (paper.clientWidth !== width) redraw(); }).observe(paper);
    state.onchange((names) => { if ([...names].some((name) => !name.includes("."))) redraw(); }); // a.b is of table a
    document.getElementById(into).append(section);
    return { section, paper, after, redraw };
  }

  // A drawing by Plot in the page's colours. rows: the numbers that it shows, as the page's reader may download them.
  function plot({ rows = [], ...options }) {
    const style = { background: "transparent", color: "currentColor", fontSize: "12px", maxWidth: "none", ...options.style };
    const made = Plot.plot({ opacity: { type: "identity" }, ...options, style });
    made.setAttribute("role", "img");
    made.rows = rows;
    return made;
  }

  // An axis' label that fits the chart: without what follows its last comma where it is too long, then cut.
  function fitted(label, width) {
    const most = Math.floor((width - 10) / 6.6); // letters of 12 pixels
    return label.length <= most ? label : short(label.replace(/, [^,]*$/, ""), most);
  }

  // What is known of the point nearest to the pointer, in lines that fit the chart.
  function tip(points, options, width) {
    return Plot.tip(points, Plot.pointer({ lineWidth: width < 500 ? 11 : 24, ...options }));
  }

  // Texts at the ends of lines, those at one x moved apart where they would hide each other. points: {x, y, …}; each
  // gets `at`, where its text stands.
  function apart(points, height, domain) {
    return d3.groups(points, (point) => point.x).flatMap(([, column]) => apartAtOneX(column, height, domain));
  }

  function apartAtOneX(points, height, [low, high]) {
    const gap = (13 / height) * (high - low);
    const sorted = d3.sort(points, (point) => point.y).map((point) => ({ ...point, at: Math.min(high, Math.max(low, point.y)) }));
    for (let i = 1; i < sorted.length; i++) sorted[i].at = Math.max(sorted[i].at, sorted[i - 1].at + gap);
    const over = sorted.length ? Math.max(0, sorted.at(-1).at - high) : 0;
    return sorted.map((point) => ({ ...point, at: point.at - over }));
  }

  // Takes those of the texts of the mark "names" away that would hide one before them. points: of the texts, in order.
  function thin(plot, points, text) {
    const kept = [];
    const texts = [...plot.querySelectorAll('[aria-description="names"] > text')];
    points.forEach((point, i) => {
      const [x, y] = [plot.scale("x").apply(point.x) + 10, plot.scale("y").apply(point.y)];
      const box = [x, x + 7 * text(point).length, y - 7, y + 7];
      const hides = kept.some(([left, right, top, bottom]) => left < box[1] && box[0] < right && top < box[3] && box[2] < bottom);
      if (hides) texts[i]?.remove();
      else kept.push(box);
    });
  }

  // A choice of one of `choices` ([value, text]) under a label, kept in the state. shown: what stands in it. where: tells two
  // of one name apart.
  function select(name, label, choices, shown = () => state.get(name), where = "") {
    const made = element("select", { id: `choose-${name}${where && `-${where}`}`, onchange: () => state.set({ [name]: made.value }) });
    for (const [value, text] of choices) made.append(element("option", { value }, text));
    state.onchange(() => { made.value = shown(); });
    return element("span", { class: "field" }, element("label", { for: made.id }, label), made);
  }

  // A legend of filled squares.
  function swatches(entries) {
    const made = element("ul", { class: "swatches" });
    for (const [text, colour] of entries) {
      made.append(element("li", {}, element("span", { class: "swatch", style: `background: ${colour}` }), text));
    }
    return made;
  }

  // Whether a setting is in this view: of the place that is shown, and not filtered (but by `but`).
  const shows = (setting, but) => setting.place === study.at() && filters.shows(setting.index, but);
  const grey = (setting) => card.fits(setting) === "no";

  return { frame, plot, fitted, tip, apart, select, swatches, thin, shows, grey };
})();

const GREY = "var(--line)";
const short = (text, most) => (text.length <= most ? text : `${text.slice(0, most - 1)}…`);
