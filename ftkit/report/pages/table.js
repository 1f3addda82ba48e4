"use strict";
// The table: sorting, filtering, unfolding. It tells the charts which runs are shown by the event "runs-shown".

const page = { ...JSON.parse(document.getElementById("data").textContent), shown: null };
page.shown = new Set(page.runs.keys());

(() => {
  const table = document.getElementById("runs");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headings = [...table.tHead.rows[1].cells];
  const search = document.getElementById("search");
  const menus = [...document.querySelectorAll("#filters select")];
  const texts = rows.map((row) => row.textContent.toLowerCase());

  function sortBy(heading) {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of headings) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const column = headings.indexOf(heading);
    const isNumber = heading.classList.contains("number");
    const key = (row) => {
      const cell = row.cells[column];
      const text = cell.dataset.value ?? cell.textContent.trim();
      return isNumber ? Number(text) : text;
    };
    const isEmpty = (row) => row.cells[column].classList.contains("empty");
    const order = (a, b) => isNumber ? key(a) - key(b) : key(a).localeCompare(key(b), undefined, { numeric: true });
    fold();
    // What was not taken stands last, whichever way the rest is sorted.
    rows.sort((a, b) => isEmpty(a) - isEmpty(b) || (isEmpty(a) ? 0 : ascending ? order(a, b) : order(b, a)));
    body.append(...rows);
  }

  function filter() {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = menus.filter((menu) => menu.value);
    const places = chosen.map((menu) => headings.findIndex((heading) => heading.dataset.key === menu.dataset.column));
    for (const menu of menus) menu.classList.toggle("active", Boolean(menu.value));
    page.shown = new Set();
    fold();
    for (const row of rows) {
      const number = Number(row.dataset.run);
      const fits = wanted.every((word) => texts[number].includes(word))
        && chosen.every((menu, index) => row.cells[places[index]].textContent.trim() === menu.value);
      row.hidden = !fits;
      if (fits) page.shown.add(number);
    }
    document.getElementById("shown").value = `${page.shown.size} of ${rows.length}`;
    document.dispatchEvent(new Event("runs-shown"));
  }

  function element(tag, text) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function sheet(run) {
    const made = element("div");
    made.className = "sheet";
    for (const { title, head, rows: lines } of run.details) {
      const part = element("div");
      const inner = element("table");
      if (head) inner.createTHead().insertRow().append(...head.map((text) => element("th", text)));
      const innerBody = inner.createTBody();
      for (const line of lines) innerBody.insertRow().append(...line.map((text) => element("td", text)));
      part.append(element("h3", title), inner);
      made.append(part);
    }
    return made;
  }

  function fold() {
    for (const row of body.querySelectorAll(".details")) row.remove();
    for (const button of body.querySelectorAll('[aria-expanded="true"]')) button.setAttribute("aria-expanded", "false");
  }

  function toggle(row) {
    const button = row.querySelector(".unfold");
    const unfolded = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!unfolded));
    if (unfolded) { row.nextElementSibling.remove(); return; }
    const details = element("tr");
    details.className = "details";
    const cell = details.insertCell();
    cell.colSpan = headings.length;
    cell.append(sheet(page.runs[Number(row.dataset.run)]));
    row.after(details);
  }

  page.light = (number) => {
    for (const row of rows) row.classList.toggle("lit", Number(row.dataset.run) === number);
  };
  page.reveal = (number) => {
    const row = rows.find((one) => Number(one.dataset.run) === number);
    page.light(number);
    row.scrollIntoView({ block: "center" });
  };

  for (const heading of headings) heading.querySelector("button").addEventListener("click", () => sortBy(heading));
  for (const row of rows) row.querySelector(".unfold").addEventListener("click", () => toggle(row));
  search.addEventListener("input", filter);
  for (const menu of menus) menu.addEventListener("change", filter);
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());

  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copies);
      const label = button.textContent;
      try {
        await navigator.clipboard.writeText(source.value);
      } catch { // an older way, for pages opened from a file
        source.select();
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = label; }, 3000);
    });
  }

  const root = document.documentElement;
  const stored = (() => { try { return localStorage.getItem("ftkit-theme"); } catch { return null; } })();
  if (stored) root.dataset.theme = stored;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.body).getPropertyValue("--paper").trim() === "#121519";
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("ftkit-theme", root.dataset.theme); } catch { /* a file may not store */ }
    document.dispatchEvent(new Event("theme-changed"));
  });
})();
