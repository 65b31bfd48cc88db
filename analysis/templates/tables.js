// Tables: sort by a click on a heading, filter by the columns that offer it, save as CSV. Code blocks: copy.
const tables = (() => {
  const LONG = 12; // rows; shorter tables need no filter

  // The sort key of a cell: its number or its text, or null, which is sorted last.
  function worth(cell, numeric) {
    const text = cell.textContent.trim();
    if (text === "–" || text === "") return null;
    if (!numeric) return text;
    const number = parseFloat(text.replace(/−/g, "-").replace(/,/g, "").replace(/^<\s*/, ""));
    return Number.isNaN(number) ? null : number - (text.startsWith("<") ? 1e-9 : 0);
  }

  function sortBy(table, column, down) {
    const body = table.tBodies[0], numeric = table.tHead.rows[0].cells[column].classList.contains("n");
    const keyed = [...body.rows].map((row) => [worth(row.cells[column], numeric), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
    });
    body.append(...keyed.map(([, row]) => row));
  }

  function headings(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", head.textContent, { type: "button", class: "sort" });
      head.setAttribute("aria-sort", "none");
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const one of heads) one.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sortBy(table, column, down);
      });
    });
  }

  function resort(table) {
    const heads = [...table.tHead.rows[0].cells], column = heads.findIndex((head) => /ing$/.test(head.getAttribute("aria-sort")));
    if (column >= 0) sortBy(table, column, heads[column].getAttribute("aria-sort") === "descending");
  }

  const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);

  // The CSV of the rows that the page shows, for tables that have no CSV in the data.
  function written(table) {
    const rows = [...table.tHead.rows, ...[...table.tBodies[0].rows].filter((row) => !row.hidden)];
    const cell = (one) => quoted(one.textContent.replace(/−/g, "-").replace(/^–$/, ""));
    return rows.map((row) => [...row.cells].map(cell).join(",")).join("\n") + "\n";
  }

  function filters(table, block, key) {
    const heads = [...table.tHead.rows[0].cells], rows = [...table.tBodies[0].rows];
    const columns = heads.map((head, column) => [head, column]).filter(([head]) => "choose" in head.dataset);
    if (rows.length <= LONG || !columns.length) return;
    const tools = make("div", null, { class: "tools controls" });
    const status = make("span", "", { class: "note", role: "status" });
    const chosen = new Map();
    for (const [head, column] of columns) {
      const label = make("label", head.textContent, { for: `${key}-filter-${column}` });
      const select = make("select", null, { id: `${key}-filter-${column}` });
      select.append(make("option", "all", { value: "" }));
      const values = [...new Set(rows.map((row) => row.cells[column].textContent))];
      for (const value of values) select.append(make("option", value, { value: `=${value}` }));
      label.append(select);
      tools.append(label);
      select.addEventListener("change", () => {
        chosen.set(column, select.value);
        for (const row of rows) row.hidden = [...chosen].some(([at, value]) => value && row.cells[at].textContent !== value.slice(1));
        status.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
      });
    }
    tools.append(status);
    block.prepend(tools);
  }

  // A button at the end of an element that saves a text as CSV.
  function offer(element, name, title, text) {
    const button = make("button", "Save as CSV", { type: "button", class: "save", "aria-label": `Save as CSV: ${title}` });
    button.addEventListener("click", () => save(`${name()}.csv`, new Blob([text()], { type: "text/csv;charset=utf-8" })));
    element.append(button);
  }

  for (const block of document.querySelectorAll(".table")) {
    const table = block.querySelector("table"), key = block.dataset.key;
    offer(block, () => key, block.querySelector(".scroll").ariaLabel, () => data.csv[key] || written(table));
    if (table.classList.contains("plain")) continue;
    filters(table, block, key);
    headings(table);
    if (table.tBodies[0].rows.length > 24) block.querySelector(".scroll").classList.add("long");
  }

  for (const block of document.querySelectorAll(".code")) {
    const button = make("button", "Copy", { type: "button", "aria-label": `Copy: ${block.querySelector("pre").getAttribute("aria-label")}` });
    button.addEventListener("click", async () => {
      const code = block.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch { // some browsers deny files the clipboard: select the text, so that it can be copied by hand
        getSelection().selectAllChildren(code);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    block.append(button);
  }

  // A link to an element in a closed <details> opens it.
  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folded = target && target.closest("details");
    if (folded) { folded.open = true; folded.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  open();
  return { resort, offer, quoted };
})();
