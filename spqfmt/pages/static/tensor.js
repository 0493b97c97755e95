// Facts, streams, code histogram and outlier map of one tensor.
function oneTensor(model) {
  const select = d3.select("#tensor");
  const shown = model.tensors.map((tensor, i) => ({ tensor, i }));
  select.selectAll("option").data(shown).join("option").attr("value", (d) => d.i).text((d) => d.tensor.name);
  const drawings = [chart($("histogram"), () => 200, drawHistogram), chart($("outliers"), outlierHeight, drawOutliers)];

  function chosen() {
    return model.tensors[+select.property("value")];
  }

  function facts(t) {
    const rows = [["name", t.name], ["shape", t.shape.join(" × ") || "scalar"], ["dtype", t.dtype], ["scheme", t.method ? `${t.scheme}, by ${t.method}` : t.scheme]];
    if (t.tiedTo) rows.push(["values in", t.tiedTo]);
    if (t.stored) rows.push(["stored", `${size(t.stored)} (${integer(t.stored)} bytes), ${percent(t.stored / model.fileBytes)} of the file`]);
    if (t.weights) rows.push(["bits a weight", `${bits(t.bits)}, bound ${bits(t.entropy)}`]);
    if (t.outliers) rows.push(["outliers", `${integer(t.outliers)}, ${percent(t.outliers / t.weights)}`]);
    if (t.error) rows.push(["error", `${relativeError(t.error.relative)} of the reference, largest ${significant(t.error.largest)}`]);
    return rows;
  }

  function show() {
    const tensor = chosen();
    const list = d3.select("#tensor-facts");
    list.selectAll("*").remove();
    for (const [key, value] of facts(tensor)) {
      list.append("dt").text(key);
      list.append("dd").text(value);
    }
    const table = d3.select("#streams");
    table.selectAll("thead, tbody").remove();
    const heads = [["stream", ""], ["codec", ""], ["decoded", "number"], ["stored", "number"]];
    if (tensor.streams.length) {
      table.append("thead").append("tr").selectAll("th").data(heads).join("th").attr("scope", "col").attr("class", (d) => d[1]).text((d) => d[0]);
      const tr = table.append("tbody").selectAll("tr").data(tensor.streams).join("tr");
      tr.append("th").attr("scope", "row").attr("class", "row").text((s) => s.role);
      tr.append("td").text((s) => `${s.codec} ${s.dtype}`);
      tr.append("td").attr("class", "number").text((s) => integer(s.raw));
      tr.append("td").attr("class", "number").text((s) => integer(s.stored));
    }
    $("histogram").hidden = !tensor.histogram;
    $("outliers").hidden = !tensor.outlierMap;
    for (const again of drawings) again();
  }

  function drawHistogram(svg, width, height) {
    const h = chosen().histogram;
    if (!h) return;
    const left = 8, right = width - 8, top = 22, bottom = height - 34;
    const x = d3.scaleBand(d3.range(h.counts.length), [left, right]).paddingInner(h.counts.length > 60 ? 0 : 0.12);
    const y = d3.scaleLinear([0, d3.max(h.counts)], [bottom, top]);
    caption(svg, left, 11, { code: "codes", integer: "values", exponent: "exponents, log2 of the size" }[h.unit] || h.unit).attr("class", "strong");
    const total = d3.sum(h.counts);
    svg.append("g").attr("class", "bars").selectAll("rect").data(h.counts).join("rect").attr("class", "accent-fill")
      .attr("x", (_, i) => x(i)).attr("width", Math.max(0.7, x.bandwidth()))
      .attr("y", (c) => y(c)).attr("height", (c) => bottom - y(c))
      .append("title").text((c, i) => `${h.first + i}: ${integer(c)}, ${percent(c / total)}`);
    const last = h.first + h.counts.length - 1;
    const ticks = d3.ticks(h.first, last, Math.min(h.counts.length, (right - left) / 42)).filter(Number.isInteger).map((v) => v - h.first);
    axisBelow(svg, x, bottom, ticks, (i) => h.first + i);
    const most = h.counts.indexOf(d3.max(h.counts));
    const zeros = h.zeros ? `, ${integer(h.zeros)} zeros beside them` : "";
    describe(svg, `Histogram of ${integer(total)} ${h.unit}s from ${h.first} to ${last}, most often ${h.first + most}${zeros}`);
    caption(svg, right, 11, `${integer(total)}${zeros}`, "end");
  }

  function cellSide(map, width) {
    return Math.min((width - 16) / map.counts[0].length, 320 / map.counts.length);
  }

  function outlierHeight(width) {
    const map = chosen().outlierMap;
    return map ? Math.ceil(cellSide(map, width) * map.counts.length) + 46 : 1;
  }

  function drawOutliers(svg, width, height) {
    const map = chosen().outlierMap;
    if (!map) return;
    const side = cellSide(map, width), most = d3.max(map.counts, (row) => d3.max(row));
    caption(svg, 8, 11, `outliers, ${map.rows} rows × ${map.columns} columns`).attr("class", "strong");
    const steps = d3.range(5).map(() => d3.path());
    map.counts.forEach((row, i) => row.forEach((count, j) => {
      if (count) steps[Math.min(4, Math.floor((5 * count) / (most + 1)))].rect(8 + j * side, 20 + i * side, side, side);
    }));
    svg.append("rect").attr("class", "track").attr("x", 8).attr("y", 20)
      .attr("width", side * map.counts[0].length).attr("height", side * map.counts.length);
    svg.append("g").selectAll("path").data(steps).join("path").attr("class", (_, i) => `step-${i}`).attr("d", String);
    caption(svg, 8, height - 6, `a cell is ${map.rowsPerCell} × ${map.columnsPerCell} weights, the darkest holds ${most}`);
    describe(svg, `Map of outliers in cells of ${map.rowsPerCell} by ${map.columnsPerCell} weights, at most ${most} in one`);
  }

  select.on("change", show);
  const first = shown.find((d) => d.tensor.outlierMap) || shown.find((d) => d.tensor.histogram && d.tensor.stored > model.fileBytes / 2000) || shown[0];
  if (!first) {
    $("tensor-section").hidden = true;
    return () => {};
  }
  select.property("value", first.i);
  show();
  return (tensor, go) => {
    select.property("value", model.tensors.indexOf(tensor));
    show();
    if (!go) return;
    $("tensor-section").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    select.node().focus({ preventScroll: true });
  };
}
