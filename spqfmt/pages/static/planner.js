// The rule of spqfmt/residency/ladder.py: the moves that save most time a byte are made first.
const FIXED = ["floats", "sides", "workspace", "staging", "ring", "rows"];

function fixedBytes(fixed) {
  return d3.sum(FIXED, (key) => fixed[key]);
}

function limits(data) {
  const parts = data.parts, decoded = fixedBytes(data.whole) + d3.sum(parts.decoded), streamed = fixedBytes(data.streamed);
  const narrow = streamed + d3.sum(parts.decoded, (bytes, i) => parts.narrow[i] || bytes);
  const isNarrow = narrow < decoded && parts.narrow.some((bytes) => bytes);
  return { whole: isNarrow ? narrow : decoded, smallest: Math.min(decoded, streamed), isNarrow };
}

// The last state of each part: 0 stands for a part that cannot be narrow.
function lastOf(data) {
  return data.parts.narrow.map((bytes) => (bytes ? "narrow" : "decoded"));
}

// Seconds of each part for a pass over one token: from disk, from compressed memory, computing.
function times(data) {
  const parts = data.parts;
  return parts.stored.map((stored, i) => {
    const seconds = data.seconds[parts.seconds[i]], share = data.shares[parts.share[i]];
    return {
      disk: (stored / data.rates.read) * share + seconds * share,
      compressed: seconds * share,
      narrow: 0,
      decoded: 0,
      compute: parts.weights[i] / data.rates.compute,
    };
  });
}

function moves(data) {
  const found = [], parts = data.parts, all = times(data), lasts = lastOf(data);
  parts.stored.forEach((stored, number) => {
    const sizes = { disk: 0, compressed: stored, narrow: parts.narrow[number], decoded: parts.decoded[number] };
    const seconds = all[number], last = lasts[number];
    const move = (before, after) => {
      const bytes = sizes[after] - sizes[before];
      const saved = bytes > 0 ? (seconds[before] - seconds[after]) / bytes : Infinity;
      return { saved, number, before, after, bytes };
    };
    const first = move("disk", "compressed"), second = move("compressed", last), both = move("disk", last);
    if (first.saved > both.saved && sizes.compressed < sizes[last]) found.push(first, second);
    found.push(both);
  });
  return found.sort((a, b) => (a.saved === b.saved ? a.number - b.number : b.saved - a.saved));
}

// What does not change with the ceiling.
function planner(data) {
  return { data, sorted: moves(data), all: times(data), ...limits(data) };
}

// Undefined for a ceiling below the smallest.
function planUnder({ data, sorted, all, whole, smallest, isNarrow }, ceiling) {
  const parts = data.parts, n = parts.stored.length;
  if (ceiling < smallest) return undefined;
  let residencies = isNarrow ? lastOf(data) : new Array(n).fill("decoded");
  let fixed = fixedBytes(isNarrow ? data.streamed : data.whole);
  if (ceiling < whole) {
    residencies = new Array(n).fill("disk");
    fixed = fixedBytes(data.streamed);
    let room = ceiling - fixed;
    for (let round = 0; round < 2; round += 1) {
      for (const move of sorted) {
        if (residencies[move.number] === move.before && move.bytes <= room) {
          residencies[move.number] = move.after;
          room -= move.bytes;
        }
      }
    }
  }
  const held = { decoded: 0, narrow: 0, compressed: 0, disk: 0 };
  const computing = 1e3 * d3.sum(all, (seconds) => seconds.compute);
  let serial = computing;
  residencies.forEach((residency, i) => {
    held[residency] += { decoded: parts.decoded[i], narrow: parts.narrow[i] }[residency] ?? parts.stored[i];
    serial += 1e3 * all[i][residency];
  });
  return { residencies, held, fixed, heldBytes: fixed + held.decoded + held.narrow + held.compressed, serial, overlapped: Math.max(computing, serial - computing) };
}
