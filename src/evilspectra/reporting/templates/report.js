(() => {
  "use strict";
  const { specs, config } = JSON.parse(document.getElementById("payload").textContent);
  const options = { mode: "vega-lite", ast: true, actions: false, renderer: "svg", defaultStyle: false, config, tooltip: { disableDefaultStyle: true } };

  // --- figures: those in sight first, the others while nothing else is to do --------------------------------------
  const places = [...document.querySelectorAll(".chart[data-spec]")];
  const waiting = new Set(places), views = [];
  let arm = "", run = "", module = "";
  const draw = async (place) => {
    if (!waiting.delete(place)) return;
    const { view } = await vegaEmbed(place, specs[place.dataset.spec], options);
    views.push(view);
    if (arm || run) view.signal("shown", arm).signal("picked", run).runAsync();
    view.addEventListener("click", (event, item) => clicked(item?.datum));
  };
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) { seen.unobserve(target); draw(target); }
  }, { rootMargin: "300px" });
  for (const place of places) seen.observe(place);
  const idle = () => new Promise((go) => (window.requestIdleCallback ? requestIdleCallback(go, { timeout: 300 }) : setTimeout(go, 20)));
  const drawAll = async () => {
    for (const place of places) if (waiting.has(place)) { await idle(); await draw(place); }
    while (views.length < places.length) await idle();
    document.documentElement.dataset.drawn = String(views.length);
  };
  requestAnimationFrame(() => setTimeout(drawAll, 60));
  window.addEventListener("beforeprint", () => { for (const place of places) draw(place); });
  const stressed = () => { for (const view of views) view.signal("shown", arm).signal("picked", run).runAsync(); };

  // --- one legend for all figures: the chosen arm is stressed everywhere, a second click frees it ------------------
  const arms = [...document.querySelectorAll(".legend button")];
  const stress = (name) => {
    arm = name;
    for (const button of arms) button.setAttribute("aria-pressed", String(button.dataset.arm === arm));
    for (const panel of document.querySelectorAll(".panel[data-arm]")) panel.classList.toggle("faint", arm !== "" && panel.dataset.arm !== arm);
    stressed();
  };
  for (const button of arms) button.addEventListener("click", () => stress(button.getAttribute("aria-pressed") === "true" ? "" : button.dataset.arm));

  // --- a run or a module: a click on a point, a row or a cell opens the panel; a second click or Esc closes it -----
  const part = (name) => document.getElementById("panel" + (name && "-" + name));
  const held = { get details() { return (this.read ??= JSON.parse(document.getElementById("details").textContent)); } };
  const block = (name, Kind) => {
    const text = atob(document.getElementById("block-" + name).textContent);
    const bytes = new Uint8Array(text.length);
    for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
    return new Kind(bytes.buffer);
  };
  const blocks = { get relative() { return (this.a ??= block("relative", Uint16Array)); }, get largest() { return (this.b ??= block("largest", Float32Array)); }, get ranks() { return (this.c ??= block("ranks", Float32Array)); } };
  const number = (label) => held.details.runs.findIndex((one) => one.run === label);
  const NOTHING = 65535;

  /** A run's spectra: its modules, their places, and the relative values of one of them. */
  const spectra = (at) => {
    const own = held.details.spectra.runs[at];
    if (!own) return null;
    const layout = held.details.spectra.layouts[own.layout], wide = layout.indices.length;
    return {
      ...layout,
      step: own.step,
      rank: (place) => blocks.ranks[own.module + place],
      largest: (place) => blocks.largest[own.module + place],
      values: (place) => layout.indices.map((_, index) => {
        const code = blocks.relative[own.value + place * wide + index];
        return code === NOTHING ? null : 10 ** (-code * held.details.spectra.decades / (NOTHING - 1));
      }),
    };
  };
  const quantile = (sorted, share) => {
    const at = share * (sorted.length - 1), low = Math.floor(at);
    return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
  };
  /** Median and 10 to 90 % of several spectra, index by index. */
  const gathered = (many, indices, name, armOf, strong) => indices.flatMap((position, index) => {
    const found = many.map((one) => one[index]).filter((value) => value !== null).sort((a, b) => a - b);
    return found.length ? [{ name, arm: armOf, position, relative: quantile(found, 0.5), low: quantile(found, 0.1), high: quantile(found, 0.9), strong }] : [];
  });
  const shownIn = new Map();
  const chart = async (place, name, rows) => {
    shownIn.get(place)?.finalize();
    shownIn.delete(place);
    place.replaceChildren();
    const made = await vegaEmbed(place, { ...held.details.specs[name], datasets: { rows } }, options);
    shownIn.set(place, made);
  };
  const fill = (place, texts, kind) => place.replaceChildren(...texts.map(([label, text]) => {
    const [outer, term, value] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
    [term.textContent, value.textContent] = [label, text];
    outer.append(term, value);
    return outer;
  }));
  const element = (tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const placed = (datum, places) => places.flatMap(([layer, projection], at) => (layer === datum.layer && projection === datum.part ? [at] : []));

  /** The spectrum of a module in every arm, or of a run: of one of its modules, or over all of them. */
  const showSpectrum = (at) => {
    const { runs } = held.details, rows = [], note = part("spectrum-note");
    const everywhere = () => {
      const groups = new Map();
      runs.forEach((one, index) => {
        const own = spectra(index), place = own ? own.modules.indexOf(module) : -1;
        if (place >= 0 && index !== at) groups.set(one.arm, [...(groups.get(one.arm) ?? []), [own.values(place), own]]);
      });
      return groups;
    };
    if (at >= 0 && spectra(at)) {
      const own = spectra(at), place = own.modules.indexOf(module);
      if (module && place >= 0) {
        own.values(place).forEach((relative, index) => { if (relative !== null) rows.push({ name: run, arm: runs[at].arm, position: own.indices[index], relative, value: relative * own.largest(place), low: relative, high: relative, strong: true }); });
        for (const [name, many] of everywhere()) rows.push(...gathered(many.map(([one]) => one), many[0][1].indices, `${name}, median of ${many.length}`, name, false).map((row) => ({ ...row, low: row.relative, high: row.relative })));
        note.textContent = `After step ${own.step}: σ₁ ${own.largest(place).toPrecision(4)}, stable rank ${own.rank(place).toFixed(2)}. Pale: the same module in other runs, medians of their arms.`;
      } else {
        rows.push(...gathered(own.modules.map((_, index) => own.values(index)), own.indices, run, runs[at].arm, true));
        note.textContent = module ? "The page does not hold the spectrum of this module in this run; over all its modules instead." : `After step ${own.step}: median over ${own.modules.length} modules, band 10 to 90 %.`;
      }
    } else if (module) {
      const groups = everywhere();
      for (const [name, many] of groups) rows.push(...gathered(many.map(([one]) => one), many[0][1].indices, `${name}, median of ${many.length}`, name, arm === "" || name === arm));
      note.textContent = groups.size ? "Median over the runs of each arm, band 10 to 90 %, at each run’s last measured step." : "The page does not hold the spectrum of this module.";
    } else note.textContent = "No spectrum was measured.";
    if (held.details.spectra.every > 1) note.textContent += ` To stay small the page holds every ${held.details.spectra.every}th module.`;
    part("spectrum-title").textContent = module ? "Singular values of the module, σ / σ₁" : "Singular values, σ / σ₁";
    part("spectrum").hidden = rows.length === 0;
    if (rows.length) chart(part("spectrum"), "spectrum", rows);
  };

  /** Stable rank by layer and projection as small cells. */
  const showMap = (at) => {
    const own = at >= 0 ? spectra(at) : null;
    part("map-part").hidden = !own;
    if (!own) return;
    const across = [...new Set(own.places.map(([layer]) => layer))].sort((a, b) => (Number(a) || 0) - (Number(b) || 0)), down = [...new Set(own.places.map(([, projection]) => projection))];
    const ranks = own.modules.map((_, place) => own.rank(place)), known = ranks.filter(Number.isFinite);
    const [low, high] = [Math.min(...known), Math.max(...known)], space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", `0 0 ${across.length * 10} ${down.length * 14}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Stable rank from ${low.toFixed(2)} to ${high.toFixed(2)}; the list of modules above chooses one by keyboard`);
    svg.style.height = `${Math.min(220, down.length * 16)}px`;
    own.places.forEach(([layer, projection], place) => {
      const cell = document.createElementNS(space, "rect"), tone = Number.isFinite(ranks[place]) ? Math.min(6, Math.floor(7 * (ranks[place] - low) / (high - low || 1))) : 0;
      for (const [name, value] of Object.entries({ x: across.indexOf(layer) * 10 + 0.4, y: down.indexOf(projection) * 14 + 0.4, width: 9.2, height: 13.2 })) cell.setAttribute(name, value);
      cell.style.fill = `var(--ramp-${tone})`;
      cell.dataset.module = own.modules[place];
      cell.classList.toggle("chosen", own.modules[place] === module);
      const title = document.createElementNS(space, "title");
      title.textContent = `${own.modules[place]}: ${ranks[place].toFixed(2)}`;
      cell.append(title);
      cell.addEventListener("click", () => choose(run, module === own.modules[place] ? "" : own.modules[place]));
      svg.append(cell);
    });
    part("map").replaceChildren(svg);
  };

  const showAnswers = (label) => {
    const { answers } = held.details, own = answers.runs[label];
    part("answers-part").hidden = !own;
    if (!own) return;
    const judged = answers.judges.length ? `, misaligned first (${own.misaligned} of all are by what the judge said)` : "";
    part("answers-note").textContent = `${own.shown.length} of ${own.answers} answers${judged}; at most ${answers.most} a run are on this page${own.shown.some((one) => one.text.endsWith("…")) ? `, cut after ${answers.length} characters` : ""}.`;
    part("answers").replaceChildren(...own.shown.map((one) => {
      const box = element("article", undefined, "answer"), [title, ...question] = answers.questions[one.q].split("\n");
      box.append(element("p", title, "overline"), element("p", question.join("\n"), "asked"));
      for (const [judge, said, bad] of one.said) {
        const line = element("p", said, "share");
        line.title = judge;
        if (bad) line.append(" ", element("span", "misaligned", "flag misaligned"));
        box.append(line);
      }
      if (one.flags) box.append(element("span", one.flags, "flag"));
      const said = element("bdi", one.text || "(empty)", "said");
      said.dir = "auto";
      box.append(said);
      return box;
    }));
  };

  const rowsOf = [...document.querySelectorAll("tr[data-run]")];
  let opener = null;
  /** Shows a run, a module, or both; nothing of either closes the panel. */
  const choose = (label, name, from) => {
    const at = label ? number(label) : -1;
    [run, module] = [at >= 0 ? label : "", name];
    for (const row of rowsOf) row.classList.toggle("picked", run !== "" && row.dataset.run === run);
    for (const button of document.querySelectorAll(".pick")) button.setAttribute("aria-pressed", String(run !== "" && button.dataset.run === run));
    stressed();
    const fragment = [run && `run=${encodeURIComponent(run)}`, module && `module=${encodeURIComponent(module)}`].filter(Boolean).join("&");
    history.replaceState(null, "", fragment ? "#" + fragment : location.pathname + location.search);
    const open = run !== "" || module !== "";
    document.documentElement.classList.toggle("open", open);
    part("").hidden = !open;
    if (!open) {
      for (const made of shownIn.values()) made.finalize();
      shownIn.clear();
      if (opener?.isConnected) opener.focus({ preventScroll: true });
      opener = null;
      return;
    }
    const own = held.details.runs[at], own_spectra = at >= 0 ? spectra(at) : null;
    part("title").textContent = own ? own.run : module;
    part("data").textContent = own ? `${own.arm} · ${own.data}${own.state === "done" ? "" : " · " + own.state}` : "This module in every arm";
    document.getElementById("announced").textContent = part("title").textContent;
    fill(part("facts"), own ? own.facts : []);
    const modules = own_spectra?.modules ?? held.details.spectra.layouts[0]?.modules ?? [];
    const select = part("module");
    select.replaceChildren(...(own ? [new Option(`all ${modules.length}, median`, "")] : []), ...modules.map((one) => new Option(one, one)));
    select.value = module;
    select.parentElement.hidden = modules.length === 0;
    part("spectrum-part").hidden = held.details.spectra.layouts.length === 0;
    showSpectrum(at);
    showMap(at);
    part("losses-part").hidden = !own || own.loss.length + own.heldout.length === 0;
    if (own && own.loss.length + own.heldout.length) chart(part("losses"), "losses", [["training", own.loss], ["held-out", own.heldout]].flatMap(([kind, points]) => points.map(([step, loss]) => ({ arm: own.arm, kind, step, loss }))));
    const path = own && held.details.specs.path ? own[held.details.outcome] ?? [] : [];
    part("path-part").hidden = path.length < 2;
    part("path-title").textContent = held.details.outcomeTitle ?? "";
    if (path.length > 1) chart(part("path"), "path", path.map(([step, outcome]) => ({ arm: own.arm, step, outcome })));
    showAnswers(run);
    part("").scrollTop = 0;
    if (from) { opener = from; part("title").focus({ preventScroll: true }); }
  };
  const clicked = (datum) => {
    if (!datum) return;
    if (datum.layer !== undefined && datum.part !== undefined && datum.stable_rank !== undefined) {
      const label = typeof datum.run === "string" ? datum.run : "";
      const own = held.details.spectra.layouts.find(({ places }) => placed(datum, places).length);
      const name = own ? own.modules[placed(datum, own.places)[0]] : `layer ${datum.layer}, ${datum.part}`;
      choose(...(run === label && module === name ? ["", ""] : [label, name]));
    } else if (typeof datum.run === "string") choose(...(datum.run === run ? ["", ""] : [datum.run, module]));
  };
  for (const row of rowsOf) row.addEventListener("click", (event) => {
    if (String(getSelection())) return;
    const button = event.target.closest("button.pick");
    choose(...(row.dataset.run === run ? ["", ""] : [row.dataset.run, module, event.detail === 0 ? button : null]));
  });
  part("module").addEventListener("change", (event) => choose(run, event.target.value));
  part("close").addEventListener("click", () => choose("", ""));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (run || module) choose("", "");
    stress("");
  });
  const follow = () => {
    const wanted = new URLSearchParams(location.hash.slice(1)), [label, name] = [wanted.get("run") ?? "", wanted.get("module") ?? ""];
    if (label !== run || name !== module) choose(label, name);
  };
  window.addEventListener("hashchange", follow);
  if (location.hash.length > 1) follow();

  // Sorting: numbers as numbers, what is unknown last either way.
  for (const table of document.querySelectorAll("table.sorted")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.sort;
      const compare = (a, b) => (heading.classList.contains("number") ? a - b : a < b ? -1 : a > b ? 1 : 0) * (ascending ? 1 : -1);
      const rows = [...table.tBodies[0].rows].sort((a, b) => (value(a) === "") - (value(b) === "") || compare(value(a), value(b)));
      table.tBodies[0].append(...rows);
    }));
  }

  // Answers: the first few questions until more are asked for; a search or a filter goes over all of them.
  const answers = document.getElementById("answers");
  if (!answers) return;
  const FIRST = 5;
  const [search, flagged, found, more, misaligned, ofRun, question] = ["search", "flagged", "found", "more", "misaligned", "run", "question"].map((name) => document.getElementById("answers-" + name));
  const exchanges = [...answers.querySelectorAll(".exchange")].map((place) => ({
    place,
    text: place.querySelector("header").textContent.toLowerCase(),
    replies: [...place.querySelectorAll(".reply")].map((reply) => ({
      reply,
      details: reply.querySelector("details:not(.verdict)"),
      flagged: reply.hasAttribute("data-flagged"),
      misaligned: reply.hasAttribute("data-misaligned"),
      run: reply.dataset.run ?? "",
      short: reply.querySelector(".short")?.textContent.toLowerCase() ?? "",
      text: [...reply.children].filter((part) => !part.matches(".verdict")).map((part) => part.textContent).join(" ").toLowerCase(),
    })),
  }));
  let all = exchanges.length <= FIRST;
  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    // Only pages with verdicts have the last three filters. With one of the first two the base's answers stand beside what is found, and are not counted.
    const bad = misaligned?.checked ?? false, chosen = ofRun?.value ?? "", asked = question?.value ?? "";
    const beside = bad || chosen !== "";
    const free = wanted === "" && !flagged.checked && !beside && asked === "";
    let count = 0, questions = 0;
    exchanges.forEach(({ place, text, replies }, number) => {
      let any = 0;
      for (const one of replies) {
        const shown = (asked === "" || asked === String(number)) && (!flagged.checked || one.flagged) && (text.includes(wanted) || one.text.includes(wanted)) && (!bad || one.misaligned) && (chosen === "" || one.run === chosen) && !(beside && one.run === "");
        one.reply.hidden = !shown;
        if (wanted && one.details) one.details.open = one.text.includes(wanted) && !one.short.includes(wanted);
        any += shown;
      }
      if (beside) for (const one of replies) if (one.run === "") one.reply.hidden = any === 0;
      place.hidden = any === 0 || (free && !all && number >= FIRST);
      count += any;
      questions += any > 0;
    });
    found.textContent = free ? "" : `${count} answers to ${questions} questions${beside ? ", the base’s beside them" : ""}`;
    more.textContent = `Show all ${exchanges.length} questions`;
    more.parentElement.hidden = all || !free;
  };
  search.addEventListener("input", filter);
  for (const control of [flagged, misaligned, ofRun, question]) control?.addEventListener("change", filter);
  more.addEventListener("click", () => { all = true; filter(); });
  answers.querySelector(".filters").hidden = false;
  filter();
})();
