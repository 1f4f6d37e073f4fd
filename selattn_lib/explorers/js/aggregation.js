// The aggregation explorer: the map of k heads beside that of all, and the IoU of every k.

const SLICE_MS = 8; // of computing at a time, while nobody waits for it
/** IoU over k, one line each of the `methods` that take k heads, with a marker that can be dragged. */
function curvePlot(nHeads, methods, onPick) {
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
  const lines = methods.map(({ colour }) => element("path", { fill: "none", style: `stroke: ${colour}` }));
  const dot = element("circle", { r: 5, class: "selattn-dot" });
  svg.append(daam, mark, ...lines, dot);
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
  const keys = [...methods.map(({ colour, name }) => key(colour, name)), element("span", {}, dashes, "all heads (DAAM)")];
  const node = element("figure", { class: "selattn-panel selattn-iou" });
  node.append(
    element("div", { class: "selattn-title" }, "IoU of this picture, for every number of heads"),
    svg,
    element("figcaption", { class: "selattn-keys" }, ...keys),
  );

  /** `curves` holds the IoUs (k) of each method, as far as they are known. */
  function update(curves, method, count, chosenIou, allIou) {
    lines.forEach((line, m) => {
      const points = Array.from(curves[m] ?? [], (v, i) => `${i ? "L" : "M"}${x(i + 1).toFixed(1)} ${y(v).toFixed(1)}`);
      line.setAttribute("d", points.join(""));
      line.style.strokeWidth = methods[m] === method ? 2.6 : 1.2;
      line.style.opacity = methods[m] === method ? 1 : 0.6;
    });
    for (const name of ["y1", "y2"]) daam.setAttribute(name, y(allIou));
    const at = x(count);
    for (const name of ["x1", "x2"]) mark.setAttribute(name, at);
    dot.setAttribute("cx", at);
    dot.setAttribute("cy", y(chosenIou));
    dot.style.fill = method.colour;
    const label = `${chosenIou.toFixed(2)} at the marker, ${allIou.toFixed(2)} for all heads`;
    svg.setAttribute("aria-label", `IoU over the number of heads: ${label}`);
  }
  return { node, update };
}

/** Computes IoU curves of `methods` while nothing else is to be done, and calls `done` after each. */
function curveWorker(scene, methods, done) {
  const [first, last] = scene.constants.thresholds;
  const thresholds = Array.from({ length: last - first + 1 }, (_, i) => (first + i) / 100); // the slider's own steps
  const known = new Map();
  let [job, timer] = [null, null];
  function start(name, order) {
    clearTimeout(timer);
    job = name;
    const { shown, height, width } = scene;
    const steps = iouCurve(shown.heads, order, shown.truths[0], thresholds, height, width);
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
    const nameOf = ({ order }) => [scene.shown.number, order in scene.orders ? "" : concept, order].join("|");
    const column = Math.round(100 * level) - first;
    const shownFirst = methods.includes(method) ? [method, ...methods] : methods;
    const missing = shownFirst.find((other) => !known.has(nameOf(other)));
    if (missing && job !== nameOf(missing))
      start(nameOf(missing), sequence(missing, scene.rankings[concept], scene.orders));
    return methods.map((other) => known.get(nameOf(other))?.filter((_, i) => i % thresholds.length === column));
  }
  return { curves, stop: () => clearTimeout(timer) };
}

export function aggregationView(scene, redraw) {
  const { get, nHeads } = scene;
  const [picture, chosen, all] = [panel("picture"), panel("chosen"), panel("all")];
  const grid = headGrid(get("grid"));
  const { methods } = scene.constants;
  const curved = methods.filter(takesK);
  const curve = curvePlot(nHeads, curved, (k) => scene.set({ k }));
  const worker = curveWorker(scene, curved, redraw);
  const ranks = Object.fromEntries(scene.concepts.map((name) => [name, ranksOf(scene.rankings[name])]));

  function draw(level) {
    const { shown } = scene;
    const concept = scene.concepts[get("concept_0")];
    const method = methods[get("method")];
    const heads = chooseHeads(method, get("k"), scene.rankings[concept], scene.orders);
    scene.paintHeat(chosen, scene.drawnHeatOf(0, heads), level);
    scene.paintAll(all, level);
    const title = titleOf(method, heads.length, concept);
    if (picture.item !== shown) {
      picture.item = shown;
      scene.paintImage(picture, shown.photo);
      scene.describe(picture, "Picture", scene.about);
    }
    const lit = new Set(heads);
    grid.update(
      (number) => (lit.has(number) ? method.colour : null),
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
    curve.update(worker.curves(concept, method, level), method, heads.length, measured.ious[0], daam.ious[0]);
    const gain = measured.ious[0] - daam.ious[0];
    return `${lead} (difference ${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(3)})`;
  }

  function shownSets() {
    const [concept, method] = [scene.concepts[get("concept_0")], methods[get("method")]];
    const heads = chooseHeads(method, get("k"), scene.rankings[concept], scene.orders);
    return [{ name: titleOf(method, heads.length, concept), heads, heat: scene.heatOf(0, heads) }, scene.everyHead];
  }

  const panels = [picture, chosen, all, curve, grid].map((part) => part.node);
  const lines = [["white", "edge of the mask: heat above the threshold"], ["dashes", "true outline"]];
  return { panels, lines, settings: ["k", "method", "concept_0"], draw, shownSets, stop: worker.stop };
}
