// How tokens are drawn: igpt.sample, number for number, so that a seed gives here the image that it gives there.

// MT19937 as torch's generator on the CPU has it: from a seed of 32 bits, whole numbers of 32 bits.
function mersenne(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  let at = 624;
  return () => {
    if (at === 624) {
      for (let i = 0; i < 624; i++) {
        const both = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (both >>> 1) ^ (both & 1 ? 0x9908b0df : 0);
      }
      at = 0;
    }
    let y = state[at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    y ^= y >>> 18;
    return y >>> 0;
  };
}

// Numbers in [0, 1): torch.rand(count, dtype=torch.float64), the lower 53 bits of two draws.
export function uniforms(seed, count) {
  const next = mersenne(seed);
  return Float64Array.from({ length: count }, () => {
    const high = next() & 0x1fffff; // drawn first
    return (high * 4294967296 + next()) / 9007199254740992;
  });
}

// The likeliest token; the first of equals.
function likeliest(logits) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}

// One token from logits (Float32Array, one image) by the inverse of the cumulative distribution at `uniform`.
// temperature 0 takes the likeliest; topK, if not null, leaves only the k likeliest and their equals.
export function draw(logits, uniform, { temperature, topK }) {
  if (temperature === 0) return likeliest(logits);
  const scaled = logits.map((logit) => logit / Math.fround(temperature)); // rounded to float32, as there
  const least = topK === null || topK >= scaled.length ? -Infinity : Float32Array.from(scaled).sort()[scaled.length - topK];
  const top = scaled[likeliest(scaled)];
  const cumulative = new Float64Array(scaled.length);
  let total = 0, last = 0;
  for (let i = 0; i < scaled.length; i++) {
    if (scaled[i] >= least) {
      total += Math.exp(scaled[i] - top);
      last = i;
    }
    cumulative[i] = total;
  }
  const chosen = cumulative.findIndex((mass) => mass > uniform * total);
  return chosen === -1 ? last : Math.min(chosen, last); // the product may round up to the total
}
