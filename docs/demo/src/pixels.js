// Pictures as the network reads them: { data: BGR bytes, row by row; width; height }.

/** Convert a canvas's ImageData (RGBA) to a picture, without alpha. */
export function fromImageData({ data, width, height }) {
  const pixels = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; to < pixels.length; from += 4, to += 3) {
    pixels[to] = data[from + 2];
    pixels[to + 1] = data[from + 1];
    pixels[to + 2] = data[from];
  }
  return { data: pixels, width, height };
}

/**
 * Shrink a picture so that its long side is at most maxSide; never enlarge. null: never shrink.
 * The result is that of `fit_long_side` of featherface/images.py.
 */
export function fitLongSide(picture, maxSide) {
  const { width, height } = picture;
  const longest = Math.max(width, height);
  if (maxSide === null || longest <= maxSide) return picture;
  const scaled = (side) => Math.max(1, roundHalfEven((side * maxSide) / longest));
  return shrink(picture, scaled(width), scaled(height));
}

/** Round as Python does: 0.5 to 0, 1.5 to 2. */
function roundHalfEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

/** The mean of the area that each new pixel covers, as OpenCV's INTER_AREA. */
function shrink(picture, width, height) {
  const rows = shares(picture.height, height);
  const columns = shares(picture.width, width);
  const data = new Uint8ClampedArray(3 * width * height); // rounds halves to even numbers
  const line = new Float32Array(3 * picture.width);
  for (let y = 0, to = 0; y < height; y++) {
    averageRows(picture, rows[y], line);
    for (let x = 0; x < width; x++) {
      let blue = 0, green = 0, red = 0;
      let at = 3 * columns[x].first;
      for (const weight of columns[x].weights) {
        blue += weight * line[at++];
        green += weight * line[at++];
        red += weight * line[at++];
      }
      data[to++] = blue;
      data[to++] = green;
      data[to++] = red;
    }
  }
  return { data: new Uint8Array(data.buffer), width, height };
}

function averageRows({ data, width }, { first, weights }, line) {
  line.fill(0);
  weights.forEach((weight, row) => {
    const start = 3 * width * (first + row);
    for (let i = 0; i < line.length; i++) line[i] += weight * data[start + i];
  });
}

/** For each of `to` new pixels along a side of `from` pixels: the pixels it covers, and how far. */
function shares(from, to) {
  const scale = from / to;
  return Array.from({ length: to }, (_, index) => {
    const begin = index * scale;
    const end = Math.min(from, begin + scale);
    const first = Math.floor(begin);
    const last = Math.ceil(end);
    const overlap = (_, i) => Math.min(end, first + i + 1) - Math.max(begin, first + i);
    const weights = Array.from({ length: last - first }, overlap);
    return { first, weights: weights.map((weight) => weight / (end - begin)) };
  });
}
