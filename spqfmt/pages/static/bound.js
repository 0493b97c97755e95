// One row a projection: its entropy bound, what it takes, and how far that is above.
function bound(model) {
  const table = d3.select("#bound");
  const rows = model.projectionGroups.filter((g) => g.weights).sort((a, b) => b.stored - a.stored);
  const x = d3.scaleLinear([0, d3.max(rows, (g) => Math.max(g.bits, g.entropy ?? 0)) * 1.04 || 1], [0, 300]);
  const heads = [["projection", ""], ["", "bar wide"], ["bits/w", "number"], ["bound", "number wide"], ["over", "number"], ["share", "number"]];
  table.append("thead").append("tr").selectAll("th").data(heads).join("th").attr("scope", "col")
    .attr("class", (d) => d[1]).text((d) => d[0]);
  const tr = table.append("tbody").selectAll("tr").data(rows).join("tr");
  tr.append("th").attr("scope", "row").attr("class", "row name").text((g) => brief(g.name));
  const svg = tr.append("td").attr("class", "bar wide").append("svg").attr("viewBox", "0 0 300 14").attr("aria-hidden", "true");
  svg.append("rect").attr("class", "track").attr("y", 6.5).attr("width", 300).attr("height", 1);
  const known = svg.filter((g) => g.entropy !== null);
  known.append("line").attr("class", "gap-line").attr("x1", (g) => x(g.entropy)).attr("x2", (g) => x(g.bits))
    .attr("y1", 7).attr("y2", 7);
  known.append("circle").attr("class", "bound-dot").attr("r", 4.5).attr("cx", (g) => x(g.entropy)).attr("cy", 7);
  svg.append("circle").attr("class", "accent-dot").attr("r", 3).attr("cx", (g) => x(g.bits)).attr("cy", 7);
  const cell = (get, extra = "") => tr.append("td").attr("class", `number ${extra}`).text(get);
  cell((g) => bits(g.bits));
  cell((g) => bits(g.entropy), "wide");
  cell((g) => over(g.bits, g.entropy));
  cell((g) => percent(g.stored / model.fileBytes));
}
