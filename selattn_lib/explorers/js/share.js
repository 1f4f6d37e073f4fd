// What a reader takes along: the pictures as PNG, the numbers as CSV, and a link that carries the settings.

const LETTERS = { word: "w", image: "i", k: "k", threshold: "t", method: "m", concept_0: "a", concept_1: "b", concept_2: "c" };

/** A name for what an explorer shows, the same wherever it is shown: its kind, and a checksum of its maps. */
function nameOfView(scene) {
  const maps = scene.get("maps");
  let sum = 2166136261;
  for (let i = 0; i < maps.byteLength; i += 89) sum = Math.imul(sum ^ maps.getUint8(i), 16777619);
  return `${scene.get("kind")}-${(sum >>> 0).toString(16)}`;
}

/** The settings as a fragment of letters, digits and hyphens, such as "heads-1a2b-w0-k20-t40-p3_17". */
function linkOf(scene) {
  const parts = Object.entries(LETTERS).map(([name, letter]) => {
    const value = scene.get(name);
    return letter + (name === "threshold" ? Math.round(100 * value) : value);
  });
  const picked = scene.get("picked");
  return [nameOfView(scene), ...parts, ...(picked ? [`p${picked.join("_")}`] : [])].join("-");
}

/** Take over the settings of a link, if it is about this explorer, as far as they are possible; whether it is. */
function followLink(scene, fragment) {
  const name = nameOfView(scene);
  if (!fragment.startsWith(`#${name}-`)) return false;
  const given = Object.fromEntries(fragment.slice(name.length + 2).split("-").map((part) => [part[0], part.slice(1)]));
  const { get, nHeads, constants } = scene;
  const regions = new Set(get("items").flatMap((item) => item.regions)).size;
  const concepts = [0, scene.concepts.length - 1 + (get("kind") === "heads" ? 1 + regions : 0)];
  const ranges = { word: [0, get("words").length - 1], image: [0, get("labels").length - 1], k: [1, nHeads] };
  Object.assign(ranges, { threshold: constants.thresholds, method: [0, constants.methods.length - 1] });
  for (const each of ["concept_0", "concept_1", "concept_2"]) ranges[each] = concepts;
  const values = {};
  for (const [setting, [low, high]] of Object.entries(ranges)) {
    const value = parseInt(given[LETTERS[setting]], 10);
    if (value >= low && value <= high) values[setting] = setting === "threshold" ? value / 100 : value;
  }
  const { word = get("word"), ...others } = values;
  scene.set({ word }); // which may bring concepts of its own
  scene.set(others);
  const picked = given.p?.split("_").filter((text) => /^\d+$/.test(text)).map(Number);
  if (picked) scene.set({ picked: [...new Set(picked)].filter((head) => head < nHeads).sort((a, b) => a - b) });
  return true;
}

/** Have the browser save a blob. */
function saveBlob(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** The panels with pictures side by side on white, each with its title and numbers. */
function sheetOf(body) {
  const figures = [...body.querySelectorAll(".selattn-panel")].filter((node) => node.querySelector(":scope > canvas"));
  const [side, gap, text] = [320, 16, 18];
  const sources = figures.map((node) => node.querySelector("canvas"));
  const height = Math.max(...sources.map((source) => (side * source.height) / source.width));
  const sheet = element("canvas", { width: gap + figures.length * (side + gap), height: height + 3 * text + 2 * gap });
  const context = sheet.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, sheet.width, sheet.height);
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#222";
  figures.forEach((node, i) => {
    const [source, x] = [sources[i], gap + i * (side + gap)];
    context.font = "bold 13px system-ui, sans-serif";
    context.fillText(node.querySelector(".selattn-title").textContent, x, gap + 12, side);
    context.drawImage(source, x, gap + text, side, (side * source.height) / source.width);
    context.font = "13px system-ui, sans-serif";
    const words = node.querySelector("figcaption").innerText.split("\n").join(", ");
    context.fillText(words, x, gap + 2 * text + height, side);
  });
  return sheet;
}

/** A line of CSV; what holds a comma or a quote is quoted, and nothing is taken for a formula. */
const csvLine = (cells) =>
  cells
    .map((cell) => (typeof cell === "string" && /^[=+\-@\t]/.test(cell) ? `'${cell}` : String(cell)))
    .map((text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text))
    .join(",");

/** The numbers of what is shown: a line for each of `sets`, which are {name, heads, heat}. */
function tableOf(scene, sets) {
  const level = scene.get("threshold");
  const { regions } = scene.shown;
  const lines = [["word", "picture", "map", "heads", "threshold", "share", ...regions.map((name) => `IoU with ${name}`)]];
  const about = [scene.get("words")[scene.get("word")], scene.get("labels")[scene.get("image")]];
  for (const { name, heads, heat } of sets) {
    const { share, ious } = scene.measure(heat, level);
    const numbers = [share, ...ious].map((value) => value.toFixed(4));
    lines.push([...about, name, heads.length === scene.nHeads ? "all" : heads.join(" "), level.toFixed(2), ...numbers]);
  }
  return `${lines.map(csvLine).join("\r\n")}\r\n`;
}

/** The row of buttons. `sets()` gives what a table is of. */
function shareTools(scene, body, sets) {
  const node = element("div", { class: "selattn-tools selattn-share", role: "group", "aria-label": "Take along" });
  const button = (text, title, act) => {
    const made = element("button", { type: "button", title }, text);
    made.addEventListener("click", () => scene.shown && act(made));
    node.append(made);
  };
  const name = `${scene.get("kind")}-explorer`;
  button("Save PNG", "The pictures and maps, side by side", () =>
    sheetOf(body).toBlob((blob) => saveBlob(blob, `${name}.png`)),
  );
  button("Save CSV", "The numbers of each map, and the heads it is made of", () =>
    saveBlob(new Blob(["\ufeff", tableOf(scene, sets())], { type: "text/csv" }), `${name}.csv`),
  );
  const isPage = /^(file|https?):$/.test(location.protocol) && !document.querySelector("#jupyter-config-data");
  if (isPage)
    button("Copy link", "A link that opens this page with these settings", async (made) => {
      history.replaceState(null, "", `#${linkOf(scene)}`);
      const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
      made.textContent = copied ? "Link copied" : "Link is in the address bar";
      setTimeout(() => (made.textContent = "Copy link"), 3000);
    });
  return node;
}
