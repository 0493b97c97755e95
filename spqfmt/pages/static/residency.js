// The plan under the ceiling of the slider.
function residency(data) {
  if (!data || !data.parts.stored.length) {
    if ($("residency-section")) $("residency-section").hidden = true;
    return;
  }
  const slider = $("ceiling"), prepared = planner(data), { whole, smallest } = prepared;
  const ceiling = (position) => Math.round(smallest + ((whole - smallest) * position) / 1000);
  const curve = d3.range(0, 1001, 20).map((position) => ({ bytes: ceiling(position), plan: planUnder(prepared, ceiling(position)) }));
  const hasNarrow = data.parts.narrow.some((bytes) => bytes);
  const kinds = hasNarrow ? ["decoded", "narrow", "compressed", "disk"] : ["decoded", "compressed", "disk"];
  $("key-narrow").hidden = !hasNarrow;
  let plan = null, bytes = 0, given = data.ceiling ?? null;

  function layersOf() {
    const groups = new Map();
    data.parts.layer.forEach((number, i) => {
      const layer = data.layers[number];
      if (!groups.has(layer)) groups.set(layer, { layer, decoded: 0, narrow: 0, compressed: 0, disk: 0 });
      groups.get(layer)[plan.residencies[i]] += data.parts.decoded[i];
    });
    return [...groups.values()];
  }

  const drawLayers = chart($("residency-layers"), 230, (svg, width, height) => {
    if (!plan) return;
    const rows = layersOf(), bottom = height - 30;
    const x = d3.scaleLinear([0, d3.sum(data.parts.decoded)], [0, width]);
    caption(svg, 0, 11, "layers in the order of use, as wide as they are large").attr("class", "strong");
    axisBelow(svg, x, bottom, x.ticks(Math.max(2, width / 110)), size);
    const y = d3.scaleLinear([0, 1], [bottom, 22]);
    let left = 0;
    for (const row of rows) {
      row.total = d3.sum(kinds, (k) => row[k]);
      row.left = left;
      left += row.total;
    }
    const bars = svg.append("g").selectAll("g").data(rows).join("g").attr("transform", (r) => `translate(${x(r.left)},0)`);
    bars.append("title").text((r) => `${r.layer}: ${kinds.filter((k) => r[k]).map((k) => `${size(r[k])} ${k === "disk" ? "on disk" : k}`).join(", ")}`);
    bars.selectAll("rect").data((r) => {
      let at = 0;
      return kinds.filter((k) => r[k]).map((k) => ({ k, r, low: at, high: (at += r[k] / r.total) }));
    }).join("rect").attr("class", (d) => d.k).attr("width", (d) => Math.max(0.5, x(d.r.total) - Math.min(1.5, x(d.r.total) / 6)))
      .attr("y", (d) => y(d.high)).attr("height", (d) => y(d.low) - y(d.high));
    const n = (kind) => plan.residencies.filter((r) => r === kind).length;
    describe(svg, `${rows.length} layers; of ${plan.residencies.length} parts ${n("decoded")} are decoded, ${hasNarrow ? `${n("narrow")} narrow, ` : ""}${n("compressed")} compressed, ${n("disk")} on disk`);
  });

  const drawTimes = chart($("residency-times"), 230, (svg, width, height) => {
    if (!plan) return;
    const left = 44, right = width - 12, bottom = height - 30;
    const x = d3.scaleLinear([smallest, whole], [left, right]);
    const y = d3.scaleLinear([0, d3.max(curve, (c) => c.plan.overlapped) * 1.05], [bottom, 22]);
    caption(svg, 0, 11, "expected ms a token over the ceiling").attr("class", "strong");
    axisLeft(svg, y, left, right - left, 4);
    axisBelow(svg, x, bottom, x.ticks(Math.max(2, width / 110)), size);
    svg.append("path").attr("class", "accent-line").attr("d", line(curve.map((c) => [x(c.bytes), y(c.plan.overlapped)])));
    svg.append("line").attr("class", "marker").attr("x1", x(bytes)).attr("x2", x(bytes)).attr("y1", 22).attr("y2", bottom);
    svg.append("circle").attr("class", "accent-dot").attr("r", 4).attr("cx", x(bytes)).attr("cy", y(plan.overlapped));
    describe(svg, `Expected time a token falls from ${milliseconds(curve[0].plan.overlapped)} at ${size(smallest)} to ${milliseconds(curve[curve.length - 1].plan.overlapped)} at ${size(whole)}`);
  });

  function show() {
    bytes = given ?? ceiling(+slider.value);
    plan = planUnder(prepared, bytes);
    slider.setAttribute("aria-valuetext", size(bytes));
    d3.select("#residency-section").datum({ ceiling: bytes, plan });
    $("ceiling-shown").textContent = size(bytes);
    $("plan-held").textContent = size(plan.heldBytes);
    $("plan-fixed").textContent = `${size(plan.fixed)} of it for parameters, scales and buffers`;
    $("plan-overlapped").textContent = milliseconds(plan.overlapped);
    $("plan-serial").textContent = milliseconds(plan.serial);
    $("plan-smallest").textContent = size(smallest);
    $("plan-whole").textContent = `from ${size(whole)} on all is ${prepared.isNarrow ? "narrow or decoded" : "decoded"}`;
    for (const kind of kinds) $(`held-${kind}`).textContent = size(plan.held[kind]);
    $("residency-status").textContent = `Under ${size(bytes)}: ${size(plan.heldBytes)} held, ${milliseconds(plan.overlapped)} a token`;
    drawLayers();
    drawTimes();
  }
  slider.addEventListener("input", () => { given = null; show(); });
  slider.value = given === null ? 500 : Math.round((1000 * (given - smallest)) / (whole - smallest || 1));
  show();
}
