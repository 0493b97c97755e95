// The rule of spqfmt/pipeline/residency/plan.py: the moves that save most time a byte are made first.
const FIXED = ["floats", "sides", "workspace", "staging", "ring", "rows"];

function fixedBytes(fixed) {
  return d3.sum(FIXED, (key) => fixed[key]);
}

function limits(data) {
  const decoded = d3.sum(data.parts.decoded), whole = fixedBytes(data.whole) + decoded;
  return { whole, smallest: Math.min(whole, fixedBytes(data.streamed)) };
}

function moves(parts) {
  const found = [];
  parts.stored.forEach((stored, number) => {
    const sizes = { disk: 0, compressed: stored, decoded: parts.decoded[number] };
    const times = { disk: parts.from_disk[number], compressed: parts.from_memory[number], decoded: 0 };
    const move = (before, after) => {
      const bytes = sizes[after] - sizes[before];
      const saved = bytes > 0 ? (times[before] - times[after]) / bytes : Infinity;
      return { saved, number, before, after, bytes };
    };
    const first = move("disk", "compressed"), second = move("compressed", "decoded"), both = move("disk", "decoded");
    if (first.saved > both.saved && sizes.compressed < sizes.decoded) found.push(first, second);
    found.push(both);
  });
  return found.sort((a, b) => (a.saved === b.saved ? a.number - b.number : b.saved - a.saved));
}

// `sorted` is moves(data.parts), made once. Undefined for a ceiling below the smallest.
function planUnder(data, sorted, ceiling) {
  const { whole, smallest } = limits(data), parts = data.parts, n = parts.stored.length;
  if (ceiling < smallest) return undefined;
  let residencies = new Array(n).fill("decoded"), fixed = fixedBytes(data.whole);
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
  const held = { decoded: 0, compressed: 0, disk: 0 };
  let serial = 0;
  const computing = d3.sum(parts.compute);
  residencies.forEach((residency, i) => {
    held[residency] += residency === "decoded" ? parts.decoded[i] : parts.stored[i];
    serial += parts.compute[i];
    if (residency !== "decoded") serial += residency === "disk" ? parts.from_disk[i] : parts.from_memory[i];
  });
  return { residencies, held, fixed, heldBytes: fixed + held.decoded + held.compressed, serial, overlapped: Math.max(computing, serial - computing) };
}
