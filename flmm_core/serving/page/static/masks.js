// Run-length masks and heat maps as pixels; painted as flmm_core/painting.py paints them.

// COCO's compressed counts: 5 bits a character, from the third on as differences.
export function decodeCounts(text) {
  const counts = [];
  let place = 0;
  while (place < text.length) {
    let value = 0;
    let shift = 0;
    let more = true;
    while (more) {
      const bits = text.charCodeAt(place++) - 48;
      value |= (bits & 31) << shift;
      more = (bits & 32) !== 0;
      shift += 5;
      if (!more && bits & 16) value |= -1 << shift;
    }
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
  }
  return counts;
}

// (height, width) bytes, 0 or 1, row by row. A large mask is sampled, never decoded at its size.
export function stencil({ size, counts }, width, height) {
  const [tall, wide] = size;
  const small = tall < height || wide < width;
  const [w, h] = small ? [wide, tall] : [width, height];
  const runs = decodeCounts(counts);
  const mask = new Uint8Array(w * h);
  let run = 0;
  let end = runs[0] ?? tall * wide;
  for (let x = 0; x < w; x++) {
    const start = Math.floor(((x + 0.5) * wide) / w) * tall;
    for (let y = 0; y < h; y++) {
      const at = start + Math.floor(((y + 0.5) * tall) / h);
      while (at >= end && run < runs.length - 1) end += runs[++run];
      mask[y * w + x] = run & 1;
    }
  }
  return small ? enlarge(mask, w, h, width, height) : mask;
}

function enlarge(mask, w, h, width, height) {
  const soft = resample(Float32Array.from(mask), w, h, width, height, linear, 1);
  return Uint8Array.from(soft, (value) => (value >= 0.5 ? 1 : 0));
}

const linear = (t) => Math.max(0, 1 - Math.abs(t));
const cubic = (t) => {
  const x = Math.abs(t);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
};

// Enlarges (h, w) values, with weights that end at the border.
function resample(values, w, h, width, height, kernel, reach) {
  const across = new Float32Array(width * h);
  for (const [x, taps] of weights(w, width, kernel, reach)) {
    for (let y = 0; y < h; y++) {
      let sum = 0;
      for (const [cell, weight] of taps) sum += weight * values[y * w + cell];
      across[y * width + x] = sum;
    }
  }
  const result = new Float32Array(width * height);
  for (const [y, taps] of weights(h, height, kernel, reach)) {
    for (const [cell, weight] of taps) {
      for (let x = 0; x < width; x++) result[y * width + x] += weight * across[cell * width + x];
    }
  }
  return result;
}

function* weights(cells, count, kernel, reach) {
  const wide = Math.max(1, cells / count); // smaller: average, as Pillow does
  for (let place = 0; place < count; place++) {
    const center = ((place + 0.5) * cells) / count;
    const taps = [];
    let sum = 0;
    const first = Math.max(0, Math.floor(center - reach * wide));
    const last = Math.min(cells, Math.ceil(center + reach * wide));
    for (let cell = first; cell < last; cell++) {
      const weight = kernel((cell + 0.5 - center) / wide);
      if (weight) taps.push([cell, weight]);
      sum += weight;
    }
    yield [place, taps.map(([cell, weight]) => [cell, weight / sum])];
  }
}

// A Gaussian of three box blurs (Gwosdek et al., 2011), in place.
function blur(values, w, h, sigma) {
  const share = (sigma * sigma) / 3;
  const whole = Math.floor((Math.sqrt(12 * share + 1) - 1) / 2);
  const edge = ((2 * whole + 1) * (whole * (whole + 1) - 3 * share)) / (6 * (share - (whole + 1) ** 2));
  const line = new Float32Array(Math.max(w, h));
  for (let pass = 0; pass < 3; pass++) {
    for (let y = 0; y < h; y++) boxBlur(values, line, y * w, 1, w, whole, edge);
  }
  for (let pass = 0; pass < 3; pass++) {
    for (let x = 0; x < w; x++) boxBlur(values, line, x, w, h, whole, edge);
  }
}

function boxBlur(values, line, start, step, count, whole, edge) {
  for (let i = 0; i < count; i++) line[i] = values[start + i * step];
  const at = (i) => line[i < 0 ? 0 : i >= count ? count - 1 : i];
  const total = 2 * whole + 1 + 2 * edge;
  let sum = 0;
  for (let i = -whole; i <= whole; i++) sum += at(i);
  for (let i = 0; i < count; i++) {
    values[start + i * step] = (sum + edge * (at(i - whole - 1) + at(i + whole + 1))) / total;
    sum += at(i + whole + 1) - at(i - whole);
  }
}

const canvas = (width, height) => Object.assign(document.createElement("canvas"), { width, height });

// The fill (opaque) and the outline of a mask as two canvases over the image, and where it lies.
export function layers(mask, width, height, color) {
  const sigma = Math.max(1, Math.max(width, height) / 300);
  const margin = Math.round(4 * sigma);
  const found = bounds(mask, width, height);
  if (!found) return null;
  const left = Math.max(0, found.left - margin);
  const top = Math.max(0, found.top - margin);
  const w = Math.min(width, found.right + margin) - left;
  const h = Math.min(height, found.bottom + margin) - top;
  const level = new Float32Array(w * h);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) level[y * w + x] = 255 * mask[(top + y) * width + left + x];
  }
  blur(level, w, h, sigma);
  const fill = new ImageData(w, h);
  const outline = new ImageData(w, h);
  const put = (image, at, [red, green, blue], alpha) => image.data.set([red, green, blue, 255 * alpha], 4 * at);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const at = y * w + x;
      const value = Math.round(level[at]);
      if (mask[(top + y) * width + left + x]) {
        put(fill, at, color, 1);
        if (value < 222) put(outline, at, color, 1);
        else if (value < 249) put(outline, at, [255, 255, 255], 0.85);
      } else if (value >= 24) put(outline, at, [0, 0, 0], 0.75);
    }
  }
  const made = [fill, outline].map((pixels) => {
    const layer = canvas(w, h);
    layer.getContext("2d").putImageData(pixels, 0, 0);
    return layer;
  });
  return { fill: made[0], outline: made[1], left, top, found };
}

function bounds(mask, width, height) {
  let [left, top, right, bottom, area] = [width, height, 0, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!mask[y * width + x]) continue;
      area += 1;
      if (x < left) left = x;
      if (x >= right) right = x + 1;
      if (y < top) top = y;
      bottom = y + 1;
    }
  }
  return area ? { left, top, right, bottom, area } : null;
}

// Heat (values 0 to 1 of a grid over the whole image) on a dimmed gray copy of the pixels.
export function paintHeat(pixels, { height, width, values }, stops) {
  const { width: w, height: h, data } = pixels;
  const heat = resample(values, width, height, w, h, cubic, 2);
  const painted = new ImageData(w, h);
  for (let at = 0; at < heat.length; at++) {
    const value = Math.min(1, Math.max(0, heat[at]));
    const step = value * (stops.length - 1);
    const low = Math.min(stops.length - 2, Math.floor(step));
    const share = 0.45 + 0.45 * value;
    const gray = 0.299 * data[4 * at] + 0.587 * data[4 * at + 1] + 0.114 * data[4 * at + 2];
    for (let part = 0; part < 3; part++) {
      const color = stops[low][part] + (step - low) * (stops[low + 1][part] - stops[low][part]);
      painted.data[4 * at + part] = (1 - share) * gray + share * color;
    }
    painted.data[4 * at + 3] = 255;
  }
  return painted;
}
