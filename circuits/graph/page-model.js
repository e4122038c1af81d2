// What is drawn: the circuit's nodes, with those of closed groups as one unit, and the metric; the
// edges between units, merged.

const told = JSON.parse(document.getElementById("data").textContent);
// The file's text is in parts: between them belong the nodes' groups and, last, the record.
const circuit = JSON.parse(told.file.join('""'));
circuit.nodes.forEach((node, i) => {
  node.group = told.groups[i];
});
// Those that are not drawn are only in the file.
const nodes = circuit.nodes.slice(0, told.drawn);
const links = circuit.edges.filter(({ source, target }) => Math.max(source, target ?? 0) < told.drawn);
const bank = told.bank;
const opened = new Set(); // names of groups whose members are shown one by one
const largest = Math.max(...nodes.map((node) => Math.abs(node.effect)), 1e-30);

const SIGNS = {
  positive: { colour: "#2171b5", text: `positive (blue) = ${told.words.positive}` },
  negative: { colour: "#cb181d", text: `negative (red) = ${told.words.negative}` },
  none: { colour: "#888", text: "zero" },
};

function signOf(value) {
  if (value > 0) return "positive";
  return value < 0 ? "negative" : "none";
}

// Three digits, with a sign where that says something: 0.0123, +1.20, 3.1e-7.
function number(value, signed = true) {
  const size = Math.abs(value);
  const text =
    size !== 0 && (size < 1e-4 || size >= 1e5)
      ? size.toExponential(1)
      : size >= 100
        ? size.toFixed(0)
        : size >= 1
          ? size.toFixed(2)
          : size.toPrecision(3).replace(/^0$|^0\.00$/, "0");
  if (value < 0) return `-${text}`;
  return signed && value > 0 ? `+${text}` : text;
}

// A count: 5,000.
function counted(value) {
  return value.toLocaleString("en");
}

function percent(share) {
  const size = Math.abs(share) * 100;
  const text = size !== 0 && size < 0.1 ? size.toPrecision(1) : size.toFixed(size < 10 ? 1 : 0);
  return `${share < 0 ? "-" : ""}${text}%`;
}

// Alternatives at a position as in the project's figures: one, two with a bar, more with an ellipsis.
function alternatives(texts) {
  return texts.length <= 2 ? texts.join("|") : `${texts[0]}|…`;
}

// The token or tokens at a position, in quotes, the corrupted one behind a stroke where it differs.
function tokenText(position) {
  const [clean, corrupted] = told.tokens[position] ?? [[], []];
  const first = `“${alternatives(clean)}”`;
  const second = `“${alternatives(corrupted)}”`;
  return first === second ? first : `${first} / ${second}`;
}

function placeText(position) {
  if (position === null) return "all positions";
  const name = circuit.tokens[position].name;
  return `position ${position}${name ? ` ${name}` : ""} ${tokenText(position)}`;
}

function nodeName(node) {
  return node.role === "latent" ? `latent ${node.latent}` : node.role;
}

// One line that says which node it is, wherever it is listed.
function nodeTitle(node) {
  return `${nodeName(node)} at ${node.site}, ${placeText(node.position)}`;
}

function nodeLabel(node) {
  if (node.label) return node.label;
  const card = node.role === "latent" ? cardOf(node) : undefined;
  return card ? card.text : "";
}

function cardOf(node) {
  return bank?.cards[`${node.site}/${node.latent}`];
}

function groupNames() {
  return [...new Set(nodes.map((node) => node.group).filter(Boolean))];
}

function membersOf(name) {
  return nodes.flatMap((node, i) => (node.group === name ? [i] : []));
}

function strongest(indices) {
  return indices.reduce((a, b) => (Math.abs(nodes[b].effect) > Math.abs(nodes[a].effect) ? b : a));
}

// A group stands where its strongest member does.
function groupUnit(name) {
  const members = membersOf(name);
  const { site, position } = nodes[strongest(members)];
  const effect = members.reduce((sum, i) => sum + nodes[i].effect, 0);
  return { id: `group:${name}`, kind: "group", name, members, site, position, effect };
}

function nodeUnit(i) {
  const { site, position, effect } = nodes[i];
  return { id: `node:${i}`, kind: "node", members: [i], site, position, effect };
}

// All units; the metric is the last.
function makeUnits() {
  const units = [];
  const seen = new Set();
  nodes.forEach((node, i) => {
    const closed = node.group && !opened.has(node.group);
    if (!closed) units.push(nodeUnit(i));
    else if (!seen.has(node.group)) {
      seen.add(node.group);
      units.push(groupUnit(node.group));
    }
  });
  units.push({ id: "metric", kind: "metric", members: [], effect: 0 });
  units.forEach((unit, i) => Object.assign(unit, { at: i, in: [], out: [] }));
  return units;
}

// Edges between units, weakest first, so that the strongest are drawn last. Those of a closed group
// with the same other end are one, with the sum of their weights; those within it are left out.
function makeEdges(units) {
  const unitOf = new Int32Array(nodes.length);
  for (const unit of units) for (const i of unit.members) unitOf[i] = unit.at;
  const merged = new Map();
  for (const { source, target, weight } of links) {
    const from = unitOf[source];
    const to = target === null ? units.length - 1 : unitOf[target];
    if (from === to) continue;
    const key = from * units.length + to;
    const edge = merged.get(key);
    if (edge) {
      edge.weight += weight;
      edge.count += 1;
    } else merged.set(key, { from: units[from], to: units[to], weight, count: 1 });
  }
  const edges = [...merged.values()].sort((a, b) => Math.abs(a.weight) - Math.abs(b.weight));
  for (const edge of edges) {
    edge.from.out.push(edge);
    edge.to.in.push(edge);
  }
  return edges;
}

// Where edges lead: through thoughts that are made while the model runs, to lower sites too.
const waysOfEdges = (() => {
  const height = new Map(circuit.sites.map((site, s) => [site, s]));
  const level = nodes.map((node) => height.get(node.site));
  const back = links.some(({ source, target }) => target !== null && level[source] >= level[target]);
  return back ? "Edges lead up, or through thoughts to later tokens." : "Edges lead up.";
})();

function unitTitle(unit) {
  if (unit.kind === "metric") return told.metric;
  if (unit.kind === "group") return `group ${unit.name} (${unit.members.length} nodes)`;
  return nodeTitle(nodes[unit.members[0]]);
}

// The file with its groups as they are now; all else goes through as the text it was, because numbers
// that are read and written again need not look the same.
function fileText() {
  const filled = [...circuit.nodes.map((node) => JSON.stringify(node.group)), told.record, "\n"];
  return told.file.map((part, i) => part + filled[i]).join("");
}
