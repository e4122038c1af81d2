// Pointing, clicking, choosing a threshold, grouping, saving.

const state = {
  units: [],
  edges: [], // weakest first
  heaviest: 1,
  first: 0, // the first edge that is shown
  chosen: null, // unit whose card is open
  over: null, // unit or edge that is pointed at
  picked: new Set(), // nodes to group
};
let elements = []; // of the units, by their number

const CARD = 444; // width of the card beside the graph, with its gap

// The window's width less the margins.
function room() {
  return Math.max(900, document.documentElement.clientWidth - 32);
}

// The card goes beside the graph where that leaves the graph wide enough, else below it.
function fitted(units) {
  const width = room() - CARD;
  const narrow = width >= 880 ? layOut(units, width) : null;
  const beside = narrow !== null && narrow.width < width + 1;
  document.body.classList.toggle("beside", beside);
  document.body.style.setProperty("--room", `${beside ? width : room()}px`);
  return beside ? narrow : layOut(units, room());
}

// Everything anew: after the window's width or the groups changed.
function rebuild() {
  const chosen = state.chosen?.id;
  state.units = makeUnits();
  state.edges = makeEdges(state.units);
  state.heaviest = Math.abs(state.edges.at(-1)?.weight ?? 0) || 1;
  const picture = fitted(state.units);
  $("graph").style.width = `${picture.width}px`;
  for (const edge of state.edges) edge.curve = curveOf(edge);
  state.picture = picture;
  $("marks").setAttribute("width", picture.width);
  $("marks").setAttribute("height", picture.height);
  drawFrame(picture);
  drawAxis(picture);
  $("nodes").replaceChildren();
  elements = state.units.map((unit) => drawUnit($("nodes"), unit));
  state.over = null;
  state.chosen = state.units.find((unit) => unit.id === chosen) ?? null;
  drawGroups();
  drawPicked();
  applyThreshold();
  fillPanel(state.chosen, state.units);
  drawLit();
}

// The slider is logarithmic: from all edges (0) to the strongest alone (1000).
function lowestShare() {
  const weakest = state.edges.find((edge) => edge.weight !== 0);
  return Math.max(1e-6, weakest ? Math.abs(weakest.weight) / state.heaviest : 1);
}

function shareOf(place) {
  return lowestShare() ** (1 - place / 1000);
}

// As many edges as can be told apart.
function firstThreshold() {
  const shown = Math.min(state.edges.length, 120);
  const share = Math.abs(state.edges.at(-shown)?.weight ?? 0) / state.heaviest;
  const lowest = Math.log(lowestShare());
  if (shown === state.edges.length || lowest === 0 || share === 0) return 0;
  return Math.max(0, Math.min(1000, Math.ceil(1000 * (1 - Math.log(share) / lowest))));
}

function applyThreshold() {
  const place = Number($("threshold").value);
  const least = shareOf(place) * state.heaviest * (1 - 1e-9);
  const { edges } = state;
  const found = place === 0 ? 0 : edges.findIndex((edge) => Math.abs(edge.weight) >= least);
  state.first = found < 0 ? edges.length : found;
  const shown = edges.length - state.first;
  const share = percent(shareOf(place));
  const all = counted(edges.length);
  const said = edges.length
    ? `${share} of the largest (${number(least, false)}): ${counted(shown)} of ${all} shown`
    : "no edges";
  $("threshold").disabled = edges.length === 0;
  $("shown").textContent = place === 0 && edges.length ? `the weakest on: all ${all} shown` : said;
  $("threshold").setAttribute("aria-valuetext", $("shown").textContent);
  const context = prepareCanvas($("edges"), state.picture);
  // Many edges are thinner to the eye than few.
  strokeEdges(
    context,
    edges.slice(state.first),
    state.heaviest,
    shown > 1000 ? 0.25 : shown > 250 ? 0.4 : 0.6,
  );
}

// The edges of what is pointed at or chosen, whatever the slider says; all else fades.
function drawLit() {
  const focus = state.over ?? state.chosen;
  const context = prepareCanvas($("lit"), state.picture);
  $("plot").classList.toggle("lit", Boolean(focus));
  for (const made of elements) made.classList.remove("on", "chosen");
  if (state.chosen) elements[state.chosen.at].classList.add("chosen");
  if (!focus) return;
  const edges = focus.curve ? [focus] : [...focus.in, ...focus.out];
  edges.sort((a, b) => Math.abs(a.weight) - Math.abs(b.weight));
  const ends = focus.curve ? [] : [focus];
  for (const unit of [...ends, ...edges.flatMap((edge) => [edge.from, edge.to])])
    elements[unit.at].classList.add("on");
  strokeEdges(context, edges, state.heaviest, 0.85);
}

function highlight(focus) {
  if (state.over === focus) return;
  state.over = focus;
  drawLit();
}

function choose(unit) {
  state.chosen = unit;
  state.over = null;
  hideTip();
  fillPanel(unit, state.units);
  drawLit();
  if (unit) showAbove(elements[unit.at]);
}

// In a narrow window the card covers the lower part: what was clicked must stay in sight.
function showAbove(made) {
  if (getComputedStyle($("panel")).position !== "fixed") return;
  const seen = $("panel").getBoundingClientRect().top - $("axis").getBoundingClientRect().height;
  const over = made.getBoundingClientRect().bottom + 44 - seen;
  if (over > 0) window.scrollBy(0, over);
}

// The edge within a few pixels of a point, among those that are drawn.
function edgeAt(x, y) {
  const lit = state.chosen ? [...state.chosen.in, ...state.chosen.out] : state.edges.slice(state.first);
  let best = null;
  let least = 4.5 ** 2;
  for (const edge of lit) {
    const [x1, y1, x2, y2, x3, y3, x4, y4] = edge.curve;
    if (y > Math.max(y1, y4) + 30 || y < Math.min(y1, y4) - 30) continue;
    if (x > Math.max(x1, x2, x3, x4) + 5 || x < Math.min(x1, x2, x3, x4) - 5) continue;
    for (let t = 0; t <= 1; t += 1 / 64) {
      const s = 1 - t;
      const [a, b, c, d] = [s * s * s, 3 * s * s * t, 3 * s * t * t, t * t * t];
      const far = (a * x1 + b * x2 + c * x3 + d * x4 - x) ** 2 + (a * y1 + b * y2 + c * y3 + d * y4 - y) ** 2;
      if (far < least) [best, least] = [edge, far];
    }
  }
  return best;
}

function tipLines(focus) {
  if (focus.curve) {
    const merged = focus.count > 1 ? `, ${focus.count} edges together` : "";
    const share = percent(Math.abs(focus.weight) / state.heaviest);
    return [
      ["faint", `${unitTitle(focus.from)} →`],
      ["faint", `${unitTitle(focus.to)}`],
      [signOf(focus.weight), `weight ${number(focus.weight)}${merged}, ${share} of the largest`],
      [signOf(focus.weight), SIGNS[signOf(focus.weight)].text],
    ];
  }
  const count = `${focus.in.length} edges in, ${focus.out.length} out`;
  if (focus.kind === "metric")
    return [
      ["", told.metric],
      ["faint", count],
    ];
  const sign = signOf(focus.effect);
  if (focus.kind === "group") {
    return [
      ["", unitTitle(focus)],
      [sign, `sum of effects ${number(focus.effect)}, ${SIGNS[sign].text}`],
      ["faint", count],
    ];
  }
  const node = nodes[focus.members[0]];
  const lines = [
    ["", nodeTitle(node)],
    ["faint", nodeLabel(node)],
    [sign, `effect ${number(node.effect)}${intervalText(node)}, ${SIGNS[sign].text}`],
  ];
  if (node.removal !== null) lines.push(["", `taking it out ${removalText(node)}`]);
  return [...lines, ["faint", count]].filter(([, text]) => text);
}

function showTip(focus, x, y) {
  const tip = $("tip");
  tip.replaceChildren(...tipLines(focus).map(([kind, text]) => element("div", { class: kind }, text)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, window.innerWidth - width - 8))}px`;
  tip.style.top = `${y + 24 + height > window.innerHeight ? Math.max(4, y - height - 14) : y + 24}px`;
}

function hideTip() {
  $("tip").hidden = true;
}

function unitOf(target) {
  const made = target.closest?.("[data-unit]");
  return made ? state.units[made.dataset.unit] : null;
}

// Small nodes are hard to hit: the nearest within a few pixels will do.
function unitNear(x, y) {
  const far = (unit) =>
    Math.hypot(
      Math.max(0, unit.left - x, x - unit.left - unit.w),
      Math.max(0, unit.y - unit.h / 2 - y, y - unit.y - unit.h / 2),
    );
  const best = state.units.reduce((a, b) => (far(b) < far(a) ? b : a));
  return far(best) <= 5 ? best : null;
}

function point(event) {
  const box = $("plot").getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const focus = unitOf(event.target) ?? unitNear(x, y) ?? edgeAt(x, y);
  highlight(focus);
  if (focus) showTip(focus, event.clientX, event.clientY);
  else hideTip();
}

function click(unit, picking) {
  if (!unit) return choose(null);
  if (!picking) return choose(unit);
  if (unit.kind === "metric") return undefined;
  const all = unit.members.every((i) => state.picked.has(i));
  for (const i of unit.members) state.picked[all ? "delete" : "add"](i);
  return drawPicked();
}

function drawPicked() {
  state.units.forEach((unit, i) => {
    const picked = unit.members.length > 0 && unit.members.every((member) => state.picked.has(member));
    elements[i].classList.toggle("picked", picked);
  });
  const count = state.picked.size;
  const picking = $("selecting").getAttribute("aria-pressed") === "true";
  $("grouping").hidden = count === 0 && !picking;
  $("selected").textContent = `${count} ${count === 1 ? "node" : "nodes"} selected`;
}

// Groups and whether they are open; nothing where there are none.
function drawGroups() {
  const chips = groupNames().map((name) => {
    const open = opened.has(name);
    const title = open ? "Draw it as one node" : "Show its nodes one by one";
    return element(
      "button",
      { type: "button", "aria-pressed": open, title, onclick: () => toggleGroup(name) },
      `${open ? "▾" : "▸"} ${name} (${membersOf(name).length})`,
    );
  });
  $("groups").replaceChildren(...(chips.length ? [element("span", {}, "groups"), ...chips] : []));
}

function toggleGroup(name) {
  if (!opened.delete(name)) opened.add(name);
  rebuild();
}

function dissolve(name) {
  for (const i of membersOf(name)) nodes[i].group = "";
  opened.delete(name);
  rebuild();
}

function regroup(name) {
  for (const i of state.picked) nodes[i].group = name;
  opened.delete(name);
  stopPicking();
  rebuild();
}

function stopPicking() {
  state.picked.clear();
  $("selecting").setAttribute("aria-pressed", "false");
  $("name").value = "";
}

function save() {
  const address = URL.createObjectURL(new Blob([fileText()], { type: "application/json" }));
  const link = element("a", { href: address, download: "circuit.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// The nearest unit in the direction of an arrow key.
function neighbour(unit, key) {
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  const far = (other) => {
    const along = (other.x - unit.x) * dx + (other.y - unit.y) * dy;
    const across = Math.abs((other.x - unit.x) * dy) + Math.abs((other.y - unit.y) * dx);
    return along > 0.5 ? along + 2 * across : Infinity;
  };
  return state.units.reduce((best, other) => (far(other) < far(best) ? other : best), unit);
}

function pressed(event) {
  if (event.key === "Escape") {
    stopPicking();
    drawPicked();
    return choose(null);
  }
  const unit = unitOf(event.target);
  if (!unit) return undefined;
  if (event.key.startsWith("Arrow")) elements[neighbour(unit, event.key).at].focus();
  else if (event.key === "Enter" || event.key === " ") click(unit, event.shiftKey);
  else return undefined;
  return event.preventDefault();
}

function listen() {
  const plot = $("plot");
  let waiting = null;
  // One look per frame, however fast the pointer moves.
  plot.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    if (!waiting)
      requestAnimationFrame(() => {
        if (waiting) point(waiting);
        waiting = null;
      });
    waiting = event;
  });
  plot.addEventListener("pointerleave", () => {
    waiting = null;
    highlight(null);
    hideTip();
  });
  plot.addEventListener("click", (event) => {
    const box = plot.getBoundingClientRect();
    const unit = unitOf(event.target) ?? unitNear(event.clientX - box.left, event.clientY - box.top);
    click(unit, event.shiftKey || $("selecting").getAttribute("aria-pressed") === "true");
  });
  plot.addEventListener(
    "focusin",
    (event) => event.target.matches(":focus-visible") && highlight(unitOf(event.target)),
  );
  plot.addEventListener("focusout", (event) => state.over === unitOf(event.target) && highlight(null));
  document.addEventListener("keydown", pressed);
  $("threshold").addEventListener("input", applyThreshold);
  $("selecting").addEventListener("click", ({ currentTarget }) => {
    currentTarget.setAttribute("aria-pressed", currentTarget.getAttribute("aria-pressed") !== "true");
    drawPicked();
  });
  $("grouping").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("name").value.trim();
    if (name && state.picked.size) regroup(name);
  });
  $("ungroup").addEventListener("click", () => regroup(""));
  $("clear").addEventListener("click", () => {
    stopPicking();
    drawPicked();
  });
  $("save").addEventListener("click", save);
  let width = room();
  window.addEventListener("resize", () => {
    if (room() === width) return;
    width = room();
    rebuild();
  });
}

drawLegend();
rebuild();
$("threshold").value = firstThreshold();
applyThreshold();
listen();
