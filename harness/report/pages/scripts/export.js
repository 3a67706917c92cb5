// Takes a chart out of the page: its picture as SVG or PNG, and the numbers behind it as CSV.
const exporter = (() => {
  // The drawing as a document of its own: the page's colours in it, and a ground.
  function picture(svg) {
    const copy = svg.cloneNode(true);
    const style = getComputedStyle(document.body);
    const { width, height } = svg.getBoundingClientRect();
    for (const part of copy.querySelectorAll('[aria-label="tip"], .range, .picked')) part.remove();
    const attributes = { xmlns: "http://www.w3.org/2000/svg", width, height, viewBox: `0 0 ${width} ${height}` };
    for (const [name, value] of Object.entries(attributes)) copy.setAttribute(name, value);
    copy.setAttribute("style", `color: ${style.color}; background: ${style.backgroundColor}; font: 12px sans-serif; overflow: visible`);
    copy.prepend(element("title", {}, svg.getAttribute("aria-label") ?? ""));
    const root = getComputedStyle(document.documentElement);
    return new XMLSerializer().serializeToString(copy).replace(/var\((--[\w-]+)\)/g, (_, name) => root.getPropertyValue(name).trim() || "currentColor");
  }

  async function png(svg) {
    const { width, height } = svg.getBoundingClientRect();
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(picture(svg))}`;
    await image.decode();
    const canvas = element("canvas", { width: 2 * width, height: 2 * height });
    const context = canvas.getContext("2d");
    context.scale(2, 2);
    context.drawImage(image, 0, 0, width, height);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }

  // Rows of one kind: {name: value}. A text that a spreadsheet would compute begins with an apostrophe.
  function csv(rows) {
    const names = [...new Set(rows.flatMap(Object.keys))];
    const cell = (value) => {
      if (value === null || value === undefined) return "";
      if (typeof value === "number") return String(value);
      const text = /^[=+\-@\t]/.test(value) ? `'${value}` : String(value);
      return `"${text.replaceAll('"', '""')}"`;
    };
    return [names, ...rows.map((row) => names.map((name) => row[name]))].map((row) => row.map(cell).join(",")).join("\n") + "\n";
  }

  function save(blob, name) {
    const link = element("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  // Into the clipboard, or a file where the browser does not let a page do that. Returns what the button then says.
  async function copy(blob, name) {
    try {
      const item = blob.type === "image/png" ? { "image/png": blob } : { "text/plain": blob };
      await navigator.clipboard.write([new ClipboardItem(item)]);
      return "Copied";
    } catch {
      save(blob, name);
      return "Saved as a file";
    }
  }

  // The buttons of a chart. drawing: its svg; rows: its numbers; both as they are when a button is pressed.
  function buttons(id, drawing, rows) {
    const ways = [
      ["Copy SVG", async () => copy(new Blob([picture(drawing())], { type: "text/plain" }), `${id}.svg`)],
      ["Copy PNG", async () => copy(await png(drawing()), `${id}.png`)],
      ["Data (CSV)", async () => { save(new Blob([csv(rows())], { type: "text/csv" }), `${id}.csv`); return "Saved as a file"; }],
    ];
    const made = ways.map(([label, act]) => {
      const button = element("button", { type: "button", onclick: async () => {
        if (!drawing()) return;
        button.textContent = await act();
        setTimeout(() => { button.textContent = label; }, 2000);
      } }, label);
      return button;
    });
    return element("details", { class: "export" }, element("summary", { title: "Take this chart with you" }, "Export"), ...made);
  }

  return { buttons, picture, png, csv };
})();
