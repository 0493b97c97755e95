// Columns of numbers -> the model that the charts draw.
function unpack(data) {
  const t = data.tensors;
  const tensors = t.name.map((name, i) => ({
    name,
    layer: data.layers.names[t.layer[i]],
    projection: data.projections.names[t.projection[i]],
    shape: t.shape[i],
    dtype: data.words[t.dtype[i]],
    scheme: data.words[t.scheme[i]],
    method: data.words[t.method[i]],
    tiedTo: t.tied_to[i],
    weights: t.n_weights[i],
    raw: t.raw_bytes[i],
    stored: t.stored_bytes[i],
    bits: t.n_weights[i] ? (8 * t.stored_bytes[i]) / t.n_weights[i] : 0,
    entropy: t.entropy_bits_per_weight[i],
    outliers: t.outliers[i],
    streams: t.streams[i].map(([role, dtype, codec, raw, stored]) => ({ role: data.words[role], dtype: data.words[dtype], codec: data.words[codec], raw, stored })),
    ...measured(data.measured[i]),
  }));
  const group = (g) => g.names.map((name, i) => ({ name, weights: g.n_weights[i], stored: g.stored_bytes[i], bits: g.bits_per_weight[i], entropy: g.entropy_bits_per_weight[i] }));
  return {
    name: data.name,
    fileBytes: data.file_bytes,
    assets: Object.entries(data.assets),
    tensors,
    layers: data.layers.names,
    layerGroups: new Map(group(data.layers).map((g) => [g.name, g])),
    projectionGroups: group(data.projections),
  };
}

function measured(found) {
  const { histogram = null, outlier_map: map = null, error = null } = found || {};
  return {
    error,
    histogram: histogram && { unit: histogram.unit, first: histogram.first, counts: counts(histogram.counts), zeros: histogram.n_zeros },
    outlierMap: map && { rows: map.rows, columns: map.columns, rowsPerCell: map.rows_per_cell, columnsPerCell: map.columns_per_cell, counts: grid(counts(map.counts), map.width) },
  };
}

// Base64 of numbers in 7 bits a byte, low ones first; the high bit says that more follow.
function counts(text) {
  const found = [];
  let value = 0, unit = 1;
  for (const character of atob(text)) {
    const byte = character.charCodeAt(0);
    value += (byte & 127) * unit;
    unit *= 128;
    if (byte < 128) {
      found.push(value);
      value = 0;
      unit = 1;
    }
  }
  return found;
}

function grid(values, width) {
  return d3.range(0, values.length, width).map((at) => values.slice(at, at + width));
}

const data = JSON.parse($("data").textContent);
const model = unpack(data);
const choose = oneTensor(model);
treemap(model, choose);
layers(model);
bound(model);
residency(data.residency);
tensorTable(model, choose);
