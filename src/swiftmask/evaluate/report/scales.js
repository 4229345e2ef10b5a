// From values to pixels, and where the ticks stand.

function makeScale(values, { log, from, to, room }) {
  const forward = log ? Math.log : (value) => value;
  const backward = log ? Math.exp : (value) => value;
  let low = forward(Math.min(...values));
  let high = forward(Math.max(...values));
  const margin = (high - low || Math.abs(high) || 1) * room;
  [low, high] = [low - margin, high + margin];
  const place = (value) => from + ((forward(value) - low) / (high - low)) * (to - from);
  return { place, low: backward(low), high: backward(high), ticks: (count) => ticks(backward(low), backward(high), log, count) };
}

function ticks(low, high, log, count) {
  return log && high / low > 2.5 ? logTicks(low, high, count) : linearTicks(low, high, count);
}

function logTicks(low, high, count) {
  for (const steps of [[1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
      found.push(...steps.map((step) => step * 10 ** power));
    }
    const inside = found.filter((value) => value >= low && value <= high);
    if (inside.length <= count) return inside;
  }
  return [];
}

function linearTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let index = Math.ceil(low / step); index * step <= high; index++) found.push(index * step);
  return found;
}
