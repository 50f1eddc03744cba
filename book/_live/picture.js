// A reader's own picture, from a file to tokens, without leaving the page: what igpt.data.folders and igpt.palette do.

const CROP = 224; // pixels a side of the paper's crop
const MOST_BYTES = 60e6;
const MOST_PIXELS = 60e6; // decoded, that is a quarter of a gigabyte

const KINDS = [
  ["image/png", (b) => b[0] === 0x89 && ascii(b, 1, 3) === "PNG"],
  ["image/jpeg", (b) => b[0] === 0xff && b[1] === 0xd8 && b[2] === 0xff],
  ["image/gif", (b) => ascii(b, 0, 4) === "GIF8"],
  ["image/webp", (b) => ascii(b, 0, 4) === "RIFF" && ascii(b, 8, 4) === "WEBP"],
];

function ascii(bytes, start, length) {
  return String.fromCharCode(...bytes.subarray(start, start + length));
}

// Width and height as the file's header gives them, so that nothing huge is decoded; null where it cannot be seen.
function sizeOf(kind, bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (kind === "image/png") return [view.getUint32(16), view.getUint32(20)];
  if (kind === "image/gif") return [view.getUint16(6, true), view.getUint16(8, true)];
  if (kind === "image/webp") {
    const form = ascii(bytes, 12, 4);
    if (form === "VP8X") return [24, 27].map((at) => 1 + bytes[at] + (bytes[at + 1] << 8) + (bytes[at + 2] << 16));
    if (form === "VP8 ") return [26, 28].map((at) => view.getUint16(at, true) & 0x3fff);
    const bits = view.getUint32(21, true);
    return [1 + (bits & 0x3fff), 1 + ((bits >> 14) & 0x3fff)];
  }
  for (let at = 2; at + 9 < bytes.length; at += 2 + view.getUint16(at + 2)) {
    if (bytes[at] !== 0xff) return null;
    const marker = bytes[at + 1];
    // Frame headers are C0 to CF, less the three that are tables.
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) return [view.getUint16(at + 7), view.getUint16(at + 5)];
  }
  return null;
}

// A file as ImageData, its central square, `side` pixels a side. Throws an Error whose message is a sentence.
export async function readPicture(file, side, channels) {
  if (file.size > MOST_BYTES) throw new Error(`${file.name} has ${Math.round(file.size / 1e6)} megabytes: take a smaller copy.`);
  const head = new Uint8Array(await file.slice(0, 1 << 20).arrayBuffer());
  const kind = KINDS.find(([, is]) => is(head))?.[0];
  if (!kind) throw new Error(`${file.name} is no PNG, JPEG, WebP or GIF: choose a picture of one of these kinds.`);
  let size = null;
  try {
    size = sizeOf(kind, head);
  } catch {
    // cut within its header: decoding says so below
  }
  if (size && size[0] * size[1] > MOST_PIXELS)
    throw new Error(`${file.name} has ${Math.round((size[0] * size[1]) / 1e6)} million pixels, more than a page should decode: take a smaller copy.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file.slice(0, file.size, kind));
  } catch {
    throw new Error(`${file.name} is damaged and cannot be decoded: choose another picture.`);
  }
  try {
    return reduce(bitmap, side, channels);
  } finally {
    bitmap.close();
  }
}

// The central square, laid on white, then reduced by Pillow's bicubic filter. A large photo is reduced by the browser
// first, to sixteen times the side; what the filter then makes of it differs by a level or two from Pillow's.
function reduce(bitmap, side, channels) {
  const whole = Math.min(bitmap.width, bitmap.height);
  const taken = Math.min(whole, Math.max(512, 16 * side));
  const canvas = new OffscreenCanvas(taken, taken);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, taken, taken);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (bitmap.width - whole) / 2, (bitmap.height - whole) / 2, whole, whole, 0, 0, taken, taken);
  const pixels = context.getImageData(0, 0, taken, taken).data;
  const rgb = new Float64Array(taken * taken * 3);
  for (let i = 0; i < taken * taken; i++) for (let c = 0; c < 3; c++) rgb[3 * i + c] = pixels[4 * i + c];
  const cropped = taken >= CROP && CROP >= side; // by way of the paper's crop, as igpt.data.resize.fitted
  const levels = cropped ? shrink(shrink(rgb, taken, CROP), CROP, side) : shrink(rgb, taken, side);
  if (channels === 3) return Uint8ClampedArray.from(levels);
  return Uint8ClampedArray.from({ length: side * side }, (_, i) =>
    Math.floor((levels[3 * i] * 19595 + levels[3 * i + 1] * 38470 + levels[3 * i + 2] * 7471 + 0x8000) / 0x10000),
  );
}

// A square (from, from, 3) to (to, to, 3).
function shrink(image, from, to) {
  return turn(shrinkRows(turn(shrinkRows(image, from, from, to), to, from), to, from, to), to, to);
}

// Catmull and Rom's kernel with a = -1/2, as Pillow's BICUBIC.
function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// (rows, width, 3) to (rows, side, 3), rounded to whole levels as Pillow does between its two passes.
function shrinkRows(image, rows, width, side) {
  const scale = width / side, stretch = Math.max(scale, 1), out = new Float64Array(rows * side * 3);
  for (let x = 0; x < side; x++) {
    const centre = (x + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - 2 * stretch + 0.5)), end = Math.min(width, Math.trunc(centre + 2 * stretch + 0.5));
    const weights = Array.from({ length: end - first }, (_, i) => bicubic((i + first - centre + 0.5) / stretch));
    const sum = weights.reduce((a, b) => a + b, 0);
    for (let y = 0; y < rows; y++)
      for (let c = 0; c < 3; c++) {
        let level = 0;
        for (let i = 0; i < weights.length; i++) level += weights[i] * image[3 * (y * width + first + i) + c];
        out[3 * (y * side + x) + c] = Math.min(255, Math.max(0, Math.round(level / sum)));
      }
  }
  return out;
}

// Rows and columns exchanged: (height, width, 3) with `width` columns to (width, height, 3).
function turn(image, width, height) {
  const out = new Float64Array(image.length);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) for (let c = 0; c < 3; c++) out[3 * (x * height + y) + c] = image[3 * (y * width + x) + c];
  return out;
}

// Tokens of pixels (levels in a row, channels together): the nearest centre to v / 127.5 - 1, the first of equals.
export function quantize(pixels, centres) {
  const channels = centres[0].length;
  return Array.from({ length: pixels.length / channels }, (_, i) => {
    let best = 0, least = Infinity;
    centres.forEach((centre, token) => {
      let apart = 0;
      for (let c = 0; c < channels; c++) apart += (pixels[i * channels + c] / 127.5 - 1 - centre[c]) ** 2;
      if (apart < least) [best, least] = [token, apart];
    });
    return best;
  });
}

// Paint tokens on a canvas, a pixel each; -1 stays open.
export function paint(canvas, tokens, colours, side) {
  canvas.width = canvas.height = side;
  const image = new ImageData(side, side);
  tokens.forEach((token, i) => {
    if (token < 0) return;
    const colour = colours[token];
    image.data.set([colour[0], colour.at(colour.length === 3 ? 1 : 0), colour.at(-1), 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// A canvas with its name under it, at the end of `results`; a screen reader hears the name.
export function addFigure(results, name) {
  const element = document.createElement("figure"), canvas = document.createElement("canvas"), caption = document.createElement("figcaption");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  caption.textContent = name;
  element.append(canvas, caption);
  results.append(element);
  return canvas;
}

// Files that are dropped on a section go to `take`, the first of them.
export function takeDrops(section, take) {
  section.addEventListener("dragover", (event) => { event.preventDefault(); section.classList.add("live-over"); });
  section.addEventListener("dragleave", () => section.classList.remove("live-over"));
  section.addEventListener("drop", (event) => {
    event.preventDefault();
    section.classList.remove("live-over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
}
