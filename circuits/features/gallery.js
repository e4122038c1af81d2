"use strict";
// A table of latents that sorts by any column, and the card of the one that is chosen.
const entries = JSON.parse(document.getElementById("data").textContent);
const percent = (x) => (100 * x).toFixed(1) + "%";
const signed = (x) => (x < 0 ? "\u2212" : "+") + Math.abs(x).toPrecision(2);
const columns = [
  ["latent", "latent", (e) => e.latent],
  ["rate", "active", (e) => percent(e.rate)],
  ["max", "largest", (e) => e.max.toPrecision(3)],
  ["label", "label", (e) => e.label],
  ["purity", "purity", (e) => percent(e.purity)],
  ["boosted", "raises", (e) => e.boosted],
  ["effect", "effect", (e) => `${signed(e.effect)} [${signed(e.low)}, ${signed(e.high)}]`],
];
const body = document.querySelector("tbody");
let chosen = null, by = "rate", down = true, asked = 0;

function compare(a, b) {
  const [x, y] = [a[by], b[by]];
  const order = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
  return (down ? -order : order) || a.latent - b.latent;
}

function list() {
  document.querySelectorAll("th").forEach((head, i) => {
    const mine = columns[i][0] === by;
    head.textContent = columns[i][1] + (mine ? (down ? " \u25be" : " \u25b4") : "");
    head.setAttribute("aria-sort", mine ? (down ? "descending" : "ascending") : "none");
  });
  body.replaceChildren(...entries.slice().sort(compare).map((entry) => {
    const row = document.createElement("tr");
    row.tabIndex = 0;
    row.className = entry.latent === chosen ? "chosen" : "";
    for (const [, , text] of columns) row.insertCell().textContent = text(entry);
    row.onclick = () => show(entry);
    row.onkeydown = (event) => { if (event.key === "Enter") show(entry); };
    row.dataset.latent = entry.latent;
    return row;
  }));
}

async function show(entry) {
  const mine = ++asked;
  chosen = entry.latent;
  location.hash = entry.latent;
  for (const row of body.rows)
    row.className = Number(row.dataset.latent) === chosen ? "chosen" : "";
  const bytes = Uint8Array.from(atob(entry.card), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const figure = JSON.parse(await new Response(stream).text());
  if (mine !== asked) return; // another one was chosen meanwhile
  await Plotly.react("card", figure.data, figure.layout,
    { displaylogo: false, showSendToCloud: false });
  document.getElementById("card").dataset.latent = entry.latent;
}

columns.forEach(([key], i) => {
  const head = document.createElement("th");
  head.tabIndex = 0;
  const sort = () => {
    if (by === key) down = !down;
    else [by, down] = [key, !["latent", "label", "boosted"].includes(key)];
    list();
  };
  head.onclick = sort;
  head.onkeydown = (event) => { if (event.key === "Enter") sort(); };
  document.querySelector("thead tr").append(head);
});
list();
const wanted = Number(location.hash.slice(1));
const first = entries.find((e) => location.hash && e.latent === wanted) ||
  entries.slice().sort(compare)[0];
if (first) show(first);
