// Draws the plotly figures of a page in the page's own theme and width.
(() => {
  const ink = { light: ["#222832", "#d8dde3"], dark: ["#ced6dd", "#48566b"] };

  /** plotly breaks no line of a title: one that is longer than its room would lose its ends. */
  function wrap(title, letters) {
    const line = new RegExp(`\\S.{0,${Math.max(20, Math.floor(letters))}}(?= |$)`, "g");
    if (title?.text) title.text = title.text.split("<br>").flatMap((each) => each.match(line)).join("<br>");
  }

  function themed(figure, width) {
    const [text, grid] = ink[document.documentElement.dataset.theme === "dark" ? "dark" : "light"];
    const layout = structuredClone(figure.layout);
    const template = (layout.template ??= {});
    const base = (template.layout ??= {});
    Object.assign(base, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" });
    base.font = { ...base.font, color: text };
    for (const axis of ["xaxis", "yaxis"]) {
      base[axis] = { ...base[axis], gridcolor: grid, linecolor: grid, zerolinecolor: grid };
    }
    // A fixed width would overflow a phone: shrink the whole figure, its letters a little less.
    const shrink = width / (layout.width ?? width);
    if (shrink >= 1) layout.width ??= width;
    else {
      const { t = 0, b = 0 } = { ...base.margin, ...layout.margin };
      if (layout.height) layout.height = (layout.height - t - b) * shrink + t + b;
      layout.width = width;
      const scale = Math.max(0.85, shrink);
      for (const font of [base.font, ...(layout.annotations ?? []).map((note) => (note.font ??= {}))]) {
        font.size = (font.size ?? 12) * scale;
      }
    }
    wrap(layout.title, layout.width / 8);
    wrap(layout.xaxis?.title, (layout.width - 200) / 6);
    return layout;
  }

  /** For who does not see it: the title, and what is drawn over what. */
  function described({ title, xaxis, yaxis }) {
    const [what, x, y] = [title, xaxis?.title, yaxis?.title].map((each) => each?.text?.replace(/<[^>]*>/g, " "));
    return [what, x && y ? `${y} over ${x}` : (x ?? y)].filter(Boolean).join(": ");
  }

  function draw(box, figure) {
    const layout = themed(figure, box.clientWidth);
    return Plotly.react(box.querySelector(".plotly-canvas"), figure.data, layout, { displaylogo: false });
  }

  window.addEventListener("DOMContentLoaded", () => {
    const figures = [...document.querySelectorAll(".plotly-figure")].map((box) => {
      const figure = JSON.parse(box.querySelector("script").textContent);
      const canvas = document.createElement("div");
      canvas.className = "plotly-canvas";
      box.append(canvas);
      box.role = "figure";
      box.ariaLabel = described(figure.layout);
      return [box, figure];
    });
    const drawAll = () => figures.forEach(([box, figure]) => draw(box, figure));
    drawAll();
    new MutationObserver(drawAll).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    const sheet = (width) => () => {
      for (const [box] of figures) box.style.width = width;
      drawAll();
    };
    window.addEventListener("beforeprint", sheet("680px")); // A4 and letter, with margins
    window.addEventListener("afterprint", sheet(""));
    let timer;
    window.addEventListener("resize", () => {
      clearTimeout(timer);
      timer = setTimeout(drawAll, 150);
    });
  });
})();
