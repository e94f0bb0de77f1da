// An image prepared as niwaki's Spec.read does it: over white, grey where the model is grey, and stretched with
// Pillow's antialiased bilinear filter in its own whole numbers, so that the bytes are the same.

const BITS = 22, ONE = 2 ** BITS, HALF = 2 ** (BITS - 1);

// For each output pixel its first input pixel and the weights from there on.
function weights(from, to) {
  const scale = from / to, wide = Math.max(scale, 1), all = [];
  for (let out = 0; out < to; out++) {
    const centre = (out + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - wide + 0.5));
    const last = Math.min(from, Math.trunc(centre + wide + 0.5));
    const raw = [];
    let sum = 0;
    for (let k = first; k < last; k++) {
      const x = Math.abs((k - centre + 0.5) * (1 / wide));
      const weight = x < 1 ? 1 - x : 0;
      raw.push(weight);
      sum += weight;
    }
    all.push([first, raw.map((w) => Math.trunc(0.5 + (w * (sum ? 1 / sum : 1)) * ONE))]);
  }
  return all;
}

const clip = (sum) => Math.min(255, Math.max(0, Math.floor(sum / ONE)));

// pixels [h, w, c] to [height, width, c]: rows first, then columns, each rounded, as Pillow does.
export function resize(pixels, h, w, c, height, width) {
  if (w !== width) {
    const out = new Uint8Array(h * width * c), all = weights(w, width);
    for (let y = 0; y < h; y++)
      for (let x = 0; x < width; x++)
        for (let k = 0; k < c; k++) {
          const [first, row] = all[x];
          let sum = HALF;
          for (let i = 0; i < row.length; i++) sum += pixels[(y * w + first + i) * c + k] * row[i];
          out[(y * width + x) * c + k] = clip(sum);
        }
    pixels = out;
  }
  if (h !== height) {
    const out = new Uint8Array(height * width * c), all = weights(h, height), step = width * c;
    for (let y = 0; y < height; y++) {
      const [first, column] = all[y];
      for (let x = 0; x < step; x++) {
        let sum = HALF;
        for (let i = 0; i < column.length; i++) sum += pixels[(first + i) * step + x] * column[i];
        out[y * step + x] = clip(sum);
      }
    }
    pixels = out;
  }
  return pixels;
}

// RGBA of a canvas (opaque by now) to RGB, or to grey by Pillow's weights.
export function planes(rgba, channels) {
  const count = rgba.length / 4, out = new Uint8Array(count * channels);
  for (let i = 0; i < count; i++) {
    const r = rgba[4 * i], g = rgba[4 * i + 1], b = rgba[4 * i + 2];
    if (channels === 1) out[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    else out.set([r, g, b], 3 * i);
  }
  return out;
}
