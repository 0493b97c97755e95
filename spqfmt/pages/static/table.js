// All tensors: searched by part of a name or by a pattern with * and ?, sorted by each column.
function tensorTable(model, choose) {
  const columns = [
    { key: "name", label: "tensor", of: (t) => t.name, text: true },
    { key: "shape", label: "shape", of: (t) => t.weights, show: (t) => t.shape.join(" × "), wide: true },
    { key: "scheme", label: "scheme", of: (t) => t.scheme, text: true, wide: true },
    { key: "stored", label: "bytes", of: (t) => t.stored, show: (t) => (t.stored ? integer(t.stored) : "") },
    { key: "bits", label: "bits/w", of: (t) => t.bits, show: (t) => (t.weights ? bits(t.bits) : "") },
    { key: "entropy", label: "bound", of: (t) => t.entropy ?? -1, show: (t) => (t.weights ? bits(t.entropy) : ""), wide: true },
    { key: "ratio", label: "ratio", of: (t) => t.raw / (t.stored || Infinity), show: (t) => (t.stored ? (t.raw / t.stored).toFixed(2) : ""), wide: true },
    { key: "share", label: "share", of: (t) => t.stored, show: (t) => (t.stored ? percent(t.stored / model.fileBytes) : ""), wide: true },
    { key: "outliers", label: "outliers", of: (t) => t.outliers / (t.weights || 1), show: (t) => (t.outliers ? percent(t.outliers / t.weights) : ""), wide: true },
    { key: "error", label: "error", of: (t) => t.error?.relative ?? -1, show: (t) => (t.error ? relativeError(t.error.relative) : ""), wide: true },
  ].filter((c) => !["outliers", "error"].includes(c.key) || model.tensors.some((t) => t[c.key]));
  const table = d3.select("#table"), search = $("search");
  const kind = (c) => [c.text ? "" : "number", c.wide ? "wide" : ""].join(" ").trim();
  const heads = table.append("thead").append("tr").selectAll("th").data(columns).join("th").attr("scope", "col").attr("class", kind);
  heads.append("button").attr("type", "button").text((c) => c.label).on("click", (event, c) => sortBy(c));
  const body = table.append("tbody");
  let sorted = null, falling = false;

  function matcher(text) {
    const wanted = text.trim().toLowerCase();
    if (!/[*?]/.test(wanted)) return (name) => name.toLowerCase().includes(wanted);
    const pattern = wanted.replace(/[.+^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*").replace(/\?/g, ".");
    const whole = new RegExp(pattern);
    return (name) => whole.test(name.toLowerCase());
  }

  function sortBy(column) {
    falling = sorted === column ? !falling : !column.text;
    sorted = column;
    heads.attr("aria-sort", (c) => (c === column ? (falling ? "descending" : "ascending") : null));
    show();
  }

  function show() {
    const matches = matcher(search.value);
    const rows = model.tensors.filter((t) => matches(t.name));
    if (sorted) {
      const compare = sorted.text
        ? (a, b) => sorted.of(a).localeCompare(sorted.of(b), "en", { numeric: true })
        : (a, b) => sorted.of(a) - sorted.of(b);
      rows.sort((a, b) => (falling ? -1 : 1) * compare(a, b));
    }
    body.selectAll("tr").remove();
    const tr = body.selectAll("tr").data(rows).join("tr");
    for (const column of columns) {
      if (column.key === "name") {
        tr.append("td").attr("class", "name").append("button").attr("type", "button").attr("class", "choose")
          .text((t) => t.name).on("click", (event, t) => choose(t, true));
      } else {
        tr.append("td").attr("class", kind(column)).text(column.show || column.of);
      }
    }
    const stored = d3.sum(rows, (t) => t.stored);
    $("found").textContent = `${integer(rows.length)} of ${integer(model.tensors.length)} tensors, ${size(stored)}, ${percent(stored / model.fileBytes)} of the file`;
  }
  search.addEventListener("input", show);
  show();
}
