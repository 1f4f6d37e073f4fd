// The diagnosis explorer: one word, two or three concepts; overlap and difference of their maps.

export function diagnosisView(scene) {
  const { get, nHeads } = scene;
  const { shared_colour: sharedColour, concept_colours: conceptColours, methods } = scene.constants;
  const [topK] = methods;
  const colours = conceptColours.slice(0, get("n_concepts"));
  const [picture, all, overlapping, lead] = ["picture", "all", "overlap", "lead"].map(panel);
  const sets = colours.map(() => panel("chosen"));
  const whose = overlapsTable(colours.map(rgbOf), rgbOf(sharedColour));
  const stronger = leadersTable(colours.map(rgbOf));
  const grid = headGrid(get("grid"));
  overlapping.reading.classList.add("selattn-keys");
  lead.reading.classList.add("selattn-keys");
  const ranks = Object.fromEntries(scene.concepts.map((name) => [name, ranksOf(scene.rankings[name])]));

  function draw(level) {
    const { shown } = scene;
    const choices = colours.map((colour, i) => {
      const concept = scene.concepts[get(`concept_${i}`)];
      const heads = chooseHeads(topK, get("k"), scene.rankings[concept], scene.orders);
      const drawn = scene.drawnHeatOf(i, heads);
      const edge = { path: scene.paintHeat(sets[i], drawn, level, colour), colour };
      sets[i].title.style.borderColor = colour;
      return { concept, colour, heads, drawn, edge };
    });
    scene.paintAll(all, level);
    scene.paintImage(picture, shown.photo, choices.map(({ edge }) => edge));
    scene.describe(picture, "Picture, with the edges", scene.about);
    const masks = choices.map(({ drawn }) => threshold(drawn, level));
    scene.paintPixels(overlapping, overlaps(shown.grey, masks, whose));
    scene.paintPixels(lead, leaders(shown.grey, choices.map(({ drawn }) => drawn), stronger));
    showGrid(choices);
    return () => tell(choices, level);
  }

  function tell(choices, level) {
    const measured = choices.map(({ heads }, i) => scene.measure(scene.heatOf(i, heads), level));
    choices.forEach(({ concept, heads }, i) =>
      scene.describe(sets[i], titleOf(topK, heads.length, concept), measured[i].text),
    );
    scene.measureAll(all);
    const masks = measured.map(({ mask }) => mask);
    describeOverlap(choices, masks);
    describeLead(choices);
    return inWords(choices, masks, level);
  }

  /** Masks in flat colours: whose a pixel is alone, and which are in several. */
  function describeOverlap(choices, masks) {
    const shares = memberships(masks).map((count) => percent(count / masks[0].length));
    const keys = choices.map(({ concept, colour }, i) => [colour, `only ${concept} ${shares[i]}`]);
    keys.push([sharedColour, `${choices.length > 2 ? "several" : "both"} ${shares.at(-1)}`]);
    scene.describe(overlapping, "Where the masks overlap", keys.map(([, text]) => text).join(", "));
    overlapping.reading.replaceChildren(...keys.map(([colour, text]) => key(colour, text)));
  }

  /** Where each concept's heads see more of the word than the others' do. */
  function describeLead(choices) {
    const names = choices.map(({ concept }) => concept);
    scene.describe(lead, "Difference: whose map is stronger", names.join(", "));
    lead.reading.replaceChildren(...choices.map(({ concept, colour }) => key(colour, concept)));
  }

  function showGrid(choices) {
    const members = choices.map(({ heads }) => new Set(heads));
    const colourOf = (number) => {
      const inside = choices.filter((_, i) => members[i].has(number));
      return inside.length > 1 ? sharedColour : (inside[0]?.colour ?? null);
    };
    const noteOf = (number) => choices.map(({ concept }) => `rank ${ranks[concept][number]} for ${concept}`).join(", ");
    const lit = new Set(choices.flatMap(({ heads }) => heads)).size;
    grid.update(colourOf, noteOf, `${lit} of ${nHeads} heads; heads of several concepts in pink`);
  }

  function inWords(choices, masks, level) {
    const pairs = choices.flatMap((a, i) =>
      choices.slice(i + 1).map((b, j) => {
        const shared = a.heads.filter((head) => b.heads.includes(head)).length;
        const overlap = iou(masks[i], masks[i + 1 + j]).toFixed(3);
        return `${a.concept} and ${b.concept}: ${shared} heads shared, their masks overlap with IoU ${overlap}`;
      }),
    );
    return `${scene.about}, ${get("k")} heads each, threshold ${level.toFixed(2)}. ${pairs.join("; ")}`;
  }

  function shownSets() {
    const chosen = colours.map((_, i) => {
      const concept = scene.concepts[get(`concept_${i}`)];
      const heads = chooseHeads(topK, get("k"), scene.rankings[concept], scene.orders);
      return { name: titleOf(topK, heads.length, concept), heads, heat: scene.heatOf(i, heads) };
    });
    return [...chosen, scene.everyHead];
  }

  /** Another word starts with its own concepts. */
  function onWord() {
    const meanings = get("meanings")[get("word")] ?? [];
    scene.set(Object.fromEntries(meanings.map((concept, i) => [`concept_${i}`, concept])));
  }

  const panels = [picture, ...sets, overlapping, lead, all, grid].map((part) => part.node);
  const lines = [["white", "edge of a mask; a concept's in its colour"], ["dashes", "true outline"]];
  const settings = ["k", ...colours.map((_, i) => `concept_${i}`)];
  return { panels, lines, settings, draw, shownSets, onWord };
}
