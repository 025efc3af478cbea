// Tables that sort by a click on a header, with the keyboard too: headers hold buttons.
"use strict";
document.documentElement.classList.add("scripted");

const reportTables = {
  // The value of a cell to sort by: a number where there is one, null where there is nothing, else text.
  value(cell) {
    const text = (cell.dataset.value ?? cell.textContent).trim();
    if (text === "" || text === "–") return null;
    const number = Number(text.replaceAll(",", "").replace("−", "-"));
    return Number.isNaN(number) ? text : number;
  },

  // Rows of a body in the order of one of its columns; what has no value stays last, equal rows keep their order.
  sort(body, column, ascending) {
    const rows = [...body.rows].map((row) => ({ row, value: reportTables.value(row.cells[column]) }));
    const sign = ascending ? 1 : -1;
    rows.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
      if (typeof a.value === "number" && typeof b.value === "number") return sign * (a.value - b.value);
      return sign * String(a.value).localeCompare(String(b.value), "en", { numeric: true });
    });
    body.append(...rows.map(({ row }) => row));
  },

  // Buttons of the last row of headers stand for the last columns: a cell that spans two rows comes before them.
  columnOf(header) {
    const row = header.parentElement;
    const spanning = row.previousElementSibling ? row.previousElementSibling.querySelectorAll("[rowspan]").length : 0;
    return spanning + [...row.cells].indexOf(header);
  },

  sortBy(header) {
    const table = header.closest("table");
    const isNumber = header.classList.contains("number");
    const known = header.getAttribute("aria-sort");
    const ascending = known ? known !== "ascending" : !isNumber;  // the largest number first, the first word first
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    for (const body of table.tBodies) {
      if (!body.classList.contains("references")) reportTables.sort(body, reportTables.columnOf(header), ascending);
    }
  },

  // A table of rows: columns are {title, kind}, cells are text or numbers or null.
  make(caption, columns, rows) {
    const table = document.createElement("table");
    table.className = "sortable";
    table.createCaption().textContent = caption;
    const heads = table.createTHead().insertRow();
    for (const column of columns) {
      const head = document.createElement("th");
      head.scope = "col";
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = column.title;
      head.append(button);
      if (column.kind === "number") head.className = "number";
      heads.append(head);
    }
    const body = table.createTBody();
    for (const row of rows) {
      const line = body.insertRow();
      row.forEach((value, position) => {
        const cell = document.createElement(position === 0 ? "th" : "td");
        if (position === 0) cell.scope = "row";
        const { kind, digits } = columns[position];
        if (kind === "number") {
          cell.className = "number";
          cell.dataset.value = value ?? "";
        }
        cell.textContent = value === null ? "–" : kind === "number" && digits !== null ? value.toFixed(digits) : String(value);
        line.append(cell);
      });
    }
    return table;
  },
};

document.addEventListener("click", (event) => {
  const header = event.target.closest("table.sortable thead th");
  if (header && event.target.closest("button")) reportTables.sortBy(header);
});
