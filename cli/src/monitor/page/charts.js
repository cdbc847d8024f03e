// Line charts of the last minutes, in SVG: time to the right, the newest second at the edge.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 66, BOTTOM = 18, TOP = 6;

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// The values at which a line is drawn across, the last of which is the chart's top.
function linearTicks(most, base) {
  const least = base === 1024 ? 1024 : 10;
  let step = 1;
  const steps = base === 1024 ? [1, 2, 4, 8, 16, 32, 64, 128, 256, 512] : [1, 2, 5, 10, 20, 50, 100, 200, 500];
  const target = Math.max(most, least) / 3;
  for (let unit = 1; ; unit *= base) {
    const fits = steps.find((s) => s * unit >= target);
    if (fits) { step = fits * unit; break; }
  }
  const count = Math.max(1, Math.ceil(Math.max(most, least) / step));
  return Array.from({ length: count + 1 }, (_, at) => at * step);
}

function logTicks(least, most) {
  const from = Math.floor(Math.log10(least)), to = Math.max(from + 2, Math.ceil(Math.log10(most)));
  return Array.from({ length: to - from + 1 }, (_, at) => 10 ** (from + at));
}

// Draws `lines` ({ kind, of, area }) of `points` over `seconds`. `scale` is 1000, 1024 or "log".
export function draw(svg, { points, seconds, lines, format, scale }) {
  const width = Math.max(svg.clientWidth, 160), height = Math.max(svg.clientHeight, 80);
  const end = points.length ? points[points.length - 1].unix_ms : Date.now();
  const shown = points.filter((point) => point.unix_ms > end - seconds * 1000);
  const values = shown.flatMap((point) => lines.map((line) => line.of(point))).filter((value) => value != null);
  const isLog = scale === "log";
  const most = Math.max(...values, 0);
  const ticks = isLog ? logTicks(Math.max(1, Math.min(...values, 1e9)), Math.max(most, 1)) : linearTicks(most, scale);
  const [low, high] = [ticks[0], ticks[ticks.length - 1]];
  const share = (value) => isLog
    ? (Math.log10(Math.max(value, low)) - Math.log10(low)) / (Math.log10(high) - Math.log10(low))
    : value / high;
  const x = (ms) => LEFT + (width - LEFT) * (1 - (end - ms) / (seconds * 1000));
  const y = (value) => TOP + (height - TOP - BOTTOM) * (1 - share(value));

  const parts = [];
  for (const tick of ticks) {
    parts.push(element("line", { class: "grid", x1: LEFT, x2: width, y1: y(tick), y2: y(tick) }));
    parts.push(element("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, format(tick)));
  }
  const words = seconds >= 120 ? `${seconds / 60} min ago` : `${seconds} s ago`;
  parts.push(element("text", { x: LEFT, y: height - 3 }, words));
  parts.push(element("text", { x: width, y: height - 3, "text-anchor": "end" }, "now"));
  for (const line of lines) {
    let path = "", area = "", run = [];
    const close = () => {
      if (!run.length) return;
      const along = run.map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L");
      // One lonely second is a dash.
      path += `M${along}${run.length === 1 ? "h1.5" : ""}`;
      area += `M${run[0][0].toFixed(1)} ${y(low)}L${along}L${run[run.length - 1][0].toFixed(1)} ${y(low)}Z`;
      run = [];
    };
    let last = null;
    for (const point of shown) {
      const value = line.of(point);
      if (value == null || (last && point.unix_ms - last > 3500)) close();
      if (value != null) run.push([x(point.unix_ms), y(value)]);
      last = point.unix_ms;
    }
    close();
    if (line.area) parts.push(element("path", { class: `area ${line.kind}`, d: area }));
    parts.push(element("path", { class: `line ${line.kind}`, d: path }));
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(...parts);
  return shown;
}
