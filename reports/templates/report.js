"use strict";
// What can be done with the page: sort and filter the leaderboard, choose axes, hide methods, read a mark. What was chosen
// stands in the address, so that a link shows the same.

const $ = (selector) => document.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

// ---------------------------------------------------------------- leaderboard

const tables = $$("table.board tbody").map((body) => ({ body, inOrder: [...body.rows] }));

function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === ""); // what is missing stands last, either way
  const [x, y] = [Number(a), Number(b)];
  return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
}

function sortBy(heading, { body, inOrder }, order) {
  for (const cell of heading.parentNode.cells) cell.setAttribute("aria-sort", cell === heading ? order : "none");
  const column = heading.cellIndex, sign = order === "ascending" ? 1 : -1;
  body.append(...inOrder.toSorted((a, b) => compare(a.cells[column].dataset.order, b.cells[column].dataset.order, sign)));
}

function filter() {
  const wanted = $$(".filters select").filter((select) => select.value);
  for (const { inOrder } of tables)
    for (const row of inOrder) row.hidden = wanted.some((select) => row.dataset[select.name] !== select.value);
  const lines = tables[0].inOrder;
  if (output) output.textContent = `${lines.filter((row) => !row.hidden).length} of ${lines.length} lines`;
}

for (const table of tables)
  for (const button of $$("th button", table.body.parentNode)) {
    button.disabled = false;
    button.addEventListener("click", () => {
      const heading = button.closest("th"), other = { ascending: "descending", descending: "ascending" };
      sortBy(heading, table, other[heading.getAttribute("aria-sort")] || heading.dataset.first);
      remember();
    });
  }
const output = $(".filters output");
$(".filters").hidden = !output;
$(".filters").addEventListener("change", () => (filter(), remember()));

// ---------------------------------------------------------------- figures

const axes = $(".axes"), legend = $(".legend");

function draw() {
  leave();
  $("#tradeoff figcaption").textContent = Charts.scatter($("[data-chart=scatter]"), axes.elements.x.value, axes.elements.y.value);
  for (const figure of Charts.data.lines) Charts.lines($(`[data-chart=${figure.id}]`), figure);
}

for (const [name, first] of [["x", Charts.data.axes[0].key], ["y", Charts.data.axes[1].key]]) {
  for (const axis of Charts.data.axes) axes.elements[name].add(new Option(Charts.titled(axis), axis.key, false, axis.key === first));
}
axes.hidden = false;
axes.addEventListener("change", () => (draw(), remember()));

Charts.data.methods.forEach((method, place) => {
  const button = document.createElement("button");
  const picture = Charts.element("svg", { viewBox: "-9 -9 18 18", class: `c${method.colour}`, "aria-hidden": "true" });
  picture.append(Charts.marker(method, 6));
  button.type = "button";
  button.setAttribute("aria-pressed", "true");
  button.append(picture, method.name + (method.status === "finished" ? "" : ` (${method.status})`));
  button.addEventListener("click", () => {
    show(place, Charts.hidden.has(place));
    draw();
    remember();
  });
  legend.append(button);
});
legend.hidden = false;

function show(place, shown) {
  Charts.hidden[shown ? "delete" : "add"](place);
  legend.children[place].setAttribute("aria-pressed", String(shown));
}

// ---------------------------------------------------------------- the address

const selects = $$(".filters select, .axes select");
const usual = Object.fromEntries(selects.map((select) => [select.name, select.value]));

function remember() {
  const chosen = new URLSearchParams();
  for (const { name, value } of selects) if (value !== usual[name]) chosen.set(name, value);
  for (const place of Charts.hidden) chosen.append("hide", Charts.data.methods[place].name);
  for (const heading of $$("table.board th:not([aria-sort=none])"))
    chosen.set(heading.closest("table").id, `${heading.getAttribute("aria-sort")} ${heading.dataset.key}`);
  const query = String(chosen);
  history.replaceState(null, "", location.pathname + (query && `?${query}`) + location.hash);
}

function recall() {
  const chosen = new URLSearchParams(location.search); // what the page does not know changes nothing
  for (const select of selects)
    if ([...select.options].some((option) => option.value === chosen.get(select.name))) select.value = chosen.get(select.name);
  Charts.data.methods.forEach((method, place) => chosen.getAll("hide").includes(method.name) && show(place, false));
  for (const table of tables) {
    const [order, ...key] = (chosen.get(table.body.parentNode.id) || "").split(" ");
    const heading = $$("th", table.body.parentNode).find((cell) => cell.dataset.key === key.join(" "));
    if (heading && ["ascending", "descending"].includes(order)) sortBy(heading, table, order);
  }
  filter();
}

recall();

// ---------------------------------------------------------------- the note beside a mark

const tip = $("#tip");

function read(event) {
  const mark = event.target.closest?.("g[data-method]");
  if (!mark) return leave();
  tip.replaceChildren(...mark.tip.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
  tip.hidden = false;
  const box = mark.querySelector(".marker, .line").getBoundingClientRect();
  const at = event.type === "focusin" ? { x: box.x + box.width / 2, y: box.y } : { x: event.clientX, y: event.clientY };
  const left = Math.max(8, Math.min(at.x + 14, innerWidth - tip.offsetWidth - 8));
  const above = at.y - tip.offsetHeight - 14;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : Math.min(at.y + 22, innerHeight - tip.offsetHeight - 8)}px`;
}

function leave() {
  tip.hidden = true;
}

document.addEventListener("pointerover", read);
document.addEventListener("focusin", read);
document.addEventListener("focusout", leave);
// the note of a focused mark goes with it, that of a pointed one is gone
document.addEventListener("scroll", () => read({ type: "focusin", target: document.activeElement }), { passive: true });
document.addEventListener("keydown", (event) => event.key === "Escape" && leave());

// ---------------------------------------------------------------- print, size

let opened = [];
addEventListener("beforeprint", () => {
  opened = $$("details:not([open])");
  for (const each of opened) each.open = true;
});
addEventListener("afterprint", () => {
  for (const each of opened) each.open = false;
});

let width = 0;
new ResizeObserver(() => {
  if (width === document.documentElement.clientWidth) return;
  width = document.documentElement.clientWidth;
  draw();
}).observe(document.documentElement);
