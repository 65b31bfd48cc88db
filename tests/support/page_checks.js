// Checks of the page in the browser, in the manner of axe-core. Most functions return what is wrong.
const visible = (one) => one.getClientRects().length > 0 && getComputedStyle(one).visibility !== "hidden";
const shownTexts = () => [...document.querySelectorAll(".panel:not([hidden]) .chart text")];

// Names, ids, references, headings, roles, table heads, order, scrolling, sizes, landmarks, language.
function accessible() {
  const all = (what) => [...document.querySelectorAll(what)].filter(visible);
  const about = (one) => `${one.tagName}#${one.id}.${one.getAttribute("class")} ${one.textContent.slice(0, 40)}`;
  const named = (one) => one.ariaLabel || one.labels?.length || one.querySelector("title")?.textContent ||
    one.getAttribute("aria-labelledby") || (one.matches("button, a, summary, th") && one.textContent.trim());
  const wrong = {};
  wrong.name = all("button, a, select, input, summary, svg:not([aria-hidden]), .mark, [role=grid], pre, figure")
    .filter((one) => !named(one)).map(about);
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  wrong.ids = ids.filter((id, place) => ids.indexOf(id) !== place);
  wrong.references = [...document.querySelectorAll("[aria-labelledby], [for]")]
    .filter((one) => !document.getElementById(one.getAttribute("aria-labelledby") || one.getAttribute("for"))).map(about);
  const levels = all("h1, h2, h3, h4, h5, h6").map((one) => Number(one.tagName[1]));
  wrong.headings = levels.filter((level, place) => place && level > levels[place - 1] + 1);
  if (levels.filter((level) => level === 1).length !== 1) wrong.headings.push("not one h1");
  const roles = ["group", "img", "grid", "status"];
  wrong.roles = [...document.querySelectorAll("[role]")].filter((one) => !roles.includes(one.getAttribute("role"))).map(about);
  wrong.heads = all("table th").filter((one) => !one.scope).map(about);
  wrong.tables = all("table").filter((one) => !one.caption?.textContent.trim() && !named(one)).map(about);
  wrong.order = [...document.querySelectorAll("[tabindex]")].filter((one) => one.tabIndex > 0).map(about);
  wrong.scrolling = all(".scroll, pre").filter((one) => one.scrollWidth > one.clientWidth && one.tabIndex < 0 &&
    !one.querySelector("[tabindex='0']")).map(about);
  wrong.targets = all("button, select, input, summary").map((one) => [one.getBoundingClientRect(), about(one)])
    .filter(([box]) => box.height < 23.5 || box.width < 23.5).map(([box, text]) => `${box.width}×${box.height} ${text}`);
  wrong.landmarks = ["header", "main", "nav", "footer"].filter((one) => all(one).length !== 1);
  wrong.language = document.documentElement.lang ? [] : ["no lang"];
  return wrong;
}

// Texts with a contrast under 4.5, drawings with a contrast under 3, and the number of texts checked.
function contrast() {
  const numbers = (color) => color.match(/[\d.]+/g).map(Number);
  const light = (color) => {
    const parts = numbers(color).slice(0, 3).map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * parts[0] + .7152 * parts[1] + .0722 * parts[2];
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor, parts = numbers(color);
      if (parts.length < 4 || parts[3] > 0) return color;
    }
    return getComputedStyle(document.documentElement).backgroundColor;
  };
  const ratio = (one, other) => {
    const [a, b] = [light(one), light(other)];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  };
  const poor = [];
  let looked = 0;
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !one.getClientRects().length || one.closest("option, script, style, title")) continue;
    const style = getComputedStyle(one), drawn = one.namespaceURI.endsWith("svg");
    const found = ratio(drawn ? style.fill : style.color, behind(drawn ? one.closest("svg") : one));
    looked += 1;
    if (found < 4.5) poor.push(`${found.toFixed(2)} ${one.tagName}.${one.getAttribute("class")} ${one.textContent.slice(0, 30)}`);
  }
  for (const one of document.querySelectorAll(".panel:not([hidden]) .bar, .panel:not([hidden]) .shape, .swatch .shape, .ideal")) {
    const style = getComputedStyle(one), ink = style.fill === "none" ? style.stroke : style.fill;
    const page = numbers(getComputedStyle(document.body).backgroundColor), opacity = Number(style.opacity);
    const mixed = numbers(ink).slice(0, 3).map((v, place) => v * opacity + page[place] * (1 - opacity));
    const found = ratio(`rgb(${mixed.join(",")})`, `rgb(${page.join(",")})`);
    if (found < 3) poor.push(`${found.toFixed(2)} ${one.getAttribute("class")}`);
  }
  return { poor: [...new Set(poor)], looked };
}

// Focusable elements that do not show the focus.
function unseenFocus() {
  const unseen = [];
  for (const one of document.querySelectorAll("a, button, select, input, summary, [tabindex='0']")) {
    if (!one.getClientRects().length || one.closest("details:not([open])") && one.tagName !== "SUMMARY") continue;
    one.focus({ focusVisible: true, preventScroll: true });
    const style = getComputedStyle(one), shape = one.querySelector(".shape, .bar");
    const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
    const stroked = shape && parseFloat(getComputedStyle(shape).strokeWidth) >= 2;
    if (document.activeElement === one && !outlined && !stroked) unseen.push(`${one.tagName} ${one.className} ${one.textContent.slice(0, 30)}`);
  }
  return unseen;
}

// Texts of a chart that overlap another text of the same chart.
function overlaps() {
  return [...document.querySelectorAll(".panel:not([hidden]) .chart")].flatMap((chart) => {
    const boxes = [...chart.querySelectorAll("text")].map((text) => [text.getBoundingClientRect(), text.textContent]);
    return boxes.flatMap(([a, one], place) => boxes.slice(place + 1)
      .filter(([b]) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
      .map(([, other]) => `${chart.ariaLabel}: ${one} on ${other}`));
  });
}

// Texts of charts that extend beyond the window's right edge.
const cutOff = () => shownTexts().filter((text) => text.getBoundingClientRect().right > innerWidth + 1).map((text) => text.textContent);

const smallestText = () => Math.min(...shownTexts().map((text) => text.getBoundingClientRect().height));

// Whether an element is completely in the window.
function inWindow(what) {
  const box = document.querySelector(what).getBoundingClientRect();
  return box.left >= 0 && box.right <= innerWidth && box.top >= 0 && box.bottom <= innerHeight;
}
