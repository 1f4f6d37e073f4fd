// The head explorer: each head's own map on the grid, the average of those picked, and what a head is relevant to.

const N_LISTED = 5; // heads of a ranking, and concepts of a head
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export function headsView(scene, redraw) {
  const { get, nHeads, concepts, rankings } = scene;
  const rows = get("grid");
  const scores = get("scores");
  const nameOf = [];
  for (const { label, heads } of rows) heads.forEach((number, i) => (nameOf[number] = `${label}, head ${i}`));
  const ranks = Object.fromEntries(concepts.map((name) => [name, ranksOf(rankings[name])]));
  const [picture, average, all, own] = ["picture", "chosen", "all", "own"].map(panel);
  const relevant = element("ol", { class: "selattn-relevant" });
  own.node.append(relevant);
  let focus = null; // the head looked at; the first in the ranking until one is
  const cells = [];
  const opaque = overlayTable(scene.palette, 1);
  let byAttention = {}; // region -> order, of the item that is shown

  const relevances = Array.from({ length: nHeads }, (_, head) => relevance(head));

  const pick = (heads) => scene.set({ picked: [...heads].sort((a, b) => a - b) });
  const grid = tiles();
  const tools = element("div", { class: "selattn-tools", role: "group", "aria-label": "Pick heads" });
  const steps = rankSteps();
  let undone = null; // what was picked by hand before k or the ranking moved

  function ranking() {
    const index = get("concept_0");
    if (index < concepts.length)
      return { of: `most relevant to ${concepts[index]}`, order: rankings[concepts[index]], reaches: "" };
    if (index === concepts.length) return { of: "that agree most with all heads", order: scene.orders.consensus, reaches: "" };
    const regions = [...new Set(get("items").flatMap((item) => item.regions))];
    const region = regions[index - concepts.length - 1];
    const name = region === "truth" ? "the object" : region;
    const of = `with most attention on ${name}`;
    byAttention[region] ??= rankedBy(ratiosOf(region));
    const { order, ratios } = byAttention[region];
    const [first, last] = [order[0], order[Math.min(get("k"), nHeads) - 1]].map((head) => ratios[head].toFixed(2));
    const reached = `The first is ${first} × as strong there as elsewhere, the last of the ${get("k")} first ${last} ×.`;
    return { of, order, reaches: ` ${reached} This ranking knows the true outline, as no method does.` };
  }

  /** (head) how much more of each head's own map falls on a region than elsewhere. */
  function ratiosOf(region) {
    const truth = scene.shown.truths[scene.shown.regions.indexOf(region)];
    return Array.from({ length: nHeads }, (_, head) => (truth ? attentionRatio(ownHeat(head), truth) : 1));
  }

  const rankedBy = (ratios) => ({ ratios, order: descending(ratios) });
  const ownHeat = (head) => heatmap(scene.shown.heads, [head], scene.height, scene.width);
  const selected = () => get("picked") ?? ranking().order.slice(0, get("k"));

  function fillTools() {
    const button = (text, title, heads) => {
      const node = element("button", { type: "button", title }, text);
      node.addEventListener("click", () => (heads ? pick(heads()) : scene.set({ picked: null })));
      return node;
    };
    const everyone = () => scene.randomOrder;
    const buttons = [
      button(`Top ${get("k")}`, "The first heads of the ranking"),
      button("All", "All heads", everyone),
      button("None", "No head", () => []),
    ];
    for (const { height, width, heads } of get("grids"))
      buttons.push(button(`${height} × ${width}`, `The ${heads.length} heads of this resolution`, () => heads));
    if (undone) buttons.push(button(`Back to my ${undone.length}`, "The heads that were picked by hand", () => undone));
    tools.replaceChildren("Pick: ", ...buttons);
  }

  /** Buttons that go through the heads in the order of the ranking. */
  function rankSteps() {
    const reading = element("output");
    const step = (text, label, next) => {
      const node = element("button", { type: "button", "aria-label": label, title: label }, text);
      node.addEventListener("click", () => {
        const { order } = ranking();
        look(order[Math.min(Math.max(next(order.indexOf(focus)), 0), nHeads - 1)]);
      });
      return node;
    };
    const node = element("div", { class: "selattn-tools", role: "group", "aria-label": "Look at heads by rank" });
    node.append(
      "Look at: ",
      step("first", "The first head of the ranking", () => 0),
      step("‹", "The head before it in the ranking", (rank) => rank - 1),
      step("›", "The head after it in the ranking", (rank) => rank + 1),
      reading,
    );
    return { node, say: (rank) => (reading.textContent = `rank ${rank + 1}: ${nameOf[focus]}`) };
  }

  /** The grid: a button a layer, and a button a head with its map on it. Arrow keys move, space picks. */
  function tiles() {
    const columns = Math.max(...rows.map((row) => row.heads.length));
    const node = element("div", { class: "selattn-tiles", role: "group", "aria-label": "Heads: a row a layer" });
    node.style.gridTemplateColumns = `auto repeat(${columns}, minmax(0, 1fr))`;
    for (let x = 0; x < columns; x++) {
      const number = element("span", { class: "selattn-column", "aria-hidden": "true" }, String(x));
      number.style.gridColumn = x + 2;
      node.append(number);
    }
    rows.forEach(({ label: layer, heads }, y) => {
      const name = element("button", { type: "button", class: "selattn-layer", title: "Pick this layer" }, layer);
      name.addEventListener("click", () => pick(heads));
      name.style.gridRow = y + 2; // below the columns' numbers
      node.append(name);
      heads.forEach((number, x) => {
        const canvas = element("canvas", { "aria-hidden": "true" });
        const label = `${nameOf[number]}, most relevant to ${relevances[number][0].concept}`;
        const cell = element("button", { type: "button", class: "selattn-tile", "aria-label": label, title: label }, canvas);
        cell.style.gridRow = y + 2;
        cell.style.gridColumn = x + 2;
        cell.addEventListener("click", () => {
          const now = new Set(selected());
          if (!now.delete(number)) now.add(number);
          look(number);
          pick(now);
        });
        cell.addEventListener("focus", () => look(number));
        cell.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && look(number));
        cell.addEventListener("keydown", (event) => {
          const [down, across] = ARROWS[event.key] ?? [];
          const next = rows[y + down]?.heads[Math.min(x + across, rows[y + down].heads.length - 1)];
          if (next === undefined) return;
          event.preventDefault();
          cells[next].cell.focus();
        });
        cells[number] = { cell, canvas };
        node.append(cell);
      });
    });
    return node;
  }

  function look(number) {
    focus = number;
    redraw();
  }

  function paintTiles() {
    cells.forEach(({ canvas }, number) => {
      const { height, width, values } = scene.shown.heads[number];
      [canvas.width, canvas.height] = [width, height];
      const heat = normaliseInto(new Float32Array(values.length), values);
      const pixels = overlay(new Uint8Array(values.length), heat, opaque);
      canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
    });
  }

  function draw(level) {
    const { shown } = scene;
    if (picture.item !== shown) {
      picture.item = shown;
      byAttention = {};
      scene.paintImage(picture, shown.photo);
      scene.describe(picture, "Picture", scene.about);
      paintTiles();
    }
    const { of, order, reaches } = ranking();
    const heads = selected();
    const members = new Set(heads);
    focus ??= order[0];
    cells.forEach(({ cell }, number) => {
      cell.setAttribute("aria-pressed", members.has(number));
      cell.classList.toggle("selattn-focus", number === focus);
      cell.tabIndex = number === focus ? 0 : -1;
    });
    fillToolsOnce();
    steps.say(order.indexOf(focus));
    scene.paintHeat(average, scene.drawnHeatOf(0, heads), level);
    scene.paintAll(all, level);
    scene.paintHeat(own, scene.drawnHeatOf("own", [focus]), level);
    showRelevance();
    return () => tell(level, of, order, heads, reaches);
  }

  function tell(level, of, order, heads, reaches) {
    const measured = scene.measure(scene.heatOf(0, heads), level);
    const title = `Average of the ${heads.length} heads ${get("picked") ? "picked" : of}`;
    scene.describe(average, title, measured.text);
    const daam = scene.measureAll(all);
    describeOwn(level);
    const first = order.slice(0, N_LISTED).map((number) => nameOf[number]);
    const lead = `${title}, threshold ${level.toFixed(2)}: ${measured.text}; all ${nHeads} heads: ${daam.text}.`;
    const kept = undone && !get("picked") ? ` The ranking took the place of the ${undone.length} that you picked.` : "";
    return `${lead}${kept} Heads ${of}: ${first.join("; ")} …${reaches}`;
  }

  let toolsFor = null;
  function fillToolsOnce() {
    const now = `${get("k")} ${undone}`;
    if (toolsFor === now) return;
    toolsFor = now;
    fillTools();
  }

  /** The concepts that a head is most relevant to: by relevance where it is known, by rank otherwise. */
  function relevance(number) {
    const known = concepts.map((concept) => ({
      concept,
      rank: ranks[concept][number],
      score: scores[concept]?.[number] ?? null,
    }));
    return known.sort((a, b) => (b.score ?? 0) - (a.score ?? 0) || a.rank - b.rank);
  }

  function describeOwn(level) {
    const heat = scene.heatOf("own", [focus]);
    const measured = scene.measure(heat, level);
    const ratios = scene.shown.truths.map((truth, i) => {
      const name = scene.shown.regions[i] === "truth" ? "the object" : scene.shown.regions[i];
      return `${attentionRatio(heat, truth).toFixed(2)} × as strong on ${name}`;
    });
    const { height, width } = scene.shown.heads[focus];
    scene.describe(own, nameOf[focus], [`${height} × ${width}`, measured.text, ...ratios].join(", "));
  }

  function showRelevance() {
    const best = relevances[focus].slice(0, N_LISTED);
    const longest = Math.max(...best.map(({ score }) => score ?? 0), 1);
    relevant.replaceChildren(
      ...best.map(({ concept, score, rank }) => {
        const bar = element("i", { "aria-hidden": "true" });
        bar.style.width = `${(100 * (score ?? 0)) / longest}%`;
        const value = score === null ? "" : ` ${score.toFixed(2)},`;
        return element("li", {}, bar, `${concept}${value} rank ${rank} of ${nHeads}`);
      }),
    );
  }

  /** A ranking's settings take the place of what was picked by hand, which one can go back to. */
  function rankAgain() {
    if (get("picked")) {
      undone = get("picked");
      scene.set({ picked: null });
    }
    redraw();
  }

  function shownSets() {
    const heads = selected();
    const name = `${heads.length} heads ${get("picked") ? "picked" : ranking().of}`;
    const own = { name: nameOf[focus], heads: [focus], heat: scene.heatOf("own", [focus]) };
    return [{ name, heads, heat: scene.heatOf(0, heads) }, own, scene.everyHead];
  }

  fillTools();
  const side = element("div", { class: "selattn-side" });
  side.append(...[picture, average, all, own].map((part) => part.node));
  const gridNode = element("figure", { class: "selattn-panel selattn-all-heads" });
  const hint = "Each head’s own map. Click a head to add or remove it, a layer’s name to pick the layer.";
  gridNode.append(element("div", { class: "selattn-title" }, "The heads"), tools, steps.node, grid, element("figcaption", {}, hint));
  const lines = [["white", "edge of the mask"], ["dashes", "true outline"], ["picked", "head that is picked"]];
  const handlers = { picked: redraw, k: rankAgain, concept_0: rankAgain };
  return { panels: [gridNode, side], lines, settings: [], handlers, draw, shownSets };
}
