// The zoom canvas: paints a picture that Python may replace at any time, and hands back a dragged
// rectangle, a clicked point and nothing else. Hovering and the preview of a selection are answered
// here, without a round trip.

const MARGIN = { left: 92, right: 14, top: 10, bottom: 46 };
const SMALLEST_DRAG = 4;
const NEWS_EVERY = { live: 150, idle: 2000 };

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "fractal-heatmap";
  root.innerHTML = `
    <div class="map">
      <canvas data-testid="map" tabindex="0" role="img" aria-label="map of outcomes; drag to choose a rectangle, click to choose a point, Escape to clear"></canvas>
      <div class="line readout" data-testid="readout">&nbsp;</div>
      <div class="line status" data-testid="status" aria-live="polite">&nbsp;</div>
    </div>
    <div class="aside">
      <canvas data-testid="preview" width="440" height="440"></canvas>
      <div class="line">what you chose, as far as this map knows it</div>
    </div>`;
  el.replaceChildren(root);
  const canvas = root.querySelector(".map canvas");
  const aside = root.querySelector(".aside");
  const preview = aside.querySelector("canvas");
  const readout = root.querySelector(".readout");
  const status = root.querySelector(".status");
  const context = canvas.getContext("2d");
  let picture = null;
  let drag = null;
  let turn = 0;

  const fractionOf = (axis, value) =>
    axis.log ? Math.log1p((value - axis.low) / axis.low) / Math.log1p((axis.high - axis.low) / axis.low)
             : (value - axis.low) / (axis.high - axis.low);

  // Written as a step from the low end, so that a window a few ulps wide still gives distinct values.
  function valueAt(axis, fraction) {
    if (!axis.log) return axis.low + (axis.high - axis.low) * fraction;
    const length = Math.log1p((axis.high - axis.low) / axis.low);
    const offset = fraction * length;
    return axis.low + axis.low * Math.expm1(offset);
  }

  function frame() {
    const size = canvas.getBoundingClientRect();
    return {
      x: MARGIN.left, y: MARGIN.top,
      width: size.width - MARGIN.left - MARGIN.right,
      height: size.height - MARGIN.top - MARGIN.bottom,
    };
  }

  const clamp = (value) => Math.min(1, Math.max(0, value));

  function locate(event) {
    const size = canvas.getBoundingClientRect();
    const area = frame();
    return {
      x: (event.clientX - size.left - area.x) / area.width,
      y: 1 - (event.clientY - size.top - area.y) / area.height,
    };
  }

  const inside = (at) => at.x >= 0 && at.x <= 1 && at.y >= 0 && at.y <= 1;

  function paint() {
    const size = canvas.getBoundingClientRect();
    if (!size.width) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(size.width * ratio);
    canvas.height = Math.round(size.height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const area = frame();
    const style = getComputedStyle(root);
    context.clearRect(0, 0, size.width, size.height);
    context.imageSmoothingEnabled = false;
    context.fillStyle = "#9a9a9a";
    context.fillRect(area.x, area.y, area.width, area.height);
    if (picture) context.drawImage(picture, area.x, area.y, area.width, area.height);
    context.strokeStyle = style.color;
    context.lineWidth = 1;
    context.strokeRect(area.x - 0.5, area.y - 0.5, area.width + 1, area.height + 1);
    ticks(area, style.color);
    for (const mark of model.get("marks")) outline(area, mark.box, mark.label);
    const point = model.get("point");
    if (point.length) cross(area, point);
    const box = drag ? drag.box : model.get("roi");
    if (box.length === 4) selection(area, box);
  }

  function ticks(area, color) {
    context.fillStyle = color;
    context.font = "12px system-ui, sans-serif";
    for (const tick of model.get("xaxis").ticks) {
      const x = area.x + tick.at * area.width;
      context.fillRect(Math.round(x), area.y + area.height, 1, 5);
      context.textAlign = tick.at < 0.06 ? "left" : tick.at > 0.94 ? "right" : "center";
      context.fillText(tick.text, x, area.y + area.height + 18);
    }
    context.textAlign = "right";
    for (const tick of model.get("yaxis").ticks) {
      const y = area.y + (1 - tick.at) * area.height;
      context.fillRect(area.x - 5, Math.round(y), 5, 1);
      context.fillText(tick.text, area.x - 8, y + 4);
    }
    context.textAlign = "center";
    context.fillText(model.get("xaxis").label, area.x + area.width / 2, area.y + area.height + 38);
    context.save();
    context.translate(14, area.y + area.height / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(model.get("yaxis").label, 0, 0);
    context.restore();
  }

  function rectangle(area, box) {
    const [x0, x1] = [box[0], box[1]].map((v) => clamp(fractionOf(model.get("xaxis"), v)));
    const [y0, y1] = [box[2], box[3]].map((v) => clamp(fractionOf(model.get("yaxis"), v)));
    return [area.x + x0 * area.width, area.y + (1 - y1) * area.height,
            (x1 - x0) * area.width, (y1 - y0) * area.height];
  }

  function outline(area, box, label) {
    const [x, y, width, height] = rectangle(area, box);
    for (const [color, thick] of [["#000", 3], ["#fff", 1.2]]) {
      context.strokeStyle = color;
      context.lineWidth = thick;
      if (width < 9 && height < 9) {
        context.beginPath();
        context.arc(x + width / 2, y + height / 2, 6, 0, 2 * Math.PI);
        context.stroke();
      } else context.strokeRect(x, y, width, height);
    }
    if (!label) return;
    context.textAlign = x > area.x + 0.8 * area.width ? "right" : "left";
    context.lineWidth = 3;
    context.strokeStyle = "#000";
    context.strokeText(label, x + width / 2 + 10, y - 4);
    context.fillStyle = "#fff";
    context.fillText(label, x + width / 2 + 10, y - 4);
  }

  function selection(area, box) {
    const [x, y, width, height] = rectangle(area, box);
    context.fillStyle = "rgba(0,0,0,0.38)";
    context.beginPath();
    context.rect(area.x, area.y, area.width, area.height);
    context.rect(x, y, width, height);
    context.fill("evenodd");
    outline(area, box, "");
  }

  // The part of the picture under the rectangle, magnified; it needs no answer from Python.
  function magnify() {
    const box = model.get("roi");
    aside.classList.toggle("shown", box.length === 4 && picture !== null);
    if (box.length !== 4 || !picture) return;
    const [x0, x1] = [box[0], box[1]].map((v) => fractionOf(model.get("xaxis"), v));
    const [y0, y1] = [box[2], box[3]].map((v) => fractionOf(model.get("yaxis"), v));
    const brush = preview.getContext("2d");
    brush.imageSmoothingEnabled = false;
    brush.drawImage(picture, x0 * picture.width, (1 - y1) * picture.height,
                    (x1 - x0) * picture.width, (y1 - y0) * picture.height,
                    0, 0, preview.width, preview.height);
    preview.dataset.drawn = String(performance.now());
  }

  function cross(area, point) {
    const x = area.x + fractionOf(model.get("xaxis"), point[0]) * area.width;
    const y = area.y + (1 - fractionOf(model.get("yaxis"), point[1])) * area.height;
    for (const [color, thick] of [["#000", 4], ["#fff", 1.6]]) {
      context.strokeStyle = color;
      context.lineWidth = thick;
      context.beginPath();
      for (const [dx, dy] of [[-9, 0], [9, 0], [0, -9], [0, 9]]) {
        context.moveTo(x + dx / 3, y + dy / 3);
        context.lineTo(x + dx, y + dy);
      }
      context.stroke();
    }
  }

  function boxOf(a, b) {
    const [x0, x1] = [a.x, b.x].map(clamp).sort((p, q) => p - q);
    const [y0, y1] = [a.y, b.y].map(clamp).sort((p, q) => p - q);
    return [valueAt(model.get("xaxis"), x0), valueAt(model.get("xaxis"), x1),
            valueAt(model.get("yaxis"), y0), valueAt(model.get("yaxis"), y1)];
  }

  function hover(at) {
    if (!inside(at)) {
      readout.textContent = "\u00a0";
      return;
    }
    const digits = model.get("digits");
    const [x, y] = [valueAt(model.get("xaxis"), at.x), valueAt(model.get("yaxis"), at.y)];
    let text = `x ${x.toPrecision(digits[0])}   y ${y.toPrecision(digits[1])}`;
    const [rows, cols] = model.get("shape");
    const row = Math.min(rows - 1, Math.floor(at.y * rows));
    const col = Math.min(cols - 1, Math.floor(at.x * cols));
    text += `   row ${row} column ${col}`;
    const bytes = model.get("values");
    if (bytes && bytes.byteLength === 8 * rows * cols) {
      const value = bytes.getFloat64(8 * (row * cols + col), true);
      text += `   ${model.get("quantity")} ${Number.isNaN(value) ? "not computed" : value.toPrecision(8)}`;
    }
    readout.textContent = text;
  }

  canvas.addEventListener("pointerdown", (event) => {
    const at = locate(event);
    if (event.button !== 0 || !inside(at)) return;
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true, focusVisible: false });
    drag = { start: at, from: [event.clientX, event.clientY], box: [] };
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = locate(event);
    hover(at);
    if (!drag) return;
    drag.box = boxOf(drag.start, at);
    paint();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const [dx, dy] = [event.clientX - drag.from[0], event.clientY - drag.from[1]].map(Math.abs);
    if (dx >= SMALLEST_DRAG && dy >= SMALLEST_DRAG) {
      model.set("roi", boxOf(drag.start, locate(event)));
    } else if (dx < SMALLEST_DRAG && dy < SMALLEST_DRAG) {
      model.set("point", [valueAt(model.get("xaxis"), drag.start.x),
                          valueAt(model.get("yaxis"), drag.start.y)]);
    }
    drag = null;
    paint();
    magnify();
    model.save_changes();
  });
  canvas.addEventListener("pointercancel", () => { drag = null; paint(); });
  canvas.addEventListener("pointerleave", () => { readout.textContent = "\u00a0"; });
  canvas.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    drag = null;
    model.set("roi", []);
    model.set("point", []);
    model.save_changes();
    paint();
  });

  // Pictures may overtake each other while they are decoded: only the newest is shown.
  async function show() {
    const mine = ++turn;
    const bytes = model.get("png");
    if (!bytes || !bytes.byteLength) return;
    const decoded = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    if (mine !== turn) return;
    picture = decoded;
    paint();
    magnify();
    canvas.dataset.frames = String(mine);
  }

  // Ask for news soon again while a run goes on, and now and then otherwise.
  let timer = 0;
  function ask() {
    clearTimeout(timer);
    model.send("news?");
    timer = setTimeout(ask, model.get("status").live ? NEWS_EVERY.live : NEWS_EVERY.idle);
  }

  function say() {
    const now = model.get("status");
    status.textContent = now.text || "\u00a0";
    status.dataset.live = String(Boolean(now.live));
    if (now.live) { clearTimeout(timer); timer = setTimeout(ask, NEWS_EVERY.live); }
  }

  model.on("change:png", show);
  model.on("change:status", say);
  for (const name of ["roi", "point", "marks", "xaxis", "yaxis"]) {
    model.on(`change:${name}`, () => { paint(); magnify(); });
  }
  const watcher = new ResizeObserver(paint);
  watcher.observe(canvas);
  show();
  say();
  paint();
  ask();
  return () => { clearTimeout(timer); watcher.disconnect(); };
}

export default { render };
