// A table that sorts, filters and turns pages: only the rows in view are in the document, whatever their number.

class DataTable {
  // columns: [{title, text: row => string, number?: row => number or null, cell?: row => Node, filter?: bool, wrap?: bool}]
  constructor(host, { name, columns, count, label, size = 50, row = null, note = null }) {
    Object.assign(this, { host, name, columns, count, label, size, row, note });
    this.page = 0;
    this.sort = null; // [column, 1 or -1]
    this.query = "";
    this.chosen = new Map(); // column -> text
    this.only = null; // a set of rows
    this.keys = new Map();
    this.build();
    this.restore();
    this.update();
  }

  build() {
    this.search = el("input", { type: "search", placeholder: "Filter …", "aria-label": `Filter ${this.label}`, oninput: () => this.change(() => { this.query = this.search.value; }) });
    this.selects = new Map();
    this.columns.forEach((column, c) => {
      const values = column.filter ? this.distinct(c) : [];
      if (values.length < 2 || values.length > 40) return;
      const pick = el("select", { "aria-label": `Filter by ${column.title}`, onchange: () => this.change(() => { this.chosen.set(c, pick.value); }) },
        el("option", { value: "" }, "all"), values.map((value) => el("option", { value }, value)));
      this.selects.set(c, pick);
    });
    this.told = el("p", { class: "told", role: "status" });
    const picks = [...this.selects].map(([c, pick]) => el("label", {}, el("span", {}, this.columns[c].title), pick));
    this.clear = el("button", { type: "button", class: "quiet", onclick: () => this.reset() }, "Clear");
    const tools = el("div", { class: "controls" }, el("label", {}, el("span", {}, "contains"), this.search), picks, this.clear, this.told);
    this.heads = this.columns.map((column, c) =>
      el("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": "none" },
        column.title ? el("button", { type: "button", onclick: () => this.change(() => this.turn(c)) }, column.title) : null));
    this.body = el("tbody");
    const table = el("table", {}, el("caption", { class: "hidden" }, this.label), el("thead", {}, el("tr", {}, this.heads)), this.body);
    this.pager = el("div", { class: "pager" });
    this.host.replaceChildren(...(this.count > 8 ? [tools] : []), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": this.label }, table), this.pager);
  }

  distinct(c) {
    const values = new Set();
    for (let row = 0; row < this.count; row++) values.add(this.columns[c].text(row));
    return [...values].sort(collator.compare);
  }

  turn(c) {
    const now = this.sort && this.sort[0] === c ? this.sort[1] : 0;
    this.sort = now === 0 ? [c, 1] : now === 1 ? [c, -1] : null;
  }

  change(what) {
    what();
    this.page = 0;
    this.update();
    this.keep();
  }

  reset() {
    this.change(() => { this.query = ""; this.chosen.clear(); this.sort = null; this.only = null; });
    this.search.value = "";
    for (const pick of this.selects.values()) pick.value = "";
    if (this.cleared) this.cleared();
  }

  // Numbers to sort by; text is ranked once, so that sorting compares numbers only. What is missing comes last.
  sortKeys(c) {
    if (!this.keys.has(c)) {
      const column = this.columns[c];
      let key = column.number;
      if (!key) {
        const ranks = new Map(this.distinct(c).map((value, rank) => [value, rank]));
        key = (row) => ranks.get(column.text(row));
      }
      this.keys.set(c, Float64Array.from({ length: this.count }, (_, row) => { const value = key(row); return value === null || value === undefined ? NaN : value; }));
    }
    return this.keys.get(c);
  }

  haystack() {
    this.texts ||= Array.from({ length: this.count }, (_, row) => this.columns.map((column) => column.text(row)).join("\u0001").toLowerCase());
    return this.texts;
  }

  rows() {
    const wanted = this.query.toLowerCase().split(/\s+/).filter(Boolean);
    const texts = wanted.length ? this.haystack() : null;
    const picks = [...this.chosen].filter(([, value]) => value).map(([c, value]) => [this.columns[c].text, value]);
    const kept = [];
    for (let row = 0; row < this.count; row++) {
      if (this.only && !this.only.has(row)) continue;
      if (texts && !wanted.every((word) => texts[row].includes(word))) continue;
      if (picks.every(([text, value]) => text(row) === value)) kept.push(row);
    }
    if (this.sort) {
      const [c, sign] = this.sort;
      const keys = this.sortKeys(c);
      kept.sort((a, b) => (Number.isNaN(keys[a]) - Number.isNaN(keys[b])) || sign * (keys[a] - keys[b]) || a - b);
    }
    return kept;
  }

  update() {
    const rows = this.rows();
    const pages = Math.max(1, Math.ceil(rows.length / this.size));
    this.page = Math.min(this.page, pages - 1);
    const first = this.page * this.size;
    this.body.replaceChildren(...rows.slice(first, first + this.size).map((row) => this.line(row)));
    if (!rows.length) this.body.append(el("tr", {}, el("td", { colspan: this.columns.length, class: "none" }, "No row fits the filters.")));
    this.heads.forEach((head, c) => head.setAttribute("aria-sort", !this.sort || this.sort[0] !== c ? "none" : this.sort[1] > 0 ? "ascending" : "descending"));
    this.told.textContent = rows.length === this.count ? `${this.count} rows` : `${rows.length} of ${this.count} rows`;
    this.clear.hidden = !(this.query || this.sort || this.only || [...this.chosen.values()].some(Boolean));
    this.pager.hidden = pages === 1;
    if (pages > 1) {
      const go = (to) => () => { this.page = to; this.update(); };
      this.pager.replaceChildren(
        el("button", { type: "button", disabled: this.page === 0, onclick: go(this.page - 1) }, "Previous"),
        el("span", {}, `${first + 1} to ${Math.min(first + this.size, rows.length)} of ${rows.length}`),
        el("button", { type: "button", disabled: this.page === pages - 1, onclick: go(this.page + 1) }, "Next"));
    }
  }

  line(row) {
    const cells = this.columns.map((column) => {
      const content = column.cell ? column.cell(row) : column.text(row);
      return el("td", { class: [column.number ? "number" : "", column.wrap ? "wrap" : ""].join(" ").trim() || null }, content);
    });
    return el("tr", this.row ? this.row(row) : {}, cells);
  }

  keep() {
    const { name } = this;
    if (!name) return;
    state.set(`${name}.q`, this.query);
    state.set(`${name}.sort`, this.sort ? `${this.sort[1] < 0 ? "-" : ""}${this.columns[this.sort[0]].title}` : "");
    for (const c of this.selects.keys()) state.set(`${name}.${this.columns[c].title}`, this.chosen.get(c) || "");
  }

  restore() {
    if (!this.name) return;
    this.query = this.search.value = state.get(`${this.name}.q`);
    const word = state.get(`${this.name}.sort`);
    const c = this.columns.findIndex((column) => column.title && column.title === word.replace(/^-/, ""));
    if (word && c >= 0) this.sort = [c, word.startsWith("-") ? -1 : 1];
    for (const [place, pick] of this.selects) {
      pick.value = state.get(`${this.name}.${this.columns[place].title}`);
      if (pick.selectedIndex < 0) pick.value = ""; // an address of other records
      this.chosen.set(place, pick.value);
    }
  }
}
