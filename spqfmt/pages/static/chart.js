const $ = (id) => document.getElementById(id);

// A drawing of the figure's width, described for screen readers; drawn again when that width changes.
function chart(figure, height, draw) {
  let drawn = 0;
  const again = () => {
    const width = Math.round(figure.clientWidth);
    if (!width) return;
    drawn = width;
    const tall = typeof height === "function" ? height(width) : height;
    d3.select(figure).selectAll("svg").remove();
    const svg = d3.select(figure).append("svg").attr("viewBox", `0 0 ${width} ${tall}`).attr("role", "img");
    draw(svg, width, tall);
  };
  new ResizeObserver(() => {
    if (Math.round(figure.clientWidth) !== drawn && !matchMedia("print").matches) again();
  }).observe(figure);
  again();
  return again;
}

function describe(svg, text) {
  svg.attr("aria-label", text);
}

function axisBelow(svg, scale, y, values, format) {
  return svg.append("g").attr("transform", `translate(0,${y})`).attr("aria-hidden", "true")
    .call(d3.axisBottom(scale).tickValues(values).tickFormat(format).tickSize(0).tickPadding(8));
}

// Grid lines over the whole width, numbers left of them.
function axisLeft(svg, scale, x, width, ticks) {
  return svg.append("g").attr("transform", `translate(${x},0)`).attr("class", "grid").attr("aria-hidden", "true")
    .call(d3.axisLeft(scale).ticks(ticks).tickSize(-width).tickPadding(8));
}

function caption(svg, x, y, text, anchor = "start") {
  return svg.append("text").attr("x", x).attr("y", y).attr("text-anchor", anchor).text(text);
}

function line(points) {
  const path = d3.path();
  let pen = false;
  for (const [x, y] of points) {
    if (y === null) { pen = false; continue; }
    if (pen) path.lineTo(x, y); else path.moveTo(x, y);
    pen = true;
  }
  return path.toString();
}

// As much of `text` as `width` has room for, by the letter: measuring a thousand names takes a browser long.
function fitted(text, width, pixels) {
  const most = Math.floor(width / (pixels * 0.62));
  if (text.length <= most) return text;
  return most < 4 ? "" : `${text.slice(0, most - 1)}…`;
}
