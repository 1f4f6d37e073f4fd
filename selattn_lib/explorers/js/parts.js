// What the views share: colours, panels, the head grid, the curve, and the item that is shown.

const DRAWN_PIXELS = 320; // about, of the longer side
const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = ["svg", "g", "path", "line", "circle", "rect", "text", "title"];

export function element(tag, attributes = {}, ...children) {
  const node = SVG_TAGS.includes(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** What a method's k heads are called. */
const titleOf = ({ title }, k, concept) => title.replace("{k}", k).replace("{concept}", () => concept);

/** Text beside a patch of a colour. */
function key(colour, text) {
  const swatch = element("i", { "aria-hidden": "true" });
  swatch.style.background = colour;
  return element("span", {}, swatch, text);
}

const rgbOf = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
const percent = (share) => `${(100 * share).toFixed(0)} %`;

/** One picture with its title above and its numbers below. */
function panel(name) {
  const canvas = element("canvas", { role: "img" });
  const title = element("div", { class: "selattn-title" });
  const reading = element("figcaption", {});
  const node = element("figure", { class: `selattn-panel selattn-${name}` }, title, canvas, reading);
  return { node, canvas, title, reading };
}

/** The palette with the threshold marked, and the meaning of the lines: [class, text]. */
function legend(palette, lines) {
  const stops = Array.from({ length: 17 }, (_, i) => {
    const at = 3 * Math.round((255 * i) / 16);
    return `rgb(${palette.slice(at, at + 3).join(" ")})`;
  });
  const mark = element("span", { class: "selattn-mark" });
  const bar = element("span", { class: "selattn-bar", "aria-hidden": "true" }, mark);
  bar.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  const keys = lines.map(([name, text]) =>
    element("span", {}, element("i", { class: `selattn-${name}`, "aria-hidden": "true" }), text),
  );
  const node = element("div", { class: "selattn-legend" }, "heat 0", bar, "1", ...keys);
  return { node, move: (level) => (mark.style.left = `${100 * level}%`) };
}

/** The model's values, as plain numbers and arrays, and what it takes to draw an item of them. */
export class Scene {
  constructor(model) {
    this.model = model;
    this.get = (name) => model.get(name);
    this.constants = this.get("constants");
    [this.height, this.width] = [this.get("height"), this.get("width")];
    this.rankings = this.get("rankings");
    this.concepts = this.get("concepts");
    this.randomOrder = this.get("random_order");
    this.nHeads = this.randomOrder.length;
    this.palette = Uint8Array.from({ length: 768 }, (_, i) => this.get("palette").getUint8(i));
    this.table = overlayTable(this.palette, this.constants.opacity);
    // Numbers come from every pixel; what is drawn of a large picture is every second, third ... one.
    const wanted = DRAWN_PIXELS * Math.min(2, Math.max(1, devicePixelRatio));
    this.step = Math.max(1, Math.round(Math.max(this.width, this.height) / wanted));
    this.rows = Math.ceil(this.height / this.step);
    this.columns = Math.ceil(this.width / this.step);
    this.zoom = Math.max(1, Math.round(wanted / Math.max(this.rows, this.columns)));
    this.unit = Math.max(this.rows, this.columns) / 256; // of lines
    this.scratch = element("canvas", { width: this.columns, height: this.rows });
    this.layer = this.scratch.getContext("2d", { willReadFrequently: true });
    this.shown = null; // the item, once its picture is decoded
  }

  set(values) {
    this.model.set(values);
    this.model.save_changes();
  }

  /** The orders of heads that no concept decides: random, how well they agree on the word that is shown, their grid. */
  get orders() {
    const consensus = this.get("consensus")[this.get("word")];
    return { random: this.randomOrder, consensus, finest: finestHeads(this.get("grids")) };
  }

  get itemNumber() {
    return this.get("word") * this.get("labels").length + this.get("image");
  }

  /** What is shown, in words. */
  get about() {
    const word = this.get("words")[this.get("word")];
    return (word ? `“${word}”, ` : "") + this.get("labels")[this.get("image")];
  }

  /** The map of all heads, for a table. */
  get everyHead() {
    return { name: "all heads (DAAM)", heads: this.randomOrder, heat: this.shown.all };
  }

  /** Decode the item that the menus name; false if they name another by then. */
  async load() {
    const { height, width } = this;
    const number = this.itemNumber;
    const item = this.get("items")[number];
    const photo = new Image();
    photo.src = this.get("pictures")[item.picture];
    await photo.decode();
    if (number !== this.itemNumber) return false;
    this.layer.drawImage(photo, 0, 0, this.columns, this.rows);
    const rgba = this.layer.getImageData(0, 0, this.columns, this.rows).data;
    const grey = Uint8Array.from(
      { length: this.rows * this.columns },
      (_, i) => 0.299 * rgba[4 * i] + 0.587 * rgba[4 * i + 1] + 0.114 * rgba[4 * i + 2],
    );
    const heads = decodeHeads(this.get("maps"), this.get("grids"), number, item.shift);
    const truths = item.regions.map((_, i) => decodeMask(this.get("truth"), item.mask + i, height * width));
    const all = heatmap(heads, this.randomOrder, height, width);
    const drawnAll = this.drawn(all);
    this.shown = { number, photo, grey, heads, truths, all, drawnAll, regions: item.regions, heats: new Map() };
    this.shown.outlines = this.outlines(truths);
    return true;
  }

  /** The heat of some heads, every pixel of it; that of each `slot` is kept while its heads stay the same. */
  heatOf(slot, heads, step = 1) {
    const { heats } = this.shown;
    const [key, name] = [`${slot}/${step}`, heads.join()];
    const { cache = new Map(), name: last, heat } = heats.get(key) ?? {};
    if (last === name) return heat;
    const made = heatmap(this.shown.heads, heads, this.height, this.width, cache, step);
    heats.set(key, { cache, name, heat: made });
    return made;
  }

  /** As much of it as is drawn, which takes a part of the time. */
  drawnHeatOf(slot, heads) {
    return this.heatOf(slot, heads, this.step);
  }

  /** A mask, its IoU with each region, its share of the picture, and these numbers in words. */
  measure(heat, level) {
    const mask = threshold(heat, level);
    const ious = this.shown.truths.map((truth) => iou(mask, truth));
    const share = area(mask) / mask.length;
    const named = this.shown.regions.map((region, i) => [region === "truth" ? "IoU" : `IoU with ${region}`, ious[i]]);
    const parts = named.map(([name, value]) => `${name} ${value.toFixed(3)}`);
    return { mask, ious, share, text: [...parts, `${percent(share)} of the picture`].join(", ") };
  }

  /** As much of an array (height, width) as is drawn. */
  drawn(field) {
    return sampled(field, this.height, this.width, this.step);
  }

  edge(drawn, level) {
    return contour(new Path2D(), drawn, this.rows, this.columns, level);
  }

  /** Draw the picture under a drawn heat, the truth's outlines and the edge at the threshold; returns the edge. */
  paintHeat(target, drawn, level, colour = "#ffffff") {
    const path = this.edge(drawn, Math.fround(level));
    this.paintPixels(target, overlay(this.shown.grey, drawn, this.table), [{ path, colour }]);
    return path;
  }

  paintPixels(target, pixels, lines = []) {
    this.layer.putImageData(new ImageData(pixels, this.columns, this.rows), 0, 0);
    this.paintImage(target, this.scratch, lines);
  }

  /** Draw a picture, the truth's outlines on it, and lines: [{path, colour}]. */
  paintImage({ canvas }, source, lines = []) {
    const context = this.context(canvas);
    context.imageSmoothingQuality = "high";
    context.drawImage(source, 0, 0, this.columns, this.rows);
    context.drawImage(this.shown.outlines, 0, 0, this.columns, this.rows);
    for (const line of lines) this.stroke(context, line);
  }

  /** Drawing on a canvas in the units of what is drawn. */
  context(canvas) {
    const size = { width: this.columns * this.zoom, height: this.rows * this.zoom };
    if (canvas.width !== size.width || canvas.height !== size.height) Object.assign(canvas, size);
    const context = canvas.getContext("2d");
    context.setTransform(this.zoom, 0, 0, this.zoom, 0, 0);
    return context;
  }

  stroke(context, { path, colour }) {
    const { outline_widths: [line, below], outline_darkness: darkness } = this.constants;
    context.lineCap = "round";
    for (const [width, style] of [[below, `rgb(0 0 0 / ${darkness})`], [line, colour]]) {
      context.lineWidth = width * this.unit;
      context.strokeStyle = style;
      context.stroke(path);
    }
  }

  /** A canvas with the dashed outlines of masks. */
  outlines(masks) {
    const canvas = element("canvas");
    const context = this.context(canvas);
    context.clip(this.stripes()); // marching squares give short pieces, which setLineDash would start anew
    for (const mask of masks) this.stroke(context, { path: this.edge(this.drawn(mask), 0.5), colour: "#ffffff" });
    return canvas;
  }

  stripes() {
    const [height, width] = [this.rows, this.columns];
    const path = new Path2D();
    const [on, period] = this.constants.dash.map((length) => length * this.unit);
    for (let x = -height; x < width; x += period) {
      path.moveTo(x, 0);
      path.lineTo(x + on, 0);
      path.lineTo(x + on + height, height);
      path.lineTo(x + height, height);
      path.closePath();
    }
    return path;
  }

  describe(target, title, reading) {
    target.title.textContent = title;
    target.reading.textContent = reading;
    target.canvas.setAttribute("aria-label", `${this.about}, ${title}: ${reading}`);
  }

  /** Draw the map of all heads, if it or the threshold is another. */
  paintAll(target, level) {
    const { shown } = this;
    if (target.item === shown && target.level === level) return;
    Object.assign(target, { item: shown, level, measured: null });
    this.paintHeat(target, shown.drawnAll, level);
  }

  /** Its numbers. */
  measureAll(target) {
    if (!target.measured) {
      target.measured = this.measure(this.shown.all, target.level);
      this.describe(target, `All ${this.nHeads} heads (DAAM)`, target.measured.text);
    }
    return target.measured;
  }
}

/** Rows of heads, one a layer: rows is [{label, heads}]. */
function headGrid(rows) {
  const [cell, left, top] = [13, 48, 14];
  const columns = Math.max(...rows.map((row) => row.heads.length));
  const size = `0 0 ${left + columns * cell} ${top + rows.length * cell}`;
  const svg = element("svg", { viewBox: size, class: "selattn-grid", role: "img" });
  for (let i = 0; i < columns; i++) {
    svg.append(element("text", { x: left + (i + 0.5) * cell, y: top - 4, "text-anchor": "middle" }, String(i)));
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
  const caption = element("figcaption");
  const node = element("figure", { class: "selattn-panel selattn-heads" });
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

/** Rank of each head for a concept, from 1. */
function ranksOf(order) {
  const ranks = [];
  order.forEach((head, i) => (ranks[head] = i + 1));
  return ranks;
}
