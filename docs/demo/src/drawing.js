// Faces drawn on a canvas, in the colours of featherface/drawing.py.

const BOX = "#f0e442";
const POINTS = ["#56b4e9", "#0072b2", "#ffffff", "#e69f00", "#d55e00"];
const SMALLEST_WITH_POINTS = 12; // pixels; on a smaller face five points would hide it

/** Draw boxes, scores and landmarks; better faces over worse ones. Lines grow with the picture. */
export function drawFaces(canvas, faces, { landmarks }) {
  const pen = canvas.getContext("2d");
  const line = Math.max(1, Math.sqrt(canvas.width * canvas.height) / 320);
  for (const face of [...faces].reverse()) {
    drawBox(pen, face.box, line);
    if (landmarks) drawPoints(pen, face, line);
  }
  drawScores(pen, faces, line);
}

const sideOf = ([left, top, right, bottom]) => Math.min(right - left, bottom - top);

function drawBox(pen, box, line) {
  const [left, top, right, bottom] = box;
  const width = Math.min(Math.max(sideOf(box) / 20, 1), line);
  pen.lineWidth = width;
  // black only around the box, so that a small face stays visible
  for (const [color, grown] of [["#000", width], [BOX, 0]]) {
    pen.strokeStyle = color;
    pen.strokeRect(left - grown, top - grown, right - left + 2 * grown, bottom - top + 2 * grown);
  }
}

function drawPoints(pen, { box, landmarks }, line) {
  const side = sideOf(box);
  if (side < SMALLEST_WITH_POINTS) return;
  const radius = Math.min(Math.max(side / 30, 1), 3 * line);
  landmarks.forEach(([x, y], index) => {
    if (side >= 2 * SMALLEST_WITH_POINTS) disc(pen, x, y, radius + Math.max(1, line / 2), "#000");
    disc(pen, x, y, radius, POINTS[index]);
  });
}

function disc(pen, x, y, radius, color) {
  pen.fillStyle = color;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

/** Write scores above the boxes, best first; one that would cover another is left out. */
function drawScores(pen, faces, line) {
  const size = Math.max(10, 7 * line);
  const placed = [];
  pen.font = `600 ${size}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  for (const { score, box } of faces) {
    const text = score.toFixed(2);
    const width = pen.measureText(text).width + size * 0.6;
    const height = size * 1.3;
    const x = Math.max(0, Math.min(box[0] - 1.5 * line, pen.canvas.width - width));
    const y = box[1] >= height ? box[1] - height : box[1];
    const covers = (tag) =>
      x < tag.x + tag.width && tag.x < x + width && y < tag.y + height && tag.y < y + height;
    if (placed.some(covers)) continue;
    placed.push({ x, y, width });
    pen.fillStyle = BOX;
    pen.fillRect(x, y, width, height);
    pen.fillStyle = "#000";
    pen.fillText(text, x + size * 0.3, y + height / 2);
  }
}
