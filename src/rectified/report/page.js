"use strict";

// A cell is a number, a text or a gap; gaps (and "not a number") come last in either direction.
function key(cell) {
  const number = "value" in cell.dataset ? Number(cell.dataset.value) : null;
  const isGap = "gap" in cell.dataset || Number.isNaN(number);
  return { number, isGap, text: cell.textContent };
}

function compare(a, b, direction) {
  if (a.isGap || b.isGap) return a.isGap - b.isGap;
  if (a.number !== null && b.number !== null) {
    return direction * (a.number === b.number ? 0 : a.number < b.number ? -1 : 1);
  }
  return direction * a.text.localeCompare(b.text, "en", { numeric: true });
}

function sort(head) {
  const ascends = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", ascends ? "ascending" : "descending");
  const body = head.closest("table").tBodies[0];
  const rows = Array.from(body.rows, (row) => ({ row, key: key(row.cells[head.cellIndex]) }));
  rows.sort((a, b) => compare(a.key, b.key, ascends ? 1 : -1));
  body.append(...rows.map(({ row }) => row));
}

async function copy(button) {
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  } catch {
    // Where the browser refuses the clipboard, one keystroke is left to the reader.
    getSelection().selectAllChildren(code);
  }
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sort(button.parentElement));
}
for (const button of document.querySelectorAll(".code button")) {
  button.hidden = false;
  button.addEventListener("click", () => copy(button));
}

// Structures: cartoons where 3Dmol.js is in the page, else C-alpha traces that turn when dragged.
function cartoon(place) {
  const still = place.innerHTML;
  try {
    place.replaceChildren();
    const viewer = $3Dmol.createViewer(place, { backgroundAlpha: 0 });
    viewer.addModel(place.dataset.pdb, "pdb");
    viewer.setStyle({}, { cartoon: { color: "spectrum", arrows: true } });
    viewer.zoomTo();
    viewer.render();
  } catch {
    // No WebGL here: the still drawing comes back.
    place.innerHTML = still;
    turnable(place);
  }
}

function turnable(place) {
  const lines = [...place.querySelectorAll("line")];
  const points = place.dataset.pdb.split("\n")
    .filter((row) => row.startsWith("ATOM") && row.slice(12, 16).trim() === "CA")
    .map((row) => [30, 38, 46].map((column) => Number(row.slice(column, column + 8))));
  const middle = [0, 1, 2].map((axis) => points.reduce((sum, p) => sum + p[axis], 0) / points.length);
  let places = points.map((p) => p.map((value, axis) => value - middle[axis]));
  const reach = Math.max(...places.map((p) => Math.hypot(...p)));
  const draw = () => {
    const order = lines.map((line, i) => [line, i, places[i][2] + places[i + 1][2]]);
    order.sort((a, b) => a[2] - b[2]);
    for (const [line, i, depth] of order) {
      const [from, to] = [places[i], places[i + 1]].map((p) => p.map((value) => 50 + (45 * value) / reach));
      line.setAttribute("x1", from[0]); line.setAttribute("y1", 100 - from[1]);
      line.setAttribute("x2", to[0]); line.setAttribute("y2", 100 - to[1]);
      line.setAttribute("stroke-width", 2 + (0.6 * depth) / reach);
      line.parentElement.append(line);
    }
  };
  const turn = (a, b, angle) => {
    const [c, s] = [Math.cos(angle), Math.sin(angle)];
    places = places.map((p) => {
      const q = [...p];
      q[a] = c * p[a] - s * p[b];
      q[b] = s * p[a] + c * p[b];
      return q;
    });
  };
  place.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    turn(0, 2, -event.movementX / 100);
    turn(1, 2, event.movementY / 100);
    draw();
  });
  place.addEventListener("pointerdown", (event) => place.setPointerCapture(event.pointerId));
}

for (const place of document.querySelectorAll("[data-pdb]")) {
  (typeof $3Dmol === "undefined" ? turnable : cartoon)(place);
}

let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  for (const details of unfolded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of unfolded) details.open = false;
});
