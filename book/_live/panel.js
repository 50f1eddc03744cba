// The live panel of the chapter on completions. Nothing is fetched but one small description until the reader
// presses the button; pictures and pixels stay in this page.

import { addFigure, paint, quantize, readPicture, takeDrops } from "./picture.js";

const FORM = `
<form class="live-form">
  <fieldset class="live-pictures"><legend>Picture</legend>
    <div class="live-choices"></div>
    <label class="live-file">or one of your own, which never leaves this page: <input type="file" accept="image/png,image/jpeg,image/webp,image/gif"></label>
  </fieldset>
  <fieldset class="live-keep"><legend>Keep</legend>
    <label><input type="radio" name="keep" value="top" checked> top half</label>
    <label><input type="radio" name="keep" value="left"> left half</label>
    <label><input type="radio" name="keep" value="prefix"> up to a pixel: <input type="range" min="0" step="1" aria-label="Pixels kept, in reading order"></label>
    <output></output>
    <p>Or draw on the picture below. The model reads from the top left, row by row, and looks back only: what it is given can shape what comes after, never what
      came before, so a mask is a beginning in that order. <em>Left half</em> hands it each row's left half as that row is reached; the rows above were drawn without knowing it.</p>
  </fieldset>
  <fieldset class="live-settings"><legend>Draw</legend>
    <label>Temperature <input name="temperature" type="number" min="0" max="5" step="0.05" value="1" required></label>
    <label>Top-k <input name="topk" type="number" min="1" step="1" placeholder="all"></label>
    <label>Seed <input name="seed" type="number" min="0" max="4294967295" step="1" value="0" required></label>
    <label>Completions <input name="n" type="number" min="1" max="8" step="1" value="4" required></label>
  </fieldset>
  <p class="live-buttons">
    <button type="submit" class="live-button">Complete</button>
    <button type="button" class="live-button live-stop" disabled>Stop</button>
    <button type="button" class="live-button live-save" disabled>Save as PNG</button>
  </p>
</form>
<div class="live-results" role="group" aria-label="Given, completed, original"></div>`;

for (const section of document.querySelectorAll(".igpt-live:has(.live-load)")) offer(section);

// Before the press: the button, with what it costs.
async function offer(section) {
  const base = new URL(section.dataset.live, document.baseURI);
  const status = section.querySelector(".live-status");
  const say = (text) => { status.textContent = text; };
  let about;
  try {
    const response = await fetch(new URL("live.json", base));
    if (!response.ok) throw new Error();
    about = await response.json();
  } catch {
    return say("The panel's files are missing from this copy of the book: the images above stand in for it.");
  }
  if (typeof WebAssembly === "undefined" || typeof Worker === "undefined" || typeof DecompressionStream === "undefined")
    return say("This browser lacks what the model needs to run (WebAssembly, workers, decompression): the images above stand in for it.");
  const bytes = (which) => [...about.runtime.backends[which], ...about.model_files].reduce((sum, file) => sum + file.bytes, 0);
  const button = section.querySelector(".live-load");
  const megabytes = (which) => (bytes(which) / 1e6).toFixed(1);
  // Whether there is a graphics card to be had is asked after the press: asking costs time, and a warning where there is none.
  const graphics = about.preferred.includes("webgpu") && navigator.gpu;
  button.textContent = `Load the model (${graphics ? `at most ${megabytes("webgpu")}` : megabytes("wasm")} MB)`;
  button.hidden = false;
  say("");
  button.addEventListener("click", async () => {
    button.disabled = true;
    const card = graphics && (await navigator.gpu.requestAdapter().catch(() => null));
    let loaded = null, reason = "";
    for (const which of about.preferred) {
      if (which === "webgpu" && (!card || card.info?.isFallbackAdapter)) continue; // none, or a processor that plays one
      try {
        loaded = await load(section, about, base, which, bytes(which), say);
        break;
      } catch (error) {
        reason = error.message;
      }
    }
    if (loaded) {
      button.hidden = true;
      panel(section, about, loaded, say);
    } else {
      button.disabled = false;
      button.textContent = "Try again";
      say(`The model does not run here: ${reason}. The images above stand in for it.`);
    }
  });
}

// The worker with everything loaded. Rejects with why not.
function load(section, about, base, backend, total, say) {
  const bar = section.querySelector("progress");
  const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  let bytes = 0;
  bar.max = total;
  bar.value = 0;
  bar.hidden = false;
  say("Loading …");
  return new Promise((resolve, reject) => {
    worker.onerror = () => reject(new Error("its worker did not start"));
    worker.onmessage = ({ data }) => {
      if (data.progress) {
        bar.value = bytes += data.progress;
        if (bytes >= total) say("Starting …");
      } else if (data.ready) {
        resolve({ worker, backend, seconds: data.seconds });
      } else if (data.failed) {
        reject(new Error(data.failed));
      }
    };
    worker.postMessage({ load: backend, about, base: base.href });
  }).catch((error) => {
    worker.terminate();
    throw error;
  }).finally(() => { bar.hidden = true; });
}

// After the press: choose, complete, look, save.
function panel(section, about, { worker, backend, seconds }, say) {
  section.dataset.start = seconds; // from the end of the download until ready
  const positions = about.n_ctx, side = about.side;
  section.querySelector(".live-panel").innerHTML = FORM;
  const form = section.querySelector("form"), results = section.querySelector(".live-results");
  const choices = section.querySelector(".live-choices"), file = section.querySelector("input[type=file]");
  const slider = section.querySelector("input[type=range]"), kept = section.querySelector("output");
  const [submit, stop, save] = section.querySelectorAll(".live-buttons button");
  const bar = section.querySelector("progress"), status = section.querySelector(".live-status");
  form.after(bar, status); // beside what they speak of
  const own = { tokens: null };
  let original = null; // tokens; null where there is no picture, and all is drawn
  let busy = false, run = null;
  slider.max = positions - 1;
  slider.value = Math.floor(positions / 2);

  about.images.forEach((tokens, i) => addChoice(`Held-out image ${i + 1}`, tokens, i === 0));
  addChoice("Nothing", null, about.images.length === 0);
  const ownChoice = addChoice("Your picture", own, false);
  ownChoice.hidden = true;

  function addChoice(name, tokens, checked) {
    const label = document.createElement("label"), radio = document.createElement("input"), canvas = document.createElement("canvas");
    Object.assign(radio, { type: "radio", name: "picture", checked });
    radio.setAttribute("aria-label", name);
    canvas.setAttribute("aria-hidden", "true");
    label.title = name;
    label.append(radio, canvas);
    choices.append(label);
    const look = () => { original = tokens === own ? own.tokens : tokens; preview(); };
    radio.addEventListener("change", look);
    paint(canvas, (tokens === own ? null : tokens) ?? blank(), about.colours, side);
    if (checked) original = tokens;
    return label;
  }

  function blank() {
    return Array(positions).fill(-1);
  }

  // Tokens as the model gets them, -1 where it draws.
  function given() {
    if (!original) return blank();
    const keep = form.elements.keep.value;
    const count = keep === "top" ? Math.floor(positions / 2) : Number(slider.value);
    return original.map((token, i) => ((keep === "left" ? i % side < Math.floor(side / 2) : i < count) ? token : -1));
  }

  function figure(name, tokens) {
    const canvas = addFigure(results, name);
    paint(canvas, tokens, about.colours, side);
    return canvas;
  }

  // What is given and the original, before anything is completed.
  function preview() {
    if (busy) return;
    const tokens = given(), count = tokens.filter((token) => token >= 0).length;
    kept.textContent = original ? `${count} of ${positions} pixels kept` : "nothing is kept: all is drawn";
    slider.disabled = !original;
    results.replaceChildren();
    draws(figure("Given", tokens));
    if (original) figure("Original", original);
    run = null;
    save.disabled = true;
  }

  // A pointer on the given image sets the last pixel kept.
  function draws(canvas) {
    canvas.classList.add("live-drawable");
    const move = (event) => {
      if (busy || !original || !(event.buttons & 1)) return;
      const box = canvas.getBoundingClientRect();
      const at = (place, from, size) => Math.min(side - 1, Math.max(0, Math.floor(((place - from) / size) * side)));
      const count = at(event.clientY, box.top, box.height) * side + at(event.clientX, box.left, box.width) + 1;
      form.elements.keep.value = "prefix";
      slider.value = count;
      paint(canvas, given(), about.colours, side);
      kept.textContent = `${slider.value} of ${positions} pixels kept`;
    };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); move(event); });
    canvas.addEventListener("pointermove", move);
    canvas.addEventListener("pointerup", preview);
  }

  for (const radio of form.querySelectorAll("[name=keep]")) radio.addEventListener("change", preview);
  slider.addEventListener("input", () => { form.elements.keep.value = "prefix"; preview(); });

  async function take(chosen) {
    if (busy || !chosen) return;
    say("Reading the picture …");
    try {
      own.tokens = quantize(await readPicture(chosen, side, about.channels), about.centres);
      ownChoice.hidden = false;
      paint(ownChoice.querySelector("canvas"), own.tokens, about.colours, side);
      ownChoice.querySelector("input").checked = true;
      original = own.tokens;
      preview();
      say(`${chosen.name}: its central square, ${side} pixels a side, in the palette's ${about.n_vocab} colours.`);
    } catch (error) {
      say(error.message);
    }
  }
  file.addEventListener("change", () => { take(file.files[0]); file.value = ""; });
  takeDrops(section, take);

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (busy) return;
    const setting = (name) => Number(form.elements[name].value);
    const n = setting("n"), tokens = given(), open = tokens.filter((token) => token < 0).length;
    run = { n, images: Array.from({ length: n }, () => tokens.slice()), given: tokens, original };
    results.replaceChildren();
    draws(figure("Given", tokens));
    run.canvases = run.images.map((image, i) => figure(`Completion ${i + 1}`, image));
    if (original) figure("Original", original);
    setBusy(true);
    bar.max = open;
    bar.value = 0;
    bar.hidden = false;
    say(`Drawing ${open} pixels of ${n} images …`);
    const request = { given: tokens, n, seed: setting("seed"), temperature: setting("temperature"), topK: form.elements.topk.value ? setting("topk") : null };
    worker.postMessage({ complete: request });
  });

  function setBusy(now) {
    busy = now;
    submit.disabled = now;
    stop.disabled = !now;
    save.disabled = now || !run;
    bar.hidden = !now;
    section.setAttribute("aria-busy", String(now));
  }

  worker.onmessage = ({ data }) => {
    if (data.tokens) {
      data.tokens.forEach((token, i) => {
        run.images[i][data.position] = token;
        dot(run.canvases[i], data.position, token);
      });
      bar.value += run.given[data.position] < 0;
    } else if (data.done) {
      setBusy(false);
      const { drawn, seconds, stopped } = data.done;
      const rate = drawn / Math.max(seconds, 1e-3);
      section.dataset.rate = rate;
      section.dataset.first = data.done.first;
      say(`${stopped ? "Stopped" : "Done"}: ${drawn} pixels in ${seconds.toFixed(seconds < 1 ? 2 : 1)} s, ${Math.round(rate)} a second, on the ${backend === "webgpu" ? "graphics card" : "processor"}.`);
    } else if (data.failed) {
      setBusy(false);
      say(`The model stopped (${data.failed}): fewer completions need less memory.`);
    }
  };

  function dot(canvas, position, token) {
    const context = canvas.getContext("2d"), [red, green = red, blue = red] = about.colours[token];
    context.fillStyle = `rgb(${red} ${green} ${blue})`;
    context.fillRect(position % side, Math.floor(position / side), 1, 1);
  }

  stop.addEventListener("click", () => worker.postMessage({ stop: true }));

  // A sheet as `igpt complete` writes it: given, completions, original, a line between them.
  save.addEventListener("click", () => {
    const images = [run.given, ...run.images, ...(run.original ? [run.original] : [])];
    const scale = Math.max(1, Math.floor(96 / side)), step = side + 1;
    const sheet = document.createElement("canvas"), small = document.createElement("canvas");
    sheet.width = scale * (images.length * step + 1);
    sheet.height = scale * (step + 1);
    const context = sheet.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.fillStyle = "rgb(128 128 128)";
    context.fillRect(0, 0, sheet.width, sheet.height);
    images.forEach((tokens, i) => {
      paint(small, tokens, about.colours, side);
      context.drawImage(small, scale * (i * step + 1), scale, scale * side, scale * side);
    });
    sheet.toBlob((blob) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = "completions.png";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  });

  preview();
  say(`${about.model} is ready on the ${backend === "webgpu" ? "graphics card" : "processor"}.`);
  submit.focus();
}
