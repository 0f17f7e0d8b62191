// The item explorer. What is shown follows from the address's hash alone, so every view is a link;
// controls and links only change the hash. Text from data becomes text nodes, never HTML.
(() => {
  "use strict";
  const root = document.getElementById("cba-explorer");
  const data = window.cbaExplorer;
  if (!root || !data || !window.Tabulator) return; // the plain table stays

  const WORDS = new Map([
    ...data.outcomes, ...data.kinds,
    ["neg", "negative"], ["nonneg", "non-negative"],
    ["ambig", "ambiguous"], ["disambig", "disambiguated"],
  ]);
  const worded = (value) => WORDS.get(value) ?? value;
  const cells = new Map(); // model → precision → cell
  for (const cell of data.cells) {
    if (!cells.has(cell.model)) cells.set(cell.model, new Map());
    cells.get(cell.model).set(cell.precision, cell);
  }
  const items = data.items;
  const number = new Map(items.item_id.map((id, i) => [id, i]));
  const form = root.querySelector("form");
  const status = root.querySelector("[role=status]");
  const detail = root.querySelector("section");
  const controls = form.elements;
  const FILTERS = ["model", "precision", "change", "category", "polarity", "context"];

  function element(name, attributes, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  const outcome = (cell, i, k) => cell.p[data.outcomes.length * i + k];
  const percent = (perMille) => `${(perMille / 10).toFixed(1)}\u00a0%`.replace("-", "\u2212");
  const changes = (cell, i) => data.changes[cell.change[i]].split("+").filter(Boolean);
  const changeText = (cell, i) => changes(cell, i).map(worded).join(", ");
  const keeps = (control, value) => control.value === "all" || control.value === value;

  // ---- the hash and the controls

  function fill(select, values, all) {
    const options = values.map((value) => element("option", { value }, worded(value)));
    if (all) options.unshift(element("option", { value: "all" }, "all"));
    select.replaceChildren(...options);
  }

  function choose(select, value) {
    select.value = value;
    if (select.selectedIndex < 0) select.selectedIndex = 0; // an address of another study
  }

  function fillPrecisions(precision) {
    const all = [...cells.get(controls.model.value).keys()];
    const others = all.filter((name) => name !== data.reference);
    const names = others.length ? others : all;
    fill(controls.precision, names);
    for (const option of controls.precision.options) option.text = option.value.toUpperCase();
    choose(controls.precision, names.includes(precision) ? precision : names.at(-1));
  }

  function hash(changed = {}) {
    const state = { item: wanted.get("item"), ...changed };
    const usual = (name) => controls[name].value === "all" && !data.start[name];
    const filters = FILTERS.filter((name) => !usual(name)).map((name) => [name, controls[name].value]);
    return "#" + new URLSearchParams([...filters, ...Object.entries(state).filter((p) => p[1])]);
  }

  let wanted = new URLSearchParams();

  function read() {
    const found = new URLSearchParams(location.hash.slice(1));
    const ours = found.has("model"); // else a link to a heading of the page
    if (ours) wanted = found;
    return ours;
  }

  // ---- the table

  const button = (cell) => element("button", { type: "button" }, cell.getValue());
  const text = (cell) => document.createTextNode(cell.getValue());
  const points = (cell) => document.createTextNode(percent(cell.getValue()));
  const link = (cell) => {
    const parts = document.createDocumentFragment();
    parts.append(element("a", { href: hash({ item: cell.getValue() }) }, cell.getValue()),
      element("small", {}, cell.getData().question)); // where its own column has no room
    return parts;
  };
  const small = matchMedia("(max-width: 36rem)").matches; // letters are, too
  const numeric = {
    width: small ? 74 : 80, hozAlign: "right", headerHozAlign: "right", formatter: points, sorter: "number",
    headerSortStartingDir: "desc",
  };
  const wrapped = { cssClass: "cba-wrapped", variableHeight: true };
  const table = new Tabulator(root.querySelector(".cba-rows"), {
    index: "id",
    height: "20rem",
    autoResize: false, // it draws again whenever the table scrolls into view, and focus is lost
    layout: "fitColumns",
    responsiveLayout: "hide",
    placeholder: "No item is left by these filters.",
    initialSort: [{ column: "rise", dir: "desc" }],
    columnDefaults: { titleFormatter: button, formatter: text, resizable: false },
    columns: [
      { title: "Item", field: "id", minWidth: 90, responsive: 0, formatter: link, ...wrapped },
      { title: "Question", field: "question", minWidth: 150, widthGrow: 3, responsive: 3 },
      { title: "before", field: "before", responsive: 0, ...numeric },
      { title: "after", field: "after", responsive: 0, ...numeric },
      { title: "Rise", field: "rise", responsive: 2, ...numeric },
      { title: "Change", field: "change", minWidth: 88, responsive: 1, ...wrapped },
    ],
  });
  table.on("rowClick", (event, row) => {
    if (!event.target.closest("a")) location.hash = hash({ item: row.getIndex() });
  });

  let width = 0;
  new ResizeObserver(([{ contentRect }]) => {
    if (width && width !== contentRect.width) table.redraw();
    width = contentRect.width;
  }).observe(root.querySelector(".cba-rows"));

  function rows() {
    const cell = cells.get(controls.model.value).get(controls.precision.value);
    const before = cells.get(controls.model.value).get(data.reference);
    const { category, polarity, context, change } = controls;
    const found = [];
    for (let i = 0; i < items.item_id.length; i++) {
      if (!keeps(category, items.category[i])) continue;
      if (!keeps(polarity, items.question_polarity[i])) continue;
      if (!keeps(context, items.context_condition[i])) continue;
      if (change.value !== "all" && !changes(cell, i).includes(change.value)) continue;
      const [was, now] = [outcome(before, i, 0), outcome(cell, i, 0)];
      found.push({
        id: items.item_id[i], question: items.question[i],
        before: was, after: now, rise: now - was, change: changeText(cell, i),
      });
    }
    return found;
  }

  function retitle(field, precision) {
    table.getColumn(field).getElement().querySelector("button").textContent = precision.toUpperCase();
  }

  function mark(id) {
    for (const row of table.getSelectedRows()) {
      row.deselect();
      row.getElement().removeAttribute("aria-selected");
    }
    if (!shown.has(id)) return;
    const row = table.getRow(id);
    row.select();
    row.getElement().setAttribute("aria-selected", "true");
  }

  // ---- the chosen item

  function answers(i) {
    return element("ol", { type: "A" }, ...[0, 1, 2].map((k) => {
      const role = items[`role${k}`][i];
      const line = element("li", {}, items[`ans${k}`][i], " ");
      if (role) line.append(element("span", { class: `cba-role cba-${role}` }, worded(role)));
      if (items.label[i] === k) line.append(" ", element("span", { class: "cba-right" }, "right answer"));
      return line;
    }));
  }

  function shares(i) {
    const head = element("tr", {}, element("th", { scope: "col" }, "Precision"));
    for (const [role, label] of data.outcomes) {
      const word = label.replace("stereo", "stereo\u00ad"); // may break on a phone
      head.append(element("th", { scope: "col" },
        element("span", { class: `cba-role cba-${role}` }, word)));
    }
    const body = element("tbody", {});
    for (const [precision, cell] of cells.get(controls.model.value)) {
      const name = element("th", { scope: "row" }, precision.toUpperCase());
      const change = changeText(cell, i);
      if (change && change !== "unchanged") name.append(element("small", {}, change));
      const line = element("tr", {}, name);
      data.outcomes.forEach(([role], k) => {
        const fill = element("span", { class: `cba-fill cba-${role}` });
        fill.style.width = `${outcome(cell, i, k) / 10}%`;
        line.append(element("td", {}, percent(outcome(cell, i, k)),
          element("span", { class: "cba-bar", "aria-hidden": "true" }, fill)));
      });
      if (precision === controls.precision.value) line.className = "cba-chosen";
      body.append(line);
    }
    return element("table", {},
      element("caption", {}, `What ${controls.model.value} answers, by precision: ${data.measure}.`),
      element("thead", {}, head), body);
  }

  function show(id) {
    if (id === undefined) return detail.replaceChildren();
    const i = number.get(id);
    if (i === undefined) {
      return detail.replaceChildren(element("p", {}, `This study has no item “${id}”.`));
    }
    const facts = [
      items.category[i],
      items.question_polarity[i] && `${worded(items.question_polarity[i])} question`,
      items.context_condition[i] && `${worded(items.context_condition[i])} context`,
    ].filter(Boolean).join(" · ");
    const said = items.question[i]
      ? [element("p", {}, items.context[i]), element("p", { class: "cba-question" }, items.question[i])]
      : [element("p", {}, "The records of this study hold no text of the item.")];
    detail.replaceChildren(
      element("h3", {}, id),
      element("p", { class: "cba-facts" }, facts, " · ",
        element("a", { href: hash({ item: id }) }, "link to this view")),
      ...said, answers(i),
      element("div", { class: "cba-table", role: "region", tabindex: "0",
        "aria-label": "Answers by precision" }, shares(i)));
  }

  // ---- one way in: whatever changed the hash, the page follows it

  let shown = new Set();
  let filtered = null;

  async function render() {
    for (const name of FILTERS.filter((name) => name !== "precision")) {
      choose(controls[name], wanted.get(name) ?? data.start[name] ?? "all");
    }
    fillPrecisions(wanted.get("precision") ?? data.start.precision);
    const filters = FILTERS.map((name) => controls[name].value).join("\n");
    if (filters !== filtered) {
      filtered = filters;
      const found = rows();
      shown = new Set(found.map((row) => row.id));
      retitle("before", data.reference);
      retitle("after", controls.precision.value);
      await table.replaceData(found);
      status.textContent = `${found.length} of ${items.item_id.length} items. `
        + "The figures are those of the stereotyped answer.";
    }
    // Without a choice, the first row stands for one: an empty panel explains nothing.
    const id = wanted.get("item") ?? table.getRows("active")[0]?.getIndex();
    show(id);
    mark(id);
  }

  form.addEventListener("input", () => location.replace(hash()));
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", async () => {
    const before = wanted.get("item");
    if (!read()) return;
    await render();
    if (wanted.get("item") !== before) detail.scrollIntoView({ block: "nearest" });
  });

  fill(controls.model, [...cells.keys()]);
  fill(controls.change, data.kinds.map(([kind]) => kind), true);
  for (const [name, column] of [["category", "category"], ["polarity", "question_polarity"],
    ["context", "context_condition"]]) {
    fill(controls[name], [...new Set(items[column])].filter(Boolean), true);
  }
  document.getElementById("cba-explorer-static").hidden = true;
  root.hidden = false;
  table.on("tableBuilt", async () => {
    // Tabulator makes its scrolling part a tab stop without a role; the links in it are stops enough.
    root.querySelector(".tabulator-tableholder").removeAttribute("tabindex");
    read();
    await render();
    const item = wanted.get("item");
    if (!item) return;
    detail.scrollIntoView({ block: "start" });
    if (shown.has(item)) table.scrollToRow(item, "center", false);
  });
})();
