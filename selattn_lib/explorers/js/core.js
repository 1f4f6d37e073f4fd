// Arithmetic of the explorers, the same as `selattn_lib.maps` and `selattn_lib.evaluation.scores`, and tested against
// them.
//
// The files of this folder import nothing: `selattn_lib.explorers.view` joins them to one ES module, core first, which
// runs in JupyterLab and in a page without a kernel. What Python and they share comes as the trait `constants`.

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

/** Four sources and weights of every `step`-th of `to` positions: torch's bicubic, align_corners=False, A = -0.75. */
export function bicubicTaps(from, to, step = 1) {
  const A = -0.75;
  const near = (t) => ((A + 2) * t - (A + 3)) * t * t + 1;
  const far = (t) => ((A * t - 5 * A) * t + 8 * A) * t - 4 * A;
  const count = Math.ceil(to / step);
  const index = new Int32Array(4 * count);
  const weight = new Float32Array(4 * count);
  for (let i = 0; i < count; i++) {
    const position = ((i * step + 0.5) * from) / to - 0.5;
    const first = Math.floor(position);
    const t = position - first;
    weight.set([far(t + 1), near(t), near(1 - t), far(2 - t)], 4 * i);
    for (let j = 0; j < 4; j++) index[4 * i + j] = Math.min(Math.max(first - 1 + j, 0), from - 1);
  }
  return { index, weight };
}

const tapsCache = new Map();
function taps(from, to, step) {
  const key = `${from}>${to}/${step}`;
  if (!tapsCache.has(key)) tapsCache.set(key, bicubicTaps(from, to, step));
  return tapsCache.get(key);
}

/**
 * Add to `out` the map {height, width, values}, upsampled to (height, width): first along x, then along y. Of the
 * pixels every `step`-th of every `step`-th row is made.
 */
export function addUpsampled(out, height, width, map, step = 1) {
  const { index: columns, weight: across } = taps(map.width, width, step);
  const { index: rows, weight: down } = taps(map.height, height, step);
  const { values } = map;
  [height, width] = [rows.length / 4, columns.length / 4];
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
  const scale = high - low > 1e-5 * Math.abs(high) ? 1 / (high - low) : 0; // less is rounding
  for (let i = 0; i < from.length; i++) to[i] = (from[i] - low) * scale;
  return to;
}

/**
 * Heat map (Eq. 2, Eq. 4) of the chosen heads: maps of equal grids are summed, then upsampled. A `cache` (a Map) keeps
 * the upsampled sum of each grid, so that only those are made again whose heads are others than last time. With a
 * `step`, every `step`-th pixel of every `step`-th row, normalised among themselves.
 */
export function heatmap(heads, chosen, height, width, cache = new Map(), step = 1) {
  const pixels = Math.ceil(height / step) * Math.ceil(width / step);
  const groups = new Map();
  for (const number of chosen) {
    const { height: h, width: w } = heads[number];
    const grid = `${h}x${w}`;
    if (!groups.has(grid)) groups.set(grid, []);
    groups.get(grid).push(number);
  }
  const parts = [];
  for (const [grid, numbers] of groups) {
    const name = numbers.join();
    if (cache.get(grid)?.name !== name) {
      const sum = { ...heads[numbers[0]], values: new Float32Array(heads[numbers[0]].values.length) };
      for (const number of numbers) addTo(sum.values, heads[number].values);
      const heat = new Float32Array(pixels);
      addUpsampled(heat, height, width, sum, step);
      cache.set(grid, { name, heat });
    }
    parts.push(cache.get(grid).heat);
  }
  const total = parts.length ? parts[0].slice() : new Float32Array(pixels);
  for (const heat of parts.slice(1)) addTo(total, heat);
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

/** How many pixels lie in both of two masks of 0 and 1: four bytes at a time, which is what makes a slider fluent. */
function inBoth(a, b) {
  const [four, other] = [a, b].map((mask) => new Uint32Array(mask.buffer, mask.byteOffset, mask.length >> 2));
  let count = 0;
  for (let i = 0; i < four.length; i++) count += Math.imul(four[i] & other[i], 0x01010101) >>> 24;
  for (let i = 4 * four.length; i < a.length; i++) count += a[i] & b[i];
  return count;
}

/** How many pixels lie in a mask of 0 and 1. */
export function area(mask) {
  return inBoth(mask, mask);
}

/** Intersection over union (Eq. 5) of two masks of 0 and 1; two empty masks agree. */
export function iou(mask, truth) {
  const both = inBoth(mask, truth);
  const either = area(mask) + area(truth) - both;
  return either ? both / either : 1;
}

/** The heads that a setting means: `method` is one of the trait `constants`, `ranking` most relevant first, `orders` those
 * that no concept decides, by name. */
export function chooseHeads(method, k, ranking, orders) {
  const heads = sequence(method, ranking, orders);
  return takesK(method) ? heads.slice(0, k) : heads;
}

/** Whether a method takes as many heads as one likes; others take all of their order. */
const takesK = ({ order }) => !["all", "finest"].includes(order);

/** The heads whose maps have the most pixels. */
export function finestHeads(grids) {
  return grids.reduce((a, b) => (b.height * b.width > a.height * a.width ? b : a)).heads;
}

/** All heads in the order in which a method takes them. */
function sequence({ order }, ranking, orders) {
  if (order in orders) return orders[order];
  return order === "reversed" ? [...ranking].reverse() : ranking;
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
    let i = y * width;
    let left = (field[i] > level) | ((field[i + width] > level) << 3); // bits of the corners, from the top left around
    for (let x = 0; x + 1 < width; x++, i++) {
      const right = ((field[i + 1] > level) << 1) | ((field[i + width + 1] > level) << 2);
      const kind = left | right;
      left = (right >> 1) | ((right << 1) & 8);
      if (kind === 0 || kind === 15) continue;
      const [a, b, c, d] = [field[i], field[i + 1], field[i + width + 1], field[i + width]];
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

/** Colours, as 32 bits, of tints [[red, green, blue], share] over each grey (0 to 255): 256 colours a tint. */
function tintTable(tints) {
  const bytes = new Uint8Array(1024 * tints.length);
  tints.forEach(([colour, share], tint) => {
    for (let grey = 0, at = 1024 * tint; grey < 256; grey++, at += 4) {
      for (let c = 0; c < 3; c++) bytes[at + c] = share * colour[c] + (1 - share) * grey + 0.5;
      bytes[at + 3] = 255;
    }
  });
  return new Uint32Array(bytes.buffer);
}

/** The table of `overlay`: `palette` holds 256 RGB colours. */
export function overlayTable(palette, opacity) {
  return tintTable(Array.from({ length: 256 }, (_, i) => [palette.subarray(3 * i, 3 * i + 3), opacity]));
}

/** RGBA pixels: the picture's lightness (0 to 255) under the heat's colour. */
export function overlay(grey, heat, table) {
  const pixels = new Uint32Array(grey.length);
  for (let i = 0; i < grey.length; i++) pixels[i] = table[(((255 * heat[i] + 0.5) | 0) << 8) | grey[i]];
  return new Uint8ClampedArray(pixels.buffer);
}

/** The table of `leaders`: `colours` holds one [red, green, blue] a heat. */
export function leadersTable(colours) {
  return tintTable(colours.flatMap((colour) => Array.from({ length: 256 }, (_, i) => [colour, i / 255])));
}

/** RGBA pixels: the picture's lightness, coloured where one of several heats leads, as strongly as it leads. */
export function leaders(grey, heats, table) {
  const pixels = new Uint32Array(grey.length);
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
    const lead = (255 * Math.min(1, 1.5 * (first - second)) + 0.5) | 0;
    pixels[i] = table[(winner << 16) | (lead << 8) | grey[i]];
  }
  return new Uint8ClampedArray(pixels.buffer);
}

/** The table of `overlaps`: one [red, green, blue] a mask, and that of the pixels that several share. */
export function overlapsTable(colours, shared) {
  const sets = Array.from({ length: 2 ** colours.length }, (_, set) => set);
  return tintTable(sets.map((set) => [colours[ownerOf(set)] ?? shared, set ? 0.75 : 0]));
}

/** RGBA pixels: the picture's lightness, coloured where one of several masks lies, or several do. */
export function overlaps(grey, masks, table) {
  const sets = setsOf(masks);
  const pixels = new Uint32Array(grey.length);
  for (let i = 0; i < grey.length; i++) pixels[i] = table[(sets[i] << 8) | grey[i]];
  return new Uint8ClampedArray(pixels.buffer);
}

/** For each pixel the masks that it lies in, as bits. */
function setsOf(masks) {
  const sets = masks[0].slice();
  for (let j = 1; j < masks.length; j++) {
    const mask = masks[j];
    for (let i = 0; i < sets.length; i++) sets[i] |= mask[i] << j;
  }
  return sets;
}

/** The number of the only mask of a set; -1 if there is none or several. */
function ownerOf(set) {
  return set && !(set & (set - 1)) ? Math.log2(set) : -1;
}

/** How many pixels lie in each mask alone, and at the end how many in several. */
export function memberships(masks) {
  const pixels = new Uint32Array(2 ** masks.length);
  const sets = setsOf(masks);
  for (let i = 0; i < sets.length; i++) pixels[sets[i]]++;
  const counts = new Array(masks.length + 1).fill(0);
  for (let set = 1; set < pixels.length; set++) counts[ownerOf(set) < 0 ? masks.length : ownerOf(set)] += pixels[set];
  return counts;
}

/** A heat map's mean on a mask over its mean everywhere; 1 if either is empty. */
export function attentionRatio(heat, mask) {
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
