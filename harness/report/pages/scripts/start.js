// Puts the page together: what applies to all of it, its tables, then the view that the address names.
(() => {
  const rest = block("rest") ?? {};
  if (study.places.length > 1) {
    document.getElementById("filters").append(charts.select("at", "Study of", study.places.map((place) => [place.id, place.title]), () => study.places[study.at()].id));
  }
  filters.build(document.getElementById("filters"));
  card.build(document.getElementById("card"));
  for (const table of document.querySelectorAll("table:not(.overview)")) interactive(table, rest[table.id] ?? []);
  for (const part of document.querySelectorAll(".interactive")) part.hidden = false;

  // What stands behind a summary is open without scripts, and in print. A link or an address into it opens it.
  const folded = ["how", "columns", "pictures"].map((id) => document.getElementById(id));
  for (const part of folded) part.open = false;
  addEventListener("beforeprint", () => { for (const part of folded) part.open = true; });
  function unfold() {
    const target = document.getElementById(location.hash.slice(1).split("&")[0]);
    for (const part of folded) {
      if (target && (part.contains(target) || target === part.parentElement)) part.open = true;
    }
    if (/[#&]best-table\./.test(location.hash)) document.getElementById("columns").open = true;
  }
  addEventListener("hashchange", unfold);
  unfold();
  state.start();
})();
