"use strict";
// Lines over steps: drag to zoom, hover or arrow keys for values. The charts of a group share one range of steps.
(() => {
  const source = document.getElementById("chart-data");
  if (!source) return;
  const left = 52, right = 8, top = 8, bottom = 22, height = 190;
  let clips = 0;

  const svg = (name, attributes, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const html = (name, attributes, ...children) => {
    const node = Object.assign(document.createElement(name), attributes);
    node.append(...children);
    return node;
  };
  const formatted = (value) => {
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };
  const ticks = (low, high, count) => {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
    const values = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) values.push(value);
    return values;
  };
  // A curve that jumps from point to point is drawn pale, with its running mean on top.
  const smooth = (ys) => {
    if (ys.length < 60) return null;
    const half = Math.max(2, Math.round(ys.length / 40)), sums = [0];
    for (const y of ys) sums.push(sums[sums.length - 1] + y);
    const mean = ys.map((_, k) => {
      const first = Math.max(0, k - half), last = Math.min(ys.length, k + half + 1);
      return (sums[last] - sums[first]) / (last - first);
    });
    const spread = Math.max(...ys) - Math.min(...ys);
    const noise = ys.reduce((sum, y, k) => sum + Math.abs(y - mean[k]), 0) / ys.length;
    return noise > 0.01 * spread ? mean : null;
  };
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };

  class Chart {
    constructor(chart, group) {
      this.group = group;
      this.clip = `clip-${clips++}`;
      this.series = chart.series.map((series) => ({ ...series, mean: smooth(series.y) }));
      this.readout = html("p", { className: "readout" });
      this.reset = html("button", { type: "button", className: "reset", textContent: "show all", hidden: true });
      this.svg = svg("svg", { "aria-hidden": "true" });
      this.plot = html("div", { className: "plot", tabIndex: 0 }, this.svg, this.reset);
      this.plot.setAttribute("role", "group");
      this.node = html("figure", { className: `card chart${group.single ? " single" : ""}` },
        html("h3", { textContent: chart.title }), html("p", { className: "note", textContent: chart.note }), this.plot, this.readout);
      this.plot.setAttribute("aria-label", `${chart.title}: ${this.series.filter((s) => s.y.length).map((s) =>
        `${s.name} from ${formatted(s.y[0])} to ${formatted(s.y[s.y.length - 1])} at step ${formatted(s.x[s.x.length - 1])}`).join("; ")}`);
      this.plot.addEventListener("pointerdown", (event) => this.press(event));
      this.plot.addEventListener("pointermove", (event) => this.move(event));
      this.plot.addEventListener("pointerup", (event) => this.release(event));
      this.plot.addEventListener("pointercancel", () => { this.pressed = null; this.draw(); });
      this.plot.addEventListener("pointerleave", () => { if (this.pressed == null) this.point(null); });
      this.plot.addEventListener("dblclick", () => this.group.zoom(this.group.whole));
      this.plot.addEventListener("keydown", (event) => this.key(event));
      this.reset.addEventListener("click", () => this.group.zoom(this.group.whole));
      new ResizeObserver(() => this.draw()).observe(this.plot);
    }
    shown() { return this.series.filter((series) => !this.group.hidden.has(series.run) && series.y.length); }
    x(step) { const range = this.group.range; return left + (step - range[0]) / (range[1] - range[0]) * (this.width - left - right); }
    step(event) {
      const range = this.group.range;
      const at = (event.clientX - this.plot.getBoundingClientRect().left - left) / (this.width - left - right);
      return range[0] + Math.min(1, Math.max(0, at)) * (range[1] - range[0]);
    }
    draw() {
      const range = this.group.range;
      this.width = this.plot.clientWidth || 320;
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
      const inside = this.shown().flatMap((s) => s.y.filter((_, k) => s.x[k] >= range[0] && s.x[k] <= range[1]));
      let [low, high] = inside.reduce(([a, b], y) => [Math.min(a, y), Math.max(b, y)], [Infinity, -Infinity]);
      if (!(low <= high)) [low, high] = [0, 1];
      const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
      low -= margin; high += margin;
      this.y = (value) => top + (high - value) / (high - low) * (height - top - bottom);
      const parts = [svg("clipPath", { id: this.clip },
        svg("rect", { x: left, y: 0, width: Math.max(0, this.width - left - right), height: height - bottom + 2 }))];
      for (const value of ticks(low, high, 4)) {
        parts.push(svg("line", { class: "grid-line", x1: left, x2: this.width - right, y1: this.y(value), y2: this.y(value) }));
        parts.push(svg("text", { class: "axis", x: left - 6, y: this.y(value) + 4, "text-anchor": "end" }, formatted(value)));
      }
      for (const value of ticks(range[0], range[1], Math.max(2, this.width / 90))) {
        parts.push(svg("text", { class: "axis", x: this.x(value), y: height - 5, "text-anchor": "middle" }, formatted(value)));
      }
      const lines = svg("g", { "clip-path": `url(#${this.clip})` });
      const path = (xs, ys) => xs.map((x, k) => `${k ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(ys[k]).toFixed(1)}`).join("");
      for (const s of this.shown()) {
        if (s.mean) lines.append(svg("path", { class: `curve raw s${s.run % 8}`, d: path(s.x, s.y) }));
        lines.append(svg("path", { class: `curve s${s.run % 8}`, d: path(s.x, s.mean ?? s.y) }));
        if (s.y.length < 12) for (const [k, x] of s.x.entries()) lines.append(svg("circle", { class: `dot s${s.run % 8}`, cx: this.x(x), cy: this.y(s.y[k]), r: 3 }));
      }
      this.over = svg("g", {});
      this.svg.replaceChildren(...parts, lines, this.over);
      this.reset.hidden = range[0] === this.group.whole[0] && range[1] === this.group.whole[1];
      this.point(null);
    }
    point(step) {
      this.at = step;
      this.over.replaceChildren();
      this.readout.replaceChildren();
      if (step === null) return;
      for (const [number, s] of this.shown().entries()) {
        const k = nearest(s.x, step), x = this.x(s.x[k]);
        if (number === 0) {
          this.over.append(svg("line", { class: "cursor", x1: x, x2: x, y1: top, y2: height - bottom }));
          this.readout.append(`step ${formatted(s.x[k])} `);
        }
        this.over.append(svg("circle", { class: `dot s${s.run % 8}`, cx: x, cy: this.y(s.y[k]), r: 4 }));
        const several = this.shown().length > 1;
        this.readout.append(" ", ...(several ? [html("span", { className: `key s${s.run % 8}` }), `${s.name} `] : []), html("b", { textContent: formatted(s.y[k]) }));
      }
    }
    press(event) {
      if (event.target === this.reset || event.button) return;
      this.pressed = this.step(event);
      this.plot.setPointerCapture(event.pointerId);
    }
    move(event) {
      const step = this.step(event);
      this.point(step);
      if (this.pressed == null) return;
      const [a, b] = [this.x(this.pressed), this.x(step)].sort((p, q) => p - q);
      this.over.append(svg("rect", { class: "brush", x: a, y: top, width: b - a, height: height - top - bottom }));
    }
    release(event) {
      const [a, b] = [this.pressed, this.step(event)].sort((p, q) => p - q), wide = this.pressed != null && this.x(b) - this.x(a) > 6;
      this.pressed = null;
      if (wide) this.group.zoom([a, b]);
    }
    key(event) {
      const first = this.shown()[0];
      if (!first || event.ctrlKey || event.metaKey || event.altKey) return;
      const range = this.group.range, centre = this.at ?? (range[0] + range[1]) / 2, half = (range[1] - range[0]) / 2;
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
        this.readout.setAttribute("aria-live", "polite");
        const k = this.at === null ? (event.key === "ArrowLeft" ? first.x.length : -1) : nearest(first.x, this.at);
        const next = Math.min(first.x.length - 1, Math.max(0, k + (event.key === "ArrowLeft" ? -1 : 1)));
        this.point(first.x[next]);
      } else if (event.key === "+" || event.key === "=") this.group.zoom([centre - half / 2, centre + half / 2]);
      else if (event.key === "-") this.group.zoom([centre - half * 2, centre + half * 2]);
      else if (event.key === "0" || event.key === "Escape") this.group.zoom(this.group.whole);
      else return;
      event.preventDefault();
    }
  }

  class Group {
    constructor({ title, charts }) {
      const steps = charts.flatMap((chart) => chart.series.flatMap((series) => series.x));
      this.whole = steps.reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity]);
      if (!(this.whole[1] > this.whole[0])) this.whole = [this.whole[0] - 1, this.whole[0] + 1];
      this.range = [...this.whole];
      this.hidden = new Set();
      const runs = new Map(charts.flatMap((chart) => chart.series.map((series) => [series.run, series.name])));
      this.single = runs.size < 2;
      this.charts = charts.map((chart) => new Chart(chart, this));
      this.node = html("div", { className: "group" }, ...(title ? [html("h3", { textContent: title })] : []), ...(this.single ? [] : [this.legend(runs)]),
        html("div", { className: "charts" }, ...this.charts.map((chart) => chart.node)));
      document.getElementById("charts").append(this.node);
      for (const chart of this.charts) chart.draw();
    }
    zoom([low, high]) {
      const [first, last] = this.whole;
      this.range = [Math.max(first, low), Math.min(last, high)];
      if (!(this.range[1] - this.range[0] > (last - first) * 1e-4)) this.range = [...this.whole];
      for (const chart of this.charts) chart.draw();
    }
    legend(runs) {
      return html("div", { className: "legend" }, ...[...runs].sort(([a], [b]) => a - b).map(([run, name]) => {
        const button = html("button", { type: "button" }, html("span", { className: `key s${run % 8}` }), name);
        button.setAttribute("aria-pressed", "true");
        button.addEventListener("click", () => {
          if (!this.hidden.delete(run)) this.hidden.add(run);
          button.setAttribute("aria-pressed", String(!this.hidden.has(run)));
          for (const chart of this.charts) chart.draw();
        });
        return button;
      }));
    }
  }

  for (const group of JSON.parse(source.textContent)) new Group(group);
})();
