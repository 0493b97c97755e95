// Numbers for people, as spqfmt/pages/text.py writes them.
function size(bytes) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (bytes < 1000) return `${bytes.toFixed(unit === "B" ? 0 : 1)} ${unit}`;
    bytes /= 1000;
  }
  return `${bytes.toFixed(2)} TB`;
}

function percent(share) {
  if (share > 0 && share < 0.00005) return "< 0.01 %";
  return `${(100 * share).toFixed(share < 0.01 ? 2 : 1)} %`;
}

function integer(value) {
  return String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

// Names of projections without what nearly all end in.
function brief(name) {
  return name.replace(/\.weight$/, "");
}

function bits(value) {
  return value === null ? "–" : value.toFixed(3);
}

function over(stored, bound) {
  if (!bound) return "–";
  const share = 100 * (stored / bound - 1);
  return `${share < 0 ? "" : "+"}${share.toFixed(2)} %`;
}

// Measured errors; none where only the reference, or not all of both, is finite.
function relativeError(value) {
  return value === null ? "–" : value ? `${(100 * value).toFixed(3)} %` : "0";
}

function significant(value) {
  return value === null ? "–" : value.toPrecision(3);
}

function milliseconds(value) {
  return value < 10 ? `${value.toFixed(2)} ms` : `${value.toFixed(1)} ms`;
}
