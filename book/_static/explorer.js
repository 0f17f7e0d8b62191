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
    ["heldout-template", "held out of training"],
  ]);
  const worded = (value) => WORDS.get(value) ?? value;
  const cells = new Map(); // model → precision → cell
  for (const cell of data.cells) {
    if (!cells.has(cell.model)) cells.set(cell.model, new Map());
    cells.get(cell.model).set(cell.precision, cell);
  }
  const items = data.items;
  const number = new Map(items.item_id.map((id, i) => [id, i]));
  const columns = [...new Set(data.cells.map((cell) => cell.precision))];
  const form = root.querySelector("form");
  const list = root.querySelector(".cba-rows");
  const detail = root.querySelector("section");
  const said = detail.querySelector(".cba-said");
  const everyModel = detail.querySelector(".cba-all .cba-table");
  const wrong = root.querySelector("[role=alert]");
  const counted = root.querySelector(".cba-count");
  const place = detail.querySelector("[role=status]");
  const named = (name) => root.querySelector(`[name="${name}"]`);
  const SELECTS = [...root.querySelectorAll("select")].map((select) => select.name);
  const controls = Object.fromEntries([...SELECTS, "search"].map((name) => [name, named(name)]));
  const FILTERS = [...form.querySelectorAll("select, input")].map((control) => control.name);
  // Which changes are gains and losses of the answer that the table of all models shows.
  const GAINS = { stereotyped: ["became_biased", "lost_bias"], anti_stereotyped: ["became_anti", "lost_anti"] };

  function element(name, attributes, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  const unpacked = (text, i) => text.charCodeAt(i) - data.packedFrom;
  const outcome = (cell, i, k) => unpacked(cell.p, data.outcomes.length * i + k);
  const percent = (perMille) => `${(perMille / 10).toFixed(1)}\u00a0%`.replace("-", "\u2212");
  const changes = (cell, i) => data.changes[unpacked(cell.change, i)].split("+").filter(Boolean);
  const changeText = (cell, i) => changes(cell, i).map(worded).join(", ");
  const keeps = (control, value) => control.value === "all" || control.value === value;

  // ---- the hash and the controls

  function fill(select, values, all) {
    const options = values.map((value) => element("option", { value }, worded(value)));
    if (all) options.unshift(element("option", { value: "all" }, "all"));
    select.replaceChildren(...options);
  }

  let wanted = new URLSearchParams();
  let missing = []; // what the address asks for and this study does not have

  function choose(name, usual) {
    const asked = wanted.get(name);
    const known = [...controls[name].options].map((option) => option.value);
    if (asked !== null && !known.includes(asked)) missing.push(`no ${name} “${asked}”`);
    controls[name].value = known.includes(asked) ? asked : known.includes(usual) ? usual : known[0];
  }

  function fillPrecisions() {
    const all = [...cells.get(controls.model.value).keys()];
    const others = all.filter((name) => name !== data.reference);
    fill(controls.precision, others.length ? others : all);
    for (const option of controls.precision.options) option.text = option.value.toUpperCase();
  }

  function hash(changed = {}) {
    const item = number.has(wanted.get("item")) ? wanted.get("item") : null;
    const usual = { search: "", answer: "stereotyped" };
    const shownHere = ["model", ...FILTERS, "answer"].map((name) => [name, controls[name].value.trim()]);
    const state = shownHere.filter(([name, value]) =>
      name === "model" || value !== (data.start[name] ?? usual[name] ?? "all"));
    return "#" + new URLSearchParams([...new Map([...state, ...Object.entries({ item, ...changed })
      .filter((pair) => pair[1])])]);
  }

  function read() {
    const ours = location.hash.includes("="); // else a link to a heading of the page
    if (ours) wanted = new URLSearchParams(location.hash.slice(1));
    return ours;
  }

  function readControls() {
    missing = [];
    for (const name of wanted.keys()) {
      if (name !== "item" && !Object.hasOwn(controls, name)) missing.push(`nothing to choose called “${name}”`);
    }
    choose("model", data.start.model);
    fillPrecisions();
    const last = controls.precision.options.length - 1;
    choose("precision", data.start.precision ?? controls.precision.options[last].value);
    for (const name of SELECTS) {
      if (name !== "model" && name !== "precision") choose(name, data.start[name] ?? "all");
    }
    const search = wanted.get("search") ?? "";
    if (controls.search.value.trim() !== search) controls.search.value = search; // else: being typed
    const item = wanted.get("item");
    if (item !== null && !number.has(item)) missing.push(`no item “${item}”`);
    wrong.textContent = missing.length
      ? `This study has ${missing.join(", and ")}. The link may be mistyped or of another study; what `
        + "stands below is not what it asked for."
      : "";
  }

  // ---- the table

  const button = (cell) => element("button", { type: "button" }, cell.getValue());
  const text = (cell) => document.createTextNode(cell.getValue());
  const points = (cell) => document.createTextNode(percent(cell.getValue()));
  const link = (cell) => {
    const parts = document.createDocumentFragment();
    const id = cell.getValue();
    parts.append(element("a", { href: hash({ item: id }), "data-id": id, tabindex: "-1" }, id),
      element("small", {}, cell.getData().question)); // where its own column has no room
    return parts;
  };
  const small = matchMedia("(max-width: 36rem)").matches; // letters are, too
  const numeric = {
    width: small ? 74 : 80, hozAlign: "right", headerHozAlign: "right", formatter: points, sorter: "number",
    headerSortStartingDir: "desc",
  };
  const wrapped = { cssClass: "cba-wrapped", variableHeight: true };
  const natural = new Intl.Collator("en", { numeric: true }).compare;
  const table = new Tabulator(list, {
    index: "id",
    keybindings: false, // keys are below
    height: "20rem",
    autoResize: false, // it draws again whenever the table scrolls into view, and focus is lost
    layout: "fitColumns",
    responsiveLayout: "hide",
    placeholder: "No item is left by these filters.",
    initialSort: [{ column: "rise", dir: "desc" }],
    columnDefaults: { titleFormatter: button, formatter: text, resizable: false },
    columns: [
      { title: "Item", field: "id", minWidth: 90, responsive: 0, formatter: link, ...wrapped,
        sorter: natural },
      { title: "Question", field: "question", minWidth: 150, widthGrow: 3, responsive: 3 },
      { title: "before", field: "before", responsive: 0, ...numeric },
      { title: "after", field: "after", responsive: 0, ...numeric },
      { title: "Rise", field: "rise", responsive: 2, ...numeric },
      { title: "Change", field: "change", minWidth: small ? 100 : 150, responsive: 1, ...wrapped },
    ],
  });
  let opening = false; // whether an item was opened from the list: then focus goes to it
  table.on("rowClick", (event, row) => {
    opening = true;
    if (!event.target.closest("a")) location.hash = hash({ item: row.getIndex() });
    else if (wanted.get("item") === row.getIndex()) follow(); // its address is the page's already
  });

  // The list is one stop of the Tab key; arrows go from row to row.
  const KEYS = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  const ordered = () => table.getRows("active").map((row) => row.getIndex());
  let stop = null;

  function rove() {
    const links = [...list.querySelectorAll(".tabulator-row a")];
    const here = links.find((a) => a.dataset.id === stop) ?? links[0];
    for (const a of links) a.tabIndex = a === here ? 0 : -1;
  }

  async function focusRow(id) {
    stop = id;
    await table.scrollToRow(id, "nearest", false);
    rove();
    table.getRow(id).getElement().querySelector("a").focus();
  }

  list.addEventListener("keydown", (event) => {
    const link = event.target.closest(".tabulator-row a");
    if (!link || !(event.key in KEYS) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const ids = ordered();
    const to = ids.indexOf(link.dataset.id) + KEYS[event.key];
    focusRow(ids[Math.min(Math.max(to, 0), ids.length - 1)]);
  });
  table.on("renderComplete", rove);
  table.on("scrollVertical", () => requestAnimationFrame(rove));

  let width = 0;
  new ResizeObserver(([{ contentRect }]) => {
    if (width && width !== contentRect.width) table.redraw();
    width = contentRect.width;
  }).observe(list);

  const texts = [];
  const searched = (i) => texts[i] ??= ["item_id", "context", "question", "ans0", "ans1", "ans2"]
    .map((name) => items[name][i]).join("\n").toLowerCase();

  function rows() {
    const cell = cells.get(controls.model.value).get(controls.precision.value);
    const before = cells.get(controls.model.value).get(data.reference);
    const words = controls.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    for (let i = 0; i < items.item_id.length; i++) {
      if (!data.filters.every(([name, column]) => keeps(controls[name], items[column][i]))) continue;
      if (controls.change.value !== "all" && !changes(cell, i).includes(controls.change.value)) continue;
      if (!words.every((word) => searched(i).includes(word))) continue;
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
    stop = id;
    rove();
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

  const breakable = (words) => words.replaceAll("stereo", "stereo\u00ad"); // on a phone

  function shares(i) {
    const head = element("tr", {}, element("th", { scope: "col" }, "Precision"));
    for (const [role, label] of data.outcomes) {
      head.append(element("th", { scope: "col" },
        element("span", { class: `cba-role cba-${role}` }, breakable(label))));
    }
    const body = element("tbody", {});
    for (const [precision, cell] of cells.get(controls.model.value)) {
      const name = element("th", { scope: "row" }, precision.toUpperCase());
      const change = changeText(cell, i);
      if (change && change !== "unchanged") name.append(element("small", {}, breakable(change)));
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

  const facts = (i) => [
    items.category[i],
    items.question_polarity[i] && `${worded(items.question_polarity[i])} question`,
    items.context_condition[i] && `${worded(items.context_condition[i])} context`,
    items.version?.[i] && `templates: ${worded(items.version[i])}`,
    items.margin?.[i] && `planted margin ${items.margin[i]} nats`,
    items.lean?.[i] && `planted lean ${items.lean[i]}`,
  ].filter(Boolean).join(" · ");

  // One answer in every model: a row a model, a column a precision.
  function models(i) {
    const answer = controls.answer.value;
    const k = data.outcomes.findIndex(([role]) => role === answer);
    const [gained, lost] = GAINS[answer] ?? [];
    const mark = (sign, label) => element("span", { role: "img", "aria-label": label }, sign);
    const head = element("tr", {}, element("th", { scope: "col" }, "Model"),
      ...columns.map((precision) => element("th", { scope: "col" }, precision.toUpperCase())));
    const body = element("tbody", {});
    for (const [model, own] of cells) {
      const name = element("th", { scope: "row" }, element("a", { href: hash({ model }), tabindex: "-1" }, model));
      const line = element("tr", {}, name);
      if (model === controls.model.value) {
        line.className = "cba-chosen";
        name.setAttribute("aria-current", "true");
      }
      for (const precision of columns) {
        const cell = own.get(precision);
        const here = element("td", {}, cell ? percent(outcome(cell, i, k)) : "not asked");
        if (cell) {
          const kinds = changes(cell, i);
          if (kinds.includes(gained)) here.append(" ", mark("▲", "gained"));
          if (kinds.includes(lost)) here.append(" ", mark("▽", "lost"));
          const filled = element("span", { class: `cba-fill cba-${answer}` });
          filled.style.width = `${outcome(cell, i, k) / 10}%`;
          here.append(element("span", { class: "cba-bar", "aria-hidden": "true" }, filled));
        }
        line.append(here);
      }
      body.append(line);
    }
    const signs = gained ? ` ▲ gained, ▽ lost that answer since ${data.reference.toUpperCase()} in the seeded draws.` : "";
    return element("table", {},
      element("caption", {}, `“${worded(answer)}” in every model, by precision: ${data.measure}.${signs}`),
      element("thead", {}, head), body);
  }

  function show(id) {
    const i = number.get(id);
    detail.classList.toggle("cba-none", i === undefined);
    if (i === undefined) {
      const words = id === undefined ? "No item is left by these filters." : `This study has no item “${id}”.`;
      everyModel.replaceChildren();
      return said.replaceChildren(element("p", {}, words));
    }
    everyModel.replaceChildren(models(i));
    const text = items.question[i]
      ? [element("p", {}, items.context[i]), element("p", { class: "cba-question" }, items.question[i])]
      : [element("p", {}, "The records of this study hold no text of the item.")];
    said.replaceChildren(
      element("h3", { tabindex: "-1" }, id),
      element("p", { class: "cba-facts" }, facts(i), " · ",
        element("a", { href: hash({ item: id }) }, "link to this view")),
      ...text, answers(i),
      element("div", { class: "cba-table", role: "region", tabindex: "0",
        "aria-label": "Answers by precision" }, shares(i)));
  }

  // ---- a picture of the item, made here: nothing is asked of another machine

  const FONT = "Helvetica, Arial, sans-serif";
  const [INK, GREY, LINE] = ["#1a1a1a", "#555555", "#999999"];
  const pen = document.createElement("canvas").getContext("2d");

  function wrap(text, size, weight, width) {
    pen.font = `${weight} ${size}px ${FONT}`;
    const fits = (line) => pen.measureText(line).width < 0.95 * width; // other machines have other fonts
    const lines = [""];
    for (const word of text.split(/\s+/).filter(Boolean)) {
      const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
      if (fits(longer)) { lines[lines.length - 1] = longer; continue; }
      if (lines.at(-1)) lines.push("");
      for (const letter of word) {
        if (!fits(lines.at(-1) + letter)) lines.push("");
        lines[lines.length - 1] += letter;
      }
    }
    return lines;
  }

  function svgNode(name, attributes, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  function picture(i) {
    const [width, edge, first, column] = [800, 32, 96, 160];
    const model = controls.model.value;
    const parts = [];
    let y = edge;
    function write(text, { size = 16, weight = 400, fill = INK, x = edge, room = width - edge - x, gap = 8 } = {}) {
      for (const line of wrap(text, size, weight, room)) {
        y += 1.35 * size;
        parts.push(svgNode("text", { x, y, "font-size": size, "font-weight": weight, fill }, line));
      }
      y += gap;
    }
    const id = items.item_id[i];
    write(id, { size: 22, weight: 700, gap: 2 });
    write(facts(i), { size: 13, fill: GREY, gap: 10 });
    if (items.question[i]) {
      write(items.context[i]);
      write(items.question[i], { weight: 700 });
    }
    for (const k of [0, 1, 2]) {
      const role = items[`role${k}`][i];
      const right = items.label[i] === k ? ", right answer" : "";
      write(`${"ABC"[k]}. ${items[`ans${k}`][i]}${role ? ` (${worded(role)}${right})` : right}`, { x: edge + 16, gap: 2 });
    }
    y += 12;
    write(`What ${model} answers, by precision: ${data.measure}`, { size: 14, fill: GREY, gap: 4 });
    const cell = (text, x, size, weight) =>
      parts.push(svgNode("text", { x, y, "font-size": size, "font-weight": weight, fill: INK }, text));
    const at = (k) => edge + first + k * column;
    y += 18;
    data.outcomes.forEach(([, label], k) => cell(label, at(k), 14, 700));
    for (const [precision, own] of cells.get(model)) {
      y += 28;
      cell(precision.toUpperCase(), edge, 15, 700);
      data.outcomes.forEach(([role], k) => {
        const value = outcome(own, i, k);
        cell(percent(value), at(k), 15, 400);
        const bar = { x: at(k), y: y + 5, height: 8 };
        parts.push(svgNode("rect", { ...bar, width: (column - 24) * value / 1000,
          fill: getComputedStyle(root).getPropertyValue(`--${role}`).trim() }),
          svgNode("rect", { ...bar, width: 1, fill: LINE }));
      });
      y += 14;
    }
    y += 16;
    if (data.about) write(data.about, { size: 13, fill: GREY, gap: 2 });
    write(`${document.title} · study “${data.study}”`, { size: 13, fill: GREY });
    const height = Math.ceil(y + edge / 2);
    const title = `${id}: what ${model} answers by precision`;
    const drawing = svgNode("svg", { xmlns: "http://www.w3.org/2000/svg", width, height,
      viewBox: `0 0 ${width} ${height}`, "font-family": FONT, role: "img", "aria-label": title },
    svgNode("title", {}, title), svgNode("rect", { width, height, fill: "#ffffff" }), ...parts);
    return { text: new XMLSerializer().serializeToString(drawing), width, height };
  }

  function save(blob, ending) {
    const name = [data.study, shownId, controls.model.value].join("-").replace(/[^\w.-]+/g, "-") + ending;
    const address = URL.createObjectURL(blob);
    element("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
    place.textContent = `Saved ${name}.`;
  }

  named("svg").addEventListener("click", () => {
    save(new Blob([picture(number.get(shownId)).text], { type: "image/svg+xml" }), ".svg");
  });
  named("png").addEventListener("click", async () => {
    const { text, width, height } = picture(number.get(shownId));
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    await image.decode();
    const canvas = element("canvas", { width: 2 * width, height: 2 * height });
    canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
    canvas.toBlob((blob) => save(blob, ".png"), "image/png");
  });

  // ---- one way in: whatever changed the hash, the page follows it

  let shown = new Set();
  let shownId = null;
  let filtered = null;

  function sayPlace() {
    const ids = ordered();
    const k = ids.indexOf(shownId);
    named("previous").setAttribute("aria-disabled", k === 0 || !ids.length);
    named("next").setAttribute("aria-disabled", k === ids.length - 1);
    const known = number.has(shownId);
    const words = !known ? ""
      : k < 0 ? `${shownId} is not among the ${ids.length} items listed.`
        : `${shownId}: item ${k + 1} of ${ids.length}.`;
    if (place.textContent !== words) place.textContent = words; // else it would be read out again
  }

  function step(by) {
    const ids = ordered();
    const k = ids.indexOf(shownId);
    const to = k < 0 ? (by > 0 ? 0 : ids.length - 1) : k + by;
    if (ids[to] !== undefined) location.replace(hash({ item: ids[to] }));
  }

  async function render() {
    readControls();
    const filters = FILTERS.map((name) => controls[name].value.trim()).join("\n");
    if (filters !== filtered) {
      filtered = filters;
      const found = rows();
      shown = new Set(found.map((row) => row.id));
      retitle("before", data.reference);
      retitle("after", controls.precision.value);
      await table.replaceData(found);
      counted.textContent = `${found.length} of ${items.item_id.length} items. `
        + "The figures are those of the stereotyped answer.";
    }
    // Without a choice, the first row stands for one: an empty panel explains nothing.
    shownId = wanted.get("item") ?? table.getRows("active")[0]?.getIndex();
    show(shownId);
    mark(shownId);
    sayPlace();
  }

  async function follow() {
    const before = shownId;
    await render();
    if (shown.has(shownId) && shownId !== before) table.scrollToRow(shownId, "nearest", false);
    if (!opening) return;
    opening = false;
    said.querySelector("h3")?.focus({ preventScroll: true });
    detail.scrollIntoView({ block: "nearest" });
  }

  let typing;
  const change = () => location.replace(hash());
  form.addEventListener("input", (event) => {
    clearTimeout(typing);
    if (event.target === controls.search) typing = setTimeout(change, 200);
    else change();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    clearTimeout(typing);
    controls.search.value = "";
    wanted = new URLSearchParams(number.has(shownId) ? { item: shownId } : {});
    readControls();
    change();
  });
  controls.answer.addEventListener("input", change);
  named("previous").addEventListener("click", () => step(-1));
  named("next").addEventListener("click", () => step(1));
  named("back").addEventListener("click", () => {
    const ids = ordered();
    if (ids.length) focusRow(shown.has(shownId) ? shownId : ids[0]);
  });
  // The address holds what is shown, so links inside the page only move the focus.
  const [toList, toItem] = root.querySelectorAll(".cba-skips a");
  toList.addEventListener("click", (event) => { event.preventDefault(); named("back").click(); });
  toItem.addEventListener("click", (event) => { event.preventDefault(); detail.focus(); });
  addEventListener("hashchange", () => { if (read()) follow(); });

  fill(controls.model, [...cells.keys()]);
  fill(controls.change, data.kinds.map(([kind]) => kind), true);
  for (const [name, column] of data.filters) {
    fill(controls[name], [...new Set(items[column])].filter(Boolean).sort(natural), true);
  }
  document.getElementById("cba-explorer-static").hidden = true;
  root.hidden = false;
  table.on("tableBuilt", async () => {
    // Tabulator makes its scrolling part a tab stop without a role; the list has one of its own.
    root.querySelector(".tabulator-tableholder").removeAttribute("tabindex");
    read();
    await render();
    table.on("dataSorted", sayPlace);
    const item = wanted.get("item");
    if (!item) return;
    detail.scrollIntoView({ block: "start" });
    if (shown.has(item)) table.scrollToRow(item, "center", false);
  });
})();
