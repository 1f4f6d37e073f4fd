// Front end of the explorers: one ES module, no imports, so that it runs in JupyterLab and in a page without
// a kernel. The first half is arithmetic, the same as `selattn_lib.aggregate` and `.metrics`, and tested
// against them under node; the second half draws.

// ---------------------------------------------------------------------------------------------- arithmetic

export const METHODS = ["most relevant", "least relevant", "random", "all"];

const HALF_SCALE = Float64Array.from({ length: 31 }, (_, e) => 2 ** (Math.max(e, 1) - 25));

/** Value of a non-negative, finite half-precision number from its 16 bits. */
export function halfToNumber(bits) {
  const exponent = bits >> 10;
  return ((exponent ? 1024 : 0) + (bits & 1023)) * HALF_SCALE[exponent];
}

/**
 * Per-head maps of one image. `bytes` is a DataView (mind its byteOffset) of little-endian half floats, image
 * after image and in each grid after grid, (head, y, x), times 2**shift; `grids` is [{height, width, heads}].
 * Returns one {height, width, values} for each head number.
 */
export function decodeHeads(bytes, grids, image, shift) {
  const perImage = grids.reduce((sum, grid) => sum + grid.heads.length * grid.height * grid.width, 0);
  let at = 2 * image * perImage;
  const heads = [];
  for (const { height, width, heads: numbers } of grids) {
    for (const number of numbers) {
      const values = new Float32Array(height * width);
      for (let i = 0; i < values.length; i++, at += 2) {
        values[i] = halfToNumber(bytes.getUint16(at, true)) * 2 ** -shift;
      }
      heads[number] = { height, width, values };
    }
  }
  return heads;
}

/** Boolean mask number `index`, as bytes 0 or 1, from masks packed one bit a pixel, lowest bit first. */
export function decodeMask(bytes, index, pixels) {
  const start = index * Math.ceil(pixels / 8);
  return Uint8Array.from({ length: pixels }, (_, i) => (bytes.getUint8(start + (i >> 3)) >> (i & 7)) & 1);
}

/** Four sources and weights of each target position: torch's bicubic, align_corners=False, A = -0.75. */
export function bicubicTaps(from, to) {
  const A = -0.75;
  const near = (t) => ((A + 2) * t - (A + 3)) * t * t + 1;
  const far = (t) => ((A * t - 5 * A) * t + 8 * A) * t - 4 * A;
  const index = new Int32Array(4 * to);
  const weight = new Float32Array(4 * to);
  for (let i = 0; i < to; i++) {
    const position = ((i + 0.5) * from) / to - 0.5;
    const first = Math.floor(position);
    const t = position - first;
    weight.set([far(t + 1), near(t), near(1 - t), far(2 - t)], 4 * i);
    for (let j = 0; j < 4; j++) index[4 * i + j] = Math.min(Math.max(first - 1 + j, 0), from - 1);
  }
  return { index, weight };
}

const tapsCache = new Map();
function taps(from, to) {
  const key = `${from}>${to}`;
  if (!tapsCache.has(key)) tapsCache.set(key, bicubicTaps(from, to));
  return tapsCache.get(key);
}

/** Add to `out` (height, width) the map {height, width, values}, upsampled: first along x, then along y. */
export function addUpsampled(out, height, width, map) {
  const { index: columns, weight: across } = taps(map.width, width);
  const { index: rows, weight: down } = taps(map.height, height);
  const { values } = map;
  const wide = new Float32Array(map.height * width);
  for (let y = 0; y < map.height; y++) {
    const from = y * map.width;
    for (let x = 0, j = 0; x < width; x++, j += 4) {
      wide[y * width + x] =
        across[j] * values[from + columns[j]] +
        across[j + 1] * values[from + columns[j + 1]] +
        across[j + 2] * values[from + columns[j + 2]] +
        across[j + 3] * values[from + columns[j + 3]];
    }
  }
  for (let y = 0, j = 0; y < height; y++, j += 4) {
    let a = rows[j] * width;
    let b = rows[j + 1] * width;
    let c = rows[j + 2] * width;
    let d = rows[j + 3] * width;
    const [wa, wb, wc, wd] = [down[j], down[j + 1], down[j + 2], down[j + 3]];
    for (let i = y * width, end = i + width; i < end; i++) {
      out[i] += wa * wide[a++] + wb * wide[b++] + wc * wide[c++] + wd * wide[d++];
    }
  }
}

/** Min-max normalise `from` into `to`; a constant map gives zeros. */
function normaliseInto(to, from) {
  let low = Infinity;
  let high = -Infinity;
  for (let i = 0; i < from.length; i++) {
    const value = from[i];
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const scale = high > low ? 1 / (high - low) : 0;
  for (let i = 0; i < from.length; i++) to[i] = (from[i] - low) * scale;
  return to;
}

/** Heat map (Eq. 2, Eq. 4) of the chosen heads: maps of equal grids are summed, then upsampled. */
export function heatmap(heads, chosen, height, width) {
  const sums = new Map();
  for (const number of chosen) {
    const { height: h, width: w, values } = heads[number];
    const key = `${h}x${w}`;
    if (!sums.has(key)) sums.set(key, { height: h, width: w, values: new Float32Array(h * w) });
    const sum = sums.get(key).values;
    for (let i = 0; i < sum.length; i++) sum[i] += values[i];
  }
  const heat = new Float32Array(height * width);
  for (const sum of sums.values()) addUpsampled(heat, height, width, sum);
  return normaliseInto(heat, heat);
}

/** Pixels strictly above the threshold, as bytes 0 or 1. The threshold is rounded to float32, as in NumPy. */
export function threshold(heat, level) {
  const exact = Math.fround(level);
  const mask = new Uint8Array(heat.length);
  for (let i = 0; i < heat.length; i++) mask[i] = heat[i] > exact ? 1 : 0;
  return mask;
}

/** Intersection over union (Eq. 5) of two masks of 0 and 1; two empty masks agree. */
export function iou(mask, truth) {
  let both = 0;
  let either = 0;
  for (let i = 0; i < mask.length; i++) {
    both += mask[i] & truth[i];
    either += mask[i] | truth[i];
  }
  return either ? both / either : 1;
}

/** The heads that a setting means: `order` is a concept's ranking, most relevant first. */
export function chooseHeads(method, k, order, randomOrder) {
  if (method === "all") return order;
  return sequence(method, order, randomOrder).slice(0, k);
}

function sequence(method, order, randomOrder) {
  if (method === "random") return randomOrder;
  return method === "least relevant" ? [...order].reverse() : order;
}

/**
 * IoU for every k and every threshold (evenly spaced, ascending) at once: a generator that yields after each
 * k, so that a page stays alive, and returns a Float32Array (k, threshold). A histogram of the normalised
 * map, inside and outside the truth, answers for all thresholds.
 */
export function* iouCurve(heads, order, truth, thresholds, height, width) {
  const levels = Float32Array.from(thresholds);
  const n = levels.length;
  const step = (levels[n - 1] - levels[0]) / (n - 1);
  const inside = truth.reduce((sum, value) => sum + value, 0);
  const total = new Float32Array(height * width);
  const heat = new Float32Array(height * width);
  const curve = new Float32Array(order.length * n);
  for (let k = 0; k < order.length; k++) {
    addUpsampled(total, height, width, heads[order[k]]);
    normaliseInto(heat, total);
    const counts = [new Uint32Array(n + 1), new Uint32Array(n + 1)]; // pixels above exactly j thresholds
    for (let i = 0; i < heat.length; i++) {
      let j = Math.min(Math.max(Math.round((heat[i] - levels[0]) / step), 0), n);
      while (j < n && heat[i] > levels[j]) j++;
      while (j > 0 && heat[i] <= levels[j - 1]) j--;
      counts[truth[i]][j]++;
    }
    for (let j = n - 1, both = 0, outside = 0; j >= 0; j--) {
      both += counts[1][j + 1];
      outside += counts[0][j + 1];
      curve[k * n + j] = inside + outside ? both / (inside + outside) : 1;
    }
    yield k;
  }
  return curve;
}

/** Draw the line where `field` (height, width) crosses `level`, in pixel coordinates, by marching squares. */
export function contour(path, field, height, width, level) {
  const cut = (a, b) => (level - a) / (b - a);
  for (let y = 0; y + 1 < height; y++) {
    for (let x = 0; x + 1 < width; x++) {
      const i = y * width + x;
      const a = field[i];
      const b = field[i + 1];
      const c = field[i + width + 1];
      const d = field[i + width];
      const kind = (a > level) + 2 * (b > level) + 4 * (c > level) + 8 * (d > level);
      if (kind === 0 || kind === 15) continue;
      const points = []; // crossings of the top, right, bottom and left edges, in this order
      if (a > level !== b > level) points.push([x + cut(a, b), y]);
      if (b > level !== c > level) points.push([x + 1, y + cut(b, c)]);
      if (d > level !== c > level) points.push([x + cut(d, c), y + 1]);
      if (a > level !== d > level) points.push([x, y + cut(a, d)]);
      if (kind === 10) points.push(points.shift()); // a saddle: cut off the corners below the level
      for (let j = 0; j < points.length; j += 2) {
        path.moveTo(points[j][0] + 0.5, points[j][1] + 0.5);
        path.lineTo(points[j + 1][0] + 0.5, points[j + 1][1] + 0.5);
      }
    }
  }
  return path;
}

/**
 * RGBA pixels: the picture's lightness, coloured where one of several heats leads, as strongly as it leads.
 * `colours` holds one [red, green, blue] a heat.
 */
export function leaders(grey, heats, colours) {
  const pixels = new Uint8ClampedArray(4 * grey.length);
  for (let i = 0; i < grey.length; i++) {
    let first = 0;
    let second = 0;
    let winner = 0;
    for (let j = 0; j < heats.length; j++) {
      const value = heats[j][i];
      if (value > first) {
        second = first;
        first = value;
        winner = j;
      } else if (value > second) second = value;
    }
    const lead = Math.min(1, 1.5 * (first - second));
    for (let c = 0; c < 3; c++) pixels[4 * i + c] = lead * colours[winner][c] + (1 - lead) * grey[i];
    pixels[4 * i + 3] = 255;
  }
  return pixels;
}

/** RGBA pixels: the picture's lightness under the heat's colour. `palette` holds 256 RGB colours. */
export function overlay(grey, heat, palette, opacity) {
  const pixels = new Uint8Array(4 * heat.length); // unclamped for speed: values are in 0..255
  const shares = Float32Array.from(palette, (value) => opacity * value);
  const rest = 1 - opacity;
  for (let i = 0, at = 0; i < heat.length; i++, at += 4) {
    const colour = 3 * ((255 * heat[i] + 0.5) | 0);
    const below = rest * grey[i] + 0.5;
    pixels[at] = (shares[colour] + below) | 0;
    pixels[at + 1] = (shares[colour + 1] + below) | 0;
    pixels[at + 2] = (shares[colour + 2] + below) | 0;
    pixels[at + 3] = 255;
  }
  return new Uint8ClampedArray(pixels.buffer);
}

// ---------------------------------------------------------------------------------------------- drawing

const METHOD_COLOURS = {
  "most relevant": "#d55e00",
  "least relevant": "#0072b2",
  random: "#009e73",
  all: "#7f7f7f",
};
const CONCEPT_COLOURS = ["#d55e00", "#0072b2", "#009e73"];
const SHARED_COLOUR = "#cc79a7";
const OVERLAY_OPACITY = 0.65;
const SLICE_MS = 8; // of computing at a time, while nobody waits for it
const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, ...children) {
  const isSvg = ["svg", "g", "path", "line", "circle", "rect", "text", "title"].includes(tag);
  const node = isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A square of the palette's colours with the threshold marked, and the meaning of the lines. */
function colourBar(palette) {
  const stops = Array.from({ length: 17 }, (_, i) => {
    const at = 3 * Math.round((255 * i) / 16);
    return `rgb(${palette.slice(at, at + 3).join(" ")})`;
  });
  const mark = element("span", { class: "selattn-mark" });
  const bar = element("span", { class: "selattn-bar", "aria-hidden": "true" }, mark);
  bar.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  const node = element("div", { class: "selattn-legend" }, "heat 0", bar, "1");
  return { node, move: (level) => (mark.style.left = `${100 * level}%`) };
}

/** One picture with its title above and its numbers below. */
function panel(name) {
  const canvas = element("canvas", { role: "img" });
  const title = element("div", { class: "selattn-title" });
  const reading = element("figcaption", {});
  const node = element("figure", { class: `selattn-panel selattn-${name}` }, title, canvas, reading);
  return { node, canvas, title, reading };
}

/** Draw a picture or an overlay, then outlines: [{path, colour, dashed}]. */
function paint(canvas, source, height, width, outlines) {
  const zoom = Math.max(1, Math.round(512 / Math.max(width, height)));
  if (canvas.width !== width * zoom || canvas.height !== height * zoom) {
    canvas.width = width * zoom;
    canvas.height = height * zoom;
  }
  const context = canvas.getContext("2d");
  context.setTransform(zoom, 0, 0, zoom, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  const unit = Math.max(width, height) / 128;
  context.lineCap = "round";
  for (const { path, colour, dashed } of outlines) {
    // Marching squares give short pieces, which setLineDash would start anew: cut dashes out by stripes.
    context.save();
    if (dashed) context.clip(stripes(height, width, unit));
    context.lineWidth = 2.6 * unit;
    context.strokeStyle = "rgb(0 0 0 / 0.6)";
    context.stroke(path);
    context.lineWidth = 1.3 * unit;
    context.strokeStyle = colour;
    context.stroke(path);
    context.restore();
  }
}

function stripes(height, width, unit) {
  const path = new Path2D();
  const [on, period] = [3 * unit, 5 * unit];
  for (let x = -height; x < width; x += period) {
    path.moveTo(x, 0);
    path.lineTo(x + on, 0);
    path.lineTo(x + on + height, height);
    path.lineTo(x + height, height);
    path.closePath();
  }
  return path;
}

/** Rows of heads, one a layer: rows is [{label, heads}]. */
function headGrid(rows) {
  const [cell, left, top] = [13, 48, 14];
  const columns = Math.max(...rows.map((row) => row.heads.length));
  const size = `0 0 ${left + columns * cell} ${top + rows.length * cell}`;
  const svg = element("svg", { viewBox: size, class: "selattn-grid", role: "img" });
  for (let i = 0; i < columns; i++) {
    svg.append(
      element("text", { x: left + (i + 0.5) * cell, y: top - 4, "text-anchor": "middle" }, String(i)),
    );
  }
  const cells = [];
  rows.forEach(({ label, heads }, y) => {
    svg.append(element("text", { x: left - 5, y: top + (y + 0.75) * cell, "text-anchor": "end" }, label));
    heads.forEach((number, x) => {
      const title = element("title");
      const at = { x: left + x * cell + 1, y: top + y * cell + 1, width: cell - 2, height: cell - 2, rx: 2 };
      cells[number] = { rect: element("rect", at, title), title, name: `${label}, head ${x}` };
      svg.append(cells[number].rect);
    });
  });
  const node = element("figure", { class: "selattn-panel selattn-heads" });
  const caption = element("figcaption");
  node.append(element("div", { class: "selattn-title" }, "Heads in use"), svg, caption);
  /** `colourOf(number)` is a colour or null; `noteOf(number)` goes into the tooltip. */
  function update(colourOf, noteOf, summary) {
    for (const [number, { rect, title, name }] of cells.entries()) {
      const colour = colourOf(number);
      rect.style.fill = colour ?? "currentColor";
      rect.style.fillOpacity = colour ? 1 : 0.13;
      title.textContent = `${name}: ${noteOf(number)}`;
    }
    svg.setAttribute("aria-label", summary);
    caption.textContent = summary;
  }
  return { node, update };
}

/** IoU over k, one line a method, with a marker that can be dragged. */
function curvePlot(nHeads, onPick) {
  const [width, height, left, right, top, bottom] = [460, 250, 40, 10, 8, 32];
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, class: "selattn-curve", role: "img" });
  const x = (k) => left + ((width - left - right) * (k - 1)) / Math.max(1, nHeads - 1);
  const y = (value) => height - bottom - (height - top - bottom) * value;
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(
      element("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "selattn-rule" }),
      element("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(2)),
    );
  }
  const stride = Math.max(1, Math.round(nHeads / 80) * 10 || 1);
  const ticks = [1, ...Array.from({ length: Math.floor(nHeads / stride) }, (_, i) => (i + 1) * stride)];
  for (const k of new Set(ticks)) {
    svg.append(element("text", { x: x(k), y: height - bottom + 15, "text-anchor": "middle" }, String(k)));
  }
  const middle = (left + width - right) / 2;
  svg.append(element("text", { x: middle, y: height - 3, "text-anchor": "middle" }, "number of heads k"));
  const daam = element("line", { x1: left, x2: width - right, class: "selattn-daam" });
  const mark = element("line", { y1: y(0), y2: y(1), class: "selattn-cursor" });
  const lines = Object.fromEntries(
    METHODS.slice(0, 3).map((name) => [name, element("path", { fill: "none" })]),
  );
  const dot = element("circle", { r: 5 });
  svg.append(daam, mark, ...Object.values(lines), dot);
  const pick = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    const k = Math.round(1 + ((at - left) / (width - left - right)) * (nHeads - 1));
    onPick(Math.min(Math.max(k, 1), nHeads));
  };
  svg.addEventListener("pointerdown", pick);
  svg.addEventListener("pointermove", pick);
  const keys = METHODS.slice(0, 3).map((name) => {
    const swatch = element("i", { "aria-hidden": "true" });
    swatch.style.background = METHOD_COLOURS[name];
    return element("span", {}, swatch, name);
  });
  keys.push(
    element("span", {}, element("i", { "aria-hidden": "true", class: "selattn-dashes" }), "all heads (DAAM)"),
  );
  const node = element("figure", { class: "selattn-panel selattn-iou" });
  const caption = element("figcaption", { class: "selattn-keys" }, ...keys);
  node.append(
    element("div", { class: "selattn-title" }, "IoU of this picture, for every number of heads"),
    svg,
    caption,
  );

  /** `curves` maps a method to its IoUs (k), as far as they are known. */
  function update(curves, method, k, chosenIou, allIou) {
    for (const [name, line] of Object.entries(lines)) {
      const points = curves[name] ?? [];
      line.setAttribute(
        "d",
        Array.from(points, (v, i) => `${i ? "L" : "M"}${x(i + 1).toFixed(1)} ${y(v).toFixed(1)}`).join(""),
      );
      line.style.stroke = METHOD_COLOURS[name];
      line.style.strokeWidth = name === method ? 2.6 : 1.2;
      line.style.opacity = name === method ? 1 : 0.6;
    }
    for (const [name, value] of [
      ["y1", y(allIou)],
      ["y2", y(allIou)],
    ])
      daam.setAttribute(name, value);
    const at = x(method === "all" ? nHeads : k);
    for (const name of ["x1", "x2"]) mark.setAttribute(name, at);
    dot.setAttribute("cx", at);
    dot.setAttribute("cy", y(chosenIou));
    dot.style.fill = METHOD_COLOURS[method];
    const label = `${chosenIou.toFixed(2)} at the marker, ${allIou.toFixed(2)} for all heads`;
    svg.setAttribute("aria-label", `IoU over the number of heads: ${label}`);
  }
  return { node, update };
}

/** Give the sliders of ipywidgets the names that their labels show, for screen readers. */
function nameSliders(root) {
  for (const handle of root.querySelectorAll(".noUi-handle")) {
    const label = handle.closest(".widget-slider, .jupyter-widgets")?.querySelector(".widget-label");
    if (label) handle.setAttribute("aria-label", label.textContent);
  }
}

function render({ model, el }) {
  const get = (name) => model.get(name);
  const isDiagnosis = get("kind") === "diagnosis";
  const [height, width] = [get("height"), get("width")];
  const [rankings, randomOrder, regions] = [get("rankings"), get("random_order"), get("regions")];
  const palette = Uint8Array.from({ length: 768 }, (_, i) => get("palette").getUint8(i));
  const word = get("word") ? `“${get("word")}”, ` : "";
  const [concepts, nHeads] = [Object.keys(rankings), randomOrder.length];
  const nSets = isDiagnosis ? get("n_concepts") : 1;
  const rankOf = Object.fromEntries(
    concepts.map((name) => [name, rankings[name].reduce((r, head, i) => ((r[head] = i + 1), r), [])]),
  );

  const status = element("p", { class: "selattn-status", role: "status", "aria-live": "polite" });
  const picture = panel("picture");
  const sets = Array.from({ length: nSets }, () => panel("chosen"));
  const all = panel("all");
  const lead = isDiagnosis ? panel("lead") : null;
  const grid = get("grid").length ? headGrid(get("grid")) : null;
  const curve =
    !isDiagnosis && regions.length
      ? curvePlot(nHeads, (k) => (model.set("k", k), model.save_changes()))
      : null;
  const bar = colourBar(palette);
  if (lead) lead.reading.classList.add("selattn-keys");
  const body = element("div", { class: `selattn-body selattn-${get("kind")} selattn-sets-${nSets}` });
  body.append(picture.node, ...sets.map((each) => each.node));
  for (const part of [lead, all, curve, grid]) if (part) body.append(part.node);
  const lineKeys = [
    [
      "white",
      isDiagnosis ? "edge of a concept's mask, in its colour" : "edge of the mask: heat above the threshold",
    ],
  ];
  if (regions.length)
    lineKeys.push(["dashes", isDiagnosis ? `${regions.join(", ")}: true outline` : "true outline"]);
  for (const [style, text] of lineKeys) {
    bar.node.append(
      element("span", {}, element("i", { class: `selattn-${style}`, "aria-hidden": "true" }), text),
    );
  }
  el.classList.add("selattn-view");
  el.append(status, body, bar.node);

  const scratch = element("canvas", { width, height });
  const layer = scratch.getContext("2d", { willReadFrequently: true });
  let shown = null; // what belongs to the image now shown, once its picture is decoded
  let version = 0;
  const curveCache = new Map();

  async function showImage() {
    const mine = ++version;
    const image = get("image");
    const photo = new Image();
    photo.src = get("pictures")[image];
    await photo.decode();
    if (mine !== version) return;
    layer.drawImage(photo, 0, 0, width, height);
    const rgba = layer.getImageData(0, 0, width, height).data;
    const grey = Float32Array.from(
      { length: height * width },
      (_, i) => 0.299 * rgba[4 * i] + 0.587 * rgba[4 * i + 1] + 0.114 * rgba[4 * i + 2],
    );
    const heads = decodeHeads(get("maps"), get("grids"), image, get("shifts")[image]);
    const truths = regions.map((_, i) =>
      decodeMask(get("truth"), i * get("pictures").length + image, height * width),
    );
    const outlines = truths.map((truth) => ({
      path: contour(new Path2D(), truth, height, width, 0.5),
      colour: "#ffffff",
      dashed: true,
    }));
    shown = {
      image,
      photo,
      grey,
      heads,
      truths,
      outlines,
      heats: [],
      all: heatmap(heads, randomOrder, height, width),
    };
    paintPicture([]);
    update();
  }

  /** What each middle panel shows: its concept, heads, colour. */
  function wanted() {
    return sets.map((_, i) => {
      const concept = concepts[get(`concept_${i}`)];
      const method = isDiagnosis ? "most relevant" : METHODS[get("method")];
      const heads = chooseHeads(method, get("k"), rankings[concept], randomOrder);
      return { concept, method, heads, colour: isDiagnosis ? CONCEPT_COLOURS[i] : METHOD_COLOURS[method] };
    });
  }

  function putPixels(pixels) {
    layer.putImageData(new ImageData(pixels, width, height), 0, 0);
  }

  function paintHeat(target, heat, level, colour) {
    putPixels(overlay(shown.grey, heat, palette, OVERLAY_OPACITY));
    const edge = contour(new Path2D(), heat, height, width, Math.fround(level));
    paint(target.canvas, scratch, height, width, [...shown.outlines, { path: edge, colour }]);
    return edge;
  }

  /** A mask, its IoU with each region, and both in words. */
  function measure(heat, level) {
    const mask = threshold(heat, level);
    const ious = shown.truths.map((truth) => iou(mask, truth));
    if (!isDiagnosis && regions.length) return { mask, ious, text: `IoU ${ious[0].toFixed(3)}` };
    const area = mask.reduce((sum, value) => sum + value, 0) / mask.length;
    const parts = ious.map((value, i) => `IoU with ${regions[i]} ${value.toFixed(2)}`);
    return { mask, ious, text: [`${(100 * area).toFixed(0)} % of the picture`, ...parts].join(", ") };
  }

  /** The heat of panel i, kept while its heads stay the same. */
  function heatOf(i, heads) {
    const key = heads.join();
    if (shown.heats[i]?.key !== key)
      shown.heats[i] = { key, heat: heatmap(shown.heads, heads, height, width) };
    return shown.heats[i].heat;
  }

  function describe(target, title, reading) {
    target.title.textContent = title;
    target.reading.textContent = reading;
    target.canvas.setAttribute("aria-label", `${word}${get("labels")[shown.image]}, ${title}: ${reading}`);
  }

  function update() {
    if (!shown) return;
    const started = performance.now();
    const [level, choices] = [get("threshold"), wanted()];
    const edges = [];
    const measured = [];
    choices.forEach(({ concept, method, heads, colour }, i) => {
      const heat = heatOf(i, heads);
      measured.push(measure(heat, level));
      edges.push({ path: paintHeat(sets[i], heat, level, isDiagnosis ? colour : "#ffffff"), colour });
      const title = {
        "most relevant": `${heads.length} heads most relevant to ${concept}`,
        "least relevant": `${heads.length} heads least relevant to ${concept}`,
        random: `${heads.length} random heads`,
        all: `All ${nHeads} heads`,
      }[method];
      describe(sets[i], title, measured[i].text);
      if (isDiagnosis) sets[i].title.style.borderColor = colour;
    });
    if (shown.allMeasured?.level !== level) {
      shown.allMeasured = { level, ...measure(shown.all, level) };
      paintHeat(all, shown.all, level, "#ffffff");
      describe(all, `All ${nHeads} heads (DAAM)`, shown.allMeasured.text);
    }
    if (isDiagnosis) {
      paintPicture(edges);
      updateLead(choices);
    }
    bar.move(level);
    status.textContent = isDiagnosis
      ? diagnosisStatus(choices, measured)
      : aggregationStatus(choices[0], measured[0]);
    if (grid) updateGrid(choices);
    if (curve) updateCurve(choices[0], measured[0].ious[0], shown.allMeasured.ious[0]);
    el.dataset.updateMs = (performance.now() - started).toFixed(1);
  }

  function paintPicture(edges) {
    paint(picture.canvas, shown.photo, height, width, [...shown.outlines, ...edges]);
    describe(picture, isDiagnosis ? "Picture, with the edges" : "Picture", get("labels")[shown.image]);
  }

  /** Where each concept's heads see more of the word than the others' do. */
  function updateLead(choices) {
    const rgb = choices.map(({ colour }) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
    putPixels(
      leaders(
        shown.grey,
        shown.heats.map(({ heat }) => heat),
        rgb,
      ),
    );
    paint(lead.canvas, scratch, height, width, shown.outlines);
    describe(lead, "Whose map is stronger", "");
    lead.reading.replaceChildren(
      ...choices.map(({ concept, colour }) => {
        const swatch = element("i", { "aria-hidden": "true" });
        swatch.style.background = colour;
        return element("span", {}, swatch, concept);
      }),
    );
  }

  function aggregationStatus({ concept, method, heads }, chosen) {
    const which = { random: "random heads", all: "heads (all)" }[method] ?? `heads ${method} to ${concept}`;
    const about = `${heads.length} ${which}, threshold ${get("threshold").toFixed(2)}: ${chosen.text}`;
    const other = `all ${nHeads} heads: ${shown.allMeasured.text}`;
    if (!regions.length) return `${about}; ${other}`;
    const gain = chosen.ious[0] - shown.allMeasured.ious[0];
    return `${about}; ${other} (difference ${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(3)})`;
  }

  function diagnosisStatus(choices, measured) {
    const pairs = [];
    for (let i = 0; i < nSets; i++) {
      for (let j = i + 1; j < nSets; j++) {
        const shared = choices[i].heads.filter((head) => choices[j].heads.includes(head)).length;
        const overlap = iou(measured[i].mask, measured[j].mask).toFixed(2);
        const names = `${choices[i].concept} and ${choices[j].concept}`;
        pairs.push(`${names}: ${shared} heads shared, their masks overlap with IoU ${overlap}`);
      }
    }
    const about = `${word}${get("k")} heads each, threshold ${get("threshold").toFixed(2)}`;
    return `${about}. ${pairs.join("; ")}`;
  }

  function updateGrid(choices) {
    const members = choices.map(({ heads }) => new Set(heads));
    const colourOf = (number) => {
      const inside = choices.filter((_, i) => members[i].has(number));
      return inside.length > 1 ? SHARED_COLOUR : (inside[0]?.colour ?? null);
    };
    const noteOf = (number) =>
      choices.map(({ concept }) => `rank ${rankOf[concept][number]} for ${concept}`).join(", ");
    const lit = new Set(choices.flatMap(({ heads }) => heads)).size;
    const shared = isDiagnosis ? "; heads of several concepts in pink" : "";
    grid.update(colourOf, noteOf, `${lit} of ${nHeads} heads${shared}`);
  }

  const thresholds = Array.from({ length: 91 }, (_, i) => (5 + i) / 100); // the slider's own steps
  function updateCurve(choice, chosenIou, allIou) {
    const column = Math.round(100 * get("threshold")) - 5;
    const onGrid = Math.abs(100 * get("threshold") - 5 - column) < 1e-6;
    const keyOf = (method) => [shown.image, method === "random" ? "" : choice.concept, method].join("|");
    const known = {};
    for (const method of METHODS.slice(0, 3)) {
      const values = curveCache.get(keyOf(method));
      if (values && onGrid) known[method] = values.filter((_, i) => i % thresholds.length === column);
    }
    curve.update(known, choice.method, get("k"), chosenIou, allIou);
    const current = choice.method === "all" ? "most relevant" : choice.method;
    const missing = [current, ...METHODS.slice(0, 3)].find((method) => !curveCache.has(keyOf(method)));
    if (missing && jobKey !== keyOf(missing))
      startCurve(keyOf(missing), sequence(missing, rankings[choice.concept], randomOrder));
  }

  let jobKey = null;
  let timer = null;
  function startCurve(key, order) {
    clearTimeout(timer);
    jobKey = key;
    const job = iouCurve(shown.heads, order, shown.truths[0], thresholds, height, width);
    const work = () => {
      const stop = performance.now() + SLICE_MS;
      for (let step = job.next(); ; step = job.next()) {
        if (step.done) {
          if (curveCache.size > 60) curveCache.clear();
          curveCache.set(key, step.value);
          jobKey = null;
          return schedule();
        }
        if (performance.now() > stop) break;
      }
      timer = setTimeout(work, 0);
    };
    timer = setTimeout(work, 0);
  }

  let frame = null;
  function schedule() {
    frame ??= requestAnimationFrame(() => {
      frame = null;
      update();
    });
  }

  const onImage = () => void showImage();
  const names = ["k", "threshold", "method", ...sets.map((_, i) => `concept_${i}`)];
  model.on("change:image", onImage);
  for (const name of names) model.on(`change:${name}`, schedule);
  const naming = setTimeout(() => nameSliders(el.closest(".selattn-explorer") ?? el), 500);
  void showImage();
  return () => {
    version++;
    clearTimeout(timer);
    clearTimeout(naming);
    if (frame !== null) cancelAnimationFrame(frame);
    model.off("change:image", onImage);
    for (const name of names) model.off(`change:${name}`, schedule);
  };
}

export default { render };
