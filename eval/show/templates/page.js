"use strict";
// Goes through the answers embedded in the page. What a model wrote only ever becomes text.
(() => {
  const { labels, problems, answers } = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const filters = {};
  for (const name of ["arm", "tier", "status", "rule", "gap"]) filters[name] = at(`filter-${name}`);
  const beside = at("filter-beside");
  const cards = [at("sample"), at("sample").cloneNode(true)];
  cards[1].removeAttribute("id");
  at("pair").append(cards[1]);
  let card = cards[0]; // that is drawn on
  const part = (name) => card.querySelector(`[data-part="${name}"]`);
  const SYMBOL = { optimal: "✓", feasible: "○", infeasible: "✕", unparsable: "?" };
  let shown = [];
  let place = 0;

  function make(tag, classes, text) {
    const element = document.createElement(tag);
    if (classes) element.className = classes;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  const clock = (minutes) =>
    `${String(Math.floor(minutes / 60)).padStart(2, "0")}:${String(minutes % 60).padStart(2, "0")}`;
  const title = (answer) => `${labels[answer.arm]}, answer ${answer.sample + 1}`;

  // What is to be said of each event of the problem, and of the answer's own inventions.
  function eventsOf(answer) {
    const problem = problems[answer.problem];
    const own = problem.events.map(([name, start, end, value, priority, gold], i) => ({
      name, start, end, value, priority, gold, stray: "",
      chosen: answer.chosen.includes(i),
      overlapping: answer.overlapping.includes(i),
      broken: answer.broken.includes(i),
    }));
    const strays = answer.strays.map(([name, start, end, what, overlapping, broken]) => ({
      name, start, end, value: null, priority: false, gold: false, stray: what,
      chosen: true, overlapping, broken,
    }));
    putInLanes(own);
    putInLanes(strays);
    return [...own, ...strays];
  }

  // Gives each event a lane, so that no two in a lane overlap. Events that share no minute with each
  // other, by way of others too, may have different numbers of lanes.
  function putInLanes(events) {
    let group = [];
    let ends = [];
    const sorted = [...events].sort((a, b) => a.start - b.start || a.end - b.end);
    for (const event of sorted) {
      if (ends.every((end) => end <= event.start)) [group, ends] = [[], []];
      const free = ends.findIndex((end) => end <= event.start);
      event.lane = free < 0 ? ends.length : free;
      ends[event.lane] = Math.max(event.start, event.end);
      group.push(event);
      for (const other of group) other.lanes = ends.length;
    }
  }

  function words(event) {
    const said = [];
    if (event.priority) said.push("priority");
    said.push(event.stray || (event.chosen ? "chosen" : "not chosen"));
    if (event.gold) said.push("in the optimal schedule");
    if (event.overlapping) said.push("overlapping");
    if (event.broken) said.push(event.chosen ? "breaks a rule" : "named by a broken rule");
    return said.join(", ");
  }

  function drawDay(problem, events) {
    const day = part("day");
    const minutes = problem.to - problem.from;
    const scale = Math.max(0.85, Math.min(1.3, 560 / minutes));
    day.replaceChildren();
    day.style.height = `${minutes * scale}px`;
    for (let hour = problem.from; hour <= problem.to; hour += 60) {
      const line = make("div", "hour");
      line.style.top = `${(hour - problem.from) * scale}px`;
      line.append(make("span", "", clock(hour)));
      day.append(line);
    }
    const strayed = events.some((event) => event.stray);
    const lanes = make("div", strayed ? "lanes narrow" : "lanes");
    const aside = make("div", "lanes aside");
    for (const event of events) {
      const start = Math.min(Math.max(event.start, problem.from), problem.to);
      const end = Math.min(Math.max(event.end, start), problem.to);
      const height = Math.max((end - start) * scale, 4);
      const bar = make("div", "event");
      for (const kind of ["chosen", "gold", "overlapping", "broken"])
        if (event[kind]) bar.classList.add(kind);
      if (event.stray) bar.classList.add("stray");
      if (height < 20) bar.classList.add("flat");
      if (height > 56) bar.classList.add("tall");
      bar.style.top = `${(start - problem.from) * scale}px`;
      bar.style.height = `${height - 1}px`;
      bar.style.left = `${(100 * event.lane) / event.lanes}%`;
      bar.style.width = `calc(${100 / event.lanes}% - 3px)`;
      const times = `${clock(event.start)} – ${clock(event.end)}`;
      bar.title = `${event.name}, ${times}: ${words(event)}`;
      const signs = make("span", "signs");
      if (event.broken) signs.append(make("i", "", "!"));
      signs.append(`${event.gold ? "◆" : ""}${event.priority ? "★" : ""}`);
      bar.append(signs);
      bar.append(make("bdi", "name", event.name || "(no name)"));
      if (height > 36) bar.append(make("span", "times", times));
      (event.stray ? aside : lanes).append(bar);
    }
    day.append(lanes);
    if (strayed) day.append(aside);
    day.setAttribute("role", "img");
    day.setAttribute("aria-label", "The events of the day as bars; the list below says the same.");
  }

  function drawList(events) {
    const table = make("table");
    const head = make("tr");
    for (const text of ["event", "time", "weighted minutes", ""]) {
      const cell = make("th", "", text);
      cell.scope = "col";
      head.append(cell);
    }
    table.createTHead().append(head);
    const body = table.createTBody();
    for (const event of events) {
      const row = body.insertRow();
      const name = make("th");
      name.scope = "row";
      name.append(make("bdi", "", event.name || "(no name)"));
      row.append(name);
      const value = event.value === null ? "" : String(event.value);
      for (const text of [`${clock(event.start)} – ${clock(event.end)}`, value, words(event)])
        row.append(make("td", "", text));
    }
    part("list").replaceChildren(table);
  }

  function drawFacts(answer, problem) {
    const heading = part("title");
    const chip = make("span", `chip s-${answer.status}`);
    chip.append(make("b", "", `${SYMBOL[answer.status] || ""} ${answer.status}`));
    const link = make("a", "link", "link");
    link.href = `#${encodeURIComponent(answer.anchor)}`;
    heading.replaceChildren(make("span", "", title(answer)), " ", chip, " ", link);
    card.setAttribute("aria-label", `${title(answer)}, ${answer.status}`);
    const [right, asked] = problem.solved[answer.arm];
    const share = Math.round((100 * answer.objective) / problem.optimum);
    const facts = [
      `${problem.tier}, ${problem.id}`,
      answer.violations.length
        ? `the optimum is ${problem.optimum} weighted minutes`
        : `${answer.objective} of ${problem.optimum} weighted minutes (${share} %)`,
      `${labels[answer.arm]} is optimal in ${right} of its ${asked} answers here`,
    ];
    if (answer.tokens) facts.push(`${answer.tokens} tokens`);
    if (answer.finish && answer.finish !== "stop") facts.push(`ended by ${answer.finish}`);
    part("facts").replaceChildren(...facts.map((text) => make("span", "", text)));
    // One line a kind: an answer with every event breaks the same rule many times.
    const kinds = new Map();
    for (const text of answer.violations) {
      const colon = text.indexOf(": ");
      const kind = colon < 0 ? text : text.slice(0, colon);
      kinds.set(kind, [...(kinds.get(kind) || []), ...(colon < 0 ? [] : [text.slice(colon + 2)])]);
    }
    const broken = [...kinds].map(([kind, whats]) => {
      const item = make("li");
      item.append(make("b", "", kind.replaceAll("_", " ")));
      whats.forEach((what, i) => item.append(i ? "; " : " ", make("bdi", "", what)));
      return item;
    });
    if (answer.more_violations) broken.push(make("li", "", `and ${answer.more_violations} more`));
    part("violations").replaceChildren(...broken);
    part("violations").hidden = !broken.length;
  }

  function drawSame(answer) {
    const chips = answers
      .filter((other) => other.problem === answer.problem)
      .map((other) => {
        const item = make("li");
        const button = make("button", "", `${title(other)} ${SYMBOL[other.status] || ""}`);
        button.type = "button";
        button.setAttribute("aria-label", `${title(other)}, ${other.status}`);
        if (other === answer) button.setAttribute("aria-current", "true");
        button.addEventListener("click", () => jump(other));
        item.append(button);
        return item;
      });
    part("same").replaceChildren(...chips);
  }

  function draw() {
    const empty = !shown.length;
    cards[0].hidden = empty;
    cards[1].hidden = empty || !beside.value;
    at("none").hidden = !empty;
    at("back").disabled = at("next").disabled = shown.length < 2;
    at("place").textContent = empty ? "0 of 0" : `${place + 1} of ${shown.length}`;
    if (empty) return;
    const answer = shown[place];
    at("pair").classList.toggle("paired", Boolean(beside.value));
    [answer, partner(answer)].forEach((one, i) => {
      card = cards[i];
      if (one) drawCard(one);
    });
  }

  // The answer of the arm beside to the same problem.
  const partner = (answer) =>
    answers.find((one) => one.problem === answer.problem && one.arm === beside.value);

  function drawCard(answer) {
    const problem = problems[answer.problem];
    const events = eventsOf(answer);
    drawFacts(answer, problem);
    drawDay(problem, events);
    drawList(events);
    drawSame(answer);
    const strays = answer.more_strays ? ` (${answer.more_strays} more answered events not drawn)` : "";
    part("day-title").textContent = `The day${strays}`;
    part("text").textContent = answer.text || "(nothing)";
    part("cut").textContent = answer.cut
      ? `${answer.cut.toLocaleString("en")} more characters are left out here.`
      : "";
    part("prompt").textContent = problem.prompt;
  }

  // Whether of "one other" the first solves a problem and the second never does.
  function apart(problem, pair) {
    const [one, other] = pair.split(" ").map((arm) => problem.solved[arm] || [0, 0]);
    return one[0] > 0 && other[1] > 0 && other[0] === 0;
  }

  function filter() {
    shown = answers.filter(
      (answer) =>
        (!beside.value || (answer.arm !== beside.value && partner(answer))) &&
        (!filters.gap.value || apart(problems[answer.problem], filters.gap.value)) &&
        (!filters.rule.value ||
          answer.violations.some((text) => text.split(": ")[0] === filters.rule.value)) &&
        (!filters.arm.value || answer.arm === filters.arm.value) &&
        (!filters.tier.value || problems[answer.problem].tier === filters.tier.value) &&
        (!filters.status.value || answer.status === filters.status.value),
    );
    place = 0;
    draw();
  }

  function jump(answer) {
    if (!shown.includes(answer)) {
      for (const select of [...Object.values(filters), beside]) select.value = "";
      shown = answers;
    }
    place = shown.indexOf(answer);
    draw();
    history.replaceState(null, "", `#${encodeURIComponent(answer.anchor)}`);
    at("sample").focus({ preventScroll: true });
    at("browser").scrollIntoView({ block: "start" });
  }

  function go(step) {
    if (!shown.length) return;
    place = (place + step + shown.length) % shown.length;
    draw();
    const seen = at("browser").getBoundingClientRect();
    if (seen.bottom < 80 || seen.top > window.innerHeight - 160)
      at("browser").scrollIntoView({ block: "start" });
  }

  const KEYS = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 };
  document.addEventListener("keydown", (event) => {
    const step = KEYS[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    // Arrows belong to what has the focus: a menu, or a table that scrolls sideways.
    if (event.target.closest("select, input, textarea")) return;
    if (event.key.length > 1 && event.target.closest("[data-scroll]")) return;
    event.preventDefault();
    go(step);
  });
  at("next").addEventListener("click", () => go(1));
  at("back").addEventListener("click", () => go(-1));
  for (const select of [...Object.values(filters), beside])
    select.addEventListener("change", filter);
  at("browser").hidden = false;
  filter();
  // A link to one answer.
  function follow() {
    const named = decodeURIComponent(location.hash.slice(1));
    const answer = answers.find((one) => one.anchor === named);
    if (answer) jump(answer);
  }
  window.addEventListener("hashchange", follow);
  follow();
})();
