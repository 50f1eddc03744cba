// Move along the depth curve and see which training images each layer's features find nearest to a few held-out ones.
// All of it was computed when the book was built; nothing is loaded but one small file.

import { paint } from "./picture.js";

const WIDTH = 460, HEIGHT = 180, EDGE = 56;

for (const section of document.querySelectorAll(".igpt-layers")) show(section).catch(() => {
  section.textContent = "The neighbours are missing from this copy of the book.";
});

async function show(section) {
  const response = await fetch(new URL(`${section.dataset.live}layers.json`, document.baseURI));
  if (!response.ok) throw new Error();
  const { model, side, colours, images, shown, neighbours, curve, record } = await response.json();
  section.innerHTML = `
    <p><label>Layer <input type="range" min="0" max="${curve.length - 1}" value="0"></label> <output></output></p>
    <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="Test accuracy of the probe by layer"></svg>
    <table class="layers-table"><caption>Held-out image, then its nearest training images by ${model}'s features</caption><tbody></tbody></table>
    <p class="layers-note">Framed where the class is another. The curve is <a>one record's</a>, with its interval over test images.</p>`;
  section.querySelector("a").href = new URL(`../records/${record}`, new URL(section.dataset.live, document.baseURI)).href;
  const slider = section.querySelector("input"), said = section.querySelector("output"), body = section.querySelector("tbody");
  const svg = section.querySelector("svg");
  const lowest = Math.min(...curve.map((point) => point.low)), highest = Math.max(...curve.map((point) => point.high));
  const x = (layer) => EDGE + (layer / (curve.length - 1)) * (WIDTH - 2 * EDGE);
  const y = (accuracy) => HEIGHT - EDGE + ((accuracy - lowest) / (highest - lowest)) * (2 * EDGE - HEIGHT);
  const percent = (value) => `${(100 * value).toFixed(1)} %`;

  const draw = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text) element.textContent = text;
    svg.append(element);
    return element;
  };
  for (const value of [lowest, highest]) draw("text", { x: 0, y: y(value) + 4 }, percent(value));
  for (const { layer } of curve) draw("text", { x: x(layer), y: HEIGHT - 8, "text-anchor": "middle" }, String(layer));
  for (const { layer, low, high } of curve) draw("line", { x1: x(layer), x2: x(layer), y1: y(low), y2: y(high), class: "layers-bar" });
  draw("polyline", { points: curve.map(({ layer, accuracy }) => `${x(layer)},${y(accuracy)}`).join(" "), class: "layers-line" });
  const dot = draw("circle", { r: 7, class: "layers-dot" });

  const cells = images.map((image) => {
    const row = body.insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.append(picture(image, `Held-out image, class ${image.label}`));
    row.append(head);
    return neighbours[0][0].map(() => row.insertCell());
  });

  function picture(image, name) {
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name);
    paint(canvas, image.tokens, colours, side);
    return canvas;
  }

  function choose(layer) {
    slider.value = layer;
    const { accuracy, low, high } = curve[layer];
    dot.setAttribute("cx", x(layer));
    dot.setAttribute("cy", y(accuracy));
    let same = 0;
    neighbours[layer].forEach((found, i) =>
      found.forEach((index, place) => {
        const canvas = picture(shown[index], `Neighbour ${place + 1}, class ${shown[index].label}`);
        const agrees = shown[index].label === images[i].label;
        same += agrees;
        canvas.classList.toggle("layers-other", !agrees);
        cells[i][place].replaceChildren(canvas);
      }),
    );
    const all = images.length * neighbours[layer][0].length;
    said.textContent = `${layer}${layer === curve.length - 1 ? " (the final norm)" : ""}: the probe reaches ${percent(accuracy)} [${percent(low)}, ${percent(high)}]; ${same} of ${all} neighbours are of the image's class`;
  }

  slider.addEventListener("input", () => choose(Number(slider.value)));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = (((event.clientX - box.left) / box.width) * WIDTH - EDGE) / (WIDTH - 2 * EDGE);
    const layer = Math.min(curve.length - 1, Math.max(0, Math.round(at * (curve.length - 1))));
    if (layer !== Number(slider.value)) choose(layer);
  });
  choose(curve.reduce((best, point) => (point.accuracy > curve[best].accuracy ? point.layer : best), 0));
}
