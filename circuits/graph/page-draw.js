// The picture: sites, tokens and nodes as SVG, edges on a canvas, because thousands of them are drawn
// anew at every move of the slider.

const $ = (id) => document.getElementById(id);
const SVG = $("marks").namespaceURI;

function make(parent, name, attributes = {}, text = undefined) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// As `make`, of HTML: attributes that begin with "on" are listeners.
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== undefined && child !== null));
  return made;
}

function markPath({ role, r }, x, y) {
  if (role === "error") {
    const d = r * Math.sqrt(Math.PI / 2);
    return `M${x} ${y - d}L${x + d} ${y}L${x} ${y + d}L${x - d} ${y}Z`;
  }
  if (role === "offset") {
    const s = 1.347 * r;
    return `M${x - s} ${y + 0.9 * r}L${x + s} ${y + 0.9 * r}L${x} ${y - 1.43 * r}Z`;
  }
  return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
}

function fillOf(role, effect) {
  const sign = signOf(effect);
  return role === "error" ? `url(#hatch-${sign})` : SIGNS[sign].colour;
}

// Errors have an outline of their colour: their hatching alone would fray.
function drawMark(parent, unit, x, y, attributes = {}) {
  const outline = unit.role === "error" ? { stroke: SIGNS[signOf(unit.effect)].colour } : {};
  make(parent, "path", {
    d: markPath(unit, x, y),
    fill: fillOf(unit.role, unit.effect),
    ...outline,
    ...attributes,
  });
}

function drawUnit(parent, unit) {
  const group = make(parent, "g", {
    class: unit.kind === "node" && nodes[unit.members[0]].group ? "unit member" : "unit",
    "data-unit": unit.at,
    "data-id": unit.id,
    tabindex: 0,
    role: "button",
    "aria-label": spoken(unit),
  });
  const { x, y, left, w, h, r } = unit;
  if (unit.kind !== "node") {
    make(group, "rect", {
      class: "pill",
      x: left,
      y: y - h / 2,
      width: w,
      height: h,
      rx: unit.kind === "group" ? h / 2 : 4,
    });
  }
  if (unit.kind === "metric") {
    make(group, "text", { x, y: y + 4, "text-anchor": "middle", "font-weight": "bold" }, told.metric);
    return group;
  }
  drawMark(group, unit, x, y, { class: "mark" });
  if (unit.kind === "group") {
    // A second ring: more than one node.
    make(group, "path", {
      d: markPath({ r: r + 1.8 }, x, y),
      fill: "none",
      stroke: SIGNS[signOf(unit.effect)].colour,
    });
    make(group, "text", { x: left + h + 1, y: y + 4 }, unit.label);
  }
  return group;
}

function spoken(unit) {
  if (unit.kind === "metric") return `${told.metric}, the metric`;
  const sign = SIGNS[signOf(unit.effect)].text;
  return `${unitTitle(unit)}, effect ${number(unit.effect)}, ${sign}`;
}

function drawFrame(picture) {
  const frame = $("frame");
  const sites = $("sites");
  frame.replaceChildren();
  sites.replaceChildren();
  const { rows, columns, right, height } = picture;
  // It lies over the left of the picture and takes no room of its own.
  sites.style.height = `${height}px`;
  sites.style.marginBottom = `${-height}px`;
  for (const row of rows) {
    make(frame, "rect", { class: "row", x: LEFT, y: row.y, width: right - LEFT, height: row.h });
    const middle = row.y + row.h / 2;
    const tall = row.h >= 32;
    make(
      sites,
      "text",
      { class: "site", x: LEFT - 8, y: middle + (tall ? -2 : 4), "text-anchor": "end" },
      row.site,
    );
    if (!tall) continue;
    const count = `${row.count} ${row.count === 1 ? "node" : "nodes"}`;
    make(sites, "text", { class: "count", x: LEFT - 8, y: middle + 12, "text-anchor": "end" }, count);
  }
  const top = rows.length ? rows[0].y : 0;
  for (const column of columns.slice(1)) {
    make(frame, "line", { class: "column", x1: column.x, x2: column.x, y1: top, y2: height - 2 });
  }
}

// A column's label in lines: clean token, corrupted one where it differs, name of the position.
function labelOf(column) {
  if (column.positions.length > 1) return [{ text: "⋯", kind: "" }];
  const [position] = column.positions;
  const [clean, corrupted] = told.tokens[position];
  const differs = alternatives(clean) !== alternatives(corrupted);
  const lines = [{ text: shorten(alternatives(clean), 20), kind: differs ? "differs" : "" }];
  if (differs) lines.push({ text: shorten(alternatives(corrupted), 20), kind: "differs" });
  const name = circuit.tokens[position].name;
  if (name) lines.push({ text: shorten(name, 20), kind: "name" });
  return lines;
}

const MONO = '12px ui-monospace, "DejaVu Sans Mono", monospace';

function drawAxis({ columns, width }) {
  const axis = $("axis");
  axis.replaceChildren();
  axis.setAttribute("width", width);
  axis.setAttribute("height", 0);
  if (columns[0].positions[0] === null) return;
  const labels = columns.map(labelOf);
  const lineWidths = labels.map((lines) => lines.map((line) => measure(line.text, MONO)));
  const fits = columns.every((column, c) => Math.max(...lineWidths[c]) <= column.w - 4);
  const slanted = lineWidths.map((widths) => widths.reduce((sum, w) => sum + w, 15 * (widths.length - 1)));
  const angle = 58;
  const deep = Math.max(...slanted) * Math.sin((angle * Math.PI) / 180) + 18;
  axis.setAttribute("height", fits ? 8 + 15 * Math.max(...labels.map((lines) => lines.length)) : deep);
  columns.forEach((column, c) => {
    const x = column.x + column.w / 2;
    make(axis, "line", { x1: x, x2: x, y1: 0, y2: 4, stroke: "#999" });
    const at = fits
      ? { x, y: 2, "text-anchor": "middle" }
      : { x: 0, y: 0, "text-anchor": "end", transform: `translate(${x + 4} 13) rotate(-${angle})` };
    const text = make(axis, "text", { class: "token", ...at });
    labels[c].forEach((line, i) => {
      const move = fits ? { x, dy: 15 } : i ? { dx: 3 } : {};
      if (i && !fits) make(text, "tspan", { dx: 3 }, "·");
      make(text, "tspan", { class: line.kind, ...move }, line.text);
    });
    const full = column.positions.map((p) => placeText(p)).join("\n");
    make(text, "title", {}, full);
  });
}

// A curve from the top of its source to the bottom of its target, bent aside where they stand in one
// column, so that it does not run through what is between them.
function curveOf({ from, to }) {
  const up = from.y > to.y;
  const y1 = from.y + (up ? -from.h / 2 : 0);
  const y2 = to.y + (up ? to.h / 2 : 0);
  const rise = Math.max(20, Math.abs(y1 - y2)) * 0.45;
  const near = Math.max(0, 1 - Math.abs(from.x - to.x) / 60);
  const bend = near * (10 + 0.1 * Math.abs(y1 - y2)) * (from.x > LEFT + 60 ? -1 : 1);
  return [from.x, y1, from.x + bend, y1 - rise, to.x + bend, y2 + rise, to.x, y2];
}

function widthOf(edge, heaviest) {
  return 0.6 + (nodes.length > 150 ? 2.5 : 4) * Math.sqrt(Math.abs(edge.weight) / heaviest);
}

function prepareCanvas(canvas, { width, height }) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const wide = Math.round(width * ratio);
  const tall = Math.round(height * ratio);
  if (canvas.width !== wide || canvas.height !== tall) {
    canvas.width = wide;
    canvas.height = tall;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// Edges in order of width, weakest first; those of a width and sign are one stroke.
function strokeEdges(context, edges, heaviest, alpha) {
  context.globalAlpha = alpha;
  let paths = {};
  let current = 0;
  const flush = () => {
    context.lineWidth = current;
    for (const [sign, path] of Object.entries(paths)) {
      context.strokeStyle = SIGNS[sign].colour;
      context.stroke(path);
    }
    paths = {};
  };
  for (const edge of edges) {
    const width = Math.round(widthOf(edge, heaviest) * 4) / 4;
    if (width !== current) {
      flush();
      current = width;
    }
    const path = (paths[signOf(edge.weight)] ??= new Path2D());
    const [x, y, ...rest] = edge.curve;
    path.moveTo(x, y);
    path.bezierCurveTo(...rest);
  }
  flush();
}

// A small mark of the node, as in the graph.
function glyph(role, value, r = 5) {
  const svg = document.createElementNS(SVG, "svg");
  const size = 2 * r + 5;
  for (const side of ["width", "height"]) svg.setAttribute(side, size);
  drawMark(svg, { role, r, effect: value }, size / 2, size / 2);
  return svg;
}

// What shapes, colours and sizes mean, of those that there are.
function drawLegend() {
  const item = (picture, text) => element("span", {}, picture, text);
  const line = (sign) => {
    const svg = document.createElementNS(SVG, "svg");
    for (const [key, value] of Object.entries({ width: 20, height: 8 })) svg.setAttribute(key, value);
    make(svg, "line", { x1: 0, x2: 20, y1: 4, y2: 4, stroke: SIGNS[sign].colour, "stroke-width": 2.5 });
    return svg;
  };
  const roles = new Set(nodes.map((node) => node.role));
  const items = [
    item(glyph("latent", 1), "latent"),
    roles.has("error") && item(glyph("error", 1, 6), "error: what the SAE leaves out"),
    roles.has("offset") && item(glyph("offset", 1), "offset of a normalised SAE"),
    item(line("positive"), told.words.positive),
    item(line("negative"), told.words.negative),
  ];
  if (nodes.length) {
    const sizes = [1, 0.25].flatMap((share) => [
      " ",
      glyph("latent", 0, radiusOf(share * largest)),
      number(share * largest, false),
    ]);
    items.push(element("span", {}, "area: size of the effect", ...sizes));
  }
  $("legend").replaceChildren(...items.filter(Boolean));
}
