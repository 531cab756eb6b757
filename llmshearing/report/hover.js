// Show the values of a chart's lines under the pointer, read back from their points.
const LEFT = 50, RIGHT = 20, TOP = 10, BOTTOM = 30;  // margins of charts.py
const hover = document.getElementById("hover");

const range = (svg, axis) => svg.dataset[axis].split(",").map(Number);
const format = (v) => Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : v.toPrecision(4);

function nearest(points, x) {
  let best = points[0];
  for (const point of points) if (Math.abs(point.x - x) < Math.abs(best.x - x)) best = point;
  return best;
}

for (const svg of document.querySelectorAll("svg.chart")) {
  const [x0, x1] = range(svg, "x"), [y0, y1] = range(svg, "y");
  const right = svg.viewBox.baseVal.width - RIGHT, bottom = svg.viewBox.baseVal.height - BOTTOM;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  svg.append(cursor);
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const x = Math.min(Math.max(at.x, LEFT), right);
    cursor.setAttribute("d", `M${x} ${TOP}V${bottom}`);
    const rows = [...svg.querySelectorAll("polyline")].map((line) => {
      const y = nearest([...line.points], x).y;
      return `${line.dataset.name}  ${format(y0 + (bottom - y) / (bottom - TOP) * (y1 - y0))}`;
    });
    hover.textContent = [format(x0 + (x - LEFT) / (right - LEFT) * (x1 - x0)), ...rows].join("\n");
    hover.hidden = false;
    hover.style.left = Math.min(event.clientX + 14, innerWidth - hover.offsetWidth - 8) + "px";
    hover.style.top = Math.min(event.clientY + 14, innerHeight - hover.offsetHeight - 8) + "px";
  });
  svg.addEventListener("pointerleave", () => { hover.hidden = true; cursor.removeAttribute("d"); });
}
