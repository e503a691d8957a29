(() => {
  "use strict";
  const { specs, config } = JSON.parse(document.getElementById("payload").textContent);
  const options = { mode: "vega-lite", ast: true, actions: false, renderer: "svg", defaultStyle: false, config, tooltip: { disableDefaultStyle: true } };
  const views = [];
  const drawn = [...document.querySelectorAll(".chart")].map(async (place) => {
    const { view } = await vegaEmbed(place, specs[place.dataset.spec], options);
    views.push(view);
  });
  Promise.all(drawn).then(() => { document.documentElement.dataset.drawn = String(views.length); });

  // One legend for all figures: the chosen arm is stressed everywhere, a second click frees it.
  const arms = [...document.querySelectorAll(".legend button")];
  const stress = (arm) => {
    for (const button of arms) button.setAttribute("aria-pressed", String(button.dataset.arm === arm));
    for (const panel of document.querySelectorAll(".panel[data-arm]")) panel.classList.toggle("faint", arm !== "" && panel.dataset.arm !== arm);
    for (const view of views) view.signal("shown", arm).runAsync();
  };
  for (const button of arms) button.addEventListener("click", () => stress(button.getAttribute("aria-pressed") === "true" ? "" : button.dataset.arm));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stress(""); });

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
  const [search, flagged, found, more, misaligned, run, question] = ["search", "flagged", "found", "more", "misaligned", "run", "question"].map((name) => document.getElementById("answers-" + name));
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
    const bad = misaligned?.checked ?? false, chosen = run?.value ?? "", asked = question?.value ?? "";
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
  for (const control of [flagged, misaligned, run, question]) control?.addEventListener("change", filter);
  more.addEventListener("click", () => { all = true; filter(); });
  answers.querySelector(".filters").hidden = false;
  filter();
})();
