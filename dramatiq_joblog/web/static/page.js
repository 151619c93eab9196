/* What the page does by itself: it stays up to date, completes a search, and has keys.
   All of it can be read without this file. */
"use strict";
(() => {
  const $ = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const body = document.body;
  // A copy of the page has its links and no paths.
  const { root, frozen } = body.dataset;
  const say = (text) => { $("#announce").textContent = text; };
  for (const element of all(".js[hidden]")) element.hidden = false;

  // A note of what was done is shown once: not again on a reload.
  const here = new URL(location.href), noted = here.searchParams.has("done");
  if (noted) {
    for (const name of ["done", "n", "not"]) here.searchParams.delete(name);
    history.replaceState(null, "", here);
  }

  // On a phone the picked tab may stand beyond the edge.
  const tabs = $(".tabs"), picked = $(".tabs [aria-current]");
  if (picked) tabs.scrollLeft = picked.offsetLeft - tabs.offsetLeft - (tabs.clientWidth - picked.offsetWidth) / 2;

  // The theme

  const toggleTheme = () => {
    const html = document.documentElement;
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = html.dataset.theme || (dark ? "dark" : "light");
    html.dataset.theme = now === "dark" ? "light" : "dark";
    try { localStorage.setItem("joblog-theme", html.dataset.theme); } catch { /* private */ }
  };
  $("[data-theme-toggle]")?.addEventListener("click", toggleTheme);

  // Times, by the server's clock

  let offset = Number(body.dataset.now) - Date.now();
  const now = () => Date.now() + offset;
  const NB = "\u00a0";
  const rough = (ms) => {
    const s = Math.max(0, ms) / 1000;
    if (s < 60) return `${Math.floor(s)}${NB}s`;
    if (s < 3600) return `${Math.floor(s / 60)}${NB}min`;
    return s < 172800 ? `${Math.floor(s / 3600)}${NB}h` : `${Math.floor(s / 86400)}${NB}d`;
  };
  const two = (n) => String(n).padStart(2, "0");
  const figures = (ms) => {
    if (ms < 1000) return [String(Math.round(ms)), "ms"];
    if (ms < 59950) return [(ms / 1000).toFixed(1), "s"];
    const s = Math.round(ms / 1000);
    if (s < 3600) return [`${Math.floor(s / 60)}:${two(s % 60)}`, "min"];
    const m = Math.round(ms / 60000);
    return m < 2880 ? [`${Math.floor(m / 60)}:${two(m % 60)}`, "h"] : [(m / 1440).toFixed(1), "d"];
  };
  const tick = () => {
    if (document.hidden || paused) return;
    const at = now();
    for (const time of all("time[data-at]")) {
      const passed = at - Number(time.dataset.at);
      const text = passed < 0 ? `in ${rough(-passed)}` : `${rough(passed)} ago`;
      if (time.textContent !== text) time.textContent = text;
    }
    for (const cell of all("[data-since]")) {
      const [value, unit] = figures(at - Number(cell.dataset.since));
      cell.innerHTML = `${value}<span class="u">${unit}</span>`;
    }
    for (const drain of all(".drain[data-until]")) {
      const left = Math.max(0, Number(drain.dataset.until) - at);
      const bar = $("rect:last-child", drain);
      bar.setAttribute("width", Math.min(100, (100 * left) / Number(drain.dataset.ttl)).toFixed(1));
      $(".nw", drain).textContent = figures(left).join(NB);
    }
    if (ago) ago.textContent = `${rough(Date.now() - fetched)} ago`;
    // However the silence came about: what is shown is old.
    if (silent && Date.now() - silent > patience) look("away", "No response");
  };

  // Charts: a bar leads to its jobs, its reading stands in the legend, a drag picks a time

  const bars = (chart) => all(".bar-a[data-v]", chart);
  const legendOf = (chart) => $("[data-legend]", chart.closest("section"));
  // A line through all plots of the same time, where it is read.
  const cross = (chart, bar) => {
    const hit = bar && $(".hit", bar);
    for (const plot of all('svg[viewBox^="0 0 960 "]', chart)) {
      let line = $(".cross", plot);
      if (!hit) { line?.remove(); continue; }
      if (!line) {
        line = document.createElementNS("http://www.w3.org/2000/svg", "path");
        line.setAttribute("class", "cross");
        plot.append(line);
      }
      const x = Number(hit.getAttribute("x")) + Number(hit.getAttribute("width")) / 2;
      line.setAttribute("d", `M${x} 0V${plot.viewBox.baseVal.height}`);
    }
  };
  const read = (chart, bar) => {
    const legend = legendOf(chart);
    if (!legend) return;
    const values = bar ? bar.dataset.v.split("|") : null;
    all("b", legend).forEach((cell, index) => {
      cell.dataset.rest ??= cell.textContent;
      cell.textContent = values ? values[index] : cell.dataset.rest;
    });
    $("[data-moment]", legend).textContent = bar ? bar.dataset.at : "";
    for (const other of bars(chart)) other.classList.toggle("at", other === bar);
    cross(chart, bar);
  };
  const asTable = (chart) => {
    const section = chart.closest("section");
    const old = $(".chart-table", section);
    if (old) { old.remove(); return; }
    const place = document.createElement("div"), table = document.createElement("table");
    place.className = "chart-table";
    place.tabIndex = 0;
    place.setAttribute("role", "region");
    place.setAttribute("aria-label", `${$("h2", section).textContent} as a table`);
    const head = table.createTHead().insertRow();
    for (const text of ["Time", ...chart.dataset.chart.split("|")]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = text;
      cell.className = text === "Time" ? "" : "r";
      head.append(cell);
    }
    const rows_ = table.createTBody();
    for (const bar of bars(chart)) {
      const row = rows_.insertRow(), link = document.createElement("a");
      link.href = bar.getAttribute("href");
      link.className = "link";
      link.textContent = bar.dataset.at;
      row.insertCell().append(link);
      for (const value of bar.dataset.v.split("|")) {
        const cell = row.insertCell();
        cell.className = "r";
        cell.textContent = value;
      }
    }
    place.append(table);
    chart.after(place);
    place.focus();
  };
  const chartOf = (element) => element.closest?.("[data-chart]");
  let dragged = null, tapped = null;
  document.addEventListener("pointerover", (event) => {
    const bar = event.target.closest?.(".bar-a[data-v]");
    if (bar) read(chartOf(bar), bar);
  });
  document.addEventListener("pointerout", (event) => {
    const chart = chartOf(event.target);
    if (chart && event.pointerType === "mouse" && !chart.contains(event.relatedTarget)) read(chart, null);
  });
  document.addEventListener("focusin", (event) => {
    const bar = event.target.closest?.(".bar-a[data-v]");
    if (bar) read(chartOf(bar), bar);
  });
  document.addEventListener("focusout", (event) => {
    const chart = chartOf(event.target);
    if (chart && !chart.contains(event.relatedTarget)) read(chart, null);
  });
  document.addEventListener("pointerdown", (event) => {
    const bar = event.target.closest?.(".bar-a[data-v]");
    dragged = bar && event.pointerType === "mouse" && event.button === 0
      ? { chart: chartOf(bar), from: bar, to: bar, x: event.clientX } : null;
  });
  document.addEventListener("dragstart", (event) => { if (event.target.closest?.(".bar-a")) event.preventDefault(); });
  document.addEventListener("pointermove", (event) => {
    if (!dragged) return;
    const bar = event.target.closest?.(".bar-a[data-v]");
    if (bar && chartOf(bar) === dragged.chart) dragged.to = bar;
    const list = bars(dragged.chart);
    const [a, b] = [list.indexOf(dragged.from), list.indexOf(dragged.to)].sort((x, y) => x - y);
    list.forEach((one, index) => one.classList.toggle("at", index >= a && index <= b));
    if (a !== b) {
      const legend = legendOf(dragged.chart);
      if (legend) $("[data-moment]", legend).textContent = `${list[a].dataset.at} to ${list[b].dataset.at}`;
    }
  });
  document.addEventListener("pointerup", () => {
    if (!dragged || dragged.from === dragged.to) { dragged = null; return; }
    const list = bars(dragged.chart);
    const [a, b] = [list.indexOf(dragged.from), list.indexOf(dragged.to)].sort((x, y) => x - y);
    const url = new URL(location.href);
    url.searchParams.delete("range");
    url.searchParams.set("since", list[a].dataset.from);
    url.searchParams.set("until", list[b].dataset.until);
    // The click that ends a drag is none.
    dragged.over = true;
    location.href = url;
  });
  document.addEventListener("click", (event) => {
    const bar = event.target.closest?.(".bar-a[data-v]");
    if (!bar) return;
    if (dragged?.over) { event.preventDefault(); dragged = null; return; }
    // By touch the first tap reads, the second opens.
    if (matchMedia("(hover: none)").matches && tapped !== bar) {
      event.preventDefault();
      tapped = bar;
      read(chartOf(bar), bar);
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !/^Arrow(Left|Right)$/.test(event.key)) return;
    const bar = document.activeElement?.closest?.(".bar-a");
    const chart = bar ? bar.closest("svg") : event.target === body && $("[data-chart]");
    if (!chart) return;
    event.preventDefault();
    const list = all(".bar-a", chart);
    const by = event.key === "ArrowRight" ? 1 : -1;
    const next = list[Math.max(0, Math.min(list.length - 1, bar ? list.indexOf(bar) + by : list.length - 1))];
    for (const other of list) other.setAttribute("tabindex", other === next ? "0" : "-1");
    next?.focus();
  });
  const ownZone = $("[data-own-zone]");
  if (ownZone) {
    const name = Intl.DateTimeFormat().resolvedOptions().timeZone;
    ownZone.textContent = `Use this browser\u2019s: ${name}`;
    ownZone.type = "button";
    ownZone.addEventListener("click", () => { $("#zone-name").value = name; ownZone.form.submit(); });
  }

  // Live: one request at a time, whose answer replaces cells by id

  const every = Number(body.dataset.every || 0);
  const live = $("#live"), ago = $("#live-ago"), pause = $("#pause");
  // With the wait for the next look and for the clock, ten seconds in which nothing came.
  const patience = 6500;
  let fetched = Date.now(), silent = 0, paused = false, asking = false, timer = 0, waiting = [];
  let tag = body.dataset.etag || "";

  const look = (state, word) => {
    live.classList.toggle("off", state === "off");
    live.classList.toggle("away", state === "away");
    $("#live-word").textContent = word;
  };
  const held = (element) =>
    element.matches(":hover, :focus-within") || element.classList.contains("at") ||
    element.classList.contains("on");

  const narrow = matchMedia("(max-width: 900px)");
  const copyInto = (old, fresh) => {
    for (const { name, value } of [...fresh.attributes]) {
      if (name !== "class" && old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && name !== "class" && name !== "style") old.removeAttribute(name);
    }
    if (old.innerHTML !== fresh.innerHTML) old.innerHTML = fresh.innerHTML;
  };
  // What stands on the page stays where it is: what would grow scrolls within its place, and what
  // would shrink leaves its room, until a hand is at the page.
  const kept = new Set();
  const steady = (element, change, mayGrow = true) => {
    const before = element.offsetHeight;
    change();
    const after = element.offsetHeight;
    if (!before || after === before) return;
    if (after > before && mayGrow) return;
    kept.add(element);
    if (after > before) {
      element.style.maxHeight = `${before}px`;
      element.style.overflowY = "auto";
    } else element.style.minHeight = `${before}px`;
  };
  const letGo = () => {
    for (const element of kept) element.removeAttribute("style");
    kept.clear();
  };
  for (const kind of ["pointerdown", "keydown"]) document.addEventListener(kind, letGo);

  const updateRow = (old, fresh) => {
    old.classList.remove("gone");
    for (const name of ["data-state", "data-n", "data-final"]) {
      if (fresh.hasAttribute(name)) old.setAttribute(name, fresh.getAttribute(name));
    }
    [...fresh.cells].forEach((cell, index) => {
      const own = old.cells[index];
      // A checkbox keeps its tick, and a cell its focus.
      if (own && !$("input", own) && !own.contains(document.activeElement)) copyInto(own, cell);
    });
  };
  const updateRun = (old, fresh) => {
    const open = old.open;
    for (const selector of ["summary", ".in"]) {
      const [own, other] = [$(selector, old), $(selector, fresh)];
      if (own.innerHTML !== other.innerHTML && !own.contains(document.activeElement)) {
        own.innerHTML = other.innerHTML;
        for (const element of all(".js[hidden]", own)) element.hidden = false;
      }
    }
    old.open = open;
  };
  const updateFolds = (old, fresh) => {
    if (old.contains(document.activeElement) || old.matches(":hover")) return;
    const open = all("details", old).map((fold) => fold.open);
    if (old.innerHTML === fresh.innerHTML) return;
    old.innerHTML = fresh.innerHTML;
    const folds = all("details", old);
    if (folds.length === open.length) folds.forEach((fold, index) => { fold.open = open[index]; });
  };
  const updateTable = (old, fresh) => {
    const rows = all("tr[id]", fresh), own = all("tr[id]", old);
    const same = own.length && rows.length === own.length &&
      rows.every((row, index) => row.id === own[index].id);
    if (same) return;
    if (own.some(held) && rows.length) {
      for (const row of own) if (!fresh.querySelector(`#${CSS.escape(row.id)}`)) row.classList.add("gone");
      return;
    }
    old.innerHTML = fresh.innerHTML;
    for (const element of all(".js[hidden]", old)) element.hidden = false;
    selection();
  };
  const merge = (fresh) => {
    const late = $("[data-missing]", fresh);
    for (const old of all("[data-live]")) {
      const other = fresh.getElementById(old.id);
      // What did not come in time stays as it was, and nothing is gone for want of an answer.
      if (late && (!other || "missing" in other.dataset)) continue;
      // A note of what was done stays until there is something else to say.
      if (old.id === "banners" && noted && !other?.textContent.trim()) continue;
      if (old.dataset.live === "reload") {
        if (!other) location.reload();
      } else if (!other) {
        if (old.dataset.live === "once") old.remove();
        if (old.dataset.live === "row") old.classList.add("gone");
      } else if (old.dataset.live === "row") {
        if (narrow.matches) steady(old, () => updateRow(old, other), false);
        else updateRow(old, other);
        // Below a page that is not full there is nothing: this row has left the filter.
        const below = other.closest("table[hidden]");
        if (below) old.classList.toggle("gone", all("table.jobs tbody tr", fresh).length < 50);
      }
      else if (old.dataset.live === "run" && old.matches("section")) steady(old, () => updateFolds(old, other));
      else if (old.dataset.live === "run") updateRun(old, other);
      else if (old.dataset.live === "table") steady(old, () => updateTable(old, other));
      else if (old.id === "sub") steady(old, () => copyInto(old, other), !narrow.matches);
      else if (old.matches("a, span")) copyInto(old, other);
      else if (!old.contains(document.activeElement)) {
        // On a phone all stands one below the other: what has begun to be read would be pushed away.
        const mayGrow = old.id !== "needs" && (!narrow.matches || old.offsetHeight < 120);
        steady(old, () => copyInto(old, other), mayGrow);
      }
      if (old.id === "banners" || old.id === "needs") old.className = other?.className || "";
    }
    const runs = $("#runs");
    for (const run of all("details[id]", fresh.getElementById("runs") || fresh.createElement("i"))) {
      if (runs && !document.getElementById(run.id)) runs.append(document.importNode(run, true));
    }
    newRows(fresh);
    tick();
  };
  const newRows = (fresh) => {
    const button = $("#fresh"), table = $("table.jobs");
    if (!button || new URLSearchParams(location.search).has("before")) return;
    const known = new Set(all("tr[id]", table || document).map((row) => row.id));
    const others = new Set(all("table[hidden] tr[id]", fresh).map((row) => row.id));
    waiting = all("table.jobs tr[id]", fresh).filter((row) => !known.has(row.id) && !others.has(row.id));
    if (!waiting.length) { button.hidden = true; return; }
    if (!table) { location.reload(); return; }
    button.textContent = `${waiting.length}${waiting.length >= 50 ? "+" : ""} new`;
    button.hidden = false;
    if (matchMedia("(hover: hover)").matches && scrollY < 8 && !all("tr", table).some(held) && hasRoom(table)) letIn();
  };
  // Where the list ends in the window, what stands below it would move.
  const hasRoom = (table) => {
    const below = $("#picked .pager")?.getBoundingClientRect().top ?? innerHeight;
    const high = $("tbody tr", table).offsetHeight * waiting.length;
    return below >= innerHeight || table.getBoundingClientRect().bottom + high <= below;
  };
  const letIn = () => {
    const tbody = $("table.jobs tbody");
    if (!tbody || !waiting.length) return;
    // Each row takes what the row above it held, so that no row moves: the new ones are at the end.
    const number = waiting.length, list = all("tr", tbody);
    for (let n = 0; n < number; n += 1) {
      const last = document.createElement("tr");
      tbody.append(last);
      list.push(last);
    }
    const take = (row, other, cells) => {
      for (const { name } of [...row.attributes]) if (!other.hasAttribute(name)) row.removeAttribute(name);
      for (const { name, value } of other.attributes) row.setAttribute(name, value);
      row.replaceChildren(...cells);
    };
    for (let n = list.length - 1; n >= number; n -= 1) take(list[n], list[n - number], [...list[n - number].childNodes]);
    waiting.forEach((row, n) => {
      take(list[n], row, [...document.importNode(row, true).childNodes]);
      list[n].classList.add("fresh-in");
    });
    anchor = null;
    waiting = [];
    $("#fresh").hidden = true;
    for (const row of all("tr", tbody).slice(200)) row.remove();
  };
  $("#fresh")?.addEventListener("click", (event) => { event.preventDefault(); letIn(); scrollTo(0, 0); });

  const refresh = async () => {
    if (asking || paused || document.hidden || $("dialog[open]")) return;
    asking = true;
    silent ||= Date.now();
    try {
      const url = new URL(location.href);
      const open = all("table.jobs tr[id]:not([data-final])").map((row) => row.id.slice(4));
      if (open.length) url.searchParams.set("watch", open.slice(0, 200).join(","));
      const headers = { accept: "text/html" };
      if (tag) headers["if-none-match"] = `W/"${tag}"`;
      const answer = await fetch(url, { headers, cache: "no-store", credentials: "same-origin", redirect: "error", signal: AbortSignal.timeout(9000) });
      if (answer.status === 304) {
        offset = Number(answer.headers.get("joblog-now")) - Date.now();
        fetched = Date.now();
        silent = 0;
        if (!paused) look("on", "Live");
        return;
      }
      if (!answer.ok && answer.status !== 503) throw new Error(String(answer.status));
      const text = await answer.text();
      if (answer.status === 503) throw new Error("503");
      if (paused) return;
      const fresh = new DOMParser().parseFromString(text, "text/html");
      offset = Number(fresh.body.dataset.now) - Date.now();
      tag = fresh.body.dataset.etag || "";
      fetched = Date.now();
      silent = 0;
      look("on", "Live");
      merge(fresh);
      document.title = fresh.title;
    } catch {
      if (!paused && Date.now() - silent <= patience) look("away", "Reconnecting");
    } finally {
      asking = false;
    }
  };
  const togglePause = () => {
    if (!live) return;
    paused = !paused;
    silent = 0;
    pause.setAttribute("aria-pressed", String(paused));
    pause.setAttribute("aria-label", paused ? "Resume live updates (p)" : "Pause live updates (p)");
    $("use", pause).setAttribute("href", paused ? "#i-play" : "#i-pause");
    look(paused ? "off" : "on", paused ? "Paused" : "Live");
    say(paused ? "Live updates are paused" : "Live updates are resumed");
    if (!paused) refresh();
  };
  if (every) {
    live.hidden = false;
    pause.addEventListener("click", togglePause);
    timer = setInterval(refresh, every);
    document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  }
  setInterval(tick, 1000);

  // Rows: the cursor and the selection

  const rows = () => all("[data-rows] tbody tr");
  let anchor = null;
  const at = () => $("[data-rows] tr.at");
  const move = (by) => {
    const list = rows();
    if (!list.length) return;
    const index = list.indexOf(at());
    const next = list[Math.max(0, Math.min(list.length - 1, index < 0 ? 0 : index + by))];
    at()?.classList.remove("at");
    next.classList.add("at");
    next.scrollIntoView({ block: "nearest" });
    say(next.innerText.replace(/\s+/g, " "));
  };
  const box = (row) => row && $("input[type=checkbox]:not(:disabled)", row);
  const selection = () => {
    const list = rows(), bulk = $("#bulk");
    // All that match are not these rows alone: a change here is a choice of rows again.
    if ($("#picked")) delete $("#picked").dataset.all;
    const picked = list.filter((row) => box(row)?.checked);
    for (const row of list) row.classList.toggle("on", Boolean(box(row)?.checked));
    if (!bulk) return;
    const groups = $("#bulk-groups");
    const n = groups ? picked.reduce((sum, row) => sum + Number(row.dataset.n), 0) : picked.length;
    $("#bulk-n").textContent = n.toLocaleString("en").replaceAll(",", "\u202f");
    if (groups) groups.textContent = String(picked.length);
    bulk.classList.toggle("up", picked.length > 0);
    const head = $("#all-rows");
    head.checked = picked.length > 0 && picked.length === list.length;
    head.classList.toggle("some", picked.length > 0 && !head.checked);
  };
  const select = (row, range) => {
    if (!box(row)) return;
    const list = rows();
    const value = !box(row).checked;
    const from = range && anchor ? list.indexOf(anchor) : list.indexOf(row);
    const [a, b] = [from, list.indexOf(row)].sort((x, y) => x - y);
    for (const one of list.slice(Math.max(0, a), b + 1)) if (box(one)) box(one).checked = range || value;
    anchor = row;
    selection();
  };
  const clear = () => {
    for (const row of rows()) if (box(row)) box(row).checked = false;
    selection();
  };
  document.addEventListener("change", (event) => {
    if (event.target.id === "all-rows") {
      for (const row of rows()) if (box(row)) box(row).checked = event.target.checked;
    }
    if (event.target.matches("input[type=checkbox]")) selection();
  });
  document.addEventListener("click", (event) => {
    const target = event.target;
    if (target.closest("#clear")) clear();
    const everything = target.closest("#all-matching");
    if (everything) {
      for (const row of rows()) if (box(row)) box(row).checked = true;
      selection();
      $("#picked").dataset.all = everything.dataset.q;
      $("#bulk-n").textContent = everything.dataset.n;
    }
    if (target.matches("[data-rows] input[type=checkbox]") && target.closest("tbody")) {
      const row = target.closest("tr");
      if (event.shiftKey && anchor) { target.checked = false; select(row, true); }
      anchor = row;
      selection();
    }
  });
  selection();

  // Questions: the page that asks, in a dialog

  const ask = async (url) => {
    let fresh;
    try {
      const answer = await fetch(url, { headers: { accept: "text/html" }, credentials: "same-origin" });
      fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    } catch { location.href = url; return; }
    const question = fresh.getElementById("question");
    if (!question) { location.href = url; return; }
    const dialog = $("#ask");
    dialog.replaceChildren(document.importNode(question, true));
    for (const element of all(".js[hidden]", dialog)) element.hidden = false;
    dialog.showModal();
    ($("[autofocus]", dialog) || $("button[type=submit]:not(:disabled)", dialog) || $("[data-keep]", dialog)).focus();
  };
  document.addEventListener("click", (event) => {
    const keep = event.target.closest("#ask [data-keep]");
    if (keep) { event.preventDefault(); $("#ask").close(); return; }
    const link = event.target.closest("a[data-ask]");
    if (link && !event.ctrlKey && !event.metaKey) { event.preventDefault(); ask(link.href); }
    if (event.target.matches("dialog")) event.target.close();
  });
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (button?.matches("[data-ask]")) {
      event.preventDefault();
      // The property would be this page's address where the attribute is missing.
      const url = new URL(button.getAttribute("formaction") || event.target.action, location.href);
      const { all: everything } = event.target.dataset;
      const fields = everything
        ? [["back", event.target.elements.back.value], ["q", everything]]
        : new FormData(event.target);
      url.search = new URLSearchParams(fields).toString();
      ask(url);
    } else if (event.target.dataset.jids && !button?.name) {
      event.preventDefault();
      inBatches(event.target, button);
    } else if (event.target.closest("#ask")) {
      // Once is enough.
      setTimeout(() => { if (button) button.disabled = true; });
    }
  });

  // Many jobs: some at a time, so that one sees how far it is and can stop it

  const inBatches = async (form, button) => {
    const jids = form.dataset.jids.split(" "), some = 25;
    const place = $("[data-batch]", form), bar = $("progress", place), text = $("span", place);
    const keep = $("[data-keep]", form);
    let done = 0, refused = 0, at = 0, stopped = false;
    place.hidden = false;
    for (const other of all("button", form)) other.disabled = true;
    keep.textContent = "Stop";
    keep.removeAttribute("data-keep");
    keep.addEventListener("click", (event) => { event.preventDefault(); stopped = true; }, { once: true });
    while (at < jids.length && !stopped) {
      const data = new FormData(form);
      for (const name of ["q", "jid", "but"]) data.delete(name);
      for (const jid of jids.slice(at, at + some)) data.append("jid", jid);
      try {
        const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(data), headers: { accept: "application/json" }, credentials: "same-origin", mode: "same-origin" });
        if (answer.ok) { const said = await answer.json(); done += said.done; refused += said.refused; }
        else if (answer.status === 409) refused += jids.slice(at, at + some).length;
        else throw new Error(String(answer.status));
      } catch (error) { text.textContent = `Stopped after ${at} of ${jids.length}: no response.`; say(text.textContent); return; }
      at += some;
      bar.value = Math.min(at, jids.length);
      text.textContent = `${Math.min(at, jids.length)} of ${jids.length}`;
    }
    say(text.textContent);
    const url = new URL(form.elements.back.value, location.href);
    const what = form.action.split("/").at(-1);
    url.searchParams.set("done", ["rerun", "now"].includes(what) ? "requeue" : what);
    url.searchParams.set("n", done);
    url.searchParams.set("not", refused);
    location.href = url;
  };

  // Copying

  const copy = async (text, button) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    say("Copied");
    if (button) {
      const use = $("use", button), before = use?.getAttribute("href");
      use?.setAttribute("href", "#i-finished");
      setTimeout(() => use?.setAttribute("href", before), 1200);
    }
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy], [data-copy-of]");
    if (!button) return;
    const text = button.dataset.copy;
    // An address is only here known with its host.
    const whole = "address" in button.dataset ? new URL(text, location.href).href : text;
    copy(whole ?? document.getElementById(button.dataset.copyOf).textContent, button);
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-unfold]");
    if (!button) return;
    const folds = all("details.lib", button.closest(".trace")), open = folds.some((fold) => !fold.open);
    for (const fold of folds) fold.open = open;
  });

  // The search: finished words become chips, the one being typed is completed

  const find = $(".find");
  if (find) setUpSearch(find);
  function setUpSearch(form) {
    const input = $("input[name=q]", form), list = $("#complete"), options = $("#complete-list");
    const whole = document.createElement("input");
    whole.type = "hidden";
    whole.name = "q";
    input.removeAttribute("name");
    input.setAttribute("role", "combobox");
    input.setAttribute("aria-expanded", "false");
    input.setAttribute("aria-controls", "complete-list");
    input.setAttribute("aria-autocomplete", "list");
    form.append(whole);
    const hint = input.placeholder;
    const WORD = /-?(?:args(?:\.[^\s:"\\.]+)+|[A-Za-z_]+):(?:"[^"]*"|\S+)(?=\s|$)/g;
    let chips = [], chosen = -1, found = [], asked = 0;

    const draw = () => {
      for (const chip of all(".q", form)) chip.remove();
      chips.forEach((text, index) => {
        const chip = document.createElement("span");
        chip.className = "q";
        const [, key, value] = /^([^:]+:)(.*)$/s.exec(text);
        const name = document.createElement("i");
        name.textContent = key;
        const remove = document.createElement("button");
        remove.type = "button";
        remove.setAttribute("aria-label", `Remove ${text}`);
        remove.innerHTML = '<svg class="g" aria-hidden="true"><use href="#i-x"/></svg>';
        remove.addEventListener("click", () => { chips.splice(index, 1); draw(); submit(); });
        chip.append(name, value, remove);
        input.before(chip);
      });
      input.placeholder = chips.length ? "" : hint;
    };
    const take = (all_) => {
      // The word at the end is still being typed, unless a space follows it.
      const text = all_ ? `${input.value} ` : input.value;
      const end = text.search(/\S*$/);
      const done = text.slice(0, end);
      const words = done.match(WORD) || [];
      if (!words.length) return;
      chips.push(...words);
      input.value = (done.replace(WORD, " ").trim() + " " + text.slice(end)).trimStart();
      if (all_) input.value = input.value.trim();
      draw();
    };
    const submit = () => {
      whole.value = [...chips, input.value.trim()].filter(Boolean).join(" ");
      form.submit();
    };
    const close = () => { list.hidden = true; chosen = -1; input.setAttribute("aria-expanded", "false"); input.removeAttribute("aria-activedescendant"); };
    const mark = (index) => {
      chosen = index;
      all("li[role=option]", options).forEach((item, n) => item.setAttribute("aria-selected", String(n === index)));
      if (index >= 0) input.setAttribute("aria-activedescendant", `option-${index}`);
      else input.removeAttribute("aria-activedescendant");
    };
    const show = (words) => {
      // An answer that comes late must not undo what was chosen meanwhile.
      const kept = found[chosen]?.word;
      found = words;
      options.replaceChildren(...words.map(({ word, count, capped, hint: about }, index) => {
        const item = document.createElement("li");
        item.role = "option";
        item.id = `option-${index}`;
        const text = document.createElement("span");
        text.className = "mono";
        const [, key, value] = /^([^\s:"]+:)(.+)$/s.exec(word) || [null, "", word];
        const dim = document.createElement("span");
        dim.className = "dim";
        dim.textContent = key;
        text.append(dim, value);
        const middle = document.createElement("span");
        middle.className = "hint dim cut";
        middle.textContent = about || "";
        const end = document.createElement("span");
        end.className = "mid nw";
        end.textContent = count == null ? "" : `${count}${capped ? "+" : ""} job${count === 1 ? "" : "s"}`;
        item.append(text, middle, end);
        item.addEventListener("mousedown", (event) => { event.preventDefault(); complete(index); });
        return item;
      }));
      list.hidden = words.length === 0;
      input.setAttribute("aria-expanded", String(words.length > 0));
      mark(words.findIndex((one) => one.word === kept));
    };
    const last = () => /(?:^|\s)(-?)(\S*)$/.exec(input.value);
    const suggest = async () => {
      if (frozen !== undefined) return;
      const number = ++asked;
      const word = last()[2];
      // Until the answer is here, nothing is offered that does not go on from what was typed.
      if (!list.hidden) show(found.filter((one) => one.word !== word && one.word.startsWith(word)));
      const url = new URL(form.dataset.complete, location.href);
      url.searchParams.set("word", word);
      try {
        const answer = await fetch(url, { headers: { accept: "application/json" }, credentials: "same-origin" });
        if (number !== asked || !answer.ok) return;
        const { words } = await answer.json();
        const open = document.activeElement === input;
        if (open) show(words.filter((one) => one.word !== word).slice(0, word ? 8 : 12));
      } catch { close(); }
    };
    const complete = (index) => {
      const word = found[index].word;
      const [, minus, typed] = last();
      input.value = input.value.slice(0, input.value.length - typed.length - minus.length) + minus + word;
      if (/[:.]$/.test(word)) { suggest(); return; }
      input.value += " ";
      take(false);
      close();
      suggest();
    };
    input.addEventListener("input", () => { take(false); suggest(); });
    input.addEventListener("focus", suggest);
    input.addEventListener("blur", close);
    input.addEventListener("keydown", (event) => {
      const open = !list.hidden;
      if (event.key === "ArrowDown" && open) { event.preventDefault(); mark((chosen + 1) % found.length); }
      else if (event.key === "ArrowUp" && open) { event.preventDefault(); mark((chosen - 1 + found.length) % found.length); }
      else if (event.key === "Tab" && open && !event.shiftKey && (chosen >= 0 || input.value)) { event.preventDefault(); complete(Math.max(0, chosen)); }
      else if (event.key === "Enter" && open && chosen >= 0) { event.preventDefault(); complete(chosen); }
      else if (event.key === "Escape") { event.stopPropagation(); if (open) close(); else input.blur(); }
      else if (event.key === "Backspace" && !input.value && chips.length) { input.value = chips.pop(); draw(); event.preventDefault(); suggest(); }
    });
    form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
    $(".box", form).addEventListener("mousedown", (event) => { if (event.target.matches(".box")) { event.preventDefault(); input.focus(); } });
    take(true);
  }

  // Keys

  const go = { o: "/", c: "/compare", j: "/jobs", y: "/types", d: "/dead", q: "/queues", l: "/locks", w: "/workers", a: "/actions" };
  let before = "", letters = true;
  try { letters = localStorage.getItem("joblog-keys") !== "off"; } catch { /* private */ }
  const lettersBox = $("#letters");
  lettersBox.checked = letters;
  lettersBox.addEventListener("change", () => {
    letters = lettersBox.checked;
    try { localStorage.setItem("joblog-keys", letters ? "on" : "off"); } catch { /* private */ }
  });
  const press = (selector, from = document) => { const found = $(selector, from); found?.click(); return Boolean(found); };
  const act = (what) => {
    const picked = rows().some((row) => box(row)?.checked);
    if (picked) return press(`#bulk [data-do=${what}]`);
    const row = at();
    if (row && box(row) && $("#bulk")) {
      const url = new URL($("#picked").action.replace(/requeue$/, what));
      url.search = new URLSearchParams([["back", $("#picked [name=back]").value], [box(row).name, box(row).value]]).toString();
      return ask(url);
    }
    return press(`.job-head [data-do=${what}]`) || (row && press(`[data-do=${what}]`, row));
  };
  const keys = {
    "/": () => { const input = $(".find input:not([type=hidden])"); if (input) input.focus(); else if (frozen === undefined) location.href = `${root}/jobs?focus=1`; },
    "?": () => $("#keys").showModal(),
    j: () => move(1),
    k: () => move(-1),
    x: () => select(at()),
    X: () => select(at(), true),
    Enter: () => { const link = at() && ($("td.type a, td.name a, td.q-n a", at()) || $("td a[href*='/jobs/']", at()) || $("td a", at())); if (link) location.href = link.href; },
    "[": () => press("a[rel=prev]"),
    "]": () => press("a[rel=next]"),
    n: () => {
      const lines = all("#needs li a[href]:not(.btn), #needs.verdict-line a.link");
      lines[(lines.indexOf(document.activeElement) + 1) % lines.length]?.focus();
    },
    r: () => act("requeue"),
    d: () => act("dismiss"),
    U: () => at() && press("[data-do=unlock]", at()),
    y: () => { const jid = (at() || $(".job-head"))?.dataset.jid; if (jid) copy(jid, $(".copy")); },
    e: () => { const runs = all("details.run"), open = runs.some((run) => !run.open); for (const run of runs) run.open = open; },
    u: () => { const list = $(".walk")?.dataset.list || $(".crumb a")?.href; if (list) location.href = list; },
    p: togglePause,
    ".": letIn,
    t: toggleTheme,
    v: () => { const chart = chartOf(document.activeElement) || $("[data-chart]"); if (chart) asTable(chart); },
    Escape: () => { if (rows().some((row) => box(row)?.checked)) clear(); else at()?.classList.remove("at"); },
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || $("dialog[open]")) return;
    if (event.target.closest("input:not([type=checkbox]), textarea, select")) return;
    const key = event.key;
    // Who speaks to the machine turns off what one letter does; "?" is how to turn it on again.
    if (!letters && key.length === 1 && key !== "?") return;
    if (key === "Enter" && event.target.closest("a, button, summary, input")) return;
    if (before === "g" && go[key] && frozen === undefined) { before = ""; location.href = root + go[key]; return; }
    before = key;
    const windows = all("[data-windows] a");
    if (/^[1-9]$/.test(key) && windows[Number(key) - 1]) { windows[Number(key) - 1].click(); return; }
    const does = keys[key];
    if (does) { event.preventDefault(); does(); }
  });
  if (new URLSearchParams(location.search).has("focus")) $(".find input:not([type=hidden])")?.focus();
})();
