// What the reader chose, kept in the address' fragment: a view can be sent, and the back button returns to the last one.
// The fragment is `#section&name=value&…`; what is at its default is left out. Each chart draws again when it changes.
const state = (() => {
  const defaults = {};
  const listeners = [];
  let chosen = {};

  function read() {
    const [first, ...rest] = location.hash.slice(1).split("&");
    const pairs = first.includes("=") ? [first, ...rest] : rest;
    return Object.fromEntries([...new URLSearchParams(pairs.join("&"))].filter(([name]) => Object.hasOwn(defaults, name)));
  }

  function section() {
    const first = location.hash.slice(1).split("&")[0];
    return first.includes("=") ? "" : first;
  }

  function fragment() {
    const said = Object.entries(chosen).filter(([name, value]) => value !== defaults[name]);
    return [section(), new URLSearchParams(said).toString()].filter(Boolean).join("&");
  }

  function tell(names) {
    for (const listener of listeners) listener(names);
  }

  addEventListener("popstate", () => {
    const plain = location.hash && !location.hash.includes("="); // a link to a section keeps what was chosen
    if (plain) return history.replaceState(null, "", `#${fragment()}`);
    chosen = read();
    tell(new Set(Object.keys(defaults)));
  });

  return {
    // Declare a name with its default, a text. Its value may come from the address.
    declare(name, fallback) {
      defaults[name] = fallback;
      chosen = { ...read(), ...chosen };
    },
    get: (name) => chosen[name] ?? defaults[name],
    // Choose values. typed: whether they change letter by letter, so that they replace the last step of the history.
    set(values, typed = false) {
      const changed = Object.keys(values).filter((name) => values[name] !== state.get(name));
      if (!changed.length) return;
      Object.assign(chosen, values);
      history[typed ? "replaceState" : "pushState"](null, "", `#${fragment()}`);
      tell(new Set(changed));
    },
    clear: () => state.set({ ...defaults }),
    onchange: (listener) => listeners.push(listener), // called with the set of names that changed
    start() {
      const target = document.getElementById(section());
      if (target && location.hash.includes("=")) target.scrollIntoView();
      tell(new Set(Object.keys(defaults)));
    },
  };
})();

// The data of a section, as `page.py` has written it.
function block(name) {
  const found = document.getElementById(`${name}-data`);
  return found ? JSON.parse(found.textContent) : null;
}

// An element with attributes and children; a text is always a text. A function is a listener: {onclick: …}.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}
