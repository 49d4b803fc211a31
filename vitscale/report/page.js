// Draws every figure in the colours of the reader's theme, again on a change.
(() => {
  const night = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 640px)");

  // On a phone panels stand below each other instead of side by side.
  const stack = (layout) => {
    const axes = Object.keys(layout).filter((k) => k.startsWith("xaxis"));
    if (axes.length < 2) return;
    const old = axes.map((k) => layout[k].domain[0] + "/" +
      layout[k.replace("x", "y")].domain[1]);
    const gap = 0.32 / axes.length, tall = (1 - gap * (axes.length - 1)) / axes.length;
    const place = {};
    axes.forEach((k, i) => {
      const top = 1 - i * (tall + gap);
      layout[k].domain = [0, 1];
      layout[k.replace("x", "y")].domain = [Math.max(top - tall, 0), top];
      place[old[i]] = top;
    });
    for (const a of layout.annotations) {
      if (a.xref !== "paper") continue;
      a.y = place[a.x + "/" + a.y];
      a.x = 0;
    }
    layout.height = 330 * axes.length + 60;
    layout.legend.y = -62 / layout.height;
  };

  const draw = () => {
    for (const box of document.querySelectorAll("figure:not(.picture)")) {
      const text = box.querySelector('script[type="application/json"]').textContent;
      const { figure, dark } = JSON.parse(text);
      const paint = (value) => {
        if (typeof value === "string") return dark[value] ?? value;
        if (Array.isArray(value)) return value.map(paint);
        if (value === null || typeof value !== "object") return value;
        return Object.fromEntries(
          Object.entries(value).map(([k, v]) => [k, paint(v)]));
      };
      const { data, layout } = night.matches ? paint(figure) : figure;
      if (narrow.matches) stack(layout);
      Plotly.react(box.querySelector(".plot"), data, layout, {
        // Drag zooms, a double click resets; the files are linked below.
        responsive: true, displayModeBar: false,
      });
    }
  };
  draw();
  night.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
})();
