// The first table follows the filters, and a method that is clicked is picked in the charts.
(() => {
  const rows = [...document.querySelectorAll("table.overview tr[data-setting]")].map((tr) => ({ tr, setting: study.settings[Number(tr.dataset.setting)] }));
  for (const { tr, setting } of rows) {
    const head = tr.querySelector("th");
    const link = element("button", { type: "button", class: "pick", title: "Show all its numbers", onclick: () => {
      state.set({ pick: setting.id });
      document.getElementById("chart-score")?.scrollIntoView();
    } }, filters.symbol(setting.method), element("span", {}, ...head.childNodes));
    head.replaceChildren(link);
  }
  state.onchange(() => {
    for (const { tr, setting } of rows) {
      tr.hidden = !filters.shows(setting.index);
      tr.dataset.fits = card.fits(setting) ?? "";
    }
  });
})();
