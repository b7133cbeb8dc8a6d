// Curves as SVG, drawn for the width there is; the pointer or the arrow keys read their values.
{
  const RIGHT = 10, TOP = 8, BOTTOM = 24;
  // Classes c0, c1, ... of the style sheet: a colour and a dash each.
  const N_COLOURS = 5;
  // Between the labels and the axis, and what they take at least.
  const GAP = 7, LEAST = 28;
  // Shorter curves are shown as recorded.
  const MIN_SMOOTHED = 40;

  /** Ends and labels of an axis with about `n` round numbers. A constant has its own value and no range that nobody measured. */
  function axis(min, max, n) {
    if (max - min <= 1e-9 * Math.max(Math.abs(min), Math.abs(max))) {
      const pad = Math.abs(min) || 1;
      return { min: min - pad, max: max + pad, ticks: [min], text: (value) => minus(shown(value)) };
    }
    const rough = (max - min) / n, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
    const ticks = [];
    for (let i = Math.floor(min / step + 1e-9); i <= Math.ceil(max / step - 1e-9); i += 1) ticks.push(i * step);
    return { min: ticks[0], max: ticks[ticks.length - 1], ticks, text: (value) => minus(tickText(value, step)) };
  }

  const minus = (text) => text.replaceAll("-", "−");

  function tickText(value, step) {
    if (Math.abs(value) < step / 1e6) return "0";
    const magnitude = (x) => Math.floor(Math.log10(Math.abs(x)) + 1e-9);
    if (step >= 1e4 || step < 1e-4) return value.toExponential(Math.max(0, magnitude(value) - magnitude(step)));
    return value.toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
  }

  /** Mean over a centred window; gaps stay gaps. */
  function smoothed(values, width) {
    const half = width >> 1;
    return values.map((value, i) => {
      if (value === null) return null;
      let sum = 0, n = 0;
      for (let j = Math.max(0, i - half); j <= Math.min(values.length - 1, i + half); j += 1) {
        if (values[j] !== null) { sum += values[j]; n += 1; }
      }
      return sum / n;
    });
  }

  function path(steps, values, x, y) {
    let d = "", pen = "M";
    values.forEach((value, i) => {
      if (value === null) { pen = "M"; return; }
      d += `${pen}${x(steps[i]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    });
    return d;
  }

  /** The area between the lowest and the highest value of each point; gaps stay gaps. */
  function between(steps, { low, high }, x, y) {
    let d = "", from = 0;
    for (let i = 0; i <= steps.length; i += 1) {
      if (i < steps.length && low[i] !== null) continue;
      const run = [...Array(i - from).keys()].map((k) => from + k);
      const point = (values) => (k) => `${x(steps[k]).toFixed(1)} ${y(values[k]).toFixed(1)}`;
      if (run.length) d += `M${[...run.map(point(high)), ...run.reverse().map(point(low))].join("L")}Z`;
      from = i + 1;
    }
    return d;
  }

  function chartOf(chart, height) {
    const curves = chart.curves;
    const steps = [...new Set(curves.flatMap((c) => c.steps))].sort((a, b) => a - b);
    const known = curves.flatMap((c) => [...c.values, ...(c.band ? [...c.band.low, ...c.band.high] : [])]).filter((v) => v !== null);
    const at = curves.map((c) => new Map(c.steps.map((step, i) => [step, c.values[i]])));
    const caption = make("figcaption", {}, chart.title);
    const perPoint = Math.max(...curves.map((c) => c.steps_per_point));
    const note = [chart.note, perPoint > 1 ? `each point the mean of ${perPoint} steps` : ""].filter(Boolean).join("; ");
    if (note) caption.append(make("small", {}, note));
    if (curves.length > 1) {
      const sample = (i) => make("svg:svg", { viewBox: "0 0 28 8", "aria-hidden": "true" }, make("svg:path", { d: "M0 4H28", class: `smooth c${i % N_COLOURS}` }));
      caption.append(make("span", { class: "legend" }, ...curves.map((c, i) => make("span", {}, sample(i), c.label))));
    }
    const svg = make("svg:svg", { role: "group", tabindex: "0", "aria-label": `${chart.title}: ${steps.length} points; left and right arrow keys read the values` });
    const tip = make("div", { class: "tip", role: "status", hidden: true });
    const figure = make("figure", { class: "chart", "data-metric": curves[0].metric }, caption, svg, tip);
    if (!known.length) { caption.append(make("small", {}, "no finite value was recorded")); return figure; }

    let x, y, width, left, now = -1;
    const cursor = make("svg:g", {});
    function draw() {
      width = svg.clientWidth || 400;
      const vertical = axis(Math.min(...known), Math.max(...known), 4);
      const horizontal = axis(steps[0], steps[steps.length - 1], Math.max(2, Math.floor(width / 90)));
      const xMin = steps[0], xMax = Math.max(steps[steps.length - 1], xMin + 1);
      x = (step) => left + ((step - xMin) / (xMax - xMin)) * (width - left - RIGHT);
      y = (value) => TOP + ((vertical.max - value) / (vertical.max - vertical.min)) * (height - TOP - BOTTOM);
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.style.height = `${height}px`;
      const labels = vertical.ticks.map((tick) => make("svg:text", { class: "tick", y: y(tick) + 4, "text-anchor": "end" }, vertical.text(tick)));
      svg.replaceChildren(...labels);
      left = GAP + Math.max(LEAST, ...labels.map((label) => Math.ceil(label.getComputedTextLength())));
      for (const label of labels) label.setAttribute("x", left - GAP);
      for (const tick of vertical.ticks) svg.append(make("svg:path", { class: "axis", d: `M${left} ${y(tick)}H${width - RIGHT}` }));
      for (const tick of horizontal.ticks.filter((t) => t >= xMin && t <= xMax && Number.isInteger(t))) {
        svg.append(make("svg:text", { class: "tick", x: x(tick), y: height - 6, "text-anchor": "middle" }, horizontal.text(tick)));
      }
      curves.forEach((c, i) => {
        if (c.band) svg.append(make("svg:path", { class: `band f${i % N_COLOURS}`, d: between(c.steps, c.band, x, y) }));
      });
      curves.forEach((c, i) => {
        const isLong = c.values.length >= MIN_SMOOTHED;
        if (c.values.length === 1) svg.append(make("svg:circle", { class: `f${i % N_COLOURS}`, cx: x(c.steps[0]), cy: y(c.values[0]), r: 3.5 }));
        svg.append(make("svg:path", { class: `raw c${i % N_COLOURS}${isLong ? "" : " alone"}`, d: path(c.steps, c.values, x, y) }));
        if (isLong) svg.append(make("svg:path", { class: `smooth c${i % N_COLOURS}`, d: path(c.steps, smoothed(c.values, Math.round(c.values.length / 25) | 1), x, y) }));
      });
      svg.append(cursor);
      if (now >= 0) point(now);
    }
    function point(i) {
      now = i;
      const step = steps[i];
      cursor.replaceChildren(make("svg:path", { class: "cross", d: `M${x(step)} ${TOP}V${height - BOTTOM}` }));
      const lines = [`step ${step}`];
      curves.forEach((c, k) => {
        const value = at[k].get(step);
        if (value === undefined) return;
        const point = c.steps.indexOf(step);
        const spread = c.band && c.band.low[point] !== null ? ` (${shown(c.band.low[point])} to ${shown(c.band.high[point])})` : "";
        lines.push(curves.length > 1 ? `${c.label}: ${shown(value)}${spread}` : `${shown(value)}${spread}`);
        if (value !== null) cursor.append(make("svg:circle", { class: `f${k % N_COLOURS}`, cx: x(step), cy: y(value), r: 3.5 }));
      });
      tip.replaceChildren(...lines.map((line) => make("div", {}, line)));
      tip.hidden = false;
      // Relative to the figure, whose border lies outside of what `left` counts from.
      const [inner, outer] = [svg.getBoundingClientRect(), figure.getBoundingClientRect()];
      const middle = inner.left - outer.left - figure.clientLeft + x(step);
      tip.style.top = `${inner.bottom - outer.top - figure.clientTop - height + TOP}px`;
      tip.style.left = middle + tip.offsetWidth + 14 > figure.clientWidth ? `${Math.max(4, middle - tip.offsetWidth - 10)}px` : `${middle + 10}px`;
    }
    function leave() { now = -1; tip.hidden = true; cursor.replaceChildren(); }
    function nearest(clientX) {
      const px = clientX - svg.getBoundingClientRect().left;
      return steps.reduce((best, step, i) => (Math.abs(x(step) - px) < Math.abs(x(steps[best]) - px) ? i : best), 0);
    }
    svg.addEventListener("pointermove", (event) => point(nearest(event.clientX)));
    svg.addEventListener("pointerdown", (event) => point(nearest(event.clientX)));
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const last = steps.length - 1;
      const moved = { ArrowLeft: now < 0 ? last : Math.max(0, now - 1), ArrowRight: now < 0 ? 0 : Math.min(last, now + 1), Home: 0, End: last }[event.key];
      if (event.key === "Escape") leave();
      if (moved === undefined) return;
      event.preventDefault();
      point(moved);
    });
    // Behind the observer's own turn: drawing changes the height, which must not call it again within one frame.
    new ResizeObserver(() => requestAnimationFrame(() => { if (svg.clientWidth && svg.clientWidth !== width) draw(); })).observe(svg);
    return figure;
  }

  const place = document.getElementById("charts");
  if (!DATA.sections.length) place.append(make("p", { class: "note" }, "No metrics were recorded (yet)."));
  DATA.sections.forEach((section, i) => {
    const charts = [...section.charts];
    place.append(make("h3", {}, section.title));
    // What the paper's Figures 4 and 6 plot, large.
    if (i === 0 && section.phase === "rl") place.append(make("div", { class: "charts first" }, chartOf(charts.shift(), 280)));
    place.append(make("div", { class: "charts" }, ...charts.map((chart) => chartOf(chart, 190))));
  });
}
