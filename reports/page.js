"use strict";
// Tables: a click on a heading sorts by it, numbers from high to low first; what has no value comes last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const numbers = [...body.rows].some((row) => row.cells[column].dataset.value !== undefined);
    const before = head.getAttribute("aria-sort");
    const order = before ? (before === "descending" ? "ascending" : "descending") : numbers ? "descending" : "ascending";
    const sign = order === "descending" ? -1 : 1;
    const key = (row) => { const cell = row.cells[column]; return numbers ? cell.dataset.value : cell.textContent; };
    const compare = (a, b) => numbers ? Number(key(a)) - Number(key(b)) : key(a).localeCompare(key(b));
    const rows = [...body.rows], known = rows.filter((row) => key(row) !== "");
    known.sort((a, b) => sign * compare(a, b));
    body.append(...known, ...rows.filter((row) => key(row) === ""));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
  }));
}
// Examples: the slider says how much of the picture, from the left, shows the truth.
for (const slider of document.querySelectorAll(".wipe input")) {
  slider.addEventListener("input", () => {
    const example = slider.closest(".example");
    example.style.setProperty("--at", slider.value + "%");
    example.classList.toggle("moved", slider.value > 0);
  });
}
// The confusion matrix: what a cell holds, under the pointer or chosen with the arrow keys.
for (const map of document.querySelectorAll(".map")) {
  const { names, rows, totals } = JSON.parse(map.querySelector("script").textContent);
  const svg = map.querySelector("svg"), cell = map.querySelector(".cell"), output = map.querySelector("output");
  let truth = 0, predicted = 0;
  const show = () => {
    const count = rows[truth][predicted] || 0, share = totals[truth] ? (100 * count) / totals[truth] : 0;
    cell.setAttribute("x", predicted);
    cell.setAttribute("y", truth);
    cell.setAttribute("visibility", "visible");
    const isolate = (name) => "\u2068" + name + "\u2069";
    const what = truth === predicted ? "is found" : "is taken for " + isolate(names[predicted]);
    output.textContent = `${share.toFixed(share < 1 ? 2 : 1)} % of ${isolate(names[truth])} ${what}: ` +
      `${count.toLocaleString("en")} of ${totals[truth].toLocaleString("en")} pixels`;
  };
  const inside = (value) => Math.min(names.length - 1, Math.max(0, Math.floor(value)));
  svg.addEventListener("pointermove", (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.querySelector("image").getScreenCTM().inverse());
    truth = inside(point.y);
    predicted = inside(point.x);
    show();
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    truth = inside(truth + step[0]);
    predicted = inside(predicted + step[1]);
    show();
  });
}
