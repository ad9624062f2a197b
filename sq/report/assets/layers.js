// One run, opened: its figures, and error, seconds and bits of each layer.

// Per run: [shape, bits, activation bits, errors, seconds, rare], see sq/report/slim.py; null for one that failed.
const details = { get all() { const found = read("layers"); Object.defineProperty(this, "all", { value: found }); return found; } };

function layersOf(page, run) {
  const found = details.all[run];
  if (!found) return null;
  const [shape, bits, inputs, errors, seconds, rare] = found;
  const [names, kinds, groups, outputs, columns, weights] = page.shapes[shape];
  const each = (value, i) => (Array.isArray(value) ? value[i] : value);
  return names.map((name, i) => ({
    name, kind: kinds[i], size: groups[i] > 1 ? `${groups[i]} × ${outputs[i]} × ${columns[i]}` : `${outputs[i]} × ${columns[i]}`, weights: weights[i],
    bits: each(bits, i), inputs: each(inputs, i), error: errors[i], seconds: seconds[i],
    rare: Object.fromEntries(Object.entries(rare).map(([what, where]) => [what, where[i] || 0])),
  }));
}

const RARE = { damp_retries: "damping retries", damp_used: "damping used", dead_inputs: "dead inputs" };

function openRun(page, run, { compare, closed }) {
  const dialog = find("run"), layers = layersOf(page, run), { figures, key, facts } = page.runs;
  const close = el("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() }, "×");
  const slot = (name) => el("button", { type: "button", onclick: () => { compare(name, run); dialog.close(); find("compare").scrollIntoView(); } }, `Compare as ${name}`);
  const shown = Object.keys(look.figures).filter((name) => figures[name] && figures[name][run] !== null);
  const error = page.failures.find((own) => own.run === run);
  const tiles = el("dl", { class: "tiles" }, shown.map((name) => el("div", {}, el("dt", {}, look.figures[name][0]), el("dd", {}, show(figures[name][run], look.figures[name][1])))));
  dialog.replaceChildren(
    el("header", {}, el("h2", { id: "run-title" }, describe(page, run)), close),
    el("p", { class: "note" }, "Run ", el("code", {}, key[run]), `, ${words(at(facts.started, run))}, commit `, el("code", {}, words(at(facts["provenance.commit"], run)).slice(0, 12)), " ", slot("A"), " ", slot("B")),
    error ? failure(error) : tiles,
    phases(page, run),
    layers ? el("section", { id: "layers" }, el("h3", {}, "Layers"), ...drawLayers(layers)) : el("p", { class: "note" }, "No layer was solved."));
  dialog.onclose = closed;
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
  dialog.showModal();
  dialog.scrollTop = 0;
  if (layers) layerTable(find("layer-table"), layers);
}

const failure = (own) => el("div", { class: "failure" }, el("p", {}, own.error),
  own.traceback ? el("details", {}, el("summary", {}, "Traceback"), el("pre", { tabindex: "0" }, own.traceback)) : null);

// Seconds of each phase as one bar in parts.
function phases(page, run) {
  const parts = Object.entries(page.runs.figures).filter(([name, own]) => name.startsWith("seconds.") && own[run] > 0)
    .map(([name, own]) => [name.slice(8).replace(/_/g, " "), own[run]]);
  const total = parts.reduce((sum, [, value]) => sum + value, 0);
  if (!total) return null;
  const large = parts.filter(([, value]) => value / total >= 0.01).sort((a, b) => b[1] - a[1]);
  const bar = el("div", { class: "phases", "aria-hidden": "true" });
  for (const [, value] of large) {
    const part = el("span");
    part.style.flexGrow = value / total;
    bar.append(part);
  }
  const list = el("ol", { class: "phase-words" }, large.map(([name, value]) => el("li", {}, `${name} ${show(value, "3g")} s`)));
  return el("section", {}, el("h3", {}, "Seconds by phase"), bar, list);
}

function drawLayers(layers) {
  const column = (name) => layers.map((own) => own[name]);
  const charts = [["relative error", column("error"), true], ["solve seconds", column("seconds"), true], ["weight bits", column("bits"), false]];
  if (layers.some((own) => own.inputs && own.inputs < 32)) charts.push(["input bits", column("inputs"), false]);
  return [...charts.filter(([, values]) => values.some((value) => value > 0)).map(([title, values, log]) =>
    (log || new Set(values).size > 1 ? bars(layers, title, values, log) : el("p", { class: "note" }, `${title}: ${values[0]} in all layers`))),
  el("div", { id: "layer-table" })];
}

// A bar a layer, logarithmic where asked; the bars of all charts stand above each other.
function bars(layers, title, values, log) {
  const W = 1080, H = log ? 130 : 70, left = 64, bottom = H - 14, top = 10, n = layers.length;
  const positive = values.filter((value) => value > 0);
  const low = log ? Math.floor(Math.log10(Math.min(...positive)) - 0.15) : 0;
  const high = log ? Math.log10(Math.max(...positive)) + 0.05 : Math.max(...positive) * 1.05;
  const place = (value) => bottom - ((log ? Math.log10(value) : value) - low) / (high - low) * (bottom - top);
  const step = (W - left - 8) / n, width = Math.max(1, Math.min(26, step * 0.72));
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "bars", role: "img", "aria-label": `${title} of ${n} layers; the table below has the figures` });
  const marks = log ? Array.from({ length: Math.floor(high) - low + 1 }, (_, i) => low + i) : [0, Math.max(...positive)];
  for (const t of marks) {
    const at = bottom - (t - low) / (high - low) * (bottom - top);
    picture.append(svg("line", { class: "grid", x1: left, x2: W - 8, y1: at, y2: at }), svg("text", { class: "tick", x: left - 7, y: at + 4, "text-anchor": "end" }, log ? significant(10 ** t, 1).replace("e-", "e−") : String(t)));
  }
  layers.forEach((own, i) => {
    const middle = left + step * (i + 0.5), value = values[i];
    const group = svg("g", { class: "layer", "data-layer": i }, svg("rect", { class: "target", x: left + step * i, width: step, y: top, height: bottom - top }));
    if (value > 0) group.append(svg("rect", { class: "bar", x: middle - width / 2, width, y: place(value), height: Math.max(0.5, bottom - place(value)) }));
    tip(group, [own.name, `${own.kind}, ${own.size}`, `relative error ${show(own.error, "2e")}`, `${show(own.seconds, "3g")} s, ${words(own.bits)} bits`]);
    picture.append(group);
  });
  return el("figure", { class: "layer-chart" }, el("figcaption", {}, log ? `${title}, logarithmic` : title), picture);
}

function layerTable(host, layers) {
  const rare = Object.keys(RARE).filter((what) => layers.some((own) => own.rare[what]));
  const plain = (title, name, more) => ({ title, text: (row) => words(layers[row][name]), ...more });
  const count = (title, get) => ({ title, text: (row) => words(get(layers[row]) ?? undefined), number: (row) => get(layers[row]) });
  const figure = (title, get, form) => ({ title, text: (row) => show(get(layers[row]), form), number: (row) => get(layers[row]) });
  new DataTable(host, {
    count: layers.length, label: "layers", size: 200,
    columns: [
      { title: "#", text: (row) => String(row + 1), number: (row) => row },
      plain("layer", "name"), plain("kind", "kind", { filter: true }), plain("rows × columns", "size"),
      count("weights", (own) => own.weights), count("bits", (own) => own.bits),
      ...(layers.some((own) => own.inputs && own.inputs < 32) ? [count("input bits", (own) => own.inputs)] : []),
      figure("rel. error", (own) => own.error, "2e"), figure("solve s", (own) => own.seconds, "2e"),
      ...rare.map((what) => count(RARE[what], (own) => own.rare[what] || null)),
    ],
  });
}
