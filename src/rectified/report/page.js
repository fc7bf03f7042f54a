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

let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  for (const details of unfolded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of unfolded) details.open = false;
});
