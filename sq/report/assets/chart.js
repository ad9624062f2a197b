// Figures as SVG, in the house style of the printed ones: colour, marker and dash tell lines apart.

let look = { colours: [], markers: [], dashes: [], figures: {} };
const DASH = { "-": null, "--": "6 3", "-.": "7 3 1.5 3", ":": "1.5 3" };
const SHAPES = {
  o: "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
  s: "M-3.6,-3.6h7.2v7.2h-7.2Z",
  "^": "M0,-4.6L4.4,3.4H-4.4Z",
  D: "M0,-5L4,0L0,5L-4,0Z",
  v: "M0,4.6L4.4,-3.4H-4.4Z",
  P: "M-1.6,-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3Z",
  X: "M-4.4,-2.4L-2.4,-4.4L0,-2L2.4,-4.4L4.4,-2.4L2,0L4.4,2.4L2.4,4.4L0,2L-2.4,4.4L-4.4,2.4L-2,0Z",
  "*": "M0,-5.4L1.4,-1.8L5.2,-1.6L2.2,0.8L3.2,4.6L0,2.4L-3.2,4.6L-2.2,0.8L-5.2,-1.6L-1.4,-1.8Z",
};

function drawn(index) {
  const n = look.colours.length, turn = Math.floor(index / n);
  const colour = `var(--dark-${index % n}, ${look.colours[index % n]})`; // a dark page lightens some
  return {
    colour, shape: SHAPES[look.markers[index % look.markers.length]], fill: turn % 2 ? "var(--paper)" : colour,
    dash: DASH[look.dashes[(index + turn) % look.dashes.length]],
  };
}
const marker = (index, x, y) => {
  const { colour, shape, fill: inside } = drawn(index);
  return svg("path", { d: shape, transform: `translate(${x},${y})`, style: `fill:${inside};stroke:${colour};stroke-width:1.3` });
};
const stroke = (index) => ({ style: `stroke:${drawn(index).colour}`, "stroke-dasharray": drawn(index).dash });

// A list of buttons: each shows or hides a line.
function legend(host, names, hidden, changed) {
  host.replaceChildren(...names.map((name, index) => {
    const button = el("button", { type: "button", "aria-pressed": String(!hidden.has(name)), onclick: () => {
      if (!hidden.delete(name)) hidden.add(name);
      button.setAttribute("aria-pressed", String(!hidden.has(name)));
      changed();
    } }, svg("svg", { width: 34, height: 14, viewBox: "-17 -7 34 14", "aria-hidden": "true" },
      svg("line", { x1: -16, x2: 16, class: "line", ...stroke(index) }), marker(index, 0, 0)), name);
    return el("li", {}, button);
  }));
}

function ticks(low, high, log) {
  if (log) {
    const all = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power++) for (const m of [1, 2, 5]) all.push(power + Math.log10(m));
    const inside = all.filter((t) => t >= low - 1e-9 && t <= high + 1e-9);
    const decades = inside.filter((t) => Math.abs(t - Math.round(t)) < 1e-9);
    return decades.length >= 3 ? decades : inside;
  }
  const step0 = (high - low) / 6, base = 10 ** Math.floor(Math.log10(step0));
  const step = [1, 2, 5, 10].map((m) => m * base).find((s) => s >= step0);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function scale(values, { log, pad }, from, to) {
  const use = values.filter((v) => Number.isFinite(v) && (!log || v > 0)).map((v) => (log ? Math.log10(v) : v));
  let low = Math.min(...use), high = Math.max(...use);
  if (!use.length) [low, high] = [0, 1];
  const room = (high - low || (log ? 1 : Math.abs(high) || 1)) * (pad ?? 0.06);
  [low, high] = [low - room, high + room];
  const place = (v) => from + ((log ? Math.log10(v) : v) - low) / (high - low) * (to - from);
  return { place, low, high, log };
}
const tickText = (scale, t) => {
  const value = scale.log ? 10 ** t : t;
  const step = (scale.high - scale.low) / 6;
  if (scale.log) return significant(Number(value.toPrecision(2)), 1).replace("e-", "e−");
  return value.toFixed(Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9)))).replace(/^-/, "−");
};

// spec: {x, y: {label, log, ticks?}, series: [{name, index, points: [{x, y, dx?, dy?, text, tip: [lines], go}]}], rule?: {y, label}}
function chart(host, spec) {
  const draw = () => {
    const W = Math.max(280, host.clientWidth), H = Math.round(Math.min(380, Math.max(260, W * 0.62)));
    const box = { left: 58, right: W - 14, top: 14, bottom: H - 44 };
    const points = spec.series.flatMap((own) => own.points);
    const spread = (p, own, axis) => (axis.log && p[own] - (p[`d${own}`] || 0) <= 0 ? [p[own]] : [p[own] - (p[`d${own}`] || 0), p[own] + (p[`d${own}`] || 0)]);
    const x = scale(points.flatMap((p) => spread(p, "x", spec.x)), spec.x, box.left, box.right);
    const y = scale([...points.flatMap((p) => spread(p, "y", spec.y)), ...(spec.rule ? [spec.rule.y] : [])], spec.y, box.bottom, box.top);
    const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, width: W, height: H, role: "group", "aria-label": `${spec.y.label} against ${spec.x.label}` });
    for (const t of ticks(y.low, y.high, y.log)) {
      const at = y.place(y.log ? 10 ** t : t);
      picture.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at }), svg("text", { class: "tick", x: box.left - 7, y: at + 4, "text-anchor": "end" }, tickText(y, t)));
    }
    for (const t of spec.x.ticks || ticks(x.low, x.high, x.log)) {
      const at = x.place(x.log && !spec.x.ticks ? 10 ** t : t);
      picture.append(svg("line", { class: "axis", x1: at, x2: at, y1: box.bottom, y2: box.bottom + 5 }), svg("text", { class: "tick", x: at, y: box.bottom + 18, "text-anchor": "middle" }, spec.x.ticks ? String(t) : tickText(x, t)));
    }
    picture.append(
      svg("path", { class: "axis", d: `M${box.left},${box.top}V${box.bottom}H${box.right}` }),
      svg("text", { class: "title", x: (box.left + box.right) / 2, y: H - 6, "text-anchor": "middle" }, spec.x.label),
      svg("text", { class: "title", transform: `translate(13,${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, spec.y.label));
    if (spec.rule) {
      const at = y.place(spec.rule.y);
      picture.append(svg("line", { class: "rule", x1: box.left, x2: box.right, y1: at, y2: at }), svg("text", { class: "tick", x: box.left + 6, y: at - 5 }, spec.rule.label));
    }
    for (const own of spec.series) picture.append(line(own, x, y, spec.y));
    host.replaceChildren(picture);
  };
  draw();
  if (host.watch) host.watch.disconnect();
  let width = host.clientWidth;
  host.watch = new ResizeObserver(() => { if (host.clientWidth !== width) { width = host.clientWidth; draw(); } });
  host.watch.observe(host);
}

function line(own, x, y, axis) {
  const group = svg("g", { class: "series", "data-name": own.name });
  const put = own.points.map((p) => ({ p, X: x.place(p.x), Y: y.place(p.y) }));
  if (put.length > 1) group.append(svg("path", { class: "line", d: `M${put.map((q) => `${q.X.toFixed(1)},${q.Y.toFixed(1)}`).join("L")}`, ...stroke(own.index) }));
  for (const { p, X, Y } of put) {
    const dot = svg("g", { class: "point", tabindex: "0", role: "button", "aria-label": p.tip.join("; ") });
    if (p.dy) {
      const low = axis.log && p.y <= p.dy ? Y : y.place(p.y - p.dy), high = y.place(p.y + p.dy);
      dot.append(svg("path", { class: "bar", d: `M${X - 3},${low}h6M${X},${low}V${high}M${X - 3},${high}h6`, style: stroke(own.index).style }));
    }
    dot.append(svg("circle", { cx: X, cy: Y, r: 11, class: "target" }), marker(own.index, X, Y));
    if (p.text) dot.append(svg("text", { class: "tick", x: X + 7, y: Y - 6 }, p.text));
    tip(dot, p.tip);
    dot.addEventListener("click", p.go);
    dot.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); p.go(); } });
    group.append(dot);
  }
  return group;
}

// Lines of text beside `node` while the mouse is over it or it has the focus.
function tip(node, lines) {
  const box = find("tip");
  const open = () => {
    (node.closest("dialog") || document.body).append(box);
    box.replaceChildren(...lines.map((text, i) => el(i ? "div" : "strong", {}, text)));
    box.hidden = false;
    const at = node.getBoundingClientRect(), own = box.getBoundingClientRect();
    box.style.left = `${Math.max(8, Math.min(at.left + at.width / 2 - own.width / 2, innerWidth - own.width - 8))}px`;
    box.style.top = `${at.top - own.height - 8 > 0 ? at.top - own.height - 8 : at.bottom + 8}px`;
  };
  const close = () => { box.hidden = true; };
  for (const name of ["mouseenter", "focus"]) node.addEventListener(name, open);
  for (const name of ["mouseleave", "blur"]) node.addEventListener(name, close);
}
