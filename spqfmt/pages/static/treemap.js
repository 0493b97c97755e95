// The file's bytes as areas: one element for arrow keys to walk in, as a list of options.
function treemap(model, choose) {
  const figure = $("treemap"), status = $("treemap-status");
  let leaves = [], active = null, marks = null, root = null;
  const weighty = model.tensors.filter((t) => t.stored > model.fileBytes / 2000 && t.bits > 0);
  const scale = d3.scaleQuantile().domain(weighty.map((t) => t.bits)).range([0, 1, 2, 3, 4]);
  const step = (leaf) => (leaf.data.tensor && weighty.length ? scale(leaf.data.tensor.bits) : "plain");

  // The last words of a name say enough where the others recur: up_proj, layers.3.
  function plain(name, words = 1) {
    const parts = brief(name).split(".");
    return parts.slice(words && /^\d+$/.test(parts[parts.length - 1]) ? -2 : -words).join(".");
  }

  function tree(grouping) {
    const groups = new Map();
    for (const tensor of model.tensors) {
      if (!tensor.stored) continue;
      const name = tensor[grouping];
      if (!groups.has(name)) groups.set(name, []);
      const short = grouping === "layer" ? tensor.projection : tensor.layer;
      groups.get(name).push({ name: tensor.name, short: plain(short), value: tensor.stored, tensor });
    }
    const children = [...groups].map(([name, members]) => ({ name: plain(name, grouping === "projection" ? 0 : 2), children: members }));
    const assets = model.assets.map(([name, value]) => ({ name, short: name, value, note: "embedded file" }));
    if (assets.length) children.push({ name: "files of the model", children: assets });
    const rest = model.fileBytes - d3.sum(model.tensors, (t) => t.stored) - d3.sum(assets, (a) => a.value);
    const what = "index, checksums, padding";
    if (rest > 0) children.push({ name: what, children: [{ name: what, short: what, value: rest, note: "of the format" }] });
    return { name: model.name, children };
  }

  function say(leaf) {
    const share = percent(leaf.value / model.fileBytes);
    const tensor = leaf.data.tensor;
    const more = tensor
      ? `${bits(tensor.bits)} bits a weight${tensor.entropy === null ? "" : `, bound ${bits(tensor.entropy)}`}`
      : leaf.data.note;
    return `${leaf.data.name}: ${size(leaf.value)}, ${share} of the file, ${more}`;
  }

  function activate(leaf) {
    active = leaf;
    marks.classed("active", (d) => d === leaf).filter((d) => d === leaf).raise();
    root.attr("aria-activedescendant", leaf.id);
    status.textContent = say(leaf);
  }

  // The nearest tile in a direction, by the middles.
  function beside(from, dx, dy) {
    const [x, y] = [(from.x0 + from.x1) / 2, (from.y0 + from.y1) / 2];
    let best = from, least = Infinity;
    for (const leaf of leaves) {
      const [u, v] = [(leaf.x0 + leaf.x1) / 2 - x, (leaf.y0 + leaf.y1) / 2 - y];
      const along = u * dx + v * dy, aside = Math.abs(u * dy) + Math.abs(v * dx);
      const distance = along + 2.5 * aside;
      if (along > 0.5 && aside <= 3 * along + 1 && distance < least) [best, least] = [leaf, distance];
    }
    return best;
  }

  function onKey(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (moves[event.key]) activate(beside(active, ...moves[event.key]));
    else if (event.key === "Home") activate(leaves[0]);
    else if (event.key === "End") activate(leaves[leaves.length - 1]);
    else if ((event.key === "Enter" || event.key === " ") && active.data.tensor) choose(active.data.tensor, true);
    else return;
    event.preventDefault();
  }

  function draw(svg, width, height) {
    const grouping = document.querySelector('input[name="grouping"]:checked').value;
    const labelled = (d) => d.depth === 1 && (d.value / model.fileBytes) * width * height > 4200;
    const layout = d3.treemap().size([width, height]).paddingInner(1).paddingOuter(0)
      .paddingTop((d) => (labelled(d) ? 17 : 0)).round(true);
    root = svg;
    const laid = layout(d3.hierarchy(tree(grouping)).sum((d) => d.value || 0));
    laid.each((d) => { if (d.depth === 1) d.x0 += 1; });
    leaves = laid.leaves();
    leaves.forEach((leaf, i) => { leaf.id = `tile-${i}`; });
    svg.attr("role", "listbox").attr("tabindex", 0).on("keydown", onKey);
    describe(svg, `Bytes of the file in ${leaves.length} areas, arrow keys move`);
    const labels = svg.append("g").attr("aria-hidden", "true");
    const heads = laid.children ? laid.children.filter(labelled) : [];
    labels.selectAll("text").data(heads).join("text").attr("x", (d) => d.x0 + 2).attr("y", (d) => d.y0 + 12)
      .attr("class", "strong").text((d) => fitted(d.data.name, d.x1 - d.x0 - 4, 11));
    marks = svg.append("g").selectAll("g").data(leaves).join("g").attr("role", "option")
      .attr("id", (d) => d.id).attr("aria-label", say)
      .attr("class", "tile").on("pointerenter", (event, d) => activate(d))
      .on("click", (event, d) => { activate(d); if (d.data.tensor) choose(d.data.tensor, true); });
    marks.append("rect").attr("x", (d) => d.x0).attr("y", (d) => d.y0)
      .attr("width", (d) => Math.max(0.5, d.x1 - d.x0)).attr("height", (d) => Math.max(0.5, d.y1 - d.y0))
      .attr("class", (d) => (step(d) === "plain" ? "plain" : `step-${step(d)}`));
    marks.filter((d) => d.y1 - d.y0 > 15).append("text").attr("aria-hidden", "true")
      .attr("x", (d) => d.x0 + 4).attr("y", (d) => d.y0 + 12.5)
      .attr("class", (d) => `on-${step(d)}`).text((d) => fitted(d.data.short, d.x1 - d.x0 - 7, 11));
    if (leaves.length) activate(leaves.reduce((a, b) => (b.value > a.value ? b : a)));
  }

  const again = chart(figure, (width) => (width < 560 ? 420 : 460), draw);
  for (const input of document.querySelectorAll('input[name="grouping"]')) input.addEventListener("change", again);
  const shades = d3.groups(weighty, (t) => scale(t.bits)).sort((a, b) => a[0] - b[0]);
  const items = d3.select("#treemap-scale").selectAll("li").data(shades).join("li");
  items.append("span").attr("class", ([i]) => `key step-${i}`);
  items.append("span").text(([, members]) => [...new Set(d3.extent(members, (t) => t.bits).map((b) => b.toFixed(2)))].join(" – "));
  if (shades.length) d3.select("#treemap-scale").append("li").text("bits a weight");
}
