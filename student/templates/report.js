"use strict";
// Heads of columns become buttons; without this script the tables stay in their order.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, heads, place));
  });
}

function sort(table, heads, place) {
  const numeric = !heads[place].classList.contains("text");
  const before = heads[place].getAttribute("aria-sort");
  // Numbers begin with the largest, names with the first.
  const ascending = before ? before === "descending" : !numeric;
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[place].setAttribute("aria-sort", ascending ? "ascending" : "descending");
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
    const keyed = rows.map((row) => [key(row.cells[place], numeric), row]);
    const known = keyed.filter(([value]) => value !== null);
    known.sort(([a], [b]) => (numeric ? a - b : a.localeCompare(b, "en", { numeric: true })) * (ascending ? 1 : -1));
    const empty = keyed.filter(([value]) => value === null);
    body.append(...[...known, ...empty].map(([, row]) => row));
  }
}

function key(cell, numeric) {
  if (numeric) return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  return cell.textContent.trim() || null;
}
