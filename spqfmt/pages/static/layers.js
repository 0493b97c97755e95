// Bits a weight of one projection along the layers.
function layers(model) {
  const numbered = model.layers.filter((layer) => /\.\d+$/.test(layer));
  const within = new Map(numbered.map((layer, i) => [layer, i]));
  const lines = new Map();
  for (const tensor of model.tensors) {
    const at = within.get(tensor.layer);
    if (at === undefined || !tensor.weights) continue;
    if (!lines.has(tensor.projection)) lines.set(tensor.projection, []);
    lines.get(tensor.projection).push({ at, tensor });
  }
  const total = d3.sum(model.tensors, (t) => t.stored);
  const all = [...lines].map(([name, points]) => ({ name, points, stored: d3.sum(points, (p) => p.tensor.stored) }))
    .filter((l) => l.stored >= total / 200).sort((a, b) => b.stored - a.stored);
  if (numbered.length < 2 || !all.length) return;
  $("layers-section").hidden = false;
  const together = { name: "", label: "all of a layer", points: numbered.map((name, at) => ({ at, tensor: model.layerGroups.get(name) })) };
  const options = [together, ...all];
  const select = d3.select("#projection");
  select.selectAll("option").data(options).join("option").attr("value", (d) => d.name).text((d) => d.label || brief(d.name));

  const again = chart($("layers"), (width) => (width < 560 ? 240 : 280), (svg, width, height) => {
    const chosen = options.find((d) => d.name === select.property("value"));
    const right = width - 8, left = 44, bottom = height - 36;
    const values = options.flatMap((l) => l.points).flatMap(({ tensor }) => [tensor.bits, tensor.entropy ?? tensor.bits]);
    const [low, high] = d3.extent(values);
    const room = Math.max((high - low) * 0.08, 0.02);
    const y = d3.scaleLinear([low - room, high + room], [bottom, 10]).nice(5);
    const x = d3.scaleLinear([0, numbered.length - 1], [left + 8, right - 8]);
    axisLeft(svg, y, left, right - left, 5);
    const whole = x.ticks(Math.min(numbered.length - 1, width / 60)).filter(Number.isInteger);
    axisBelow(svg, x, bottom, whole, String);
    caption(svg, right, height - 4, "layer", "end");
    const path = (points, get) => line(points.map(({ at, tensor }) => [x(at), get(tensor) === null ? null : y(get(tensor))]));
    svg.selectAll(".faint-line").data(all.filter((d) => d !== chosen)).join("path").attr("class", "faint-line")
      .attr("d", (d) => path(d.points, (t) => t.bits));
    svg.append("path").attr("class", "bound-line").attr("d", path(chosen.points, (t) => t.entropy));
    svg.append("path").attr("class", "accent-line").attr("d", path(chosen.points, (t) => t.bits));
    svg.append("g").selectAll("circle").data(chosen.points).join("circle").attr("class", "accent-dot").attr("r", 2.5)
      .attr("cx", (p) => x(p.at)).attr("cy", (p) => y(p.tensor.bits))
      .append("title").text((p) => `${numbered[p.at]}: ${bits(p.tensor.bits)} bits a weight, bound ${bits(p.tensor.entropy)}`);
    const [least, most] = d3.extent(chosen.points, (p) => p.tensor.bits);
    describe(svg, `Bits a weight of ${chosen.label || chosen.name} in ${chosen.points.length} layers: from ${bits(least)} to ${bits(most)}`);
  });
  select.on("change", again);
}
