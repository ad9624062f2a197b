// Two runs side by side: the settings that differ, and on request all of them; then data, provenance and figures.

function comparison(page, host) {
  const { runs } = page, chosen = { A: null, B: null }, opened = new Map();
  const BOX = el("input", { type: "checkbox", id: "every", onchange: () => draw() });
  const slots = el("div", { class: "slots" }), host2 = el("div");
  host.replaceChildren(slots, el("label", { class: "check" }, BOX, "show what is equal, too"), host2);

  function slot(name) {
    const run = chosen[name];
    const input = el("input", { list: "keys", spellcheck: "false", size: 18, "aria-label": `Key of run ${name}`, placeholder: "key of a run", value: run === null ? "" : runs.key[run], onchange: () => {
      const found = runs.key.findIndex((key) => input.value.trim() && key.startsWith(input.value.trim()));
      input.setCustomValidity(found < 0 ? "no run has this key" : "");
      if (found < 0) input.reportValidity(); else set(name, found);
    } });
    return el("div", { class: "slot" }, el("strong", {}, name), input, el("span", {}, run === null ? "not chosen yet" : describe(page, run)));
  }

  const same = (a, b) => a === b || JSON.stringify(a) === JSON.stringify(b);
  function part(title, columns, get, showing, { note = "", third = null, open = false } = {}) {
    const { A, B } = chosen;
    const rows = Object.keys(columns).map((name) => [name, get(columns[name], A), get(columns[name], B)]).filter(([, a, b]) => a !== undefined || b !== undefined);
    const differing = rows.filter(([, a, b]) => !same(a, b));
    const shown = BOX.checked ? rows : differing;
    const equal = rows.length - differing.length;
    const line = ([name, a, b]) => el("tr", { class: same(a, b) ? null : "differs" }, el("th", { scope: "row" }, name),
      el("td", {}, showing(a, name)), el("td", {}, showing(b, name)), third ? el("td", { class: "ratio" }, third(a, b)) : null);
    const table = el("table", { class: "diff" },
      el("thead", {}, el("tr", {}, [title.toLowerCase(), "A", "B", ...(third ? ["ratio"] : [])].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, shown.map(line)));
    const part = el("details", { "data-part": title, open: opened.has(title) ? opened.get(title) : open, ontoggle: () => opened.set(title, part.open) },
      el("summary", {}, el("strong", {}, title), ` ${differing.length} differ, ${equal} are equal${note}`),
      shown.length ? el("div", { class: "scroll" }, table) : null);
    return part;
  }
  const ratio = (a, b) => (a > 0 && b > 0 && a !== b ? `B is ${significant(b / a, 3)} × A` : "");

  function draw() {
    slots.replaceChildren(slot("A"), el("button", { type: "button", class: "quiet", "aria-label": "Swap A and B", onclick: () => { [chosen.A, chosen.B] = [chosen.B, chosen.A]; changed(); } }, "swap"), slot("B"));
    if (chosen.A === null || chosen.B === null) { host2.replaceChildren(); return; }
    host2.replaceChildren(
      part("Settings", runs.settings, at, words, { note: "; where and how a run is kept is left out", open: true }),
      part("Data and provenance", runs.facts, at, words),
      part("Figures", runs.figures, (column, run) => column[run] ?? undefined, (value, name) => show(value, look.figures[name]?.[1] || "4g"), { third: ratio }));
  }
  function changed() {
    for (const name of ["A", "B"]) state.set(name, chosen[name] === null ? "" : runs.key[chosen[name]]);
    draw();
    if (api.changed) api.changed();
  }
  function set(name, run) {
    chosen[name] = chosen[name] === run ? null : run;
    changed();
  }
  const api = { set, chosen, changed: null };
  for (const name of ["A", "B"]) {
    const found = runs.key.indexOf(state.get(name));
    chosen[name] = found < 0 ? null : found;
  }
  // Something to look at: two runs that differ in their method alone, if there are such.
  const own = (run, name) => (name === "seed" ? at(runs.settings.seed, run) : at(runs.labels[name], run));
  const apart = (run) => [...Object.keys(runs.labels), "seed"].filter((name) => own(run, name) !== own(0, name));
  if (chosen.A === null && chosen.B === null && runs.key.length > 1) {
    const other = runs.key.findIndex((_, run) => apart(run).join() === "method");
    [chosen.A, chosen.B] = [0, Math.max(1, other)];
  }
  draw();
  return api;
}
