// Pictures: each figure as an SVG or a PNG file, with the panels that are shown, in the light colours.
const save = (name, blob) => {
  const address = URL.createObjectURL(blob);
  make("a", null, { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
};

const pictures = (() => {
  const WIDE = 320, GAP = 20, LINE = 15, DENSE = 3; // units of a view box, and dots of a PNG for each
  const FONT = { "font-family": "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif", "font-size": 11 };
  const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity", "font-weight"];

  // A copy of a drawing whose styles are attributes, because a file has no style sheet.
  function copied(drawing) {
    const copy = drawing.cloneNode(true);
    const from = [drawing, ...drawing.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
    from.forEach((one, place) => {
      const style = getComputedStyle(one), other = to[place];
      for (const { name } of [...other.attributes]) if (/^(class|style|href|role|tabindex|aria-.*|data-.*)$/.test(name)) other.removeAttribute(name);
      if (style.display === "none") other.setAttribute("display", "none");
      else if (one.childElementCount === 0) for (const name of STYLES) other.setAttribute(name, style.getPropertyValue(name));
      else other.setAttribute("opacity", style.opacity);
    });
    return copy;
  }

  function lines(text, most) {
    const found = [""];
    for (const word of text.split(" ")) {
      const last = found[found.length - 1];
      if (last && last.length + word.length >= most) found.push(word);
      else found[found.length - 1] = last ? `${last} ${word}` : word;
    }
    return found;
  }

  // A text from (x, y) down, one line below the other. Returns where the next may begin.
  function write(drawing, text, x, y, most, attributes) {
    lines(text, most).forEach((line, place) => drawing.append(svgMake("text", { x, y: y + LINE * (place + 0.8), fill: "#1b2027", ...attributes }, line)));
    return y + LINE * lines(text, most).length;
  }

  function page(width) {
    const drawing = svgMake("svg", { ...FONT, width });
    drawing.append(svgMake("rect", { width: "100%", height: "100%", fill: "#ffffff" }));
    return drawing;
  }

  function ended(drawing, width, height) {
    drawing.setAttribute("height", Math.ceil(height));
    drawing.setAttribute("viewBox", `0 0 ${width} ${Math.ceil(height)}`);
    return drawing;
  }

  // The panels of a figure that are shown, under its title, what was chosen, and its legend.
  function drawn(figure) {
    const shown = [...figure.querySelectorAll(".panel:not([hidden])")];
    const columns = Math.min(shown.length, Math.ceil(Math.sqrt(shown.length)), 4);
    const width = Math.max(columns, 1) * (WIDE + GAP) + GAP, drawing = page(width);
    const chosen = [...figure.querySelectorAll("[data-facet]")].filter((one) => one.value).map((one) => one.selectedOptions[0].text);
    let y = write(drawing, [titleOf(figure), ...chosen].join(" · "), GAP, GAP / 2, width / 7.5, { "font-size": 13, "font-weight": 600 }) + 4;
    let x = GAP;
    for (const item of figure.querySelectorAll(".legend li")) {
      const wide = 44 + 6.6 * item.textContent.length;
      if (x > GAP && x + wide > width) [x, y] = [GAP, y + LINE];
      const swatch = copied(item.querySelector("svg"));
      for (const [name, value] of Object.entries({ x, y: y + 1, width: 28, height: 12 })) swatch.setAttribute(name, value);
      drawing.append(swatch);
      write(drawing, item.textContent, x + 34, y - 2, 200);
      x += wide;
    }
    if (x > GAP) y += LINE;
    for (let row = 0; row < shown.length; row += columns) {
      const members = shown.slice(row, row + columns), below = y + 8;
      const tops = members.map((panel, place) => write(drawing, panel.querySelector(".panel-title")?.innerText ?? "", GAP + place * (WIDE + GAP), below, 48, { "font-weight": 600 }));
      const top = Math.max(...tops) + 2;
      const heights = members.map((panel, place) => {
        const chart = panel.querySelector(".chart"), copy = copied(chart), tall = chart.viewBox.baseVal.height;
        for (const [name, value] of Object.entries({ x: GAP + place * (WIDE + GAP), y: top, width: WIDE, height: tall, overflow: "visible" })) copy.setAttribute(name, value);
        drawing.append(copy);
        return tall;
      });
      y = top + Math.max(...heights);
    }
    return ended(drawing, width, y + GAP / 2);
  }

  const titleOf = (figure) => document.getElementById(figure.getAttribute("aria-labelledby")).firstChild.textContent.trim();

  // What `draw` draws, as text: in the light colours, whatever the page has.
  function written(draw) {
    document.documentElement.classList.add("light");
    try {
      return new XMLSerializer().serializeToString(draw());
    } finally {
      document.documentElement.classList.remove("light");
    }
  }

  async function dots(text) {
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    await image.decode();
    const canvas = make("canvas", null, { width: image.width * DENSE, height: image.height * DENSE });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return new Promise((done) => { canvas.toBlob(done, "image/png"); });
  }

  // Two buttons at the end of an element. name, title: functions, because what is drawn may change.
  function offer(element, name, title, draw) {
    const kinds = { SVG: async (text) => new Blob([text], { type: "image/svg+xml" }), PNG: dots };
    for (const [kind, made] of Object.entries(kinds)) {
      const button = make("button", `Save as ${kind}`, { type: "button", class: "save", "aria-label": `Save as ${kind}: ${title()}` });
      button.addEventListener("click", async () => save(`${name()}.${kind.toLowerCase()}`, await made(written(draw))));
      element.append(button);
    }
  }

  for (const figure of document.querySelectorAll(".figure")) {
    const saves = figure.appendChild(make("div", null, { class: "saves" }));
    offer(saves, () => figure.id.replace("figure-", ""), () => titleOf(figure), () => drawn(figure));
  }
  return { offer, page, write, ended };
})();
