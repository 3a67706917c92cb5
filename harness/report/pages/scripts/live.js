// Tells on a page of `harness view` how a sweep goes on, and when there are new results. A page in a file has no news.
(() => {
  const live = block("live");
  if (!live) return;
  const SECONDS = 3;
  const said = element("span");
  const again = element("button", { type: "button", hidden: true, onclick: () => location.reload() }, "New results: show them");
  document.body.prepend(element("div", { id: "live", role: "status" }, said, again)); // a reload keeps the fragment
  async function look() {
    try {
      const news = await (await fetch(live.news, { cache: "no-store" })).json();
      said.textContent = news.said;
      again.hidden = news.version === live.version;
    } catch {
      said.textContent = "`harness view` has ended; this page stays as it is.";
    }
    setTimeout(look, 1000 * SECONDS);
  }
  look();
})();
