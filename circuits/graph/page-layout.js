// Where everything stands: columns of tokens, rows of sites, and within a cell lines of nodes side by
// side, so that none covers another.

const LEFT = 122; // for the sites' names
const RIGHT = 10;
const PAD = 3; // between nodes
const LOOSE = 7; // between nodes where there is room
const EMPTY = 15; // width of a column without nodes
const MOST_COLUMNS = 36; // with more tokens, runs of columns without nodes are left out
const GROUP_TEXT = 22; // characters of a group's name

const measure = (() => {
  const context = document.createElement("canvas").getContext("2d");
  return (text, font = "12px system-ui, sans-serif") => {
    context.font = font;
    return context.measureText(text).width;
  };
})();

function shorten(text, most) {
  const letters = [...text];
  return letters.length <= most ? text : `${letters.slice(0, most - 1).join("")}…`;
}

// Radius of the circle whose area is in proportion to the effect; small ones stay visible.
function radiusOf(effect, top = topRadius()) {
  return Math.max(3.4, Math.min(1.6 * top, top * Math.sqrt(Math.abs(effect) / largest)));
}

function topRadius() {
  if (nodes.length <= 100) return 13;
  return nodes.length <= 250 ? 11 : 9;
}

// Size of a unit: radius, and the box it needs. Diamonds and triangles have the circle's area.
function sized(unit) {
  const r = radiusOf(unit.effect);
  if (unit.kind === "group") {
    const label = shorten(unit.name, GROUP_TEXT);
    const h = Math.max(2 * r + 6, 20);
    const text = measure(label);
    return Object.assign(unit, { r, label, h, w: h + text + 10, anchor: h / 2 });
  }
  const role = nodes[unit.members[0]].role;
  const reach = { latent: 1, error: Math.sqrt(Math.PI / 2), offset: 1.35 }[role] * r;
  return Object.assign(unit, { r, role, w: 2 * reach, h: 2 * reach, anchor: reach });
}

// Places of the tokens' columns: each has `positions`, more than one where empty ones are left out.
function columnsOf(units) {
  if (circuit.summed || !circuit.tokens.length) return [{ positions: [null] }];
  const used = new Set(units.map((unit) => unit.position));
  const all = circuit.tokens.map((token, p) => ({ positions: [p], used: used.has(p), named: token.name }));
  if (all.length <= MOST_COLUMNS) return all;
  const columns = [];
  for (const one of all) {
    const last = columns.at(-1);
    const empty = !one.used && !one.named;
    if (empty && last?.empty) last.positions.push(...one.positions);
    else columns.push({ ...one, empty });
  }
  return columns;
}

// Cells by column and row; `need` of a column is the width at which its longest cell is one line.
function cellsOf(units, columns) {
  const columnOf = new Map(columns.flatMap((column, c) => column.positions.map((p) => [p, c])));
  const rowOf = new Map(circuit.sites.map((site, s) => [site, s]));
  const cells = columns.map(() => circuit.sites.map(() => []));
  for (const unit of units) cells[columnOf.get(unit.position)][rowOf.get(unit.site)].push(sized(unit));
  columns.forEach((column, c) => {
    const filled = cells[c].filter((cell) => cell.length);
    column.least = Math.max(EMPTY, ...filled.flat().map((unit) => unit.w + 4 * PAD));
    const lines = filled.map((cell) => cell.reduce((sum, unit) => sum + unit.w + PAD, 3 * PAD));
    column.need = Math.max(column.least, ...lines);
    for (const cell of cells[c]) cell.sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect));
  });
  return cells;
}

// Columns get what they cannot do without, then by need, then what is left in equal parts. Where there
// is little room for need the picture gets wider than the window: columns of one node's width would
// be endlessly tall.
function spread(columns, width) {
  const sum = (key) => columns.reduce((total, column) => total + column[key], 0);
  const least = sum("least");
  const wanted = sum("need") - least;
  const room = Math.max(width, least + Math.min(wanted, width / 4));
  const share = wanted > 0 ? Math.min(1, (room - least) / wanted) : 0;
  const rest = (room - least - wanted * share) / columns.length;
  let x = LEFT;
  for (const column of columns) {
    column.x = x;
    column.w = column.least + (column.need - column.least) * share + rest;
    x += column.w;
  }
  return x;
}

// Units of a cell in lines no wider than its column.
function linesOf(cell, width) {
  const lines = [];
  let used = Infinity;
  for (const unit of cell) {
    if (used + unit.w + PAD > width - 2 * PAD) {
      lines.push({ units: [], w: -PAD, h: 0 });
      used = 0;
    }
    const line = lines.at(-1);
    line.units.push(unit);
    line.w += unit.w + PAD;
    line.h = Math.max(line.h, unit.h);
    used += unit.w + PAD;
  }
  return lines;
}

function placeCell(lines, column, middle) {
  let y = middle - heightOf(lines) / 2;
  for (const line of lines) {
    const free = (column.w - 4 * PAD - line.w) / line.units.length;
    const gap = PAD + Math.max(0, Math.min(circuit.summed ? 3 * LOOSE : LOOSE, free));
    const wide = line.w + (gap - PAD) * (line.units.length - 1);
    let x = column.x + (column.w - wide) / 2;
    for (const unit of line.units) {
      unit.left = x;
      unit.x = x + unit.anchor;
      unit.y = y + line.h / 2;
      x += unit.w + gap;
    }
    y += line.h + PAD;
  }
}

function heightOf(lines) {
  return lines.reduce((total, line) => total + line.h + PAD, -PAD);
}

function placeMetric(unit, columns, right) {
  const last = columns.at(-1);
  unit.w = measure(told.metric, "bold 12px system-ui, sans-serif") + 20;
  unit.h = 24;
  unit.r = 12;
  unit.x = Math.min(last.x + last.w / 2, right - unit.w / 2);
  unit.left = unit.x - unit.w / 2;
  unit.y = 6 + unit.h / 2;
}

// Positions of all units; returns columns, rows, width and height of the picture.
function layOut(units, width) {
  const metric = units.at(-1);
  const columns = columnsOf(units.slice(0, -1));
  const cells = cellsOf(units.slice(0, -1), columns);
  const right = spread(columns, width - LEFT - RIGHT);
  placeMetric(metric, columns, right);
  const rows = [];
  const between = nodes.length <= 150 ? 34 : 20;
  let y = metric.y + metric.h / 2 + between;
  for (let s = circuit.sites.length - 1; s >= 0; s -= 1) {
    const packed = columns.map((column, c) => linesOf(cells[c][s], column.w));
    const content = Math.max(...packed.map(heightOf), 0);
    const h = content ? Math.max(content, 14) + between : 20;
    packed.forEach((lines, c) => placeCell(lines, columns[c], y + h / 2));
    rows.push({ site: circuit.sites[s], y, h, count: cells.reduce((n, column) => n + column[s].length, 0) });
    y += h + 2;
  }
  return { columns, rows, width: Math.max(width, right + RIGHT), right, height: y + 2 };
}
