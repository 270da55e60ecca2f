"use strict";
// Images with labels and detections; what is correct, extra, missing or of the wrong class depends on the score asked for.
(() => {
  const source = document.getElementById("gallery-data");
  if (!source) return;
  const sets = JSON.parse(source.textContent), form = document.getElementById("filters"), fields = form.elements;
  const grid = document.getElementById("gallery"), viewer = document.getElementById("viewer");
  let shown = [], current = 0, opener = null;

  const node = (name, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(name), attributes);
    made.append(...children);
    return made;
  };
  const svg = (name, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const iou = (a, b) => {
    const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]), height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
    if (width <= 0 || height <= 0) return 0;
    const both = width * height;
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both);
  };
  const covered = (box, crowd) => {
    const width = Math.min(box[2], crowd[2]) - Math.max(box[0], crowd[0]), height = Math.min(box[3], crowd[3]) - Math.max(box[1], crowd[1]);
    return width > 0 && height > 0 ? width * height / Math.max(1e-6, (box[2] - box[0]) * (box[3] - box[1])) : 0;
  };

  // As boxless.evaluation.matching: by descending score, each takes the free object of its class that it covers best; then
  // those that are left take free objects of other classes. truth: x1 y1 x2 y2 class crowd; found: x1 y1 x2 y2 class score.
  const match = (truth, found, score) => {
    const kept = found.filter((each) => each[5] >= score), objects = kept.map(() => -1), free = truth.map((each) => !each[5]);
    for (const same of [true, false]) {
      for (const [row, each] of kept.entries()) {
        if (objects[row] >= 0) continue;
        let best = -1, most = 0.5;
        for (const [place, object] of truth.entries()) {
          const overlap = free[place] && (each[4] === object[4]) === same ? iou(each, object) : 0;
          if (overlap >= most && (best < 0 || overlap > most)) { best = place; most = overlap; }
        }
        if (best >= 0) { objects[row] = best; free[best] = false; }
      }
    }
    const items = kept.map((each, row) => {
      const object = truth[objects[row]];
      const ignored = !object && truth.some((other) => other[5] && covered(each, other) >= 0.5);
      const kind = object ? (object[4] === each[4] ? "correct" : "wrong class") : ignored ? "ignored" : "extra";
      return { box: each, kind, label: each[4], score: each[5], truth: object ? object[4] : null };
    });
    const missing = truth.filter((_, place) => free[place]).map((each) => ({ box: each, kind: "missing", label: each[4], truth: each[4] }));
    return [...items.filter((item) => item.kind !== "ignored"), ...missing];
  };

  const set = () => sets[Number(fields.set.value)];
  const run = () => set().runs[Number(fields.run.value)];
  const name = (label) => set().classes[label] ?? `class ${label}`;
  const words = (item) => item.kind === "missing" ? name(item.label)
    : `${name(item.label)} ${Math.round(100 * item.score)}${item.kind === "wrong class" ? `, is ${name(item.truth)}` : ""}`;
  const css = (kind) => kind.replace(" ", "-");

  const overlay = (image, items, tags) => {
    const drawing = svg("svg", { viewBox: `0 0 ${image.width} ${image.height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const inner = node("div", { className: "inner" });
    inner.style.setProperty("--ratio", image.width / image.height);
    const picture = node("img", { src: `data:image/jpeg;base64,${image.jpeg}`, alt: "" });
    inner.append(picture, drawing);
    for (const item of [...items].reverse()) {
      const [x1, y1, x2, y2] = item.box, place = { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) };
      drawing.append(svg("rect", { ...place, class: "rim" }), svg("rect", { ...place, class: `${css(item.kind)}${item.crowd ? " crowd" : ""}` }));
      if (!tags) continue;
      const tag = node("span", { className: `tag ${css(item.kind)}${y1 < 0.06 * image.height ? " below" : ""}`, textContent: item.tag ?? words(item) });
      tag.style.left = `${100 * Math.min(x1 / image.width, 0.85)}%`;
      tag.style.top = `${100 * y1 / image.height}%`;
      inner.append(tag);
    }
    return { inner, picture };
  };
  const counted = (items) => {
    const kinds = ["correct", "wrong class", "extra", "missing"].map((kind) => [items.filter((item) => item.kind === kind).length, kind]);
    return kinds.filter(([count]) => count).map(([count, kind]) => `${count} ${kind}`).join(", ") || "nothing";
  };

  const fill = () => {
    const score = Number(fields.score.value) / 100, label = fields.class.value === "" ? null : Number(fields.class.value);
    const kinds = new Set([...fields.kind].filter((box) => box.checked).map((box) => box.value));
    fields["shown-score"].value = fields.score.value;
    const number = run().run, open = viewer.open ? shown[current]?.image : null;
    shown = set().images.filter((image) => number in image.found).map((image) => {
      const items = match(image.truth, image.found[number], score).filter((item) => kinds.has(item.kind) && (label === null || item.label === label || item.truth === label));
      return { image, items };
    }).filter((each) => each.items.length || (label === null && kinds.size === 4));
    grid.replaceChildren(...shown.map(({ image, items }, place) => {
      const { inner, picture } = overlay(image, items, false), caption = `${image.file}: ${counted(items)}`;
      picture.alt = `${caption}. ${items.map((item) => `${item.kind}: ${words(item)}`).join("; ")}`;
      const button = node("button", { type: "button" }, node("div", { className: "frame" }, inner), node("span", { className: "caption", textContent: caption }));
      button.addEventListener("click", () => { opener = button; view(place); });
      return button;
    }));
    const all = set().images.filter((image) => number in image.found).length, total = counted(shown.flatMap(({ items }) => items));
    document.getElementById("gallery-count").textContent = `${shown.length} of ${all} shown images (${run().images} were measured): ${total}.`;
    if (open) {
      const place = shown.findIndex((each) => each.image === open);
      if (place < 0) viewer.close(); else view(place);
    }
  };

  const view = (place) => {
    current = (place + shown.length) % shown.length;
    const { image, items } = shown[current], label = fields.class.value === "" ? null : Number(fields.class.value);
    const truth = image.truth.filter((each) => label === null || each[4] === label).map((each) => ({ box: each, kind: "correct", tag: name(each[4]), crowd: each[5] }));
    const labels = overlay(image, truth, true), found = overlay(image, items, true);
    labels.picture.alt = `${image.file} with its labels: ${truth.map((item) => item.tag).join(", ") || "none"}`;
    found.picture.alt = `${image.file} with detections: ${counted(items)}`;
    document.getElementById("viewer-truth").replaceChildren(labels.inner);
    document.getElementById("viewer-found").replaceChildren(found.inner);
    document.getElementById("viewer-title").textContent = `${image.file}, ${current + 1} of ${shown.length}`;
    document.getElementById("viewer-run").textContent = `${run().name}: ${counted(items)}`;
    document.getElementById("viewer-list").replaceChildren(...items.map((item) => node("li", { className: css(item.kind) },
      svg("svg", { viewBox: "0 0 22 14", "aria-hidden": "true" }, svg("rect", { x: 2, y: 2, width: 18, height: 10 })), `${item.kind}: ${words(item)}`)));
    if (!viewer.open) viewer.showModal();
  };

  const choices = (field, entries) => field.replaceChildren(...entries.map(([value, text]) => node("option", { value, textContent: text })));
  const prepare = () => {
    choices(fields.run, set().runs.map((each, place) => [place, each.name]));
    const present = new Set(set().images.flatMap((image) => [image.truth, ...Object.values(image.found)].flat().map((each) => each[4])));
    choices(fields.class, [["", "all"], ...[...present].sort((a, b) => name(a).localeCompare(name(b))).map((label) => [label, name(label)])]);
    fields.score.value = Math.round(100 * run().score);
    fill();
  };
  choices(fields.set, sets.map((each, place) => [place, each.data]));
  document.getElementById("of-set").hidden = sets.length < 2;
  document.getElementById("of-run").hidden = sets.every((each) => each.runs.length < 2);
  form.addEventListener("input", (event) => event.target === fields.set ? prepare() : fill());
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of viewer.querySelectorAll("[data-step]")) button.addEventListener("click", () => view(current + Number(button.dataset.step)));
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") { event.preventDefault(); view(current + (event.key === "ArrowLeft" ? -1 : 1)); }
  });
  viewer.addEventListener("close", () => { const target = grid.children[current] ?? opener; target?.focus(); });
  prepare();
})();
