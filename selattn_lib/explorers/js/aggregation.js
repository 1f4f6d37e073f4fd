// The aggregation explorer: the map of k heads beside that of all, and the IoU of every k.

const SLICE_MS = 8; // of computing at a time, while nobody waits for it
const LINES = METHODS.slice(0, 3);
const THRESHOLDS = Array.from({ length: 91 }, (_, i) => (5 + i) / 100); // the slider's own steps

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
  const lines = Object.fromEntries(LINES.map((name) => [name, element("path", { fill: "none" })]));
  const dot = element("circle", { r: 5, class: "selattn-dot" });
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
  const dashes = element("i", { "aria-hidden": "true", class: "selattn-dashes" });
  const keys = [...LINES.map((name) => key(METHOD_COLOURS[name], name)), element("span", {}, dashes, "all heads (DAAM)")];
  const node = element("figure", { class: "selattn-panel selattn-iou" });
  node.append(
    element("div", { class: "selattn-title" }, "IoU of this picture, for every number of heads"),
    svg,
    element("figcaption", { class: "selattn-keys" }, ...keys),
  );

  /** `curves` maps a method to its IoUs (k), as far as they are known. */
  function update(curves, method, k, chosenIou, allIou) {
    for (const [name, line] of Object.entries(lines)) {
      const points = Array.from(curves[name] ?? [], (v, i) => `${i ? "L" : "M"}${x(i + 1).toFixed(1)} ${y(v).toFixed(1)}`);
      line.setAttribute("d", points.join(""));
      line.style.stroke = METHOD_COLOURS[name];
      line.style.strokeWidth = name === method ? 2.6 : 1.2;
      line.style.opacity = name === method ? 1 : 0.6;
    }
    for (const name of ["y1", "y2"]) daam.setAttribute(name, y(allIou));
    const at = x(method === "all heads" ? nHeads : k);
    for (const name of ["x1", "x2"]) mark.setAttribute(name, at);
    dot.setAttribute("cx", at);
    dot.setAttribute("cy", y(chosenIou));
    dot.style.fill = METHOD_COLOURS[method];
    const label = `${chosenIou.toFixed(2)} at the marker, ${allIou.toFixed(2)} for all heads`;
    svg.setAttribute("aria-label", `IoU over the number of heads: ${label}`);
  }
  return { node, update };
}

/** Computes IoU curves while nothing else is to be done, and calls `done` after each. */
function curveWorker(scene, done) {
  const known = new Map();
  let [job, timer] = [null, null];
  function start(name, order) {
    clearTimeout(timer);
    job = name;
    const { shown, height, width } = scene;
    const steps = iouCurve(shown.heads, order, shown.truths[0], THRESHOLDS, height, width);
    const work = () => {
      const stop = performance.now() + SLICE_MS;
      for (let step = steps.next(); ; step = steps.next()) {
        if (step.done) {
          if (known.size > 60) known.clear();
          known.set(name, step.value);
          job = null;
          return done();
        }
        if (performance.now() > stop) break;
      }
      timer = setTimeout(work, 0);
    };
    timer = setTimeout(work, 0);
  }
  /** The curves (k) at a threshold, of methods as far as known; starts with the first that is not. */
  function curves(concept, method, level) {
    const nameOf = (each) => [scene.shown.number, each === "random k" ? "" : concept, each].join("|");
    const column = Math.round(100 * level) - 5;
    const found = {};
    for (const each of LINES) {
      const values = known.get(nameOf(each));
      if (values) found[each] = values.filter((_, i) => i % THRESHOLDS.length === column);
    }
    const first = method === "all heads" ? "top k" : method;
    const missing = [first, ...LINES].find((each) => !known.has(nameOf(each)));
    if (missing && job !== nameOf(missing))
      start(nameOf(missing), sequence(missing, scene.rankings[concept], scene.randomOrder));
    return found;
  }
  return { curves, stop: () => clearTimeout(timer) };
}

export function aggregationView(scene, redraw) {
  const { get, nHeads } = scene;
  const [picture, chosen, all] = [panel("picture"), panel("chosen"), panel("all")];
  const grid = headGrid(get("grid"));
  const curve = curvePlot(nHeads, (k) => scene.set({ k }));
  const worker = curveWorker(scene, redraw);
  const ranks = Object.fromEntries(scene.concepts.map((name) => [name, ranksOf(scene.rankings[name])]));

  function draw(level) {
    const { shown } = scene;
    const concept = scene.concepts[get("concept_0")];
    const method = METHODS[get("method")];
    const heads = chooseHeads(method, get("k"), scene.rankings[concept], scene.randomOrder);
    scene.paintHeat(chosen, scene.drawnHeatOf(0, heads), level);
    scene.paintAll(all, level);
    const title = {
      "top k": `Top ${heads.length} heads for ${concept}`,
      "bottom k": `Bottom ${heads.length} heads for ${concept}`,
      "random k": `${heads.length} random heads`,
      "all heads": `All ${nHeads} heads`,
    }[method];
    if (picture.item !== shown) {
      picture.item = shown;
      scene.paintImage(picture, shown.photo);
      scene.describe(picture, "Picture", scene.about);
    }
    const lit = new Set(heads);
    const colour = METHOD_COLOURS[method];
    grid.update(
      (number) => (lit.has(number) ? colour : null),
      (number) => `rank ${ranks[concept][number]} for ${concept}`,
      `${heads.length} of ${nHeads} heads`,
    );
    curve.node.hidden = !shown.truths.length;
    return () => tell(level, concept, method, heads, title);
  }

  function tell(level, concept, method, heads, title) {
    const measured = scene.measure(scene.heatOf(0, heads), level);
    scene.describe(chosen, title, measured.text);
    const daam = scene.measureAll(all);
    const lead = `${title}, threshold ${level.toFixed(2)}: ${measured.text}; all ${nHeads} heads: ${daam.text}`;
    if (!scene.shown.truths.length) return lead;
    curve.update(worker.curves(concept, method, level), method, get("k"), measured.ious[0], daam.ious[0]);
    const gain = measured.ious[0] - daam.ious[0];
    return `${lead} (difference ${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(3)})`;
  }

  const panels = [picture, chosen, all, curve, grid].map((part) => part.node);
  const lines = [["white", "edge of the mask: heat above the threshold"], ["dashes", "true outline"]];
  return { panels, lines, settings: ["k", "method", "concept_0"], draw, stop: worker.stop };
}
