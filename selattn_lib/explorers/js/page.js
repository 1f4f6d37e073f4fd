
// A page of its own: the browser's controls, and a model that they and the view share.

/** What the view knows of a model: values, and who wants to hear of a change. */
class PageModel {
  constructor(values) {
    this.values = values;
    this.listeners = new Map();
  }
  get(name) {
    return this.values[name];
  }
  set(values) {
    for (const [name, value] of Object.entries(values)) {
      if (this.values[name] === value) continue;
      this.values[name] = value;
      for (const listener of [...(this.listeners.get(`change:${name}`) ?? [])]) listener();
    }
  }
  save_changes() {}
  on(event, listener) {
    this.listeners.set(event, (this.listeners.get(event) ?? new Set()).add(listener));
  }
  off(event, listener) {
    this.listeners.get(event)?.delete(listener);
  }
}

/** A menu or a slider with its label, bound to a value of the model. */
function pageControl(model, { name, label, options, low, high, step }) {
  const input = options ? element("select") : element("input", { type: "range", min: low, max: high, step });
  input.append(...(options ?? []).map((text, i) => element("option", { value: i }, text)));
  input.setAttribute("aria-label", label);
  const parts = [element("span", {}, label), input];
  const reading = element("output");
  if (!options) parts.push(reading);
  const show = () => {
    input.value = model.get(name);
    reading.textContent = step < 1 ? model.get(name).toFixed(2) : model.get(name);
  };
  input.addEventListener("input", () => model.set({ [name]: Number(input.value) }));
  model.on(`change:${name}`, show);
  show();
  const node = element("label", { class: "selattn-control" }, ...parts);
  node.hidden = options?.length === 1;
  return node;
}

const { state, bytes, controls } = JSON.parse(document.querySelector("script[type='application/json']").textContent);
for (const [name, text] of Object.entries(bytes))
  state[name] = new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
const pageModel = new PageModel(state);
document.querySelector(".selattn-controls").append(...controls.map((control) => pageControl(pageModel, control)));
render({ model: pageModel, el: document.querySelector(".selattn-here") });
