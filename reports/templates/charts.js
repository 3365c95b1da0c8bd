"use strict";
// Small SVG charts of the data in the page. Colours are classes of report.css; every text goes in as text.

const Charts = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const axisOf = Object.fromEntries(data.axes.map((axis) => [axis.key, axis]));
  const hidden = new Set(); // methods that the legend has switched off
  const MARKERS = [
    (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`,
    (r) => `M${-r} ${-r}H${r}V${r}H${-r}Z`,
    (r) => `M0 ${-1.25 * r}L${1.2 * r} ${0.95 * r}H${-1.2 * r}Z`,
    (r) => `M0 ${1.25 * r}L${1.2 * r} ${-0.95 * r}H${-1.2 * r}Z`,
    (r) => `M0 ${-1.35 * r}L${1.35 * r} 0L0 ${1.35 * r}L${-1.35 * r} 0Z`,
  ];
  const number = (value) => String(Number(value.toPrecision(4)));

  function element(name, attributes = {}, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  function marker(method, radius, x = 0, y = 0, kind = "marker") {
    return element("path", { class: kind, d: MARKERS[method.marker](radius), transform: `translate(${x} ${y})` });
  }

  // ---------------------------------------------------------------- axes

  function ticks(lo, hi, count) {
    const rough = (hi - lo) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough * 0.999);
    const found = [];
    for (let k = Math.ceil(lo / step - 1e-9); k * step <= hi + 1e-9 * step; k++) found.push(Number((k * step).toPrecision(8)));
    return found;
  }

  function logTicks(lo, hi) {
    const found = [];
    for (let power = Math.floor(Math.log10(lo)); power <= Math.log10(hi); power++)
      for (const each of [1, 2, 5]) if (each * 10 ** power >= lo && each * 10 ** power <= hi) found.push(each * 10 ** power);
    return found.length > 1 ? found : ticks(lo, hi, 4);
  }

  // An axis that holds all values with some air; percentages end at 0 and 100.
  function domain(values, { percent = false, log = false } = {}) {
    let lo = Math.min(...values), hi = Math.max(...values);
    if (log) return { lo: lo / 1.3, hi: hi * 1.3, log };
    const air = hi > lo ? 0.08 * (hi - lo) : Math.abs(hi) * 0.1 || 1;
    lo -= air;
    hi += air;
    return percent ? { lo: Math.max(lo, -2), hi: Math.min(hi, 102), log } : { lo, hi, log };
  }

  // A box with its heading for each panel: all of them first, since each has its width from their number.
  function boxes(host, titles) {
    host.replaceChildren(...titles.map((title) => {
      const box = document.createElement("div");
      box.appendChild(document.createElement("h3")).textContent = title;
      return box;
    }));
    return [...host.children];
  }

  // Axes in a box: the svg, and functions that place values on it.
  function panel(box, label, x, y, ratio) {
    const width = Math.max(150, box.clientWidth), height = Math.round(Math.min(430, width * ratio));
    const left = 38, right = 14, top = 30, bottom = 44;
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
    const place = (axis, from, to) => (value) => {
      const at = axis.log ? Math.log(value / axis.lo) / Math.log(axis.hi / axis.lo) : (value - axis.lo) / (axis.hi - axis.lo);
      return Number((from + at * (to - from)).toFixed(2));
    };
    const placed = { svg, width, x: place(x, left, width - right), y: place(y, height - bottom, top) };
    const many = Math.max(2, Math.round(width / 90));
    const columns = x.ticks || (x.log ? logTicks(x.lo, x.hi) : ticks(x.lo, x.hi, many)).map((at) => [at, number(at)]);
    for (const value of y.log ? logTicks(y.lo, y.hi) : ticks(y.lo, y.hi, 5)) {
      svg.append(element("path", { class: "grid", d: `M${left} ${placed.y(value)}H${width - right}` }));
      svg.append(element("text", { x: left - 8, y: placed.y(value) + 4, "text-anchor": "end" }, number(value)));
    }
    let last = -Infinity;
    for (const [value, text] of columns) {
      const at = placed.x(value);
      if (at - last < 8 + 6 * text.length) continue; // no room
      last = at;
      svg.append(element("path", { class: "grid", d: `M${at} ${top}V${height - bottom}` }));
      svg.append(element("text", { x: at, y: height - bottom + 18, "text-anchor": "middle" }, text));
    }
    svg.append(element("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, x.label));
    svg.append(element("text", { x: 0, y: 12 }, y.label));
    box.append(svg);
    return placed;
  }

  const titled = (axis) => axis.label + (axis.unit ? ` (${axis.unit})` : "");

  // ---------------------------------------------------------------- scatter

  // Points that no other beats on both axes.
  function pareto(points, x, y) {
    const better = (a, b, key) => axisOf[key].best * (a.values[key][0] - b.values[key][0]);
    const beats = (a, b) => better(a, b, x) >= 0 && better(a, b, y) >= 0 && (better(a, b, x) > 0 || better(a, b, y) > 0);
    return points.filter((b) => !points.some((a) => beats(a, b))).sort((a, b) => a.values[x][0] - b.values[x][0]);
  }

  function written(key, [value, lo, hi]) {
    const axis = axisOf[key];
    const shown = axis.unit === "%" ? (each) => each.toFixed(1) : number;
    const interval = lo === undefined ? "" : ` (${shown(lo)} to ${shown(hi)})`;
    return `${axis.label}: ${shown(value)}${axis.unit && " " + axis.unit}${interval}`;
  }

  function told(point, x, y) {
    const method = data.methods[point.method];
    const costs = Object.keys(point.values).filter((key) => axisOf[key].best < 0 && key !== x && key !== y);
    return [
      method.name,
      `trained against: ${method.adversary || "unknown"}`,
      ...[y, x, ...costs].map((key) => written(key, point.values[key])),
      point.ranked ? `audit ${point.audit}` : `not ranked${point.audit && ", audit " + point.audit}`,
    ];
  }

  function scatter(host, x, y) {
    const shown = data.panels.map((each) => ({
      ...each, points: each.points.filter((p) => !hidden.has(p.method) && p.values[x] && p.values[y]),
    }));
    const all = shown.flatMap((each) => each.points);
    const said = [];
    if (!all.length) return host.replaceChildren() || "Nothing to draw: no shown method has both values.";
    const axis = (key) => {
      const values = all.flatMap((point) => point.values[key]);
      const log = axisOf[key].best < 0 && Math.max(...values) > 10 * Math.min(...values);
      return { ...domain(values, { percent: axisOf[key].unit === "%", log }), label: titled(axisOf[key]) };
    };
    const [across, up] = [axis(x), axis(y)];
    const room = boxes(host, shown.map((each) => each.protocol));
    for (const [place, { protocol, points }] of shown.entries()) {
      const front = pareto(points.filter((point) => point.ranked), x, y);
      const names = front.map((point) => data.methods[point.method].name);
      const label = `${protocol}: ${axisOf[y].label} against ${axisOf[x].label}, ${points.length} methods.`;
      const drawn = panel(room[place], label, across, up, 0.82);
      const at = (point) => [drawn.x(point.values[x][0]), drawn.y(point.values[y][0])];
      if (front.length) drawn.svg.append(element("path", { class: "front", d: "M" + front.map((p) => at(p).join(" ")).join("L") }));
      for (const point of points) {
        const method = data.methods[point.method], [left, top] = at(point), lines = told(point, x, y);
        const group = element("g", { class: `point c${method.colour}${point.ranked ? "" : " open"}`, tabindex: 0,
          role: "img", "aria-label": lines.join(", "), "data-method": method.name });
        const [, xlo, xhi] = point.values[x], [, ylo, yhi] = point.values[y];
        if (xlo !== undefined) group.append(element("path", { class: "bar", d: `M${drawn.x(xlo)} ${top}H${drawn.x(xhi)}` }));
        if (ylo !== undefined) group.append(element("path", { class: "bar", d: `M${left} ${drawn.y(ylo)}V${drawn.y(yhi)}` }));
        group.append(marker(method, 6, left, top));
        group.tip = lines;
        drawn.svg.append(group);
      }
      const taken = []; // boxes of the names that stand: one that meets another goes below its mark, or is left out
      for (const point of front) {
        const [left, top] = at(point), end = left > drawn.width * 0.6;
        const name = data.methods[point.method].name.slice(0, 28), x = left + (end ? -10 : 10), long = 7 * name.length;
        const from = end ? x - long : x;
        const free = [top - 9, top + 18].find((y) => !taken.some((box) =>
          from < box.to && box.from < from + long && Math.abs(y - box.y) < 14));
        if (free === undefined) continue;
        taken.push({ from, to: from + long, y: free });
        drawn.svg.append(element("text", { class: "name", x, y: free, "text-anchor": end ? "end" : "start" }, name));
      }
      said.push(`${protocol}: ${names.join(", ") || "no shown method is ranked"}`);
    }
    return `Pareto front. ${said.join(". ")}.`;
  }

  // ---------------------------------------------------------------- lines

  function lines(host, figure) {
    host.classList.toggle("small", figure.panels.length > 2);
    const panels = figure.panels
      .map(({ title, series }) => ({ title, shown: series.filter((each) => !hidden.has(each.method) && each.points.length) }))
      .filter(({ shown }) => shown.length);
    const room = boxes(host, panels.map((each) => each.title));
    for (const [place, { title, shown }] of panels.entries()) {
      const values = shown.flatMap((each) => each.points.flatMap((point) => point.slice(1)));
      const x = { ...domain(figure.ends || figure.ticks.map(([at]) => at)), ticks: figure.ticks, label: figure.x };
      const y = { ...(figure.percent ? { lo: -2, hi: 102 } : domain(values)), label: figure.y };
      const drawn = panel(room[place], `${title}: ${figure.y} over ${figure.x}`, x, y, figure.percent ? 0.78 : 0.85);
      for (const each of shown) drawn.svg.append(one(each, figure, drawn));
    }
  }

  function one(series, figure, drawn) {
    const method = data.methods[series.method];
    const at = series.points.map(([x, y]) => `${drawn.x(x)} ${drawn.y(y)}`);
    const few = series.points.length < 12;
    const told = few ? series.points : [series.points[0], series.points.at(-1)];
    const tip = [method.name + (series.name ? `, ${series.name}` : ""),
      ...told.map(([x, y, lo, hi]) => `${figure.x} ${number(x)}: ${number(y)}${hi > lo ? ` (${number(lo)} to ${number(hi)})` : ""}`),
      ...(series.mark?.length ? [`ranked worst case: ${number(series.mark[1])}`] : [])];
    const group = element("g", { class: `series c${method.colour}`, tabindex: 0, role: "img",
      "aria-label": tip.join(", "), "data-method": method.name });
    if (series.points[0].length > 3) {
      const back = [...series.points].reverse().map((point) => `${drawn.x(point[0])} ${drawn.y(point[2])}`);
      const over = series.points.map((point) => `${drawn.x(point[0])} ${drawn.y(point[3])}`);
      group.append(element("path", { class: "band", d: `M${[...over, ...back].join("L")}Z` }));
    }
    group.append(element("path", { class: series.dashed ? "line dashed" : "line", d: `M${at.join("L")}` }), element("path", { class: "reach", d: `M${at.join("L")}` }));
    if (few) for (const [x, y] of series.points) group.append(marker(method, 3.2, drawn.x(x), drawn.y(y)));
    if (series.mark?.length) group.append(marker(method, 5.5, drawn.x(series.mark[0]), drawn.y(series.mark[1]), "marker open"));
    group.tip = tip;
    return group;
  }

  return { data, hidden, element, marker, scatter, lines, titled };
})();
