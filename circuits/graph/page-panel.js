// What is known of what was clicked: a node and its latent's card, a group, the metric; of nothing,
// the strongest nodes. Texts are put in as text, never as HTML: tokens may be anything.

const LISTED = 8; // edges in, and as many out
const RANKED = 15;

function signed(value) {
  return element("span", { class: signOf(value) }, number(value));
}

function intervalText({ low, high }) {
  return low === null || high === null ? "" : ` [${number(low)}, ${number(high)}]`;
}

function removalText(node) {
  if (node.removal === null) return "was not measured";
  const points = Math.abs(100 * node.removal);
  return `${node.removal < 0 ? "adds" : "costs"} ${points.toFixed(points < 1 ? 2 : 1)} points of faithfulness`;
}

// A row of a table that leads to a unit when it is clicked.
function linkRow(unit, value, text, note) {
  const go = () => choose(unit);
  const role = unit.kind === "node" ? unit.role : "latent";
  return element(
    "tr",
    {
      class: "link",
      tabindex: 0,
      role: "link",
      onclick: go,
      onkeydown: (event) => event.key === "Enter" && go(),
      onpointerenter: () => highlight(unit),
      onpointerleave: () => highlight(null),
    },
    element("td", { class: "number" }, signed(value)),
    element(
      "td",
      {},
      unit.kind === "metric" ? "" : glyph(role, unit.effect, 4),
      ` ${text}`,
      note ? element("span", { class: "text" }, ` ${note}`) : "",
    ),
  );
}

function edgeTable(title, edges, end) {
  const listed = edges.toReversed().slice(0, LISTED);
  const more = edges.length > LISTED ? `, the strongest ${LISTED} of ${edges.length}` : "";
  const rows = listed.map((edge) => {
    const unit = edge[end];
    const note = unit.kind === "node" ? shorten(nodeLabel(nodes[unit.members[0]]), 46) : "";
    return linkRow(unit, edge.weight, unitTitle(unit), note);
  });
  return element(
    "div",
    {},
    element("h3", {}, `${title}${more}`),
    rows.length ? element("table", {}, ...rows) : element("p", { class: "faint" }, "none"),
  );
}

function close() {
  return element(
    "button",
    { type: "button", class: "close", "aria-label": "close", onclick: () => choose(null) },
    "×",
  );
}

// Which labels of bars are drawn: all, or those that must not be missed and others not too close.
function labelled(node, count, step) {
  const apart = Math.ceil(12 / step);
  const rank = (p) => (p === node.position ? 0 : circuit.tokens[p]?.name ? 1 : 2);
  const kept = [];
  const order = Array.from({ length: count }, (_, p) => p).sort((a, b) => rank(a) - rank(b) || a - b);
  for (const p of order) if (kept.every((other) => Math.abs(other - p) >= apart)) kept.push(p);
  return new Set(kept);
}

// Bars of a latent at every token, clean (filled) and corrupted (outlined) side by side.
function profileBars(node) {
  const profile = circuit.profiles[`${node.site}/${node.latent}`];
  if (!profile) return null;
  const mono = '11px "DejaVu Sans Mono", monospace';
  const most = Math.max(...profile.clean, ...profile.corrupted, 1e-30);
  const labels = profile.clean.map((_, p) =>
    told.tokens[p] ? shorten(tokenText(p).replace(/[“”]/g, ""), 18) : String(p),
  );
  const deep = Math.max(...labels.map((label) => measure(label, mono))) * 0.86 + 16;
  const [tall, left] = [64, Math.min(46, 0.55 * deep)];
  const step = Math.max(4, Math.min(26, ($("panel").clientWidth - left - 40) / labels.length));
  const kept = labelled(node, labels.length, step);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("width", left + step * labels.length + 8);
  svg.setAttribute("height", tall + deep);
  const bar = (x, value, look, text) => {
    const h = (Math.max(0, value) / most) * (tall - 8);
    make(make(svg, "rect", { x, y: tall - h, width: step * 0.38, height: h, ...look }), "title", {}, text);
  };
  labels.forEach((label, p) => {
    const x = left + step * p;
    const here = p === node.position;
    if (here) make(svg, "rect", { x, y: 0, width: step, height: tall + 5, fill: "#fff3d6" });
    bar(
      x + step * 0.1,
      profile.clean[p],
      { fill: "#444" },
      `${label}: ${told.words.first} ${number(profile.clean[p], false)}`,
    );
    bar(
      x + step * 0.52,
      profile.corrupted[p],
      { fill: "#fff", stroke: "#444", "stroke-width": Math.min(0.8, step / 10) },
      `${label}: ${told.words.second} ${number(profile.corrupted[p], false)}`,
    );
    if (!kept.has(p)) return;
    const turned = `translate(${x + step / 2 + 4} ${tall + 10}) rotate(-58)`;
    make(
      svg,
      "text",
      { transform: turned, "text-anchor": "end", style: `font: ${mono}`, fill: here ? "#222" : "#666" },
      label,
    );
  });
  make(svg, "line", { x1: left, x2: left + step * labels.length, y1: tall, y2: tall, stroke: "#999" });
  return element(
    "div",
    { class: "wide" },
    element(
      "h3",
      {},
      `activations on this prompt: ■ ${told.words.first}, □ ${told.words.second}`,
      element("span", { class: "faint" }, ` (largest ${number(most, false)})`),
    ),
    svg,
  );
}

function factsOf(node) {
  const size = node.role === "latent" ? "coefficient" : "norm of the write";
  const rows = [
    [
      "effect",
      element(
        "span",
        {},
        signed(node.effect),
        `${intervalText(node)}, `,
        element("span", { class: signOf(node.effect) }, SIGNS[signOf(node.effect)].text),
      ),
    ],
    [size, `${told.words.first} ${number(node.clean, false)}, ${told.words.second} ${number(node.corrupted, false)}`],
    ["taking it out of the circuit", removalText(node)],
  ];
  if (node.group) rows.push(["group", node.group]);
  return element(
    "table",
    {},
    ...rows.map(([name, value]) =>
      element(
        "tr",
        {},
        element("td", { class: "number faint", style: "text-align: left" }, name),
        element("td", {}, value),
      ),
    ),
  );
}

const ROLES = {
  error: "What the SAE at this site does not reconstruct of the activation. It has no card.",
  offset: "What changes with the scale and offset of a normalised SAE. It has no card.",
};

function wordTable(title, pairs, show) {
  if (!pairs.length) return "";
  const rows = pairs.map(([word, value]) =>
    element(
      "tr",
      {},
      element("td", { class: "number" }, show(value)),
      element("td", { class: "word" }, bank.words[word]),
    ),
  );
  return element("div", {}, element("h3", {}, title), element("table", {}, ...rows));
}

function exampleLine([value, peak, words, shares]) {
  const spans = words.map((word, i) =>
    element(
      "span",
      {
        class: i === peak ? "peak" : undefined,
        style: shares[i] ? `background: rgba(33, 113, 181, ${(shares[i] / 118).toFixed(2)})` : undefined,
      },
      bank.words[word].replaceAll("␣", " "),
    ),
  );
  return element("div", { class: "example" }, element("b", {}, number(value, false)), " ", ...spans);
}

// What the feature bank knows of the latent on other text.
function cardParts(node) {
  if (node.role !== "latent") return [element("p", { class: "wide text" }, ROLES[node.role])];
  if (!bank) {
    return [
      element(
        "p",
        { class: "wide text" },
        "No feature bank was given, so what the latent does on other text is not " +
          "shown. `circuits features --saes NAME --corpus CORPUS` makes one.",
      ),
    ];
  }
  const card = cardOf(node);
  if (!card)
    return [
      element("p", { class: "wide text" }, `The feature bank has no latent ${node.latent} at ${node.site}.`),
    ];
  const where = `${counted(bank.positions)} positions`;
  const active = card.active
    ? `active at ${percent(card.rate)} of ${where}, mean ${number(card.mean, false)} when active, ` +
      `largest ${number(card.max, false)}`
    : `never active at ${where}`;
  return [
    element(
      "div",
      { class: "wide" },
      element("h3", {}, "strongest contexts in the corpus ", element("span", { class: "faint" }, active)),
      ...card.examples.map(exampleLine),
    ),
    element(
      "div",
      { class: "wide words" },
      wordTable("raises directly, logit per unit", card.raised, signed),
      wordTable("lowers directly, logit per unit", card.lowered, signed),
      wordTable("active at", card.at, percent),
      wordTable("token before", card.before, percent),
    ),
  ];
}

function nodePanel(unit) {
  const node = nodes[unit.members[0]];
  return [
    element("h2", {}, glyph(node.role, node.effect, 6), ` ${nodeTitle(node)}`),
    element("p", { class: "text" }, nodeLabel(node)),
    element(
      "div",
      { class: "parts" },
      element("div", { class: "wide" }, factsOf(node)),
      node.role === "latent" ? profileBars(node) : null,
      ...cardParts(node),
      edgeTable("incoming edges", unit.in, "from"),
      edgeTable("outgoing edges", unit.out, "to"),
    ),
  ];
}

function groupPanel(unit) {
  const inside = links.filter(
    ({ source, target }) => unit.members.includes(source) && unit.members.includes(target),
  );
  const members = unit.members.toSorted((a, b) => Math.abs(nodes[b].effect) - Math.abs(nodes[a].effect));
  const rows = members.map((i) =>
    element(
      "tr",
      {},
      element("td", { class: "number" }, signed(nodes[i].effect)),
      element(
        "td",
        {},
        glyph(nodes[i].role, nodes[i].effect, 4),
        ` ${nodeTitle(nodes[i])} `,
        element("span", { class: "text" }, nodeLabel(nodes[i])),
      ),
    ),
  );
  return [
    element("h2", {}, `group ${unit.name}`),
    element(
      "p",
      {},
      `${members.length} nodes, sum of effects `,
      signed(unit.effect),
      `, ${inside.length} edges among them. `,
      element(
        "span",
        { class: "faint" },
        "Effects of members at different sites can be the same effect, and then count more than once.",
      ),
    ),
    element(
      "p",
      {},
      element("button", { type: "button", onclick: () => toggleGroup(unit.name) }, "Show members"),
      " ",
      element("button", { type: "button", onclick: () => dissolve(unit.name) }, "Ungroup"),
    ),
    element(
      "div",
      { class: "parts" },
      element("div", { class: "wide" }, element("table", {}, ...rows)),
      edgeTable("incoming edges", unit.in, "from"),
      edgeTable("outgoing edges", unit.out, "to"),
    ),
  ];
}

function metricPanel(unit) {
  return [
    element("h2", {}, told.metric),
    element(
      "p",
      { class: "text" },
      "The metric. Weights of its edges are what goes straight to it, past all other nodes of the circuit.",
    ),
    element("div", { class: "parts" }, edgeTable("incoming edges", unit.in, "from")),
  ];
}

function restingPanel(units) {
  const drawn = units.filter((unit) => unit.kind !== "metric");
  const ranked = drawn.toSorted((a, b) => Math.abs(b.effect) - Math.abs(a.effect)).slice(0, RANKED);
  const rows = ranked.map((unit) =>
    linkRow(
      unit,
      unit.effect,
      unitTitle(unit),
      unit.kind === "node" ? shorten(nodeLabel(nodes[unit.members[0]]), 80) : "",
    ),
  );
  return [
    element(
      "p",
      { class: "faint" },
      `${waysOfEdges} Point at a node or an edge for its numbers; click a node for its card; ` +
        "shift-click (or Select nodes) several to group them; Escape goes back.",
    ),
    element(
      "h3",
      {},
      rows.length < drawn.length
        ? `the ${rows.length} strongest nodes of ${drawn.length}`
        : "nodes, strongest first",
    ),
    rows.length
      ? element("table", {}, ...rows)
      : element("p", { class: "faint" }, "The circuit has no nodes."),
  ];
}

function fillPanel(unit, units) {
  const panel = $("panel");
  const kinds = { node: nodePanel, group: groupPanel, metric: metricPanel };
  panel.classList.toggle("open", Boolean(unit));
  document.body.classList.toggle("drawer", Boolean(unit));
  panel.replaceChildren(...(unit ? [close(), ...kinds[unit.kind](unit)] : restingPanel(units)));
  panel.scrollTop = 0;
}
