"use strict";
// Draws the page's charts from the JSON in it. Colours are CSS variables, so that a change of theme redraws nothing.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const DASHES = ["", "7 4", "2 3", "9 3 2 3", "5 2", "12 4", "3 5", "1 4"];
  const tip = document.getElementById("tip");
  const charts = JSON.parse(document.getElementById("data").textContent);

  const make = (name, attributes, parent) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    if (parent) parent.appendChild(element);
    return element;
  };
  const color = (index) => (index < 0 ? "var(--ink)" : `var(--c${index % 8})`);
  const known = (value) => value !== null && value !== undefined;

  // ---- numbers and ticks -------------------------------------------------------------------------------------------

  const written = (value) => {
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (size >= 1e7 || size < 1e-4) return value.toExponential(3).replace(/\.?0+e/, "e");
    return value.toLocaleString("en", { maximumSignificantDigits: size >= 1e5 ? 7 : 5 });
  };

  const linearTicks = (low, high, count) => {
    const rough = (high - low) / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough) || 10 * power;
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(i * step);
    const decimals = Math.max(0, Math.min(8, -Math.floor(Math.log10(step)) + (step / power === 2.5 ? 1 : 0)));
    const text = (v) => {
      const size = Math.max(Math.abs(low), Math.abs(high));
      if (size >= 1e7 || size < 1e-3) return v === 0 ? "0" : v.toExponential(1).replace(".0e", "e");
      return v.toLocaleString("en", { maximumFractionDigits: decimals, minimumFractionDigits: step < 1 ? decimals : 0 });
    };
    return ticks.map((v) => [v, text(Math.abs(v) < step * 1e-9 ? 0 : v)]);
  };

  const logTicks = (low, high) => {
    const ticks = [];
    const decades = Math.log10(high / low);
    const marks = decades > 3 ? [1] : decades > 1.2 ? [1, 3] : [1, 2, 3, 5, 7];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const m of marks) {
        const v = m * 10 ** e;
        if (v >= low * 0.999 && v <= high * 1.001) ticks.push([v, written(v)]);
      }
    if (ticks.length >= 2) {
      const skip = Math.ceil(ticks.length / 7);
      return ticks.filter((_, i) => i % skip === 0);
    }
    return [low, Math.sqrt(low * high), high].map((v) => [v, written(Number(v.toPrecision(2)))]);
  };

  const widen = (low, high) => {
    if (low === high && low === 0) return [-0.05, 1.05];
    if (low === high) { const by = Math.abs(low) * 0.1; return [low - by, high + by]; }
    const by = 0.04 * (high - low);
    return [low - by, high + by];
  };

  // ---- one chart ---------------------------------------------------------------------------------------------------

  class Chart {
    constructor(figure, chart) {
      this.figure = figure;
      this.chart = chart;
      this.plot = figure.querySelector(".plot");
      this.hidden = new Set();
      this.at = -1;
      this.legend();
      new ResizeObserver(() => this.draw()).observe(this.plot);
    }

    legend() {
      const keys = [...new Set(this.chart.series.map((s) => s.key))];
      if (keys.length < 2) return;
      const legend = document.createElement("div");
      legend.className = "legend";
      legend.setAttribute("role", "group");
      legend.setAttribute("aria-label", `show and hide in: ${this.chart.title}`);
      for (const key of keys) {
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("aria-pressed", "true");
        const first = this.chart.series.find((s) => s.key === key && s.kind !== "band") || this.chart.series.find((s) => s.key === key);
        const sample = make("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" });
        if (first.kind === "points" || first.kind === "errors") make("circle", { cx: 11, cy: 5, r: 4, fill: color(first.color) }, sample);
        else if (first.kind === "bars") make("rect", { x: 2, y: 0, width: 18, height: 10, fill: color(first.color), "fill-opacity": 0.6 }, sample);
        else make("line", { x1: 0, x2: 22, y1: 5, y2: 5, stroke: color(first.color), "stroke-width": first.thin ? 1.5 : 3, "stroke-dasharray": this.dash(first) }, sample);
        button.append(sample, document.createTextNode(key));
        button.addEventListener("click", () => {
          const shown = this.hidden.has(key);
          if (shown) this.hidden.delete(key); else this.hidden.add(key);
          button.setAttribute("aria-pressed", String(shown));
          this.draw();
        });
        legend.appendChild(button);
      }
      this.plot.after(legend);
    }

    dash(series) {
      if (series.dashed || series.kind === "rule") return "6 4";
      return series.thin || series.color < 0 ? "" : DASHES[series.color % DASHES.length];
    }

    shown() { return this.chart.series.filter((s) => !this.hidden.has(s.key)); }

    ranges(series) {
      let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
      const seen = (x, y) => {
        if (known(x)) { x0 = Math.min(x0, x); x1 = Math.max(x1, x); }
        if (known(y)) { y0 = Math.min(y0, y); y1 = Math.max(y1, y); }
      };
      for (const s of series) {
        if (s.kind === "bars") { s.low.forEach((v) => seen(v, 0)); s.high.forEach((v) => seen(v, null)); s.y.forEach((v) => seen(null, v)); continue; }
        if (s.kind === "rule") { seen(null, s.y[0]); continue; }
        s.x.forEach((v) => seen(v, null));
        s.y.forEach((v) => seen(null, v));
        for (const ends of [s.low, s.high]) ends.forEach((v) => seen(null, v));
      }
      // A band far wider than the lines would leave them flat: then the axis follows the lines.
      const ys = series.filter((s) => s.kind === "line").flatMap((s) => s.y.filter(known));
      const [least, most] = [Math.min(...ys), Math.max(...ys)];
      if (!this.chart.log && most > least && y1 - y0 > 8 * (most - least)) {
        y0 = Math.max(y0, least - (most - least));
        y1 = Math.min(y1, most + (most - least));
      }
      if (!(x1 >= x0)) [x0, x1] = [0, 1];
      if (!(y1 >= y0)) [y0, y1] = [0, 1];
      if (this.chart.square) { x0 = y0 = Math.min(x0, y0); x1 = y1 = Math.max(x1, y1); }
      return [x0, x1, y0, y1];
    }

    draw() {
      const width = Math.floor(this.plot.clientWidth);
      if (width < 40) return;
      const series = this.shown();
      // Axes keep their range when something is hidden, unless nothing is left.
      const [x0, x1, y0, y1] = this.ranges(series.length ? series : this.chart.series);
      const small = this.figure.closest(".facets") !== null;
      let height = this.chart.square ? Math.min(width, 420) : small ? 250 : width < 480 ? 260 : 340;
      const log = this.chart.log && y0 > 0;
      const [left, right] = widen(x0, x1);
      let [bottom, top] = log ? [y0 / 1.15, y1 * 1.15] : widen(y0, y1);
      const bars = series.some((s) => s.kind === "bars");
      if (bars) bottom = 0;
      const yTicks = log ? logTicks(bottom, top) : linearTicks(bottom, top, height / 55);
      const pad = { right: 14, top: 8, bottom: 44 };
      const h = height - pad.top - pad.bottom;
      const yName = this.wrapped(this.chart.y, h + pad.top), xName = this.wrapped(this.chart.x, width - 60);
      pad.left = Math.max(...yTicks.map(([, text]) => text.length)) * 7 + 14 + 15 * yName.length;
      pad.bottom += 15 * (xName.length - 1);
      height += 15 * (xName.length - 1);
      const w = width - pad.left - pad.right;
      const fx = (v) => pad.left + ((v - left) / (right - left)) * w;
      const unit = log ? (v) => (Math.log(v) - Math.log(bottom)) / (Math.log(top) - Math.log(bottom)) : (v) => (v - bottom) / (top - bottom);
      const fy = (v) => pad.top + (1 - unit(v)) * h;

      const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: "0" });
      svg.setAttribute("aria-label", `${this.chart.title}: ${this.chart.y} over ${this.chart.x}. Use the arrow keys to read values; the table below has all of them.`);
      for (const [v, text] of yTicks) {
        make("line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: fy(v), y2: fy(v) }, svg);
        make("text", { x: pad.left - 6, y: fy(v) + 4, "text-anchor": "end" }, svg).textContent = text;
      }
      const xTicks = linearTicks(left, right, w / 62);
      for (const [v, text] of xTicks) {
        make("line", { class: "axis", x1: fx(v), x2: fx(v), y1: pad.top + h, y2: pad.top + h + 4 }, svg);
        make("text", { x: fx(v), y: pad.top + h + 17, "text-anchor": "middle" }, svg).textContent = text;
      }
      make("line", { class: "axis", x1: pad.left, x2: width - pad.right, y1: pad.top + h, y2: pad.top + h }, svg);
      this.label(svg, xName, pad.left + w / 2, pad.top + h + 38, 0);
      this.label(svg, yName, 13, pad.top + h / 2, -90);
      if (this.chart.square) make("line", { class: "axis", "stroke-dasharray": "4 4", x1: fx(x0), y1: fy(x0), x2: fx(x1), y2: fy(x1) }, svg);

      const clip = `clip-${this.figure.id}`;
      make("rect", { x: pad.left, y: pad.top - 4, width: w, height: h + 8 }, make("clipPath", { id: clip }, make("defs", {}, svg)));
      const body = make("g", { "clip-path": `url(#${clip})` }, svg);
      for (const s of series) this.one(body, s, fx, fy, pad.left, pad.left + w, log);
      this.cursor = make("g", {}, svg);
      this.scale = { fx, fy, pad, w, h, width, height, log };
      this.listen(svg);
      this.plot.replaceChildren(svg);
    }

    // The lines of an axis name that has so much room.
    wrapped(text, room) {
      const lines = [""];
      for (const word of text.split(" ")) {
        const longer = `${lines[lines.length - 1]} ${word}`.trim();
        if (longer.length * 6.9 > room && lines[lines.length - 1]) lines.push(word); else lines[lines.length - 1] = longer;
      }
      return lines;
    }

    label(svg, lines, x, y, angle) {
      const label = make("text", { class: "name", "text-anchor": "middle" }, svg);
      if (angle) label.setAttribute("transform", `rotate(${angle} ${x} ${y})`);
      lines.forEach((line, i) => { make("tspan", { x, y: y + 15 * i }, label).textContent = i ? ` ${line}` : line; });
    }

    one(body, s, fx, fy, left, right, log) {
      const group = make("g", { "data-key": s.key, "data-kind": s.kind }, body);
      const stroke = color(s.color);
      const fine = (i) => known(s.x[i]) && known(s.y[i]) && (!log || s.y[i] > 0);
      const line = (ys) => {
        let path = "", pen = false;
        s.x.forEach((x, i) => {
          if (!known(x) || !known(ys[i]) || (log && ys[i] <= 0)) { pen = false; return; }
          path += `${pen ? "L" : "M"}${fx(x).toFixed(1)} ${fy(ys[i]).toFixed(1)}`;
          pen = true;
        });
        return path;
      };
      if (s.kind === "rule") {
        make("line", { x1: left, x2: right, y1: fy(s.y[0]), y2: fy(s.y[0]), stroke, "stroke-width": 1.6, "stroke-dasharray": "6 4" }, group);
      } else if (s.kind === "band") {
        const at = s.x.map((_, i) => i).filter((i) => known(s.x[i]) && known(s.low[i]) && known(s.high[i]) && (!log || s.low[i] > 0));
        if (at.length === 1) {
          const i = at[0];
          make("line", { x1: fx(s.x[i]), x2: fx(s.x[i]), y1: fy(s.low[i]), y2: fy(s.high[i]), stroke, "stroke-width": 8, "stroke-opacity": 0.22 }, group);
        } else if (at.length) {
          const up = at.map((i) => `${fx(s.x[i]).toFixed(1)} ${fy(s.high[i]).toFixed(1)}`);
          const down = at.map((i) => `${fx(s.x[i]).toFixed(1)} ${fy(s.low[i]).toFixed(1)}`).reverse();
          make("path", { d: `M${up.concat(down).join("L")}Z`, fill: stroke, "fill-opacity": 0.17 }, group);
        }
      } else if (s.kind === "bars") {
        s.y.forEach((y, i) => {
          if (!known(y)) return;
          const x = fx(s.low[i]);
          make("rect", { x, y: fy(y), width: Math.max(fx(s.high[i]) - x - 1, 1), height: Math.max(fy(0) - fy(y), 0), fill: stroke, "fill-opacity": 0.55 }, group);
        });
      } else if (s.kind === "line") {
        make("path", { d: line(s.y), fill: "none", stroke, "stroke-width": s.thin ? 1.1 : 2.6, "stroke-opacity": s.thin ? 0.75 : 1, "stroke-dasharray": this.dash(s), "stroke-linejoin": "round" }, group);
        if (s.x.length <= (s.thin ? 3 : 25)) s.x.forEach((x, i) => { if (fine(i)) make("circle", { class: "mark", cx: fx(x), cy: fy(s.y[i]), r: s.thin ? 2 : 3.4, fill: stroke }, group); });
      } else {
        const many = s.x.length > 150;
        s.x.forEach((x, i) => {
          if (!fine(i)) return;
          if (s.kind === "errors" && known(s.low[i])) make("line", { x1: fx(x), x2: fx(x), y1: fy(s.low[i]), y2: fy(s.high[i]), stroke, "stroke-width": 1.6 }, group);
          make("circle", { cx: fx(x), cy: fy(s.y[i]), r: s.kind === "errors" ? 4.2 : many ? 1.8 : 2.6, fill: stroke, "fill-opacity": s.kind === "errors" ? 1 : many ? 0.4 : 0.65 }, group);
        });
      }
    }

    // ---- values under the pointer, or under the arrow keys ----------------------------------------------------------

    listen(svg) {
      svg.addEventListener("pointermove", (event) => {
        const box = svg.getBoundingClientRect();
        const factor = this.scale.width / box.width;
        this.tell((event.clientX - box.left) * factor, (event.clientY - box.top) * factor);
      });
      svg.addEventListener("pointerleave", () => this.quiet());
      svg.addEventListener("blur", () => this.quiet());
      svg.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (event.key === "Escape") this.quiet();
        if (!by) return;
        event.preventDefault();
        const xs = this.positions();
        if (!xs.length) return;
        this.at = Math.min(Math.max(this.at + by, 0), xs.length - 1);
        this.tell(this.scale.fx(xs[this.at]), null);
      });
    }

    positions() {
      const found = this.shown().filter((s) => s.kind !== "rule").flatMap((s) => s.x.filter(known));
      return [...new Set(found)].sort((a, b) => a - b);
    }

    tell(px, py) {
      const { fx, fy, pad, h, width } = this.scale;
      const series = this.shown();
      const scatter = series.filter((s) => s.kind === "points");
      let x = null, lines = [];
      if (scatter.length && py !== null) {
        let best = 900;
        for (const s of scatter) s.x.forEach((v, i) => {
          if (!known(v) || !known(s.y[i])) return;
          const d = (fx(v) - px) ** 2 + (fy(s.y[i]) - py) ** 2;
          if (d < best) { best = d; x = v; lines = [`${s.name}`, `${this.chart.x}: ${written(v)}`, `${this.chart.y}: ${written(s.y[i])}`]; }
        });
      } else {
        const xs = this.positions();
        if (xs.length) x = xs.reduce((a, b) => (Math.abs(fx(b) - px) < Math.abs(fx(a) - px) ? b : a));
        if (x !== null) {
          lines = [`${this.chart.x}: ${written(x)}`];
          for (const s of series) {
            if (s.kind === "rule") { lines.push(`${s.name}: ${written(s.y[0])}`); continue; }
            const i = s.x.indexOf(x);
            if (i < 0) continue;
            if (s.kind === "band") { if (known(s.low[i])) lines.push(`${s.name}: ${written(s.low[i])} to ${written(s.high[i])}`); }
            else if (known(s.y[i])) lines.push(`${s.name}: ${written(s.y[i])}`);
          }
          if (lines.length > 14) lines = [...lines.slice(0, 13), `and ${lines.length - 13} more`];
        }
      }
      this.cursor.replaceChildren();
      if (x === null) { tip.hidden = true; return; }
      make("line", { class: "cursor", x1: fx(x), x2: fx(x), y1: pad.top, y2: pad.top + h }, this.cursor);
      tip.textContent = lines.join("\n");
      tip.hidden = false;
      const box = this.plot.getBoundingClientRect();
      const factor = box.width / width;
      const gap = 12, at = box.left + fx(x) * factor;
      const beside = at + gap + tip.offsetWidth > document.documentElement.clientWidth - 4 ? at - gap - tip.offsetWidth : at + gap;
      tip.style.left = `${Math.max(4, beside) + window.scrollX}px`;
      tip.style.top = `${box.top + pad.top * factor + window.scrollY}px`;
    }

    quiet() { tip.hidden = true; this.at = -1; if (this.cursor) this.cursor.replaceChildren(); }
  }

  for (const figure of document.querySelectorAll("figure[data-chart]")) new Chart(figure, charts[Number(figure.dataset.chart)]);

  // ---- theme -------------------------------------------------------------------------------------------------------

  const root = document.documentElement, button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { button.textContent = dark() ? "light" : "dark"; button.setAttribute("aria-label", `${button.textContent} colours`); };
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  system.addEventListener("change", name);
  name();
})();
