// Arithmetic of the explorers, the same as `selattn_lib.aggregate` and `.metrics`, and tested against them.
//
// The files of this folder import nothing: `explore.py` joins them to one ES module, core first, which runs in
// JupyterLab and in a page without a kernel.

export const METHODS = ["top k", "bottom k", "random k", "all heads"];

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

/**
 * Heat map (Eq. 2, Eq. 4) of the chosen heads: maps of equal grids are summed, then upsampled. A `cache` (a Map) keeps
 * the upsampled sum of each grid, so that only those are made again whose heads are others than last time.
 */
export function heatmap(heads, chosen, height, width, cache = new Map()) {
  const groups = new Map();
  for (const number of chosen) {
    const { height: h, width: w } = heads[number];
    groups.set(`${h}x${w}`, [...(groups.get(`${h}x${w}`) ?? []), number]);
  }
  const total = new Float32Array(height * width);
  for (const [grid, numbers] of groups) {
    const name = numbers.join();
    if (cache.get(grid)?.name !== name) {
      const sum = { ...heads[numbers[0]], values: new Float32Array(heads[numbers[0]].values.length) };
      for (const number of numbers) addTo(sum.values, heads[number].values);
      const heat = new Float32Array(height * width);
      addUpsampled(heat, height, width, sum);
      cache.set(grid, { name, heat });
    }
    addTo(total, cache.get(grid).heat);
  }
  return normaliseInto(total, total);
}

function addTo(sum, values) {
  for (let i = 0; i < sum.length; i++) sum[i] += values[i];
}

/** Every `step`-th pixel of every `step`-th row, of an array (height, width). */
export function sampled(field, height, width, step) {
  if (step === 1) return field;
  const [rows, columns] = [Math.ceil(height / step), Math.ceil(width / step)];
  const small = new field.constructor(rows * columns);
  for (let y = 0, i = 0; y < rows; y++)
    for (let x = 0, from = y * step * width; x < columns; x++, from += step) small[i++] = field[from];
  return small;
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
  if (method === "all heads") return order;
  return sequence(method, order, randomOrder).slice(0, k);
}

/** All heads in the order in which a method takes them. */
function sequence(method, order, randomOrder) {
  if (method === "random k") return randomOrder;
  return method === "bottom k" ? [...order].reverse() : order;
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
    for (let x = 0, i = y * width; x + 1 < width; x++, i++) {
      const a = field[i]; // an array to take apart would be slow here
      const b = field[i + 1];
      const c = field[i + width + 1];
      const d = field[i + width];
      const kind = (a > level) | ((b > level) << 1) | ((c > level) << 2) | ((d > level) << 3);
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

/** Colours, as 32 bits, of each heat (0 to 255) over each grey (0 to 255): `palette` holds 256 RGB colours. */
export function overlayTable(palette, opacity) {
  const bytes = new Uint8Array(4 * 65536);
  for (let i = 0; i < 65536; i++) {
    for (let c = 0; c < 3; c++) bytes[4 * i + c] = opacity * palette[3 * (i >> 8) + c] + (1 - opacity) * (i & 255) + 0.5;
    bytes[4 * i + 3] = 255;
  }
  return new Uint32Array(bytes.buffer);
}

/** RGBA pixels: the picture's lightness (0 to 255) under the heat's colour. */
export function overlay(grey, heat, table) {
  const pixels = new Uint32Array(heat.length);
  for (let i = 0; i < heat.length; i++) pixels[i] = table[(((255 * heat[i] + 0.5) | 0) << 8) | grey[i]];
  return new Uint8ClampedArray(pixels.buffer);
}

/**
 * RGBA pixels: the picture's lightness, coloured where one of several heats leads, as strongly as it leads.
 * `colours` holds one [red, green, blue] a heat.
 */
export function leaders(grey, heats, colours) {
  return tinted(grey, (i, mix) => {
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
    mix(colours[winner], Math.min(1, 1.5 * (first - second)));
  });
}

/** RGBA pixels: the picture's lightness, coloured where one of several masks lies, `shared` where several do. */
export function overlaps(grey, masks, colours, shared) {
  return tinted(grey, (i, mix) => {
    const owner = ownerAt(masks, i);
    mix(colours[owner] ?? shared, owner < 0 ? 0 : 0.75);
  });
}

/** RGBA pixels: the picture's lightness, tinted by `tintOf(pixel, mix)`, which calls mix(colour, share). */
function tinted(grey, tintOf) {
  const pixels = new Uint8ClampedArray(4 * grey.length);
  let at = 0;
  const mix = (colour, share) => {
    const below = (1 - share) * grey[at >> 2];
    for (let c = 0; c < 3; c++) pixels[at + c] = share * colour[c] + below;
    pixels[at + 3] = 255;
  };
  for (let i = 0; i < grey.length; i++, at += 4) tintOf(i, mix);
  return pixels;
}

/** The number of the mask that pixel `i` lies in; -1 if in none, how many masks there are if in several. */
function ownerAt(masks, i) {
  let owner = -1;
  for (let j = 0; j < masks.length; j++) if (masks[j][i]) owner = owner < 0 ? j : masks.length;
  return owner;
}

/** How many pixels lie in each mask alone, and at the end how many in several. */
export function memberships(masks) {
  const counts = new Array(masks.length + 1).fill(0);
  for (let i = 0; i < masks[0].length; i++) {
    const owner = ownerAt(masks, i);
    if (owner >= 0) counts[owner]++;
  }
  return counts;
}

/** How much of a heat map falls on a mask: its mean there over its mean everywhere; 1 if either is empty. */
export function attentionShare(heat, mask) {
  let inside = 0;
  let area = 0;
  let total = 0;
  for (let i = 0; i < heat.length; i++) {
    total += heat[i];
    inside += mask[i] * heat[i];
    area += mask[i];
  }
  return area && total ? inside / area / (total / heat.length) : 1;
}

/** Indices of numbers, the largest first, of equal ones the lower index first. */
export function descending(numbers) {
  return Array.from(numbers, (_, i) => i).sort((a, b) => numbers[b] - numbers[a] || a - b);
}
