// A photo in the palette's colours: what is lost, where, and the tokens. The file never leaves the page.

import { addFigure, paint, quantize, readPicture, takeDrops } from "./picture.js";

const VIEW = `
<p><label>A photo: <input type="file" accept="image/png,image/jpeg,image/webp,image/gif"></label>
   <label>Pixels a side <select><option>32</option><option>48</option><option>64</option><option>96</option></select></label></p>
<div class="live-results" role="group" aria-label="As it is, in the palette, what is lost"></div>
<p class="live-status" role="status"></p>
<p class="palette-pixel"></p>
<details><summary>The tokens, row by row</summary><textarea readonly aria-label="Tokens, row by row" rows="8"></textarea></details>`;

for (const section of document.querySelectorAll(".igpt-palette")) show(section).catch(() => {
  section.textContent = "The palette's file is missing from this copy of the book.";
});

async function show(section) {
  const response = await fetch(new URL(section.dataset.palette, document.baseURI));
  if (!response.ok) throw new Error();
  const { centres, colours } = await response.json();
  section.innerHTML = VIEW;
  const file = section.querySelector("input"), sides = section.querySelector("select"), status = section.querySelector(".live-status");
  const results = section.querySelector(".live-results"), readout = section.querySelector(".palette-pixel"), list = section.querySelector("textarea");
  let chosen = null; // the last file that could be read

  async function draw(candidate) {
    const side = Number(sides.value);
    try {
      const pixels = candidate ? await readPicture(candidate, side, 3) : wheel(side);
      chosen = candidate;
      look(pixels, side, candidate?.name ?? "A colour wheel, until you choose a photo");
    } catch (error) {
      status.textContent = error.message;
    }
  }

  function look(pixels, side, name) {
    const tokens = quantize(pixels, centres);
    // What is lost at each pixel: the root mean square over channels, in levels of 0 to 255.
    const lost = tokens.map((token, i) => Math.sqrt([0, 1, 2].reduce((sum, c) => sum + (pixels[3 * i + c] - colours[token][c]) ** 2, 0) / 3));
    const most = Math.max(...lost), whole = Math.sqrt(lost.reduce((sum, e) => sum + e * e, 0) / lost.length);
    results.replaceChildren();
    const [original, reduced, map] = ["As it is", "In nine bits", "What is lost"].map((name) => addFigure(results, name));
    const each = tokens.map((_, i) => i);
    paint(original, each, each.map((i) => [...pixels.slice(3 * i, 3 * i + 3)]), side);
    paint(reduced, tokens, colours, side);
    paint(map, each, lost.map((e) => [(255 * e) / Math.max(most, 1)]), side);
    map.setAttribute("aria-label", `What is lost, white where it is most: ${most.toFixed(0)} levels`);
    const used = new Set(tokens).size;
    status.textContent = `${name}: ${used} of ${colours.length} colours, off by ${whole.toFixed(1)} levels of 255 (root mean square), at most by ${most.toFixed(0)}.`;
    list.value = Array.from({ length: side }, (_, y) => tokens.slice(y * side, (y + 1) * side).join(" ")).join("\n");
    let at = 0;
    const tell = () => {
      const rgb = [...pixels.slice(3 * at, 3 * at + 3)];
      readout.textContent = `Row ${Math.floor(at / side) + 1}, column ${(at % side) + 1}: rgb ${rgb.join(" ")} is token ${tokens[at]}, rgb ${colours[tokens[at]].join(" ")}.`;
    };
    for (const canvas of [original, reduced, map])
      canvas.addEventListener("pointermove", (event) => {
        const box = canvas.getBoundingClientRect();
        const cell = (place, from, size) => Math.min(side - 1, Math.max(0, Math.floor(((place - from) / size) * side)));
        at = cell(event.clientY, box.top, box.height) * side + cell(event.clientX, box.left, box.width);
        tell();
      });
    // The same by key, on the image in the palette.
    reduced.tabIndex = 0;
    reduced.setAttribute("role", "application");
    reduced.setAttribute("aria-label", "In nine bits; arrow keys move from pixel to pixel");
    reduced.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -side, ArrowDown: side }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      at = Math.min(tokens.length - 1, Math.max(0, at + step));
      tell();
    });
    readout.setAttribute("aria-live", "polite");
    tell();
  }

  file.addEventListener("change", () => { draw(file.files[0] ?? chosen); file.value = ""; });
  sides.addEventListener("change", () => draw(chosen));
  takeDrops(section, draw);
  await draw(null);
}

// All hues around, white in the middle, black at the rim.
function wheel(side) {
  const pixels = new Uint8ClampedArray(3 * side * side);
  for (let y = 0; y < side; y++)
    for (let x = 0; x < side; x++) {
      const right = (2 * x + 1) / side - 1, down = (2 * y + 1) / side - 1, far = Math.min(1, Math.hypot(right, down));
      const white = Math.max(0, 1 - 2 * far), light = Math.min(1, 2 - 2 * far);
      for (let c = 0; c < 3; c++) {
        const hue = 0.5 + 0.5 * Math.cos(Math.atan2(down, right) - (c * 2 * Math.PI) / 3);
        pixels[3 * (y * side + x) + c] = 255 * light * (white + (1 - white) * hue);
      }
    }
  return pixels;
}
