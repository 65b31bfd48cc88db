// Figures: marks can be reached by pointer, touch and keyboard, and panels can be chosen.
const at = (id) => document.getElementById(id);
const make = (tag, text, attributes) => {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  return element;
};
const svgMake = (tag, attributes, text) => {
  const element = document.createElementNS(document.querySelector("svg").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
// The data have four significant digits, or more where the three decimals of the store's value need them (embed.py).
const shown = (value) => {
  if (value === null || value === undefined) return "–";
  const short = Number(value.toPrecision(4)), small = short !== 0 && Math.abs(short) < 1e-3;
  return (small ? short.toExponential() : String(short)).replace(/-/g, "−");
};
const three = (value) => (value === null || value === undefined ? "–" : value.toFixed(3).replace(/^-(0.000)$/, "$1").replace("-", "−"));

// The page's data, gzipped in base64 (embed.py). Browsers support DecompressionStream since 2023.
async function unpack() {
  const bytes = Uint8Array.from(atob(at("data").textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const data = await unpack();
document.documentElement.classList.add("js");
for (const element of document.querySelectorAll(".scripted")) element.hidden = false;

(() => {
  const tip = document.body.appendChild(make("div", null, { class: "tip", "aria-hidden": "true", hidden: "" }));
  let told = null; // the mark that the tip is about

  function tell(mark) {
    if (told) told.classList.remove("on");
    told = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("on");
    tip.textContent = mark.querySelector("title").textContent;
    const box = mark.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const left = Math.min(Math.max(4, box.left + box.width / 2 - own.width / 2), innerWidth - own.width - 4);
    tip.style.left = `${left}px`;
    tip.style.top = `${box.top > own.height + 12 ? box.top - own.height - 8 : box.bottom + 8}px`;
  }

  // The mark with keyboard focus keeps its tip when the pointer leaves or the page scrolls.
  const focused = () => document.activeElement.closest(".mark");
  const marksOf = (root) => [...root.querySelectorAll(".panel:not([hidden]) .mark")];

  // Position of a mark in units of its view box: [x, y, half its width, half its height].
  function place(mark) {
    const bar = mark.querySelector("rect");
    if (!bar) return [...mark.getAttribute("transform").match(/-?[\d.]+/g).map(Number), 0, 0];
    const [x, y, w, h] = ["x", "y", "width", "height"].map((name) => Number(bar.getAttribute(name)));
    return [x + w / 2, y + h / 2, w / 2, h / 2];
  }

  // The mark nearest to the pointer, if it is within `most` units of the view box.
  function nearest(chart, event, most = Infinity) {
    const box = chart.getBoundingClientRect(), scale = chart.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = null, least = Infinity;
    for (const mark of chart.querySelectorAll(".mark")) {
      const [cx, cy, w, h] = place(mark);
      let dx = Math.max(0, Math.abs(x - cx) - w), dy = Math.max(0, Math.abs(y - cy) - h);
      // A bar is found by its position on the axis, even if the bar is short.
      if (chart.classList.contains("bars")) dx *= 0.01;
      if (chart.classList.contains("histogram")) dy *= 0.01;
      const far = dx * dx + dy * dy;
      if (far < least) [best, least] = [mark, far];
    }
    return least <= most * most ? best : null;
  }

  // A shown panel has its points as marks. A hidden panel has them as one path of dots.
  function points(panel) {
    const chart = panel.querySelector(".chart");
    if (!chart || !chart.dataset.points) return;
    const dots = chart.querySelector(".dots"), series = dots.parentNode;
    const there = series.querySelector(".mark");
    dots.toggleAttribute("hidden", !panel.hidden);
    dots.style.display = panel.hidden ? "" : "none";
    if (panel.hidden) for (const mark of series.querySelectorAll(".mark")) mark.remove();
    if (panel.hidden || there) return;
    const list = data.points[Number(chart.dataset.points)];
    const axis = (text) => {
      const [low, high, begin, end] = text.split(" ").map(Number);
      return (value) => (begin + ((value - low) / (high - low)) * (end - begin)).toFixed(1);
    };
    const x = axis(chart.dataset.x), y = axis(chart.dataset.y);
    const order = list.x.map((_, index) => index).sort((a, b) => list.x[a] - list.x[b]);
    const all = document.createDocumentFragment();
    for (const index of order) {
      const [effect, score] = [list.x[index], list.y[index]];
      const fact = data.facts[list.facts[index]]; // of the first facts alone the page has heatmaps
      const link = fact && `#fact=${encodeURIComponent(fact.id)}&run=${list.run}&window=${list.window}`;
      const about = { class: "mark", transform: `translate(${x(effect)} ${y(score)})` };
      const mark = fact ? svgMake("a", { ...about, href: link }) : svgMake("g", { ...about, role: "img" });
      const text = `${data.labels[list.facts[index]]}: effect ${shown(effect)}, rewrite score ${shown(score)}, ${list.name}`;
      mark.append(svgMake("title", {}, text), svgMake("circle", { class: "shape", r: 2.6 }));
      all.append(mark);
    }
    series.append(all);
  }

  // Each figure is one tab stop. Within it, the arrow keys move.
  function oneStop(figure, mark) {
    const marks = marksOf(figure);
    for (const one of marks) one.tabIndex = -1;
    if (marks.length) (mark || marks[0]).tabIndex = 0;
  }

  function beside(mark, step) {
    const series = [...mark.closest(".chart").querySelectorAll(".series")].filter((one) => one.querySelector(".mark"));
    const next = series[series.indexOf(mark.parentNode) + step];
    if (!next) return null;
    const x = place(mark)[mark.querySelector("rect") ? 1 : 0];
    return [...next.querySelectorAll(".mark")].reduce((best, one) => {
      const far = Math.abs(place(one)[one.querySelector("rect") ? 1 : 0] - x);
      return !best || far < best[1] ? [one, far] : best;
    }, null)[0];
  }

  function moved(mark, key) {
    const figure = mark.closest(".figure"), panel = mark.closest(".panel");
    const all = marksOf(figure), here = all.indexOf(mark);
    const panels = [...figure.querySelectorAll(".panel:not([hidden])")].filter((one) => one.querySelector(".mark"));
    const first = (step) => panels[panels.indexOf(panel) + step]?.querySelector(".mark");
    switch (key) {
      case "ArrowRight": return all[here + 1];
      case "ArrowLeft": return all[here - 1];
      case "ArrowUp": return beside(mark, -1) || first(-1);
      case "ArrowDown": return beside(mark, 1) || first(1);
      case "PageUp": return first(-1);
      case "PageDown": return first(1);
      case "Home": return all[0];
      case "End": return all[all.length - 1];
    }
    return undefined;
  }

  for (const figure of document.querySelectorAll(".figure")) {
    const panels = [...figure.querySelectorAll(".panel")], choices = [...figure.querySelectorAll("[data-facet]")];
    const facets = panels.map((panel) => JSON.parse(panel.dataset.facets));
    const fits = (place, one) => !one.value || one.value.slice(1) === facets[place][one.dataset.facet];
    const left = () => panels.map((_, place) => place).filter((place) => choices.every((one) => fits(place, one)));
    const choose = (changed) => {
      tell(null);
      if (!left().length) { // no panel has this combination, such as a method without this problem: take the first that fits
        const place = facets.findIndex((_, place) => fits(place, changed));
        for (const other of choices) if (other !== changed) other.value = `=${facets[place][other.dataset.facet]}`;
      }
      const here = new Set(left());
      panels.forEach((panel, place) => { panel.hidden = !here.has(place); points(panel); });
      oneStop(figure);
    };
    for (const one of choices) one.addEventListener("change", () => choose(one));
    choose(choices[0]);
    for (const chart of figure.querySelectorAll(".chart")) {
      const linked = (event) => nearest(chart, event, 14)?.getAttribute("href");
      let before = null; // what was told when a finger came down: the first tap tells, the second follows the link
      const point = (event) => {
        chart.style.cursor = linked(event) ? "pointer" : "";
        tell(nearest(chart, event));
      };
      chart.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") point(event); });
      chart.addEventListener("pointerdown", (event) => { before = told; point(event); });
      chart.addEventListener("click", (event) => {
        const link = linked(event);
        if (link && event.detail && (event.pointerType !== "touch" || before === told)) { event.preventDefault(); location.hash = link; }
      });
      chart.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") tell(focused()); });
    }
    figure.addEventListener("focusin", (event) => {
      const mark = event.target.closest(".mark");
      if (mark) { oneStop(figure, mark); tell(mark); }
    });
    figure.addEventListener("focusout", () => tell(null));
    figure.addEventListener("keydown", (event) => {
      const mark = event.target.closest(".mark");
      const next = mark && moved(mark, event.key);
      if (next) { event.preventDefault(); next.focus(); }
    });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tell(null); });
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest(".chart")) tell(null); });
  addEventListener("scroll", () => { if (told) tell(focused()); }, { passive: true });
})();
