// Episodes token by token: a slider over the files, filters, a list, and the numbers of the token under the pointer or the focus.
{
  const KINDS = { training: "Training", evaluation: "Evaluation", teacher: "Teacher", other: "Other files" };
  // [key of the numbers, name]; those of `AGENT_ONLY` exist for agent tokens alone, and an advantage means something there alone.
  const NUMBERS = [["sampled", "log π sampled"], ["old", "log π old"], ["ref", `log π ${DATA.reference}`], ["kl", "KL"], ["value", "value"], ["advantage", "advantage"]];
  const AGENT_ONLY = ["old", "ref", "kl"];
  const get = (id) => document.getElementById(id);
  const { sets, pieces } = DATA.episodes;
  const state = { kind: null, sets: [], set: null, rows: [], episode: null, tokens: [], now: -1 };

  /** Whether an episode is wrong and carries the penalty: what a selective KL does is seen there. */
  const isPulled = (episode) => !episode.is_correct && Boolean(episode.tokens && episode.tokens.kl);
  const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

  function radio(name, value, label, isChecked) {
    return make("label", {}, make("input", { type: "radio", name, value, checked: isChecked }), make("span", {}, label));
  }

  /** The tokens of an episode in order, each with its author and numbers. */
  function tokensOf(episode) {
    const numbers = episode.tokens || {};
    const tokens = [];
    let nAgent = 0, nResponse = 0, turn = 0;
    for (const segment of episode.segments) {
      if (segment.author === "agent") turn += 1;
      segment.ids.forEach((id, i) => {
        const token = { id, author: segment.author, turn: segment.author === "prompt" ? 0 : turn, sampled: (segment.sampled || [])[i] };
        for (const [key] of NUMBERS.slice(1)) {
          const of = numbers[key];
          if (!of || segment.author === "prompt") continue;
          if (!AGENT_ONLY.includes(key)) { if (key !== "advantage" || segment.author === "agent") token[key] = of[nResponse]; }
          else if (segment.author === "agent") token[key] = of[nAgent];
        }
        if (segment.author === "agent") nAgent += 1;
        if (segment.author !== "prompt") nResponse += 1;
        tokens.push(token);
      });
    }
    return tokens;
  }

  function chooseKind() {
    state.kind = chosen("kind");
    state.sets = sets.filter((set) => set.kind === state.kind);
    const slider = get("step");
    slider.max = state.sets.length - 1;
    slider.disabled = state.sets.length < 2;
    // Training is most telling at its end, an evaluation of what was trained last; with the penalty shaded, where there is one.
    const last = get("shade").value === "kl" ? state.sets.findLastIndex((set) => set.episodes.some(isPulled)) : -1;
    slider.value = last < 0 ? state.sets.length - 1 : last;
    chooseSet();
  }

  function chooseSet() {
    state.set = state.sets[get("step").value];
    const text = `${state.set.label} (${state.set.file})`;
    get("step-label").textContent = text;
    get("step").setAttribute("aria-valuetext", text);
    fillList();
  }

  function fillList() {
    const filter = chosen("filter"), order = chosen("order"), words = get("find").value.trim().toLowerCase();
    const keeps = { all: () => true, wrong: (e) => !e.is_correct, correct: (e) => e.is_correct, invalid: (e) => e.n_invalid > 0 }[filter];
    const rank = { line: (e) => e.line, longest: (e) => -e.n_response, searches: (e) => -e.searches.length }[order];
    const { episodes } = state.set;
    state.rows = episodes.filter((e) => keeps(e) && e.question.toLowerCase().includes(words)).sort((a, b) => rank(a) - rank(b) || a.line - b.line);
    const nCorrect = state.rows.filter((e) => e.is_correct).length;
    const embedded = episodes.length < state.set.n_all ? `; the file has ${state.set.n_all}, of which ${episodes.length} are on this page` : "";
    get("count").textContent = `${state.rows.length} of ${episodes.length} episodes, ${nCorrect} correct${embedded}`;
    get("list").replaceChildren(...state.rows.map((episode, i) => {
      const verdict = make("span", { class: episode.is_correct ? "correct" : "wrong" }, episode.is_correct ? "✓ correct" : "✗ wrong");
      const invalid = episode.n_invalid ? `, ${episode.n_invalid} invalid` : "";
      const plural = episode.searches.length === 1 ? "search" : "searches";
      return make("div", { role: "option", id: `row-${i}`, tabindex: "-1", "data-line": episode.line, "aria-selected": "false" },
        episode.question, make("small", {}, verdict, ` · ${episode.n_response} tokens, ${episode.searches.length} ${plural}${invalid}`));
    }));
    // What the shades show is seen on an episode that has them: a wrong one, where the penalty is selective.
    const telling = get("shade").value === "kl" ? state.rows.findIndex(isPulled) : 0;
    showEpisode(Math.max(0, telling), false);
    const list = get("list"), row = list.querySelector('[aria-selected="true"]');
    if (row) list.scrollTop = row.offsetTop - list.offsetTop;
  }

  function showEpisode(i, isFocused) {
    const list = get("list");
    for (const row of list.querySelectorAll('[aria-selected="true"]')) { row.setAttribute("aria-selected", "false"); row.tabIndex = -1; }
    const row = list.children[i];
    get("token").hidden = true;
    state.now = -1;
    if (!row) {
      state.tokens = [];
      get("legend").hidden = true;
      get("about").replaceChildren(make("p", { class: "note" }, "No episode of this file fits the filter."));
      get("tokens").replaceChildren();
      return;
    }
    row.setAttribute("aria-selected", "true");
    row.tabIndex = 0;
    if (isFocused) { row.focus({ preventScroll: true }); row.scrollIntoView({ block: "nearest" }); }
    const episode = state.episode = state.rows[i];
    const fact = (what, ...value) => make("div", {}, make("dt", {}, what), make("dd", {}, ...value));
    const searches = episode.searches.map((s) => `“${s.query}” (${s.found_nothing ? "nothing found" : s.is_hit ? "gold answer found" : "no gold answer"})`).join("; ");
    get("about").replaceChildren(make("h3", {}, episode.question), make("dl", { class: "facts" },
      fact("gold", episode.gold.join(" | ")),
      fact("prediction", episode.prediction === null ? "none" : episode.prediction),
      fact("result", make("span", { class: episode.is_correct ? "correct" : "wrong" }, episode.is_correct ? "✓ correct" : "✗ wrong"), `, ${episode.status}`),
      fact("searches", searches || "none"),
      fact("data set", episode.dataset),
      fact("where", `${state.set.file}, line ${episode.line}`)));
    state.tokens = tokensOf(episode);
    drawTokens();
  }

  // Control characters, and those that order the text around them anew.
  const ACTING = /([\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069])/;

  /** A token's text: what cannot be seen gets a mark, and line ends still end lines. */
  function visible(piece) {
    const mark = (text) => make("span", { class: "mark" }, text);
    if (piece === "") return [mark("∅")];
    return piece.split(ACTING).filter(Boolean).flatMap((part) => {
      if (!ACTING.test(part)) return [part];
      if (part === "\n") return [mark("↵"), "\n"];
      if (part === "\t") return [mark("⇥"), "\t"];
      const code = part.charCodeAt(0);
      return [mark(code < 0x20 ? String.fromCharCode(0x2400 + code) : `U+${code.toString(16).toUpperCase().padStart(4, "0")}`)];
    });
  }

  function drawTokens() {
    const place = get("tokens");
    let at = 0, turn = 0;
    place.replaceChildren(...state.episode.segments.map((segment) => {
      if (segment.author === "agent") turn += 1;
      const title = { prompt: "Prompt", agent: `Agent, turn ${turn}: trained on`, observation: `Observation: ${segment.kind}` }[segment.author];
      const text = make("p", {}, ...segment.ids.map((id) => {
        const span = make("span", { class: "t", tabindex: "-1", "data-at": at }, ...visible(pieces[id]));
        state.tokens[at].span = span;
        at += 1;
        return span;
      }));
      return make("div", { class: `turn ${segment.author}`, role: "group", "aria-label": title }, make("b", {}, title), text);
    }));
    const first = state.tokens.find((token) => token.author === "agent") || state.tokens[0];
    if (first) first.span.tabIndex = 0;
    shade();
  }

  /** Tokens tinted by one of their numbers: warm above zero, cool below, stronger the larger. */
  function shade() {
    const key = get("shade").value;
    get("tokens").classList.toggle("shaded", key !== "");
    const of = (token) => (key === "old" ? token.old ?? token.sampled : token[key]);
    const numbers = key ? state.tokens.map(of).filter((value) => value !== undefined && value !== null) : [];
    const largest = Math.max(1e-9, ...numbers.map(Math.abs));
    explain(key, numbers);
    for (const token of state.tokens) {
      const value = of(token);
      token.span.removeAttribute("style");
      if (key && value !== undefined && value !== null) {
        token.span.style.setProperty("--heat", value > 0 ? "var(--warm)" : "var(--accent)");
        token.span.style.setProperty("--amount", `${Math.round((75 * Math.abs(value)) / largest)}%`);
      }
    }
  }

  /** What the shades mean, or why there are none. */
  function explain(key, numbers) {
    const legend = get("legend");
    legend.hidden = key === "" || !state.episode;
    if (legend.hidden) return;
    const [, name] = NUMBERS.find(([known]) => known === key);
    if (!numbers.length) { legend.replaceChildren(key === "kl" ? whyNoPenalty() : `No ${name} was recorded for this episode.`); return; }
    const [least, most] = [Math.min(0, ...numbers), Math.max(0, ...numbers)];
    const end = (value, colour) => (value === 0 ? "var(--grey-soft)" : `color-mix(in srgb, ${colour} 75%, var(--grey-soft))`);
    const colours = [end(least, "var(--accent)"), ...(least < 0 && most > 0 ? [`var(--grey-soft) ${(100 * -least) / (most - least)}%`] : []), end(most, "var(--warm)")];
    const bar = make("span", { class: "ramp", style: `background: linear-gradient(to right, ${colours.join(", ")})`, "aria-hidden": "true" });
    const unit = ["old", "ref", "kl"].includes(key) ? ", nats a token" : "";
    const whose = key === "kl" && DATA.kl === "selective" && !state.episode.is_correct
      ? "This episode is wrong: every token of the agent is pulled towards the " + DATA.reference + ". " : "";
    const scale = make("span", { class: "scale" }, make("b", {}, shown(least).replace("-", "−")), bar, make("b", {}, shown(most)));
    legend.replaceChildren(`${whose}${name}${unit}: `, scale, " · warm above 0, cool below, the stronger the further; tokens without a number are grey.");
  }

  /** Why no token of the episode carries the penalty. */
  function whyNoPenalty() {
    if (DATA.kl === null || DATA.kl === "none") return "No shades: this run has no KL penalty.";
    if (state.set.kind !== "training") return "No shades: episodes of this kind are not trained on, so they carry no penalty.";
    if (state.episode.is_correct && DATA.kl === "selective") {
      return `No shades: this episode is correct, and the selective KL acts on wrong ones alone. The ${DATA.reference} has not read it, and nothing of it is pulled.`;
    }
    return "No shades: no KL was recorded for this episode.";
  }

  /** Shows the numbers of a token, and lets the tab key come back to it. */
  function showToken(i) {
    const token = state.tokens[i];
    if (!token) return;
    if (state.now >= 0) state.tokens[state.now].span.classList.remove("now");
    state.now = i;
    for (const span of get("tokens").querySelectorAll('.t[tabindex="0"]')) span.tabIndex = -1;
    token.span.tabIndex = 0;
    token.span.classList.add("now");
    const rows = [["token", pieces[token.id]], ["position, id", `${i}, ${token.id}`], ["author", token.author], ["loss mask", token.author === "agent" ? "1 (trained)" : "0"]];
    for (const [key, name] of NUMBERS) if (token[key] !== undefined) rows.push([name, token[key] === null ? "not finite" : token[key].toFixed(4)]);
    if (token.author === "agent" && state.episode.tokens && token.ref === undefined && token.kl === undefined) rows.push([`log π ${DATA.reference}`, "not computed: no penalty here"]);
    const panel = get("token");
    panel.replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { class: name === "token" ? "piece" : false, "data-of": name }, value))));
    panel.hidden = false;
    token.span.setAttribute("aria-label", rows.map((row) => row.join(" ")).join(", "));
  }

  function moved(key) {
    const { tokens, now } = state, last = tokens.length - 1;
    const isStart = (i) => i === 0 || tokens[i].author !== tokens[i - 1].author || tokens[i].turn !== tokens[i - 1].turn;
    const search = (i, by) => { while (i > 0 && i < last && !isStart(i)) i += by; return Math.min(Math.max(i, 0), last); };
    return { ArrowLeft: () => Math.max(0, now - 1), ArrowRight: () => Math.min(last, now + 1), ArrowUp: () => search(now - 1, -1),
      ArrowDown: () => search(now + 1, 1), Home: () => 0, End: () => last }[key];
  }

  const atOf = (event) => { const span = event.target.closest(".t"); return span ? Number(span.dataset.at) : null; };

  function start() {
    const kinds = Object.keys(KINDS).filter((kind) => sets.some((set) => set.kind === kind && set.episodes.length));
    if (!kinds.length) return;
    get("viewer").hidden = false;
    get("kind").append(...kinds.map((kind, i) => radio("kind", kind, KINDS[kind], i === 0)));
    get("kind").addEventListener("change", chooseKind);
    get("step").addEventListener("input", chooseSet);
    for (const id of ["filter", "order"]) get(id).addEventListener("change", fillList);
    get("find").addEventListener("input", fillList);
    get("shade").addEventListener("change", shade);
    if (sets.some((set) => set.episodes.some(isPulled))) get("shade").value = "kl";
    const list = get("list"), tokens = get("tokens");
    const indexOf = (event) => [...list.children].indexOf(event.target.closest('[role="option"]'));
    list.addEventListener("click", (event) => { if (indexOf(event) >= 0) showEpisode(indexOf(event), true); });
    list.addEventListener("keydown", (event) => {
      const i = indexOf(event), last = list.children.length - 1;
      const next = { ArrowDown: Math.min(i + 1, last), ArrowUp: Math.max(i - 1, 0), Home: 0, End: last }[event.key];
      if (i < 0 || next === undefined) return;
      event.preventDefault();
      showEpisode(next, true);
    });
    tokens.addEventListener("pointerover", (event) => { if (atOf(event) !== null) showToken(atOf(event)); });
    tokens.addEventListener("focusin", (event) => { if (atOf(event) !== null) showToken(atOf(event)); });
    tokens.addEventListener("click", (event) => { if (atOf(event) !== null) state.tokens[atOf(event)].span.focus({ preventScroll: true }); });
    tokens.addEventListener("keydown", (event) => {
      const next = moved(event.key);
      if (!next || atOf(event) === null) return;
      event.preventDefault();
      const { span } = state.tokens[next()];
      span.focus({ preventScroll: true });
      span.scrollIntoView({ block: "nearest" });
    });
    chooseKind();
  }
  start();
}
