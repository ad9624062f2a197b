// The figures of an experiment: which groups of runs they show, and what of them.

const MOST = 16; // lines: beyond it two would have the same marker

function figures(page, leadTo) {
  const groups = page.groups.map((own) => ({ ...own, labels: { ...own.labels } }));
  const networks = ["model", "dataset"], apart = ["method", "bits"];
  const facets = [...new Set(groups.flatMap((own) => Object.keys(own.labels)))].filter((name) => !apart.includes(name));
  const chosen = {}, hidden = new Set();
  const headlines = [...new Set(groups.map((own) => own.headline))];
  const measures = [...headlines, "drop", ...Object.keys(look.figures).filter((name) => !headlines.includes(name) && name !== "drop")]
    .filter((name) => page.runs.figures[name]);
  const axes = ["weight bits", ...["bits", "bytes", "solve_seconds"].filter((name) => page.runs.figures[name])];
  const title = (name) => (look.figures[name] ? look.figures[name][0] : name);
  const form = (name) => (look.figures[name] ? look.figures[name][1] : "3g");
  const LOG = new Set(["relative_error", "solve_seconds", "fit_seconds", "seconds", "kl"]);

  const pick = (name, label, options, texts) => {
    const node = el("select", { "data-facet": name, onchange: () => { chosen[name] = node.value; state.set(`f.${name}`, node.value); draw(); } },
      options.map((value, i) => el("option", { value }, texts ? texts[i] : value)));
    node.value = state.get(`f.${name}`) || options[0];
    if (node.selectedIndex < 0) node.value = options[0];
    chosen[name] = node.value;
    return options.length > 1 ? el("label", {}, el("span", {}, label), node) : null;
  };
  const controls = [pick("y", "vertical", measures, measures.map(title)), pick("x", "horizontal", axes, axes.map(title))];
  // What has too many lines begins with one value of a setting, the others to be chosen.
  let lines = new Set(groups.map((own) => own.labels.method)).size;
  for (const name of facets) {
    const values = [...new Set(groups.map((own) => own.labels[name] ?? "–"))].sort(collator.compare);
    const single = networks.includes(name) || name === "act. bits";
    if (name === "act. bits") values.reverse();
    const many = !single && lines * values.length > MOST;
    if (!single && !many) lines *= values.length;
    controls.push(pick(name, name, single ? values : many ? [...values, "all"] : ["all", ...values]));
  }
  find("facets").replaceChildren(...controls.filter(Boolean));

  const values = (own, figure) => own.runs.map((run) => page.runs.figures[figure]?.[run]).filter((v) => v !== null && v !== undefined);
  const lineName = (own) => [own.labels.method, ...facets.filter((name) => chosen[name] === "all").map((name) => (networks.includes(name) || /^[a-z_]+$/.test(name) ? own.labels[name] ?? "–" : `${name}=${own.labels[name] ?? "–"}`))].join(" ");

  function tipOf(own) {
    const parts = [chosen.y, "drop", "relative_error", "solve_seconds"].filter((name, i, all) => all.indexOf(name) === i);
    const seeds = own.runs.length === 1 ? "1 run" : `${own.runs.length} runs`;
    return [lineName(own), `${own.labels.bits} bits, ${seeds}`, ...parts.map((name) => {
      const found = values(own, name);
      if (!found.length) return null;
      const spread = found.length > 1 ? ` ± ${show(deviation(found), form(name))}` : "";
      return `${title(name)} ${show(mean(found), form(name))}${spread}`;
    }).filter(Boolean)];
  }
  const point = (own, xs, ys, more) => ({ x: mean(xs), y: mean(ys), dy: deviation(ys), tip: tipOf(own), go: () => leadTo(own), ...more });

  function score(lines, names) {
    const byBits = chosen.x === "weight bits";
    const bits = [...new Set([...lines.values()].flat().map((own) => Number(own.labels.bits)))].sort((a, b) => a - b);
    const gaps = bits.slice(1).map((value, i) => value - bits[i]);
    const step = gaps.length ? Math.min(0.5 * Math.min(...gaps) / names.length, 0.02 * (bits[bits.length - 1] - bits[0])) : 0.1; // in bits
    const series = names.filter((name) => !hidden.has(name)).map((name) => {
      const shift = byBits ? step * (names.indexOf(name) - (names.length - 1) / 2) : 0;
      const points = lines.get(name).map((own) => [own, byBits ? [Number(own.labels.bits)] : values(own, chosen.x), values(own, chosen.y)])
        .filter(([, xs, ys]) => xs.length && ys.length)
        .map(([own, xs, ys]) => point(own, xs.map((x) => x + shift), ys, { text: byBits ? null : own.labels.bits }));
      return { name, index: names.indexOf(name), points: points.sort((a, b) => a.x - b.x) }; // bars of one line do not hide those of another
    });
    const full = [...lines.values()].flat().flatMap((own) => values(own, `${chosen.y}_full`));
    chart(find("chart-score"), {
      x: { label: title(chosen.x), ticks: byBits ? bits : null, log: !byBits && chosen.x !== "bits", pad: byBits ? 0.2 : 0.06 },
      y: { label: title(chosen.y), log: LOG.has(chosen.y) },
      rule: full.length ? { y: mean(full), label: "full precision" } : null, series,
    });
  }

  function time(lines, names) {
    const series = names.filter((name) => !hidden.has(name)).map((name) => ({
      name, index: names.indexOf(name),
      points: lines.get(name).map((own) => [own, values(own, "solve_seconds"), values(own, "relative_error")])
        .filter(([, xs, ys]) => xs.length && ys.length)
        .map(([own, xs, ys]) => point(own, xs, ys, { text: own.labels.bits })),
    }));
    chart(find("chart-time"), { x: { label: "solve time (s), all layers; at the points: bits", log: true }, y: { label: "mean relative output error", log: true }, series });
  }

  function draw() {
    const shown = groups.filter((own) => facets.every((name) => chosen[name] === "all" || (own.labels[name] ?? "–") === chosen[name]));
    const lines = new Map();
    for (const own of shown) lines.set(lineName(own), [...(lines.get(lineName(own)) || []), own]);
    const names = [...lines.keys()].slice(0, MOST);
    find("left-out").hidden = lines.size <= MOST;
    find("left-out").textContent = `${names.length} of ${lines.size} lines are shown: choose above which ones.`;
    const both = () => { score(lines, names); time(lines, names); };
    legend(find("legend"), names, hidden, both);
    both();
  }
  draw();
}
