// Siltstone's dashboard. Draws what /api/status, /api/series and /api/events say; keeps nothing else.

import { draw } from "/charts.js";

const KEPT = 900;
const $ = (id) => document.getElementById(id);

// Sizes as the program itself writes them.
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
function human(bytes) {
  bytes = Math.floor(bytes);
  let power = 0;
  while (power < 6 && bytes >= 1024 ** (power + 1)) power += 1;
  const value = bytes / 1024 ** power;
  const text = Number.isInteger(value) ? String(value) : value.toFixed(value < 10 ? 2 : 1);
  return `${text} ${UNITS[power]}`;
}
const perSecond = (bytes) => `${human(bytes)}/s`;
const ratio = (value) => `${value.toFixed(2)}:1`;
const percent = (share) => `${share > 0 && share < 0.01 ? "<1" : Math.round(share * 100)} %`;
function count(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(2).replace(/\.00$/, "")} M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1).replace(/\.0$/, "")} k`;
  return value > 0 && value < 10 ? value.toFixed(1).replace(/\.0$/, "") : String(Math.round(value));
}
function time(us) {
  if (us == null) return "–";
  if (us >= 1e6) return `${(us / 1e6).toPrecision(us >= 1e8 ? 3 : 2)} s`;
  if (us >= 1e3) return `${Number((us / 1e3).toPrecision(us >= 1e5 ? 3 : 2))} ms`;
  return `${Number(us.toPrecision(us >= 100 ? 3 : 2))} µs`;
}
function span(seconds) {
  for (const [unit, name] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 2 * unit) return `${Math.floor(seconds / unit)} ${name}`;
  }
  return `${Math.max(0, Math.round(seconds))} s`;
}
const plural = (n, thing) => `${n} ${thing}${n === 1 ? "" : "s"}`;

// Elements, with text that is never taken for markup.
function make(tag, { cls, value, text, attributes } = {}, children = []) {
  const made = document.createElement(tag);
  if (cls) made.className = cls;
  if (text !== undefined) made.textContent = text;
  if (value !== undefined) made.value = value;
  for (const [key, given] of Object.entries(attributes ?? {})) made.setAttribute(key, given);
  made.append(...children);
  return made;
}
const data = (value, text) => make("data", { value, text });
function set(id, text, value) {
  const shown = $(id);
  if (shown.textContent !== text) shown.textContent = text;
  if (value !== undefined) shown.value = value;
}
function meter(share) {
  const bar = make("i");
  bar.style.width = `${Math.min(100, Math.max(0, share * 100))}%`;
  return make("div", { cls: "meter", attributes: { "aria-hidden": "true" } }, [bar]);
}

// --- Load

const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
let points = [];

const LATENCIES = [
  { kind: "p50", name: "half within", key: "p50_us" },
  { kind: "p99", name: "99 % within", key: "p99_us" },
  { kind: "p999", name: "99.9 % within", key: "p999_us" },
];

function key(id, entries) {
  $(id).replaceChildren(...entries.map(([kind, name, value]) =>
    make("span", { cls: kind, text: `${name} ` }, [make("b", { text: value })])));
}

function drawLoad() {
  const seconds = Number(chosen("window"));
  const last = points[points.length - 1];
  if (!last) return;
  const chart = (id, scale, format, lines) => {
    const shown = draw($(id), { points, seconds, lines, format, scale });
    key(`${id}-key`, lines.map((line) => {
      const now = line.of(last);
      return [line.kind, line.name, now == null ? "–" : format(now)];
    }));
    const words = lines.map((line) => {
      const values = shown.map(line.of).filter((value) => value != null);
      const now = line.of(last);
      if (!values.length) return `${line.name}: nothing`;
      return `${line.name}: ${now == null ? "nothing" : format(now)} now, at most ${format(Math.max(...values))}`;
    });
    $(`${id}-text`).textContent = `${words.join("; ")}, in the last ${span(seconds)}.`;
  };
  chart("throughput", 1024, perSecond, [
    { kind: "write", name: "Written", area: true, of: (p) => p.written_bytes_per_second },
    { kind: "read", name: "Read", area: true, of: (p) => p.read_bytes_per_second },
  ]);
  chart("operations", 1000, (n) => `${count(n)}/s`, [
    { kind: "write", name: "Writes", of: (p) => p.writes_per_second },
    { kind: "read", name: "Reads", of: (p) => p.reads_per_second },
    { kind: "flush", name: "Flushes", of: (p) => p.flushes_per_second },
  ]);
  const operation = chosen("operation");
  chart("latency", "log", time, LATENCIES.map(({ kind, name, key }) =>
    ({ kind: `${operation} ${kind}`, name, of: (p) => p[operation]?.[key] })));
  if ($("minutes").closest("details").open) drawMinutes();
}

function drawMinutes() {
  const minutes = new Map();
  for (const point of points) {
    const minute = Math.ceil(point.unix_ms / 60000);
    if (!minutes.has(minute)) minutes.set(minute, []);
    minutes.get(minute).push(point);
  }
  const rows = [...minutes].reverse().map(([minute, of]) => {
    const mean = (name) => of.reduce((sum, p) => sum + p[name], 0) / of.length;
    const worst = (kind) => of.reduce((most, p) => Math.max(most, p[kind]?.p99_us ?? -1), -1);
    const cells = [
      perSecond(mean("written_bytes_per_second")), perSecond(mean("read_bytes_per_second")),
      ...["writes", "reads", "flushes"].map((name) => `${count(mean(`${name}_per_second`))}/s`),
      ...["write", "read"].map((kind) => (worst(kind) < 0 ? "–" : time(worst(kind)))),
    ];
    const until = new Date(minute * 60000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    return make("tr", {}, [make("th", { text: until, attributes: { scope: "row" } }),
      ...cells.map((text) => make("td", { text }))]);
  });
  $("minutes").replaceChildren(...rows);
}

// --- What bounds the writes

function pipelineItem({ id, name, how, what, share, isBound }) {
  const parts = [make("h3", { text: name }), make("p", { cls: "how", text: how })];
  if (share !== undefined) parts.push(meter(share));
  parts.push(make("p", { cls: "what", text: what }));
  return make("li", { cls: isBound ? "bound" : "", attributes: { id: `part-${id}` } }, parts);
}

function drawPipeline(status) {
  const { explanation, stat } = status;
  if (!explanation) return;
  const used = Object.fromEntries(explanation.utilisation);
  const stage = Object.fromEntries(explanation.stages.map((s) => [s.stage, s.under_way]));
  const bound = explanation.bound;
  const waiting = (n) => (n < 0.01 ? "nobody waits" : `${n.toFixed(n < 1 ? 2 : 1)} wait`);
  const parts = [
    { id: "clients", name: "Clients", what: "send writes", how: perSecond(explanation.written_bytes_per_second) },
    { id: "room", name: "Room", what: "in the pool, or garbage is collected first", how: waiting(stage.space_wait) },
    { id: "staging", name: "Staging", what: `${human(stat.staging_bytes)} of ${human(stat.staging_limit_bytes)}; ${waiting(stage.admit_wait)}`,
      how: percent(stat.staging_bytes / stat.staging_limit_bytes), share: stat.staging_bytes / stat.staging_limit_bytes },
    { id: "reducers", name: "Reducers", what: "fingerprint, look up, compress", how: percent(used.reducers), share: used.reducers },
    { id: "sealer", name: "Sealer", what: "places units, enters them into the map", how: percent(used.sealer), share: used.sealer },
    { id: "device", name: "Device", what: `is written to, ${perSecond(explanation.unit_bytes_per_second)} of units`, how: percent(used.device), share: used.device },
  ];
  $("pipeline").replaceChildren(...parts.map((part) => pipelineItem({ ...part, isBound: part.id === bound })));
  const beside = [
    { id: "processors", name: "Processors", what: "whatever runs on them", how: percent(used.processors), share: used.processors },
    { id: "flushes", name: "Flushes", what: `under way on average; ${count(explanation.flushes_per_second)} a second`, how: stage.commit.toFixed(2) },
  ];
  $("beside").replaceChildren(...beside.map((part) => pipelineItem({ ...part, isBound: part.id === bound })));
  if (!bound) {
    $("verdict").replaceChildren("Nothing is being written.");
  } else {
    const rest = status.without_in_words ? `; without that, ${status.without_in_words}.` : ".";
    $("verdict").replaceChildren("Bound by ", make("strong", { text: status.bound_in_words }), rest);
  }
}

// --- What is stored

const CLASSES = [
  ["stored", "data that volumes refer to"],
  ["garbage", "what collection can get back"],
  ["overhead", "left empty in segments in use"],
  ["metadata", "map, index image, log, checkpoints"],
  ["reserved", "for trims, deletes and collection when full"],
  ["pending", "promised to writes under way"],
  ["free", "before reduction"],
  ["unusable", "behind the last whole segment"],
];

function drawSpace(stat) {
  set("used", `${stat.used_percent} %`, stat.used_percent);
  set("used-of", `of ${human(stat.size_bytes)} used`);
  set("size", human(stat.size_bytes), stat.size_bytes);
  const share = (name) => stat[`${name}_bytes`] / stat.size_bytes;
  $("strata").replaceChildren(...CLASSES.filter(([name]) => share(name) > 0).map(([name]) => {
    const layer = make("i", { cls: name });
    layer.style.width = `${share(name) * 100}%`;
    return layer;
  }));
  $("space").replaceChildren(...CLASSES.map(([name, what]) => {
    const bytes = stat[`${name}_bytes`];
    const label = make("th", { attributes: { scope: "row", title: what } },
      [make("span", { cls: `swatch ${name}`, attributes: { "aria-hidden": "true" } }), name]);
    const shown = data(bytes, human(bytes));
    shown.id = `space-${name}`;
    return make("tr", {}, [label, make("td", {}, [shown]), make("td", { text: percent(share(name)) })]);
  }));
}

function bar(name, text, share) {
  const filled = meter(share).firstChild;
  const track = make("dd", { cls: "meter", attributes: { "aria-hidden": "true" } }, [filled]);
  return make("div", {}, [make("dt", { text: name }), make("dd", { text }), track]);
}

function drawReduction(stat) {
  if (stat.reduction_ratio === undefined) return;
  set("reduction", ratio(stat.reduction_ratio), stat.reduction_ratio);
  set("dedup", ratio(stat.dedup_ratio), stat.dedup_ratio);
  set("compression", ratio(stat.compression_ratio), stat.compression_ratio);
  const most = Math.max(stat.logical_bytes, 1);
  const unique = stat.unique_bytes + stat.snapshot_bytes;
  $("shrinking").replaceChildren(
    bar("Logical: what volumes hold", human(stat.logical_bytes), stat.logical_bytes / most),
    bar("Without repetitions", `${human(unique)}${stat.snapshot_bytes ? `, ${human(stat.snapshot_bytes)} of it in snapshots alone` : ""}`, unique / most),
    bar("Compressed and stored", human(stat.stored_bytes), stat.stored_bytes / most));
  set("thin", `Thin provisioning apart: ${human(stat.provisioned_bytes)} provisioned, ${ratio(stat.thin_ratio)}.`
    + (stat.sampled_one_in > 1 ? ` Estimated from one block in ${stat.sampled_one_in}.` : ""));
}

function drawVolumes(status) {
  const { stat } = status;
  const traffic = new Map(status.traffic.map((volume) => [volume.name, volume]));
  const size = (bytes) => make("td", {}, bytes === undefined ? ["–"] : [data(bytes, human(bytes))]);
  const rows = stat.volumes.map((volume) => {
    const snapshots = stat.snapshots.filter((s) => s.name.startsWith(`${volume.name}@`)).length;
    const seen = traffic.get(volume.name);
    const of = (operation) => seen?.operations.find((o) => o.operation === operation);
    const requests = (o) => (o?.requests ? `${count(o.requests)}, ${time(o.p99_us)}` : "–");
    return make("tr", { attributes: { "data-volume": volume.name } }, [
      make("th", { text: volume.name, attributes: { scope: "row" } }),
      size(volume.size_bytes), size(volume.logical_bytes), size(volume.unique_bytes), size(volume.shared_bytes),
      make("td", { text: String(snapshots) }), make("td", { text: String(seen?.connections ?? 0) }),
      make("td", { text: requests(of("read")) }), make("td", { text: requests(of("write")) }),
    ]);
  });
  if (!rows.length) rows.push(make("tr", {}, [make("td", { text: "There is no volume yet.", attributes: { colspan: "9" } })]));
  $("volumes").replaceChildren(...rows);
  const age = status.content_age_ms;
  set("age", "Written: what is mapped. Unique: what only this volume refers to. "
    + (age == null ? "What volumes hold is being looked up."
      : `What volumes hold was looked up ${age < 5000 ? "just now" : `${span(age / 1000)} ago`}.`));
}

// --- Budgets and background

function drawBudgets(stat) {
  const of = (name, used, limit) => bar(name, `${human(used)} of ${human(limit)}`, limit ? used / limit : 0);
  const full = stat.index_entries / Math.max(1, stat.index_capacity_entries);
  const kept = stat.index_sample_bits ? `, one in ${2 ** stat.index_sample_bits} kept` : "";
  $("budgets").replaceChildren(
    of("Staging", stat.staging_bytes, stat.staging_limit_bytes),
    of("Write units", stat.unit_buffers_bytes, stat.unit_buffers_limit_bytes),
    of("Cache of data", stat.frame_cache_bytes, stat.frame_cache_limit_bytes),
    of("Cache of the map", stat.page_cache_bytes, stat.page_cache_limit_bytes),
    bar(`Dedup index, ${human(stat.index_bytes)}`, `${percent(full)} full${kept}`, full),
    of("NVRAM log", stat.nvram_used_bytes, stat.nvram_bytes));
}

function drawBackground(stat) {
  const { counters, scrub, last_scrub: last } = stat;
  const moved = human((counters.collector_moved_blocks ?? 0) * 4096);
  const collection = `${stat.is_collecting ? "under way" : "idle"}; ${plural(counters.collector_rounds, "round")}, ${moved} moved, ${plural(counters.freed_segments, "segment")} freed`;
  let scrubbed = "none since the server began";
  if (last) {
    const found = last.problems ? `found ${plural(last.problems, "problem")}, ${human(last.lost_bytes)} lost` : "found nothing wrong";
    scrubbed = `${span(last.finished_seconds_ago)} ago, ${found}`;
  }
  if (scrub) scrubbed = `under way, ${percent(scrub.bytes / Math.max(1, scrub.bytes_total))} of ${human(scrub.bytes_total)}; last: ${scrubbed}`;
  const lag = stat.checkpoint_lag_ms ? `, changes wait for ${span(stat.checkpoint_lag_ms / 1000)}` : ", nothing has changed since";
  const amplification = stat.written.amplification;
  const rows = [
    ["Collection", collection],
    ["Scrub", scrubbed],
    ["Checkpoint", `${span(stat.checkpoint_age_ms / 1000)} ago${lag}`],
    ["To the device", `${human(stat.written.device_bytes)}${amplification == null ? "" : `, ${amplification.toFixed(2)} times what was received`}`],
    ["Damage", stat.damaged_segments ? `in ${plural(stat.damaged_segments, "segment")}: see siltstone repair` : "none known"],
  ];
  $("background").replaceChildren(...rows.map(([name, text]) =>
    make("div", {}, [make("dt", { text: name }), make("dd", { text })])));
}

function drawEvents(events) {
  const words = { info: "Note", warn: "Warning", error: "Error" };
  const items = events.slice().reverse().map((event) => {
    const at = new Date(event.unix_ms);
    const clock = at.toLocaleTimeString([], { hour12: false });
    const isToday = at.toDateString() === new Date().toDateString();
    const day = isToday ? "" : `${at.toLocaleDateString([], { day: "numeric", month: "short" })}, `;
    const when = make("time", { text: day + clock, attributes: { datetime: at.toISOString() } });
    const line = make("p", { text: event.message }, [
      ...(event.times > 1 ? [` (${event.times} times)`] : []),
      ...(event.details ? [" ", make("small", { text: event.details })] : []),
    ]);
    return make("li", {}, [when, make("span", { cls: event.level, text: words[event.level] }), line]);
  });
  $("events").replaceChildren(...(items.length ? items : [make("li", {}, [make("p", { text: "Nothing yet." })])]));
}

const FULLNESS = { normal: "Healthy", warning: "Filling up", critical: "Almost full", full: "Full: writes are refused" };

function drawState(status) {
  const { stat } = status;
  const level = stat.failure ? "failed" : stat.fullness;
  set("state", stat.failure ? `Takes no changes: ${stat.failure}` : FULLNESS[stat.fullness]);
  $("state").dataset.level = level;
  const name = status.pool.split("/").pop();
  set("pool", name);
  $("pool").title = status.pool;
  document.title = `${level === "normal" ? "" : "! "}${name} · Siltstone`;
  set("clients", `${status.connections} of ${status.connections_limit}`);
  set("uptime", span((status.unix_ms - status.started_unix_ms) / 1000));
  set("version", status.version);
}

// --- Asking

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(8000) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

let newestEvent = -1;
let started = null;

async function look() {
  const after = points.length ? points[points.length - 1].number : 0;
  const [status, fresh] = await Promise.all([ask("/api/status"), ask(`/api/series?after=${after}`)]);
  if (started !== null && started !== status.started_unix_ms) {
    // Another server has taken its place, and counts from the start.
    points = [];
    newestEvent = -1;
  } else {
    points = points.concat(fresh).slice(-KEPT);
  }
  started = status.started_unix_ms;
  drawState(status);
  drawLoad();
  drawPipeline(status);
  drawReduction(status.stat);
  drawSpace(status.stat);
  drawVolumes(status);
  drawBudgets(status.stat);
  drawBackground(status.stat);
  if (status.newest_event !== newestEvent) {
    drawEvents(await ask("/api/events"));
    newestEvent = status.newest_event;
  }
}

async function lookAgainAndAgain() {
  for (;;) {
    const began = performance.now();
    if (!document.hidden) {
      try {
        await look();
      } catch (error) {
        set("state", "The server does not answer");
        $("state").dataset.level = "gone";
        console.warn(error);
      }
    }
    await new Promise((done) => setTimeout(done, Math.max(100, 1000 - (performance.now() - began))));
  }
}

for (const id of ["window", "operation"]) $(id).addEventListener("change", drawLoad);
$("minutes").closest("details").addEventListener("toggle", drawMinutes);
addEventListener("resize", drawLoad);
lookAgainAndAgain();
