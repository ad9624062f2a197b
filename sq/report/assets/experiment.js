// The page of an experiment.

const describe = (page, run) => {
  const { labels, settings } = page.runs, parts = Object.entries(labels).map(([name, column]) => [name, at(column, run)]).filter(([, value]) => value !== undefined && value !== "None");
  const seed = at(settings.seed, run);
  const said = parts.map(([name, value]) => (name === "bits" ? `${value} bits` : name === "act. bits" ? `inputs ${value} bits` : /[. ]/.test(name) ? `${name}=${value}` : value));
  return [...said, ...(seed === undefined ? [] : [`seed ${seed}`])].join(", ");
};

function main() {
  const page = read("page");
  look = page.look;
  const count = page.runs.key.length;
  const compare = comparison(page, find("compare-host"));
  const open = (run) => {
    state.set("run", page.runs.key[run]);
    openRun(page, run, { compare: compare.set, closed: () => state.set("run", "") });
  };
  const table = runsTable(page, count, compare, open);
  compare.changed = () => table.update();
  const leadTo = (group) => {
    table.change(() => { table.only = new Set(group.runs); });
    const chip = find("only");
    chip.hidden = false;
    chip.replaceChildren("Only: ", Object.entries(group.labels).map(([name, value]) => `${name} ${value}`).join(", "), " ", el("button", { type: "button", class: "quiet", onclick: () => table.reset() }, "show all runs"));
    find("runs").scrollIntoView();
  };
  table.cleared = () => { find("only").hidden = true; };
  if (page.summary) summaryTable(page, leadTo);
  failuresList(page, open);
  if (page.groups.length) figures(page, leadTo);
  const published = find("published-host");
  if (page.claims) textTable(published, page.claims, "published figures", "c");
  else published.replaceChildren(el("p", { class: "note" }, "No published figure has the settings and the full precision of these runs."));
  const asked = page.runs.key.indexOf(state.get("run"));
  if (asked >= 0) open(asked);
  document.documentElement.dataset.ready = "yes";
}

// A table whose cells are text; columns of numbers sort as such.
function textTable(host, { columns, rows }, label, name, more = {}) {
  const numeric = columns.map((_, c) => rows.every((row) => row[c] === "-" || number(row[c]) !== null));
  const labels = new Set(more.filters || []);
  return new DataTable(host, {
    name, count: rows.length, label, size: more.size || 50, row: more.row,
    columns: columns.map((title, c) => ({
      title, text: (row) => pretty(rows[row][c]), number: numeric[c] ? (row) => number(rows[row][c]) : null,
      filter: labels.has(title), wrap: title === "setting" || title === "source",
    })),
  });
}

function summaryTable(page, leadTo) {
  const { summary, groups } = page, first = summary.rows.length - groups.length; // rows of full precision come first
  const names = Object.keys(groups[0].labels);
  textTable(find("summary-host"), summary, "methods", "t", {
    filters: names,
    row: (row) => {
      if (row < first) return { class: "full" };
      const go = () => leadTo(groups[row - first]);
      return { class: "leads", tabindex: "0", onclick: go, onkeydown: (event) => { if (event.key === "Enter") go(); } };
    },
  });
}

function runsTable(page, count, compare, open) {
  const { key, labels, settings, facts, figures } = page.runs;
  const slot = (name, run) => el("button", { type: "button", class: "slot-button", "aria-pressed": String(compare.chosen[name] === run), "aria-label": `Compare ${key[run]} as ${name}`, onclick: () => compare.set(name, run) }, name);
  const label = (title, column) => ({
    title, text: (run) => words(at(column, run)), filter: true,
    number: title === "bits" || title === "act. bits" ? (run) => Number(at(column, run)) : null,
  });
  const figure = (name) => ({ title: look.figures[name][0], text: (run) => show(figures[name][run], look.figures[name][1]), number: (run) => figures[name][run] });
  const wanted = ["top1", "map", "drop", "relative_error", "solve_seconds", "seconds", "peak_bytes.process"];
  return new DataTable(find("runs-host"), {
    name: "r", count, label: "runs", size: 25,
    row: (run) => ({ class: at(facts.status, run) === "failed" ? "failed" : null }),
    columns: [
      { title: "run", text: (run) => key[run], cell: (run) => el("button", { type: "button", class: "key", onclick: () => open(run) }, key[run].slice(0, 8)) },
      { title: "", text: () => "", cell: (run) => el("span", { class: "pair" }, slot("A", run), slot("B", run)) },
      ...Object.entries(labels).map(([title, column]) => label(title, column)),
      ...(settings.seed ? [{ title: "seed", text: (run) => words(at(settings.seed, run)), number: (run) => at(settings.seed, run) ?? null, filter: true }] : []),
      ...wanted.filter((name) => figures[name]).map(figure),
      { title: "status", text: (run) => at(facts.status, run), filter: true },
    ],
  });
}

function failuresList(page, open) {
  const host = find("failures-host"), { failures } = page;
  if (!failures.length) { host.replaceChildren(el("p", { class: "note" }, "None: every run that left a record has finished.")); return; }
  const causes = new Map();
  for (const own of failures) causes.set(own.error, [...(causes.get(own.error) || []), own]);
  const list = [...causes].sort((a, b) => b[1].length - a[1].length);
  host.replaceChildren(
    el("p", { class: "note" }, `${failures.length} ${failures.length === 1 ? "run" : "runs"} failed, of ${list.length} ${list.length === 1 ? "cause" : "causes"}. Type the sweep's command again to repeat them.`),
    ...list.map(([, own]) => el("article", { class: "cause" }, failure(own[0]),
      el("ul", {}, own.slice(0, 20).map((one) => el("li", {}, el("button", { type: "button", class: "key", onclick: () => open(one.run) }, page.runs.key[one.run].slice(0, 8)), " ", describe(page, one.run)))),
      own.length > 20 ? el("p", { class: "note" }, `and ${own.length - 20} more: choose "failed" in the column status of the runs`) : null)));
}

main();
