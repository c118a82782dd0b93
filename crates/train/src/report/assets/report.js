"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const el = (tag, parent, text) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  };
  const colour = (i) => (i < 0 ? style("--soft") : data.colours[i % data.colours.length]);

  // Curves.
  const charts = document.getElementById("charts");
  const drawCharts = () => {
    charts.textContent = "";
    for (const chart of data.charts) {
      const box = el("div", charts);
      box.className = "chart";
      const axis = { stroke: style("--soft"), grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line"), width: 1 } };
      const xs = [...new Set(chart.series.flatMap((s) => s.x))].sort((a, b) => a - b);
      const columns = chart.series.map((s) => {
        const at = new Map(s.x.map((x, i) => [x, s.y[i]]));
        return xs.map((x) => at.get(x) ?? null);
      });
      const series = chart.series.map((s, i) => ({
        label: s.name, stroke: chart.series.length > 1 ? colour(i) : style("--accent"), width: 1.6, spanGaps: true, points: { show: xs.length < 40 },
      }));
      new uPlot({
        title: chart.title, width: Math.max(300, box.clientWidth - 16), height: 210, scales: { x: { time: false } },
        axes: [axis, { ...axis, size: 58 }], series: [{ label: chart.over }, ...series], cursor: { drag: { x: true, y: false } },
      }, [xs, ...columns], box);
    }
  };
  if (charts) drawCharts();

  // Thumbnails come from one sheet.
  const thumb = (i, size, parent) => {
    const t = data.thumbs, node = el("span", parent), scale = size / t.side;
    node.className = "thumb";
    node.style.width = node.style.height = `${size}px`;
    node.style.backgroundImage = `url(${t.sheet})`;
    node.style.backgroundSize = `${t.columns * size}px auto`;
    node.style.backgroundPosition = `${-(i % t.columns) * t.side * scale}px ${-Math.floor(i / t.columns) * t.side * scale}px`;
    return node;
  };
  for (const slot of document.querySelectorAll("[data-thumb]")) {
    const made = thumb(Number(slot.dataset.thumb), Number(slot.dataset.size || 44), slot);
    made.title = slot.title;
  }

  // The map.
  const canvas = document.getElementById("plane");
  if (canvas) {
    const tip = document.getElementById("tip"), images = data.map.images, pen = canvas.getContext("2d");
    let plane = 0, by = data.map.labels.length ? "label" : "cluster", view = { x: 0, y: 0, zoom: 1 }, held = null, hidden = new Set();
    const group = (i) => (by === "label" ? images[i].label : images[i].cluster);
    const names = () => (by === "label" ? data.map.labels : data.map.clusters);
    const place = (i) => {
      const [x, y] = data.map.planes[plane].points[i], w = canvas.clientWidth, h = canvas.clientHeight, unit = (Math.min(w, h) / 2 - 14) * view.zoom;
      return [w / 2 + view.x + x * unit, h / 2 + view.y - y * unit];
    };
    const draw = () => {
      const ratio = devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
      canvas.width = w * ratio; canvas.height = h * ratio;
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, w, h);
      for (let i = 0; i < images.length; i++) {
        if (hidden.has(group(i))) continue;
        const [x, y] = place(i);
        pen.fillStyle = colour(group(i));
        pen.globalAlpha = 0.85;
        pen.beginPath(); pen.arc(x, y, Math.min(3 + view.zoom * 0.6, 9), 0, 7); pen.fill();
      }
    };
    const legend = () => {
      const box = document.getElementById("legend");
      box.textContent = "";
      names().forEach((name, i) => {
        const item = el("span", box);
        const dot = el("span", item);
        dot.className = "dot"; dot.style.background = colour(i);
        item.append(name); item.style.cursor = "pointer"; item.style.opacity = hidden.has(i) ? 0.35 : 1;
        item.onclick = () => { hidden.has(i) ? hidden.delete(i) : hidden.add(i); legend(); draw(); };
      });
    };
    const bar = document.getElementById("mapbar");
    const choice = (options, chosen, act) => {
      const buttons = options.map(([key, text]) => {
        const b = el("button", bar, text);
        b.setAttribute("aria-pressed", key === chosen);
        b.onclick = () => { buttons.forEach((o) => o.setAttribute("aria-pressed", o === b)); act(key); };
        return b;
      });
    };
    choice(data.map.planes.map((p, i) => [i, p.name]), 0, (i) => { plane = i; view = { x: 0, y: 0, zoom: 1 }; draw(); });
    const kinds = [];
    if (data.map.labels.length) kinds.push(["label", "by label"]);
    if (data.map.clusters.length) kinds.push(["cluster", "by cluster"]);
    if (kinds.length) choice(kinds, by, (k) => { by = k; hidden = new Set(); legend(); draw(); });
    el("button", bar, "whole map").onclick = () => { view = { x: 0, y: 0, zoom: 1 }; draw(); };
    const nearest = (px, py) => {
      let best = -1, least = 144;
      for (let i = 0; i < images.length; i++) {
        if (hidden.has(group(i))) continue;
        const [x, y] = place(i), d = (x - px) ** 2 + (y - py) ** 2;
        if (d < least) { least = d; best = i; }
      }
      return best;
    };
    const spot = (e) => { const r = canvas.getBoundingClientRect(); return [e.clientX - r.left, e.clientY - r.top]; };
    canvas.onpointerdown = (e) => { held = [e.clientX - view.x, e.clientY - view.y]; canvas.setPointerCapture(e.pointerId); };
    canvas.onpointerup = () => { held = null; };
    canvas.onpointerleave = () => { tip.style.display = "none"; };
    canvas.onpointermove = (e) => {
      if (held) { view.x = e.clientX - held[0]; view.y = e.clientY - held[1]; tip.style.display = "none"; return draw(); }
      const i = nearest(...spot(e));
      if (i < 0) { tip.style.display = "none"; return; }
      tip.textContent = "";
      thumb(i, 112, tip);
      el("div", tip, images[i].id);
      const label = data.map.labels[images[i].label], cluster = data.map.clusters[images[i].cluster];
      if (label !== undefined) el("div", tip, label);
      if (cluster !== undefined) el("div", tip, cluster);
      tip.dataset.image = i;
      tip.style.display = "block";
      tip.style.left = `${Math.min(e.clientX + 16, innerWidth - 200)}px`;
      tip.style.top = `${Math.min(e.clientY + 16, innerHeight - 200)}px`;
    };
    canvas.addEventListener("wheel", (e) => {
      e.preventDefault();
      const [px, py] = spot(e), w = canvas.clientWidth / 2, h = canvas.clientHeight / 2, zoom = Math.min(60, Math.max(0.5, view.zoom * Math.exp(-e.deltaY * 0.0015))), f = zoom / view.zoom;
      view = { x: px - w - (px - w - view.x) * f, y: py - h - (py - h - view.y) * f, zoom };
      draw();
    }, { passive: false });
    legend(); draw();
    addEventListener("resize", draw);
    matchMedia("(prefers-color-scheme:dark)").addEventListener("change", draw);
  }
  if (charts) matchMedia("(prefers-color-scheme:dark)").addEventListener("change", drawCharts);
  document.documentElement.dataset.ready = "yes";
})();
