// The scoreboard, filtered by table, tier and verdict, and sorted by any column. Without this script it is a plain
// table; its numbers open their receipts either way.

const NONE = "no counterpart";

for (const table of document.querySelectorAll("#table-scoreboard")) enhance(table);

function enhance(table) {
  const heads = [...table.tHead.rows[0].cells], rows = [...table.tBodies[0].rows];
  const titles = heads.map((head) => head.textContent.trim());
  const column = (title) => titles.indexOf(title);
  const tiers = titles.slice(column("Published") + 1, column("What")); // ours, and a reader's own behind them
  const word = (row, tier) => row.cells[column(tier)].querySelector("[data-word]")?.dataset.word ?? NONE;

  const form = document.createElement("form");
  form.className = "scoreboard-form";
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", "Filter the scoreboard");
  const filters = {
    table: select("Table", new Set(rows.map((row) => row.cells[column("Table")].textContent.trim()))),
    tier: select("Tier", tiers),
    verdict: select("Verdict", new Set(rows.flatMap((row) => tiers.map((tier) => word(row, tier))))),
  };
  const count = document.createElement("output");
  form.append(count);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", filter);
  (table.closest(".pst-scrollable-table-container") ?? table).before(form);

  function select(name, words) {
    const label = document.createElement("label"), list = document.createElement("select");
    list.setAttribute("aria-label", name);
    list.append(new Option("all", ""), ...[...words].map((text) => new Option(text)));
    label.append(`${name} `, list);
    form.append(label);
    return list;
  }

  function filter() {
    const { table: chosen, tier, verdict } = filters, looked = tier.value ? [tier.value] : tiers;
    let shown = 0;
    for (const row of rows) {
      const fits =
        (!chosen.value || row.cells[column("Table")].textContent.trim() === chosen.value) &&
        (!verdict.value || looked.some((name) => word(row, name) === verdict.value));
      row.hidden = !fits;
      shown += fits;
    }
    for (const name of tiers)
      for (const row of table.rows) row.cells[column(name)].hidden = !looked.includes(name);
    count.textContent = `${shown} of ${rows.length} numbers`;
  }

  // What a cell sorts by: the number it begins with, else its text. Cells without a value come last either way.
  function key(row, at) {
    const text = (row.cells[at].querySelector(".receipt-button") ?? row.cells[at]).textContent.trim();
    const number = parseFloat(text.replaceAll(",", ""));
    return { empty: text === "–" || text === "pending" ? 1 : 0, number, text };
  }

  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort-button";
    button.textContent = titles[at];
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const keys = new Map(rows.map((row) => [row, key(row, at)]));
      const numbers = [...keys.values()].every((k) => k.empty || !Number.isNaN(k.number));
      rows.sort((a, b) => {
        const one = keys.get(a), other = keys.get(b);
        return one.empty - other.empty || sign * (numbers && !one.empty ? one.number - other.number : one.text.localeCompare(other.text));
      });
      table.tBodies[0].append(...rows);
    });
  });
  filter();
}
