// The entry point: builds the view of the model's kind, and keeps it up to date.

const VIEWS = { aggregation: aggregationView, heads: headsView, diagnosis: diagnosisView };

/** Give the sliders of ipywidgets the names that their labels show, for screen readers. */
function nameSliders(root) {
  for (const handle of root.querySelectorAll(".noUi-handle")) {
    const label = handle.closest(".jupyter-widgets")?.querySelector(".widget-label");
    if (label) handle.setAttribute("aria-label", label.textContent);
  }
}

function mount(model, el) {
  const scene = new Scene(model);
  const view = VIEWS[model.get("kind")](scene, schedule);
  const status = element("p", { class: "selattn-status", role: "status", "aria-live": "polite" });
  const bar = legend(scene.palette, view.lines);
  const body = element("div", { class: `selattn-body selattn-view-${model.get("kind")} selattn-sets-${model.get("n_concepts")}` });
  body.append(...view.panels);
  el.replaceChildren(status, body, bar.node, shareTools(scene, body, view.shownSets));

  // A change of a setting is drawn in one frame; the numbers, which need every pixel, follow at once.
  let frame = null;
  let numbers = null;
  let loading = 0;
  function schedule() {
    el.ariaBusy = "true";
    frame ??= requestAnimationFrame(() => {
      frame = null;
      if (!scene.shown) return;
      const started = performance.now();
      const level = model.get("threshold");
      const tell = view.draw(level);
      bar.move(level);
      const drawn = performance.now() - started;
      clearTimeout(numbers);
      numbers = setTimeout(() => {
        status.textContent = tell();
        el.dataset.drawMs = drawn.toFixed(1);
        el.ariaBusy = String(frame !== null || loading > 0);
      });
    });
  }
  const load = async () => {
    el.ariaBusy = "true";
    loading++;
    if (await scene.load().finally(() => loading--)) schedule();
  };
  const onWord = () => {
    view.onWord?.();
    void load();
  };
  const handlers = Object.fromEntries(["threshold", ...view.settings].map((name) => [name, schedule]));
  Object.assign(handlers, { ...view.handlers, image: load, word: onWord });
  for (const [name, handler] of Object.entries(handlers)) model.on(`change:${name}`, handler);
  const naming = setTimeout(() => nameSliders(el.closest(".selattn-explorer") ?? el), 500);
  void load();
  const follow = () => followLink(scene, location.hash) && el.scrollIntoView({ block: "center" });
  addEventListener("hashchange", follow);
  follow();
  return () => {
    removeEventListener("hashchange", follow);
    view.stop?.();
    clearTimeout(naming);
    clearTimeout(numbers);
    if (frame !== null) cancelAnimationFrame(frame);
    for (const [name, handler] of Object.entries(handlers)) model.off(`change:${name}`, handler);
  };
}

function render({ model, el }) {
  el.classList.add("selattn-view");
  let stop = mount(model, el);
  const again = () => {
    stop();
    stop = mount(model, el);
  };
  model.on("change:items", again); // other pictures
  return () => {
    model.off("change:items", again);
    stop();
  };
}

export default { render };
