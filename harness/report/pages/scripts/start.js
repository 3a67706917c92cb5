// Puts the page together: what applies to all of it, its tables, then the view that the address names.
(() => {
  const rest = block("rest") ?? {};
  if (study.places.length > 1) {
    document.getElementById("filters").append(charts.select("at", "Study of", study.places.map((place, i) => [String(i), place.title])));
  }
  filters.build(document.getElementById("filters"));
  card.build(document.getElementById("card"));
  for (const table of document.querySelectorAll("table")) interactive(table, rest[table.id] ?? []);
  for (const part of document.querySelectorAll(".interactive")) part.hidden = false;

  const pictures = document.getElementById("pictures"); // the same without scripts, and in print
  pictures.open = false;
  addEventListener("beforeprint", () => { pictures.open = true; });
  state.start();
})();
