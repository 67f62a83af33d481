"use strict";
const meta = JSON.parse(document.getElementById("meta").textContent);
const $ = (id) => document.getElementById(id);

// What can be clicked can be reached and pressed by keys.
function onPress(element, act) {
  element.tabIndex = 0;
  element.addEventListener("click", act);
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    act();
  });
}

// Tables: a header sorts by it; two buttons copy what is shown.
const numberIn = (cell) => {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const found = cell.textContent.replace(/,/g, "").match(/^\s*(?:<\s*)?(-?\d+(?:\.\d+)?(?:e-?\d+)?)/i);
  return found ? Number(found[1]) : NaN;
};
function sortBy(table, column, header) {
  const up = header.getAttribute("aria-sort") === "descending";
  table.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  const numbers = rows.map((row) => numberIn(row.cells[column]));
  const numeric = column > 0 && numbers.some((n) => !Number.isNaN(n));
  const order = rows.map((_, i) => i).sort((a, b) => {
    if (!numeric) return rows[a].cells[column].textContent.localeCompare(rows[b].cells[column].textContent, "en", { numeric: true });
    if (Number.isNaN(numbers[a]) || Number.isNaN(numbers[b])) return Number.isNaN(numbers[a]) - Number.isNaN(numbers[b]);
    return numbers[a] - numbers[b];
  });
  if (!up) order.reverse();
  if (numeric && !up) order.sort((a, b) => Number.isNaN(numbers[a]) - Number.isNaN(numbers[b]));  // what is undefined stays last
  table.tBodies[0].append(...order.map((i) => rows[i]));
}
const shown = (table) => [table.tHead.rows[0], ...table.tBodies[0].rows].filter((row) => !row.hidden);
const latexOf = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}", "±": "$\\pm$", "≥": "$\\geq$" };
const latexText = (text) => text.replace(/[\\~^<>±≥&%$#_{}]/g, (c) => latexOf[c] || "\\" + c);
const latexCell = (cell) => (cell.querySelector("b") ? `\\textbf{${latexText(cell.textContent.trim())}}` : latexText(cell.textContent.trim()));
function latex(table) {
  const lines = shown(table).map((row) => [...row.cells].map(latexCell).join(" & ") + " \\\\");
  const columns = [...table.tHead.rows[0].cells].map((th, i) => (th.classList.contains("prose") ? "p{0.5\\linewidth}" : i && !th.classList.contains("text") ? "r" : "l")).join("");
  return ["% needs \\usepackage{booktabs}", `\\begin{tabular}{${columns}}`, "\\toprule", lines[0], "\\midrule", ...lines.slice(1), "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
}
const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
const csv = (table) => shown(table).map((row) => [...row.cells].map((cell) => quoted(cell.textContent.trim())).join(",")).join("\n") + "\n";
async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a page opened from disk may not be given the clipboard
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = "copied";
  setTimeout(() => (button.textContent = before), 1200);
}
document.querySelectorAll("table.sortable").forEach((table) => {
  [...table.tHead.rows[0].cells].forEach((th, i) => {
    th.scope = "col";
    th.title = "sort by this column";
    onPress(th, () => sortBy(table, i, th));
  });
  const tools = document.createElement("p");
  tools.className = "tools";
  for (const [name, text] of [["Copy as LaTeX", latex], ["Copy as CSV", csv]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => copy(text(table), button));
    tools.append(button);
  }
  table.parentElement.after(tools);
});
document.querySelectorAll("figure img").forEach((img) =>
  onPress(img, () => {
    const large = new Image();
    large.src = img.src;
    large.alt = img.alt;
    $("zoomed").replaceChildren(large);
    $("zoomed").showModal();
  }));
$("zoomed").addEventListener("click", () => $("zoomed").close());

// Attention maps: one canvas of one or two panes that move together, drawn from arrays that are unpacked when a slide is
// opened.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
const view = { slide: null, scale: 1, x: 0, y: 0 };
async function open(index) {
  const facts = meta.maps[index];
  const bytes = await unpack($("map-" + index).textContent);
  const n = facts.n;
  const packed = new Uint16Array(bytes.buffer, 0, 2 * n);
  const at = (axis, i) => facts.origin[axis] + packed[axis * n + i] * facts.unit;
  const slide = { facts, n, x: new Float64Array(n), y: new Float64Array(n), layers: [], thumbnail: null };
  for (let i = 0; i < n; i++) { slide.x[i] = at(0, i); slide.y[i] = at(1, i); }
  facts.layers.forEach((_, k) => slide.layers.push(bytes.subarray(4 * n + k * n, 4 * n + (k + 1) * n)));
  if (facts.thumbnail) {
    slide.thumbnail = new Image();
    slide.thumbnail.src = "data:image/jpeg;base64," + facts.thumbnail.data;
    await slide.thumbnail.decode();
  }
  view.slide = slide;
  $("viewer").hidden = false;
  $("v-name").textContent = facts.slide_id;
  $("v-truth").textContent = "truth: " + facts.label;
  $("v-alpha-label").hidden = !facts.thumbnail;
  $("v-map").replaceChildren(...facts.layers.map((layer, k) => new Option(layer.name, k)));
  $("v-beside").replaceChildren(new Option("nothing", ""), ...facts.layers.map((layer, k) => new Option(layer.name, k)));
  reset();
  $("viewer").scrollIntoView({ block: "nearest" });
}
function extent(slide) {
  const side = slide.facts.patch_size || 0;
  if (slide.thumbnail) return [0, 0, slide.facts.thumbnail.width, slide.facts.thumbnail.height];
  let [x0, y0, x1, y1] = [Infinity, Infinity, -Infinity, -Infinity];
  for (let i = 0; i < slide.n; i++) {
    x0 = Math.min(x0, slide.x[i]); x1 = Math.max(x1, slide.x[i] + side);
    y0 = Math.min(y0, slide.y[i]); y1 = Math.max(y1, slide.y[i] + side);
  }
  return [x0, y0, Math.max(x1, x0 + 1), Math.max(y1, y0 + 1)];
}
function reset() {
  const canvas = $("v-canvas"), ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const [x0, y0, x1, y1] = extent(view.slide);
  const width = canvas.width / panes().length;
  view.scale = 0.94 * Math.min(width / (x1 - x0), canvas.height / (y1 - y0));
  view.x = width / 2 - (view.scale * (x0 + x1)) / 2;
  view.y = canvas.height / 2 - (view.scale * (y0 + y1)) / 2;
  draw();
}
const dotSide = (slide) => (slide.facts.patch_size ? view.scale * slide.facts.patch_size : Math.max(3, view.scale * slide.facts.dot));
const panes = () => [$("v-map").value || "0", $("v-beside").value].filter((value) => value !== "").map(Number);
let pending = false;
function draw() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => {
    pending = false;
    const canvas = $("v-canvas"), context = canvas.getContext("2d"), layers = panes(), width = canvas.width / layers.length;
    context.clearRect(0, 0, canvas.width, canvas.height);
    layers.forEach((k, place) => {
      context.save();
      context.beginPath();
      context.rect(place * width, 0, width, canvas.height);
      context.clip();
      context.translate(place * width, 0);
      drawLayer(context, k, width, canvas.height);
      if (layers.length > 1) label(context, view.slide.facts.layers[k].name, width, place);
      context.restore();
    });
  });
}
function drawLayer(context, k, width, height) {
  const slide = view.slide, values = slide.layers[k], colours = meta[slide.facts.layers[k].colours];
  if (slide.thumbnail) {
    context.drawImage(slide.thumbnail, view.x, view.y, view.scale * slide.facts.thumbnail.width, view.scale * slide.facts.thumbnail.height);
    context.globalAlpha = $("v-alpha").value / 100;
  }
  const side = dotSide(slide), shift = slide.facts.patch_size ? 0 : side / 2, drawn = Math.max(side, 1);
  const whole = slide.facts.patch_size && side >= 2;  // neighbours share an edge on whole pixels: no seam between them
  const groups = new Map();  // by colour: changing it is what costs
  for (let i = 0; i < slide.n; i++) {
    const x = view.x + view.scale * slide.x[i] - shift, y = view.y + view.scale * slide.y[i] - shift;
    if (x > width || y > height || x + drawn < 0 || y + drawn < 0) continue;
    let group = groups.get(values[i]);
    if (!group) groups.set(values[i], (group = []));
    group.push(x, y);
  }
  for (const value of [...groups.keys()].sort((a, b) => a - b)) {
    context.fillStyle = colours[value];
    const group = groups.get(value);
    for (let j = 0; j < group.length; j += 2) {
      const x = group[j], y = group[j + 1];
      if (!whole) { context.fillRect(x, y, drawn, drawn); continue; }
      const left = Math.round(x), top = Math.round(y);
      context.fillRect(left, top, Math.round(x + drawn) - left, Math.round(y + drawn) - top);
    }
  }
  context.globalAlpha = 1;
}
function label(context, text, width, place) {
  const ratio = window.devicePixelRatio || 1;
  context.fillStyle = "rgba(255, 255, 255, .9)";
  context.fillRect(0, 0, width, 26 * ratio);
  context.fillStyle = "#1c2126";
  context.font = `${13 * ratio}px system-ui, sans-serif`;
  context.fillText(text, 10 * ratio, 18 * ratio);
  if (place) context.fillRect(0, 0, ratio, context.canvas.height);
}
if ($("viewer")) {
  const canvas = $("v-canvas");
  const place = (event) => {
    const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width;
    return [((event.clientX - box.left) * ratio) % (canvas.width / panes().length), (event.clientY - box.top) * ratio];
  };
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(...place(event), Math.exp(-event.deltaY / 400));
  }, { passive: false });
  const zoom = (x, y, factor) => {
    view.x = x - (x - view.x) * factor;
    view.y = y - (y - view.y) * factor;
    view.scale *= factor;
    draw();
  };
  const keys = {
    ArrowLeft: () => (view.x += 60), ArrowRight: () => (view.x -= 60), ArrowUp: () => (view.y += 60), ArrowDown: () => (view.y -= 60),
    "+": () => zoom(canvas.width / panes().length / 2, canvas.height / 2, 1.25), "-": () => zoom(canvas.width / panes().length / 2, canvas.height / 2, 0.8), 0: reset,
  };
  canvas.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    act();
    draw();
  });
  let from = null;
  const screen = (event) => [event.clientX, event.clientY].map((at) => (at * canvas.width) / canvas.getBoundingClientRect().width);
  canvas.addEventListener("pointerdown", (event) => { from = screen(event); canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => (from = null));
  canvas.addEventListener("pointermove", (event) => {
    if (from) {
      const to = screen(event);
      view.x += to[0] - from[0];
      view.y += to[1] - from[1];
      from = to;
      draw();
      return;
    }
    const [x, y] = place(event);
    const slide = view.slide, side = dotSide(slide) / view.scale, shift = slide.facts.patch_size ? 0 : side / 2;
    const u = (x - view.x) / view.scale + shift, v = (y - view.y) / view.scale + shift;
    let under = -1;
    for (let i = 0; i < slide.n; i++) {
      if (slide.x[i] <= u && u < slide.x[i] + side && slide.y[i] <= v && v < slide.y[i] + side) under = i;
    }
    const said = (layer, k) => (layer.colours === "truth" ? ["negative", "positive"][slide.layers[k][under]] : "N x attention " + (10 ** (4 * slide.layers[k][under] / 255 - 2)).toPrecision(2));
    $("v-tip").hidden = under < 0;
    if (under >= 0) {
      const lines = slide.facts.layers.map((layer, k) => `${layer.name}: ${said(layer, k)}`);
      $("v-tip").textContent = [`patch at (${Math.round(slide.x[under])}, ${Math.round(slide.y[under])})`, ...lines].join("\n");
      const box = canvas.getBoundingClientRect(), right = event.clientX - box.left > box.width / 2;
      $("v-tip").style.left = right ? "" : `${event.clientX - box.left + 14}px`;
      $("v-tip").style.right = right ? `${box.right - event.clientX + 14}px` : "";
      $("v-tip").style.top = `${Math.max(0, event.clientY - box.top - 10)}px`;
    }
  });
  canvas.addEventListener("pointerleave", () => ($("v-tip").hidden = true));
  $("v-map").addEventListener("change", draw);
  $("v-beside").addEventListener("change", reset);
  $("v-alpha").addEventListener("input", draw);
  $("v-reset").addEventListener("click", reset);
  $("v-close").addEventListener("click", () => ($("viewer").hidden = true));
  window.addEventListener("resize", () => view.slide && !$("viewer").hidden && reset());
  const scale = $("v-scale").getContext("2d");
  for (let i = 0; i < 220; i++) { scale.fillStyle = meta.attention[Math.round((i * 255) / 219)]; scale.fillRect(i, 0, 1, 10); }
  $("slide-table").addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-map]");
    if (row) open(Number(row.dataset.map));
  });
  $("filter").addEventListener("input", () => {
    const wanted = $("filter").value.toLowerCase();
    for (const row of $("slide-table").tBodies[0].rows) row.hidden = !(row.cells[0].textContent + "\n" + row.cells[1].textContent).toLowerCase().includes(wanted);
  });
  // page.html#slide=0 opens the maps of the worst slide, page.html#slide=0,1 its second layer beside the first.
  const asked = location.hash.match(/^#slide=(\d+)(?:,(\d+))?$/);
  if (asked && meta.maps[asked[1]]) {
    open(Number(asked[1])).then(() => {
      if (asked[2] === undefined) return;
      $("v-beside").value = asked[2];
      reset();
    });
  }
}
