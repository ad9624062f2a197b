// The page over all experiments.

function main() {
  const { experiments, benchmarks } = read("index");
  const runs = (own) => (own.done === null ? "–" : own.failed ? `${own.done} done, ${own.failed} failed` : `${own.done} done`);
  const meta = (own) => [own.models, own.methods, own.commits.length ? [`commit ${own.commits.join(", ")}`] : []].map((part) => part.join(", ")).filter(Boolean).join(" · ");
  const entry = (own) => el("div", { class: "question" },
    own.href ? el("a", { class: "name", href: own.href }, own.name) : el("span", { class: "name" }, own.name),
    el("p", {}, own.question), own.note ? el("p", { class: "warn" }, own.note) : null, el("p", { class: "meta" }, meta(own)),
    el("ul", { class: "files" }, own.files.map(([text, href]) => el("li", {}, el("a", { href }, text)))));
  const list = (host, label, items, more) => new DataTable(find(host), {
    name: label[0], count: items.length, label: `${label}s`, size: 100,
    columns: [{ title: label, text: (row) => [items[row].name, items[row].question, meta(items[row])].join(" "), cell: (row) => entry(items[row]), wrap: true }, ...more],
  });
  list("experiments-host", "experiment", experiments, [
    { title: "runs", text: (row) => runs(experiments[row]), number: (row) => experiments[row].done },
    { title: "best by weight bits", text: (row) => JSON.stringify(experiments[row].best), cell: (row) => best(experiments[row].best), wrap: true },
  ]);
  list("benchmarks-host", "benchmark", benchmarks, [
    { title: "solve time", text: (row) => JSON.stringify(benchmarks[row].totals), cell: (row) => totals(benchmarks[row]), wrap: true },
  ]);
  document.documentElement.dataset.ready = "yes";
}

// For each network a line of figures: full precision, then the best at each bit-width.
function best(networks) {
  return el("div", { class: "best" }, networks.map((own) => el("dl", {},
    el("div", {}, el("dt", {}, own.network || own.figure), el("dd", {}, own.full, el("small", {}, "full precision"))),
    own.best.map(([bits, value, method]) => el("div", {}, el("dt", {}, `${bits} bits`), el("dd", {}, pretty(value), el("small", {}, method)))))));
}

// For each method its speed-up over the reference, and its error over that one's.
function totals(own) {
  return el("div", { class: "best" }, el("dl", {}, own.totals.map(([method, speedup, error]) =>
    el("div", {}, el("dt", {}, method), el("dd", {}, speedup, el("small", {}, error))))));
}

main();
