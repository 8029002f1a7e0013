// Keeps the page up to date: each event carries its HTML again, and what differs is put in its place. The server escapes; here
// nothing is made into HTML. The last ten minutes of some numbers are kept for charts.
(() => {
  "use strict";
  const STALE_MS = 12000; // an event comes every five seconds in any case
  const AGAIN_MS = 3000;
  const KEPT = 600; // events, one a second at most
  const SPARK_KEPT = 120;
  const LINES_MAX = 500;
  const $ = (id) => document.getElementById(id);
  const policy = window.trustedTypes?.createPolicy("tandem", { createHTML: (html) => html });
  const parse = (html) => new DOMParser().parseFromString(policy ? policy.createHTML(html) : html, "text/html");

  // --- HTML into its place -------------------------------------------------------------------------------------------------
  const keyOf = (node) => (node.nodeType === 1 ? node.id || node.dataset.key || "" : "");
  const alike = (one, other) => one.nodeType === other.nodeType && one.nodeName === other.nodeName && !keyOf(one);

  function patch(now, wanted) {
    if (now.nodeType !== 1) {
      if (now.data !== wanted.data) now.data = wanted.data;
      return;
    }
    for (const { name, value } of wanted.attributes) {
      // Whether details are open is for whoever reads to say.
      if (name !== "open" && now.getAttribute(name) !== value) now.setAttribute(name, value);
    }
    for (const { name } of [...now.attributes]) {
      if (name !== "open" && !wanted.hasAttribute(name)) now.removeAttribute(name);
    }
    if (!now.hasAttribute("data-keep")) patchChildren(now, wanted);
  }

  function patchChildren(now, wanted) {
    const known = new Map([...now.childNodes].filter(keyOf).map((node) => [keyOf(node), node]));
    let at = now.firstChild;
    for (const child of wanted.childNodes) {
      const key = keyOf(child);
      const found = key ? known.get(key) : at && alike(at, child) ? at : null;
      if (!found) {
        now.insertBefore(document.importNode(child, true), at);
        continue;
      }
      if (found === at) at = at.nextSibling;
      else now.insertBefore(found, at);
      patch(found, child);
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  }

  // --- numbers of the last minutes -----------------------------------------------------------------------------------------
  const series = new Map();

  function sparks() {
    const seen = new Set();
    for (const svg of document.querySelectorAll("svg.spark")) {
      const name = svg.dataset.series;
      const value = Number(svg.parentNode.querySelector("[data-value]").dataset.value);
      const values = series.get(name) || [];
      values.push(value);
      if (values.length > SPARK_KEPT) values.shift();
      series.set(name, values);
      seen.add(name);
      const most = Math.max(...values) || 1;
      const step = 60 / (SPARK_KEPT - 1);
      const first = 60 - (values.length - 1) * step;
      const points = values.map((one, n) => (first + n * step).toFixed(1) + "," + (15 - (one / most) * 14).toFixed(1));
      svg.firstElementChild.setAttribute("points", points.join(" "));
    }
    for (const name of series.keys()) if (!seen.has(name)) series.delete(name);
  }

  const CHARTS = [
    ["requests in a second", "rate", 1],
    ["requests in flight", "flight", 0],
    ["database latency, ms", "latency", 2],
    ["connections to the database", "connections", 0],
  ];
  const times = [];
  const columns = CHARTS.map(() => []);
  let plots = [];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function draw() {
    const place = document.querySelector("#charts .charts");
    plots.forEach((plot) => plot.destroy());
    const figures = CHARTS.map(() => {
      const figure = document.createElement("figure");
      figure.append(document.createElement("figcaption"));
      return figure;
    });
    // All of them are there before one is measured.
    place.replaceChildren(...figures);
    plots = figures.map((figure, n) => {
      const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
      const options = {
        width: figure.clientWidth || 300,
        height: 150,
        cursor: { show: false },
        legend: { show: false },
        scales: { x: { time: true }, y: { range: (_, low, high) => [0, Math.max(high || 0, 1)] } },
        axes: [{ ...axis, space: 80, values: (_, at) => at.map((one) => clock(one)) }, { ...axis, size: 45 }],
        series: [{}, { stroke: colour("--s0"), width: 1.5, points: { show: false } }],
      };
      const plot = new uPlot(options, [times, columns[n]], figure);
      plot.root.setAttribute("aria-hidden", "true"); // the tables and the caption have the numbers
      return plot;
    });
    captions();
  }

  const clock = (seconds) => new Date(seconds * 1000).toISOString().slice(11, 19);

  function captions() {
    document.querySelectorAll("#charts figcaption").forEach((caption, n) => {
      const [words, , digits] = CHARTS[n];
      const last = columns[n].at(-1);
      caption.textContent = last == null ? words : `${words}: ${last.toFixed(digits)}`;
    });
  }

  function charts(now) {
    times.push(Date.parse(now.time) / 1000);
    CHARTS.forEach(([, name], n) => columns[n].push(now[name] === "" ? null : Number(now[name])));
    if (times.length > KEPT) [times, ...columns].forEach((column) => column.shift());
    if ($("charts").hidden) {
      $("charts").hidden = false;
      draw();
    }
    plots.forEach((plot, n) => plot.setData([times, columns[n]]));
    captions();
  }

  // --- the log -------------------------------------------------------------------------------------------------------------
  const LEVELS = { "": ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"], WARN: ["ERROR", "WARN"], ERROR: ["ERROR"] };

  function filter(rows) {
    const text = $("log-text").value.toLowerCase();
    const levels = LEVELS[$("log-level").value];
    for (const row of rows) {
      const wanted = levels.includes(row.dataset.level) && (row.cells[1].textContent + " " + row.cells[2].textContent).toLowerCase().includes(text);
      if (row.hidden === wanted) row.hidden = !wanted;
    }
    $("log-none").hidden = [...$("log-lines").tBodies[0].rows].some((row) => !row.hidden);
  }

  let lastLine = -1;

  function lines(html) {
    const body = $("log-lines").tBodies[0];
    const scroll = $("log-scroll");
    const atEnd = scroll.scrollTop + scroll.clientHeight >= scroll.scrollHeight - 20;
    const rows = [...parse(html).querySelectorAll("tr")].filter((row) => Number(row.dataset.n) > lastLine);
    if (!rows.length) return;
    lastLine = Number(rows.at(-1).dataset.n);
    const added = rows.map((row) => body.appendChild(document.importNode(row, true)));
    while (body.rows.length > LINES_MAX) body.deleteRow(0);
    filter(added);
    if (atEnd) scroll.scrollTop = scroll.scrollHeight;
  }

  // --- what a screen reader is told ------------------------------------------------------------------------------------------
  let told;

  function news(now) {
    const last = document.querySelector("#changes tbody tr td.text");
    const words = [now.status, now.phase, last ? last.textContent : ""];
    if (told && words.some((one, n) => one !== told[n])) {
      $("news").textContent = words[0] === told[0] && words[1] === told[1] ? words[2] : `${words[0]}, ${words[1]}. ${words[2]}`;
      document.title = document.title.replace(/· \S+$/, "· " + now.status);
    }
    told = words;
  }

  // --- the stream ------------------------------------------------------------------------------------------------------------
  let source, timer, instance;

  function link(words, lost) {
    if ($("link").textContent !== words) $("link").textContent = words;
    $("link").classList.toggle("lost", lost);
    document.body.classList.toggle("stale", lost);
  }

  function lost() {
    const at = $("now").dataset.time.slice(11, 19);
    link(`No connection to Tandem: this is how it was at ${at} UTC. It is tried again.`, true);
  }

  function heard() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      lost();
      connect();
    }, STALE_MS);
  }

  function renew(event) {
    heard();
    const wanted = parse(event.data);
    const now = wanted.getElementById("now").dataset;
    if (now.version !== document.documentElement.dataset.version && document.documentElement.dataset.version) {
      // The page of another version may differ from its events.
      location.reload();
      return;
    }
    if (instance !== undefined && instance !== now.instance) {
      $("log-lines").tBodies[0].replaceChildren();
      lastLine = -1;
    }
    instance = now.instance;
    patch($("top"), wanted.getElementById("top"));
    patch($("live"), wanted.getElementById("live"));
    link("Live.", false);
    sparks();
    charts(now);
    news(now);
  }

  function connect() {
    if (source) source.close();
    source = new EventSource("/events?page");
    source.addEventListener("page", renew);
    source.addEventListener("log", (event) => lines(event.data));
    source.onerror = () => {
      lost();
      // A refusal ends it; anything else it tries again by itself.
      if (source.readyState === EventSource.CLOSED) {
        clearTimeout(timer);
        timer = setTimeout(connect, AGAIN_MS);
      }
    };
    heard();
  }

  document.documentElement.dataset.version = $("now").dataset.version;
  instance = $("now").dataset.instance;
  const rows = [...$("log-lines").tBodies[0].rows];
  if (rows.length) lastLine = Number(rows.at(-1).dataset.n);
  $("log-filter").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["log-text", "log-level"]) $(id).addEventListener("input", () => filter($("log-lines").tBodies[0].rows));
  filter(rows);
  $("log-scroll").scrollTop = $("log-scroll").scrollHeight;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.length && draw());
  let resizing;
  addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(() => plots.length && draw(), 200);
  });
  connect();
})();
