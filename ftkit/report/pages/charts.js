"use strict";
// The charts, drawn by plotly when they come into sight, and again when the filter or the theme changes.

(() => {
  const holders = [...document.querySelectorAll(".chart")];
  if (!holders.length) return;
  const FAR = 3; // times the largest peak: a budget beyond is named, not drawn
  const MOST_RUNS = 40; // more bars or curves than this cannot be told apart
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "pentagon", "star", "triangle-down", "hexagon"];
  const methods = [...new Set(page.runs.map((run) => run.method))].sort();
  const engines = [...new Set(page.runs.map((run) => run.engine).filter(Boolean))].sort((a, b) => b.startsWith("plain") - a.startsWith("plain") || a.localeCompare(b));
  let memory = page.figures.length ? page.figures[0].key : null;

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colours = (name) => css(name).split(/\s+/);
  const narrow = () => window.innerWidth < 640;
  const shown = () => [...page.shown].sort((a, b) => a - b);
  const veil = (name, opacity) => `rgba(${css(name).match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16)).join(",")},${opacity})`;
  const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const heading = () => page.figures.find((figure) => figure.key === memory)?.heading ?? "Peak";

  function scale(values) {
    const most = Math.max(...values, 0);
    const [unit, power] = most >= 2 ** 30 ? ["GiB", 30] : most >= 2 ** 20 ? ["MiB", 20] : ["KiB", 10];
    return { by: 2 ** power, unit };
  }

  function axis(title, more = {}) {
    return {
      title: { text: title, standoff: 10 }, gridcolor: css("--line"), linecolor: css("--line"), zeroline: false,
      automargin: true, tickfont: { color: css("--soft") }, ...more,
    };
  }

  function layout(more) {
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("--ink") },
      margin: { l: 56, r: 18, t: 18, b: 48 },
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") }, align: "left" },
      legend: { x: 1.01, y: 1, traceorder: "grouped" }, height: narrow() ? 400 : 460, ...more,
    };
  }

  // On a phone the legend of methods and engines stands below the plot, and the page makes room for all of it.
  function below(made, alone) {
    if (!narrow()) return made;
    const rows = alone + 1 + Math.max(methods.length, engines.length > 1 ? engines.length : 0);
    const plot = 300;
    made.margin = { ...made.margin, b: 62 + 21 * rows };
    made.height = made.margin.t + plot + made.margin.b;
    made.legend = { orientation: "h", x: 0, yref: "container", y: 0.01, yanchor: "bottom", traceorder: "grouped" };
    return made;
  }

  // A trace for each method, and hollow ones that explain the symbols of the engines.
  function byMethod(numbers, point) {
    const palette = colours("--series");
    const traces = methods.map((method, index) => {
      const members = numbers.filter((number) => page.runs[number].method === method);
      const points = [{ x: null, y: null, text: "" }, ...members.map(point)]; // the first gives the legend its circle
      return {
        type: "scatter", mode: "markers", name: method, legendgroup: "method", customdata: [null, ...members],
        legendgrouptitle: { text: "Method" }, x: points.map((p) => p.x), y: points.map((p) => p.y),
        text: points.map((p) => p.text), hovertemplate: "%{text}<extra></extra>",
        marker: {
          size: 11, color: palette[index % palette.length], line: { width: 1, color: css("--card") },
          symbol: ["circle", ...members.map((number) => SYMBOLS[engines.indexOf(page.runs[number].engine) % SYMBOLS.length])],
        },
      };
    }).filter((trace) => trace.x.length > 1);
    if (engines.length < 2) return traces;
    return traces.concat(engines.map((engine, index) => ({
      type: "scatter", mode: "markers", name: engine, legendgroup: "engine", x: [null], y: [null], hoverinfo: "skip",
      legendgrouptitle: { text: "Engine" },
      marker: { size: 10, symbol: `${SYMBOLS[index % SYMBOLS.length]}-open`, color: css("--soft") },
    })));
  }

  const drawings = {};

  drawings.tradeoff = () => {
    const known = shown().filter((n) => page.runs[n].measured[memory] && page.runs[n].tokensPerSecond);
    const { by, unit } = scale(known.map((n) => page.runs[n].measured[memory]));
    const point = (n) => {
      const run = page.runs[n];
      const x = run.measured[memory] / by;
      const lines = [`<b>${escape(run.label)}</b>`, `${x.toFixed(2)} ${unit} (${heading().toLowerCase()})`,
        `${Math.round(run.tokensPerSecond).toLocaleString("en")} tokens/s`];
      if (run.predicted[memory]) lines.push(`predicted ${(run.predicted[memory] / by).toFixed(2)} ${unit}`);
      if (run.name !== run.label) lines.push(`<i>${escape(run.name)}</i>`);
      return { x, y: run.tokensPerSecond, text: lines.join("<br>") };
    };
    const front = page.figures.find((figure) => figure.key === memory).front.filter((n) => page.shown.has(n)).map(point);
    const line = {
      type: "scatter", mode: "lines+markers", name: "efficient front", x: front.map((p) => p.x), y: front.map((p) => p.y),
      hoverinfo: "skip", line: { color: css("--accent"), width: 2, dash: "dot", shape: "hv" },
      marker: { size: 19, symbol: "circle-open", color: css("--accent"), line: { width: 1.6 } },
    };
    // What failed has no throughput; it stands on the floor, where it was predicted.
    const failed = shown().filter((n) => page.runs[n].reason && page.runs[n].predicted[memory]);
    const cross = {
      type: "scatter", mode: "markers", name: "failed, at its prediction", x: failed.map((n) => page.runs[n].predicted[memory] / by), y: failed.map(() => 0),
      customdata: failed, cliponaxis: false, text: failed.map((n) => `<b>${escape(page.runs[n].label)}</b><br>${page.runs[n].status}`), hovertemplate: "%{text}<extra></extra>",
      marker: { symbol: "x-thin", size: 10, line: { width: 2.2, color: css("--bad") } }, visible: failed.length > 0,
    };
    const most = Math.max(...known.map((n) => page.runs[n].measured[memory]), ...failed.map((n) => page.runs[n].predicted[memory]), 0) / by;
    const limit = page.budget === null ? null : page.budget / by;
    const isNear = limit !== null && limit <= FAR * most; // a line far away would press all points together
    const own = scale([page.budget ?? 0]);
    const budgetName = `budget ${((page.budget ?? 0) / own.by).toFixed(1)} ${own.unit}`;
    const note = { yref: "paper", y: 1, showarrow: false, xanchor: "right", font: { color: css("--bad") } };
    const budget = limit === null ? {} : isNear ? {
      shapes: [{ type: "line", x0: limit, x1: limit, yref: "paper", y0: 0, y1: 1, line: { color: css("--bad"), width: 1.6, dash: "dash" } }],
      annotations: [{ ...note, x: limit, xshift: -5, text: budgetName }],
    } : { annotations: [{ ...note, xref: "paper", x: 1, text: `${budgetName} →` }] };
    return { traces: [line, ...byMethod(known, point), cross], layout: below(layout({
      xaxis: axis(`${heading()}, ${unit}`, { range: [0, 1.06 * Math.max(most, isNear ? limit : 0)] }), yaxis: axis("tokens per second", { rangemode: "tozero" }), ...budget,
    }), 1 + (failed.length > 0)) };
  };

  drawings.breakdown = () => {
    const known = shown().filter((n) => page.runs[n].breakdown || page.runs[n].predictedBreakdown);
    const numbers = known.slice(0, MOST_RUNS).reverse();
    const parts = (n) => page.runs[n].breakdown ?? page.runs[n].predictedBreakdown;
    const sum = (list) => list.reduce((a, b) => a + b, 0);
    const { by, unit } = scale(numbers.map((n) => sum(parts(n))));
    const palette = colours("--kinds");
    const names = numbers.map((n) => page.runs[n].label + (page.runs[n].breakdown ? "" : " (predicted only)"));
    const short = (name, most) => escape(name.length > most ? `${name.slice(0, most - 1)}…` : name);
    const above = narrow(); // there is no room beside the bars: each has its name above it
    const ticks = above ? [] : names.map((name) => short(name, 60));
    const captions = !above ? [] : names.map((name, i) => ({ xref: "paper", x: 0, y: i + 0.26, xanchor: "left", yanchor: "bottom", showarrow: false, text: short(name, 52), font: { size: 11, color: css("--soft") } }));
    const traces = page.kinds.map((kind, index) => ({
      type: "bar", orientation: "h", name: kind, y: numbers.map((_, i) => i), x: numbers.map((n) => parts(n)[index] / by),
      text: names.map(escape), textposition: "none", hovertemplate: `<b>%{text}</b><br>${kind} %{x:.2f} ${unit}<extra></extra>`,
      marker: { color: palette[index], opacity: numbers.map((n) => (page.runs[n].breakdown ? 1 : 0.45)) },
    })).filter((trace) => trace.x.some((value) => value > 0));
    const both = numbers.map((n, i) => [n, i]).filter(([n]) => page.runs[n].breakdown && page.runs[n].predicted.peak_active_bytes);
    traces.push({
      type: "scatter", mode: "markers", name: "predicted", y: both.map(([, i]) => i), x: both.map(([n]) => page.runs[n].predicted.peak_active_bytes / by),
      text: both.map(([, i]) => escape(names[i])), hovertemplate: `<b>%{text}</b><br>predicted %{x:.2f} ${unit}<extra></extra>`,
      marker: { symbol: "diamond", size: 9, color: css("--ink"), line: { color: css("--card"), width: 1 } },
    });
    const note = known.length <= MOST_RUNS ? [] : [{ xref: "paper", yref: "paper", x: 1, y: 0, xanchor: "right", yanchor: "bottom", showarrow: false, text: `the first ${MOST_RUNS} of ${known.length}`, font: { color: css("--soft") } }];
    return { traces, layout: layout({
      barmode: "stack", bargap: above ? 0.56 : 0.3, height: Math.max(260, 120 + (above ? 36 : 26) * numbers.length), annotations: [...captions, ...note],
      margin: above ? { l: 10, r: 10, t: 84, b: 44 } : { l: 56, r: 18, t: 18, b: 48 },
      xaxis: axis(unit), yaxis: axis("", { tickvals: numbers.map((_, i) => i), ticktext: ticks, showticklabels: !above, showgrid: false, range: [-0.6, numbers.length - 0.4] }),
      legend: above ? { orientation: "h", yref: "container", y: 0.995, yanchor: "top", x: 0, traceorder: "normal" } : { orientation: "h", y: 1.01, yanchor: "bottom", x: 0, traceorder: "normal" },
    }) };
  };

  drawings.timeline = () => {
    const run = page.runs[Number(document.getElementById("timeline-run").value)];
    const line = run.timeline;
    const totals = line.events.map((_, i) => Object.values(line.kinds).reduce((sum, values) => sum + values[i], 0));
    const { by, unit } = scale(totals);
    const palette = colours("--kinds");
    const traces = page.kinds.filter((kind) => line.kinds[kind]).map((kind) => ({
      type: "scatter", mode: "lines", name: kind, stackgroup: "live", x: line.events, y: line.kinds[kind].map((value) => value / by),
      line: { width: 0.4, color: palette[page.kinds.indexOf(kind)], shape: "hv" }, fillcolor: palette[page.kinds.indexOf(kind)],
      hovertemplate: `${kind} %{y:.1f} ${unit}<extra></extra>`,
    }));
    traces.push({
      type: "scatter", mode: "lines", name: "all", x: line.events, y: totals.map((value) => value / by), text: line.phases.map((phase, i) => line.window ? `${phase}, ${line.window[i]} in the window` : phase), showlegend: false,
      line: { width: 1, color: css("--ink"), shape: "hv" }, hovertemplate: `<b>all %{y:.1f} ${unit}</b>, %{text}<extra></extra>`,
    });
    const starts = line.phases.map((phase, i) => i).filter((i) => i === 0 || line.phases[i] !== line.phases[i - 1]);
    const many = starts.length > 12; // phases alternate between micro-batches
    const shapes = many ? [] : starts.slice(1).map((i) => ({ type: "line", x0: line.events[i], x1: line.events[i], yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), width: 1, dash: "dot" } }));
    const [first, last] = [line.events[0], line.events[line.events.length - 1]];
    const pixels = (document.querySelector("[data-chart=timeline]").clientWidth - 84) / (last - first || 1);
    const named = starts.map((i, place) => ({ i, from: line.events[i], to: place + 1 < starts.length ? line.events[starts[place + 1]] : last }));
    const phases = many ? [] : named.filter(({ i, from, to }) => (to - from) * pixels > 7 * line.phases[i].length)
      .map(({ i, from, to }) => ({ x: (from + to) / 2, yref: "paper", y: 1, yanchor: "bottom", xanchor: "center", text: line.phases[i], showarrow: false, font: { color: css("--soft"), size: 12 } }));
    const peak = { x: line.events[line.peak], y: totals[line.peak] / by, text: `<b>peak ${(totals[line.peak] / by).toFixed(1)} ${unit}</b>`, ax: line.peak > line.events.length / 2 ? -56 : 56, ay: -20, arrowcolor: css("--ink"), bgcolor: css("--card"), bordercolor: css("--line"), borderpad: 3 };
    document.getElementById("explanation").textContent = line.explanation;
    return { traces, layout: layout({
      hovermode: "x unified", shapes, annotations: [...phases, peak], margin: { l: 56, r: 18, t: 34, b: narrow() ? 116 : 84 },
      xaxis: axis("allocations and releases of the step", { showgrid: false }), yaxis: axis(unit, { rangemode: "tozero", range: [0, 1.14 * totals[line.peak] / by] }),
      legend: { orientation: "h", yref: "container", y: 0.01, yanchor: "bottom", x: 0, traceorder: "normal" },
    }) };
  };

  drawings.curves = () => {
    const against = document.getElementById("curves-x").value;
    const known = shown().filter((n) => page.runs[n].curves.some(Boolean)).slice(0, MOST_RUNS);
    const wanted = page.curves.map((_, i) => i).filter((i) => known.some((n) => page.runs[n].curves[i]));
    const palette = colours("--series");
    const crowded = known.length > palette.length; // then hovering names the run
    const isByMethod = crowded || new Set(known.map((n) => page.runs[n].method)).size === known.length; // a colour is a method
    const [plotHeight, gap, top] = [narrow() ? 170 : 210, 66, 44]; // pixels
    const entries = crowded ? methods.length : known.length;
    const columns = narrow() ? 1 : Math.min(2, wanted.length);
    const gridRows = Math.ceil(wanted.length / columns);
    const more = {};
    const annotations = [];
    const traces = wanted.flatMap((curve, place) => {
      const [column, row] = [place % columns, Math.floor(place / columns)];
      const wide = 1 / columns;
      const inner = gridRows * plotHeight + (gridRows - 1) * gap;
      const above = row * (plotHeight + gap);
      const x = [column * wide + (column ? 0.045 : 0), (column + 1) * wide - (column < columns - 1 ? 0.02 : 0)];
      const y = [Math.max(0, 1 - (above + plotHeight) / inner), 1 - above / inner];
      const suffix = place ? String(place + 1) : "";
      more[`xaxis${suffix}`] = axis(row === gridRows - 1 || place + columns >= wanted.length ? against : "", { domain: x, anchor: `y${suffix}` });
      more[`yaxis${suffix}`] = axis("", { domain: y, anchor: `x${suffix}`, ...(page.shares[curve] ? { range: [0, 1] } : {}) });
      annotations.push({ xref: "paper", yref: "paper", x: x[0], y: y[1], yanchor: "bottom", xanchor: "left", showarrow: false, text: `<b>${page.curves[curve]}</b>` });
      const first = (n) => wanted.find((i) => page.runs[n].curves[i]);
      return known.filter((n) => page.runs[n].curves[curve]).map((n) => {
        const points = page.runs[n].curves[curve];
        const run = page.runs[n];
        const index = isByMethod ? methods.indexOf(run.method) : known.indexOf(n);
        const leads = crowded ? known.find((other) => page.runs[other].method === run.method) === n : true;
        return {
          type: "scatter", mode: points.value.length > 25 ? "lines" : "lines+markers", x: points[against], y: points.value, xaxis: `x${suffix}`, yaxis: `y${suffix}`,
          name: escape(crowded ? run.method : run.label), legendgroup: crowded ? run.method : String(n), showlegend: leads && curve === first(n), marker: { size: 5 },
          line: { width: crowded ? 1.3 : 2, color: palette[index % palette.length] }, opacity: crowded ? 0.75 : 1,
          hovertemplate: `<b>${escape(run.label)}</b><br>${against} %{x}: %{y}<extra></extra>`,
        };
      });
    });
    const inner = gridRows * plotHeight + (gridRows - 1) * gap;
    const below = 70 + entries * (narrow() ? 24 : 9);
    return { traces, layout: layout({
      ...more, annotations, height: top + inner + below, margin: { l: 48, r: 18, t: top, b: below },
      legend: { orientation: "h", y: -52 / inner, yanchor: "top" },
    }) };
  };

  drawings.reliability = () => {
    const { plain, cooled, temperature } = page.reliability;
    const palette = colours("--series");
    const trace = (bins, name, colour) => ({
      type: "scatter", mode: "lines+markers", name, x: bins.map((bin) => bin.confidence), y: bins.map((bin) => bin.accuracy), cliponaxis: false,
      text: bins.map((bin) => `sure by ${bin.confidence.toFixed(3)}, right by ${bin.accuracy.toFixed(3)}<br>${bin.count.toLocaleString("en")} answers`),
      hovertemplate: "%{text}<extra></extra>", line: { color: colour, width: 2 }, marker: { size: 7 },
    });
    const diagonal = { type: "scatter", mode: "lines", name: "as sure as right", x: [0, 1], y: [0, 1], hoverinfo: "skip", line: { color: css("--soft"), width: 1.4, dash: "dot" } };
    const traces = [diagonal, trace(plain, "as answered", palette[0])];
    if (cooled.length > 1) traces.push(trace(cooled, `at temperature ${temperature.toFixed(2)}`, palette[1]));
    return { traces, layout: layout({
      height: 400, xaxis: axis("confidence", { range: [0, 1] }), yaxis: axis("accuracy", { range: [0, 1] }),
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, margin: { l: 56, r: 18, t: narrow() ? 84 : 44, b: 48 },
    }) };
  };

  drawings.prediction = () => {
    const known = shown().filter((n) => page.runs[n].measured[memory] && page.runs[n].predicted[memory]);
    const { by, unit } = scale(known.map((n) => page.runs[n].measured[memory]));
    const point = (n) => {
      const run = page.runs[n];
      const [x, y] = [run.measured[memory] / by, run.predicted[memory] / by];
      return { x, y, text: `<b>${escape(run.label)}</b><br>measured ${x.toFixed(2)} ${unit}<br>predicted ${y.toFixed(2)} ${unit}<br>error ${(100 * (y - x) / x).toFixed(2)} %` };
    };
    const most = 1.08 * Math.max(...known.map((n) => Math.max(point(n).x, point(n).y)), 0);
    const line = (factor, more) => ({ type: "scatter", mode: "lines", x: [0, most], y: [0, factor * most], hoverinfo: "skip", showlegend: false, line: { width: 0 }, ...more });
    return { traces: [
      line(0.95), line(1.05, { fill: "tonexty", fillcolor: veil("--accent", 0.12) }),
      line(1, { line: { color: css("--accent"), width: 1.6, dash: "dot" } }), ...byMethod(known, point),
    ], layout: below(layout({
      xaxis: axis(`measured, ${unit}`, { range: [0, most] }), yaxis: axis(`predicted, ${unit}`, { range: [0, most] }),
    }), 0) };
  };

  function draw(holder) {
    const { traces, layout: made } = drawings[holder.dataset.chart]();
    const options = { responsive: true, displaylogo: false, displayModeBar: narrow() ? false : "hover", modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"], toImageButtonOptions: { format: "svg", filename: `ftkit-${holder.dataset.chart}` } };
    holder.style.height = `${made.height + 16}px`;
    Plotly.react(holder, traces, made, options);
    holder.dataset.drawn = "yes";
    if (!holder.dataset.listens && ["tradeoff", "prediction"].includes(holder.dataset.chart)) {
      holder.dataset.listens = "yes";
      holder.on("plotly_click", (event) => { const n = event.points[0]?.customdata; if (n != null) page.reveal(n); });
    }
  }

  const redraw = (filter = () => true) => holders.filter((holder) => holder.dataset.drawn && filter(holder)).forEach(draw);

  function fillMenus() {
    for (const menu of document.querySelectorAll("select.memory")) {
      for (const figure of page.figures) menu.add(new Option(figure.heading, figure.key));
      menu.hidden = page.figures.length < 2;
      menu.addEventListener("change", () => {
        memory = menu.value;
        for (const other of document.querySelectorAll("select.memory")) other.value = memory;
        redraw((holder) => ["tradeoff", "prediction"].includes(holder.dataset.chart));
      });
    }
    const choice = document.getElementById("timeline-run");
    if (choice) {
      page.runs.forEach((run, n) => { if (run.timeline) choice.add(new Option(run.label, n)); });
      choice.addEventListener("change", () => redraw((holder) => holder.dataset.chart === "timeline"));
    }
    document.getElementById("curves-x")?.addEventListener("change", () => redraw((holder) => holder.dataset.chart === "curves"));
  }

  async function unpackPlotly() {
    const packed = atob(document.getElementById("plotly").textContent);
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  async function start() {
    fillMenus();
    await unpackPlotly();
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting && !entry.target.dataset.drawn) draw(entry.target);
    }, { rootMargin: "400px" });
    for (const holder of holders) seen.observe(holder);
    document.addEventListener("runs-shown", () => redraw());
    document.addEventListener("theme-changed", () => redraw());
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
    let wasNarrow = narrow();
    window.addEventListener("resize", () => { if (narrow() !== wasNarrow) { wasNarrow = narrow(); redraw(); } });
  }

  start();
})();
