"use strict";
// The map of patients: colours by choice, and who the nearest point is. All texts go in as textContent, never as markup.
(() => {
  const source = document.getElementById("map-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const root = document.getElementById("embedding-map");
  const svg = root.querySelector("svg.map");
  const dots = Array.from(svg.querySelectorAll("circle"));
  const choice = document.getElementById("map-colour");
  const panel = document.getElementById("map-patient");
  const places = dots.map((dot) => [Number(dot.getAttribute("cx")), Number(dot.getAttribute("cy"))]);
  const names = Object.keys(data.colourings);
  let chosen = -1;

  function legendItem(style, text) {
    const item = document.createElement("li");
    const swatch = document.createElementNS(svg.namespaceURI, "svg");
    swatch.setAttribute("viewBox", "0 0 24 12");
    swatch.setAttribute("class", "key");
    swatch.setAttribute("aria-hidden", "true");
    const dot = document.createElementNS(svg.namespaceURI, "circle");
    for (const [name, value] of [["cx", 12], ["cy", 6], ["r", 5], ["class", `d${style}`]]) dot.setAttribute(name, value);
    swatch.append(dot);
    item.append(swatch, text);
    return item;
  }

  function colour() {
    const colouring = data.colourings[names[choice.selectedIndex]];
    dots.forEach((dot, row) => dot.setAttribute("class", `d${colouring.styles[row]}${row === chosen ? " chosen" : ""}`));
    root.querySelector(".legend").replaceChildren(...colouring.legend.map(([style, text]) => legendItem(style, text)));
  }

  function describe(row) {
    if (chosen >= 0) dots[chosen].classList.remove("chosen");
    chosen = row;
    dots[row].classList.add("chosen");
    const parts = names.map((name) => `${name}: ${data.colourings[name].texts[row]}`);
    const codes = (data.topCodes[row] || []).map((place) => data.codes[place]);
    if (codes.length) parts.push(`top codes: ${codes.join("; ")}`);
    panel.textContent = parts.join(" · ");
  }

  function nearest(event) {
    const matrix = svg.getScreenCTM();
    if (!matrix) return;
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
    let best = -1;
    let least = 20 * 20;
    places.forEach(([x, y], row) => {
      const distance = (x - at.x) ** 2 + (y - at.y) ** 2;
      if (distance < least) [best, least] = [row, distance];
    });
    if (best >= 0) describe(best);
  }

  svg.addEventListener("pointermove", nearest);
  svg.addEventListener("pointerdown", nearest);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    describe((chosen + step + dots.length) % dots.length);
  });
  if (names.length) {
    choice.addEventListener("change", colour);
    colour();
  }
})();
// Paper has nothing to click: what is folded is printed open.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
