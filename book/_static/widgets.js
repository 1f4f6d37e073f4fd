// Between require.js and embed-amd.js: widget scripts, and the fonts of html-manager, lie in vendor/.
// A slow machine is waited for: by default a script that takes more than 7 seconds counts as missing. The modules in
// embed-amd.js look for their fonts beside themselves, that is, where `paths` says that they are.
{
  const dist = "@jupyter-widgets/html-manager/dist";
  const names = ["base", "base7", "controls", "controls7", "html-manager", "html-manager/dist/libembed-amd"];
  requirejs.config({
    baseUrl: new URL("vendor/", document.currentScript.src).href,
    waitSeconds: 0,
    paths: Object.fromEntries(names.map((name) => [`@jupyter-widgets/${name}`, `${dist}/${name.split("/").pop()}`])),
  });
}

// The widgets typeset their labels by MathJax 2's queue; the pages carry MathJax 3.
window.addEventListener("load", () => {
  if (!window.MathJax?.startup) return;
  const typeset = ([, , element]) => MathJax.startup.promise.then(() => MathJax.typesetPromise([element]));
  MathJax.Hub = { Queue: typeset };
});
