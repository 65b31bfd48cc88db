// Pick one fact by search; show its grid and its edits.
(() => {
  const select = at("fact");
  if (!select) return;
  const search = at("search"), traceSelect = at("trace"), grid = at("grid"), readout = at("readout");
  const choices = { problem: at("edit-problem"), method: at("edit-method"), layer: at("edit-layer") };
  const seen = (token) => token.replace(/^ +| +$/g, "").replace(/[\n\r]/g, "⏎").replace(/\t/g, "⇥") || "␣";
  let fact = null, trace = null, cells = [], current = [0, 0];

  // -- search ---------------------------------------------------------------------------------------------

  const plain = (text) => text.toLowerCase().normalize("NFD").replace(/\p{M}/gu, "");
  const texts = data.facts.map((one) => plain([one.subject, one.target_true, one.target_false, one.relation, one.prompt, one.id].join("\n")));
  const leftOut = (one) => one.traces.length > 0 && one.traces.every((t) => t.kept === false);
  const options = data.facts.map((one, index) => {
    const relation = one.relation ? `  (${one.relation})` : "";
    return make("option", `${seen(one.subject || one.id)} → ${seen(one.target_true || "?")}${relation}${leftOut(one) ? ", left out" : ""}`, { value: index });
  });

  function filter() {
    const words = plain(search.value).split(/\s+/).filter(Boolean);
    const found = options.filter((_, index) => words.every((word) => texts[index].includes(word)));
    select.replaceChildren(...found);
    at("matches").textContent = `${found.length} of ${options.length} facts${words.length ? " match" : ""}`;
    select.value = fact ? String(data.facts.indexOf(fact)) : "";
    return found;
  }

  function pick(index) {
    showFact(index);
    history.replaceState(null, "", `#fact=${encodeURIComponent(fact.id)}`);
  }

  search.addEventListener("input", filter);
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "ArrowDown") return;
    const found = filter();
    if (!found.length) return;
    event.preventDefault();
    pick(Number(found[0].value));
    if (event.key === "ArrowDown") select.focus();
  });
  select.addEventListener("change", () => pick(Number(select.value)));

  // -- grid -----------------------------------------------------------------------------------------------

  // Even ticks: every layer, or every second, fifth or tenth.
  const stepOf = (layers, most) => [1, 2, 5, 10, 20].find((step) => layers / step <= most) ?? 50;
  const ramp = (share) => data.colors[Math.max(0, Math.min(data.colors.length - 1, Math.round(share * (data.colors.length - 1))))];

  function describe(row, layer) {
    const p = trace.p[row][layer], sem = trace.sem[row][layer], effect = trace.effect[row][layer];
    const subject = row >= trace.begin && row < trace.end ? " (subject)" : "";
    const share = effect === null || effect === undefined ? "no effect defined (the corruption did not hurt)" : `effect ${shown(effect)}`;
    return `token “${seen(trace.tokens[row] || "")}”${subject}, layer ${layer}: p_restored ${shown(p)} ± ${shown(sem)}, ${share}`;
  }

  function enter(row, layer, focus) {
    cells[current[0]][current[1]].tabIndex = -1;
    current = [row, layer];
    cells[row][layer].tabIndex = 0;
    if (focus) cells[row][layer].focus();
    readout.textContent = describe(row, layer);
  }

  // The same as color_range in draw.py.
  function colorRange() {
    const all = trace.p.flat().filter((p) => p !== null), low = Math.min(...all);
    if (trace.p_noised === null) return [low, Math.max(trace.p_clean, low + 1e-6)];
    const least = Math.min(trace.p_noised, low);
    return [least, Math.max(...all, least + Math.max(0.1 * (trace.p_clean - trace.p_noised), 1e-6))];
  }

  function drawGrid() {
    grid.replaceChildren();
    at("tracing-grid").hidden = !trace || !trace.p.length;
    cells = [];
    if (!trace || !trace.p.length) return;
    const layers = trace.p[0].length, [low, high] = colorRange();
    const edited = new Set(fact.edits.layer);
    const head = grid.appendChild(make("thead")).appendChild(make("tr"));
    head.appendChild(make("th", "layer", { scope: "col" }));
    const step = stepOf(layers, 16);
    for (let layer = 0; layer < layers; layer++) {
      const words = `layer ${layer}${edited.has(layer) ? ", edited" : ""}`;
      const cell = head.appendChild(make("th", null, { scope: "col", "aria-label": words, class: edited.has(layer) ? "edited" : "" }));
      if (layer % step === 0) cell.textContent = layer;
    }
    const body = grid.appendChild(make("tbody"));
    let best = [0, 0];
    trace.p.forEach((values, row) => {
      const line = body.appendChild(make("tr"));
      const subject = row >= trace.begin && row < trace.end;
      line.appendChild(make("th", seen(trace.tokens[row] || "") + (subject ? "*" : ""), { scope: "row", class: subject ? "subject" : "" }));
      cells.push(values.map((p, layer) => {
        const cell = line.appendChild(make("td", null, { tabindex: "-1", "aria-label": describe(row, layer) }));
        if (p !== null) {
          cell.style.background = ramp((p - low) / (high - low));
          if (p > (trace.p[best[0]][best[1]] ?? -1)) best = [row, layer];
        }
        for (const kind of ["mouseenter", "focus", "pointerdown"]) cell.addEventListener(kind, () => enter(row, layer, false));
        return cell;
      }));
    });
    current = best;
    enter(best[0], best[1], false);
    readout.textContent += " (the highest cell)";
    at("ramp-low").textContent = `p_restored ${shown(low)}`;
    at("ramp-high").textContent = shown(high);
    at("ramp-note").textContent = `* subject token${trace.p_noised === null || trace.counterfactuals ? "" : ", noised"}`;
    at("ramp").style.background = `linear-gradient(to right, ${data.colors.join(", ")})`;
  }

  grid.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || !cells.length) return;
    event.preventDefault();
    const row = Math.max(0, Math.min(cells.length - 1, current[0] + step[0]));
    enter(row, Math.max(0, Math.min(cells[row].length - 1, current[1] + step[1])), true);
  });

  // The grid as a drawing of its own, for a file.
  function gridDrawing() {
    const layers = trace.p[0].length, [low, high] = colorRange(), wide = 15, tall = 18;
    const labels = trace.p.map((_, row) => seen(trace.tokens[row] || "") + (row >= trace.begin && row < trace.end ? "*" : ""));
    const left = 24 + 7 * Math.max(...labels.map((label) => label.length)), width = Math.max(left + wide * layers + 24, 430);
    const drawing = pictures.page(width), ink = "#1b2027";
    const say = (text, x, y, attributes) => drawing.append(svgMake("text", { x, y, fill: ink, ...attributes }, text));
    const done = /(^|-)noise$/.test(trace.localization) ? "corrupted" : trace.localization === "zero" ? "zeroed" : "restored";
    let y = pictures.write(drawing, `${trace.model} · ${trace.module} · ${trace.localization} · window ${trace.window_size}`, 12, 8, width / 7, { "font-weight": 600 });
    const noised = trace.p_noised === null ? "" : `, ${trace.counterfactuals ? "counterfactual" : "noised"} ${shown(trace.p_noised)}`;
    y = pictures.write(drawing, `p(${seen(fact.target_true)}) clean ${shown(trace.p_clean)}${noised}`, 12, y, width / 7) + 6;
    trace.p.forEach((values, row) => {
      say(labels[row], left - 8, y + tall * (row + 0.7), { "text-anchor": "end" });
      values.forEach((p, layer) => {
        if (p !== null) drawing.append(svgMake("rect", { x: left + wide * layer, y: y + tall * row, width: wide + 0.3, height: tall + 0.3, fill: ramp((p - low) / (high - low)) }));
      });
    });
    y += tall * labels.length;
    for (let layer = 0; layer < layers; layer += stepOf(layers, 16)) say(layer, left + wide * (layer + 0.5), y + 14, { "text-anchor": "middle" });
    const centre = trace.window_size === 1 ? "" : `, centre of a window of ${trace.window_size}`;
    say(`${done} layer (0-based)${centre}`, left, y + 30);
    say("* subject token", 12, y + 30);
    data.colors.forEach((color, place) => drawing.append(svgMake("rect", { x: left + 4 * place, y: y + 40, width: 4.3, height: 10, fill: color })));
    say(shown(low), left, y + 63);
    say(`${shown(high)}  p(${seen(fact.target_true)}) with the layer ${done} (probability)`, left + 4 * data.colors.length, y + 63, {});
    return pictures.ended(drawing, width, y + 74);
  }

  function gridText() {
    const head = ["token", ...trace.p[0].map((_, layer) => layer)];
    const rows = trace.p.map((values, row) => [tables.quoted(trace.tokens[row] || ""), ...values.map((p) => p ?? "")]);
    return [head, ...rows].map((row) => row.join(",")).join("\n") + "\n";
  }

  const nameOfGrid = () => `heatmap-${fact.id.replace(/[^\w.-]+/g, "_").slice(0, 60)}`;
  pictures.offer(at("grid-saves"), nameOfGrid, () => "the fact’s heatmap", gridDrawing);
  tables.offer(at("grid-saves"), nameOfGrid, "the fact’s heatmap", gridText);

  // -- edits ----------------------------------------------------------------------------------------------

  // The trace that a group's edits are compared with: the trace shown if it fits, else the fact's first that fits.
  function traceOf(group) {
    const fits = (t) => t && t.model === group.model && t.protocol === group.protocol && t.window_size === group.window_size && t.by_layer.length;
    const own = (t) => fits(t) && t.own; // the paper's way, which is of the MLPs
    return fits(trace) ? trace : fact.traces.find(own) ?? fact.traces.find(fits);
  }

  const effectAt = (group, layer) => traceOf(group)?.by_layer[layer] ?? null;

  function chosenEdits() {
    const edits = fact.edits, places = edits.layer.map((_, place) => place);
    return places.filter((place) => {
      const group = data.groups[edits.group[place]];
      const values = { problem: group.problem, method: group.method, layer: String(edits.layer[place]) };
      return Object.entries(choices).every(([key, list]) => !list.value || list.value.slice(1) === values[key]);
    });
  }

  function offer(list, values, start) {
    const before = list.value;
    list.replaceChildren(make("option", "all", { value: "" }), ...values.map((value) => make("option", value, { value: `=${value}` })));
    list.value = values.includes(before.slice(1)) || (before === "" && start === undefined) ? before : start ?? "";
    list.parentNode.hidden = values.length < 2;
  }

  let begun = false;
  function offerEdits() {
    const groups = [...new Set(fact.edits.group)].map((number) => data.groups[number]);
    const problems = [...new Set(groups.map((group) => group.problem))];
    // A fact with many edits starts with one problem. The reader's choice is kept from fact to fact.
    const first = !begun && fact.edits.layer.length > 40 && problems.length > 1 ? `=${problems[0]}` : undefined;
    offer(choices.problem, problems, first);
    offer(choices.method, [...new Set(groups.map((group) => group.method))]);
    offer(choices.layer, [...new Set(fact.edits.layer)].sort((a, b) => a - b).map(String));
    if (fact.edits.layer.length) begun = true;
  }

  function drawEdits() {
    const edits = fact.edits, places = chosenEdits();
    at("edits-part").hidden = !edits.layer.length;
    at("no-edits").hidden = edits.layer.length > 0;
    at("edits-shown").textContent = `${places.length} of ${edits.layer.length} edits shown`;
    const body = at("edits").tBodies[0];
    body.replaceChildren(...places.map((place) => {
      const line = make("tr"), group = data.groups[edits.group[place]], reason = edits.reason[place];
      line.append(make("th", group.problem, { scope: "row" }), make("td", group.name.replace(`${group.problem} · `, "")));
      line.append(make("td", edits.layer[place], { class: "n" }), make("td", three(effectAt(group, edits.layer[place])), { class: "n" }));
      for (const key of ["rewrite", "paraphrase", "neighborhood", "essence", "overall", "p_before", "p_after", "p_true_before", "p_true_after"]) {
        line.append(make("td", three(edits[key][place]), { class: "n" }));
      }
      const success = edits.success[place];
      const told = success === null ? "–" : success ? "yes" : "no";
      // An edit with a reason and scores is zero. An edit with a reason and no scores was not made.
      line.append(make("td", !reason ? told : `${edits.p_before[place] === null ? "not edited" : told}: ${reason}`));
      line.append(make("td", edits.target[place] === undefined ? "–" : seen(edits.target[place])));
      return line;
    }));
    at("edits").closest(".scroll").classList.toggle("long", places.length > 24);
    tables.resort(at("edits"));
    drawByLayer(places);
  }

  // Tracing effects and rewrite scores, with one column per layer.
  function drawByLayer(places) {
    const table = at("by-layer"), edits = fact.edits;
    table.replaceChildren(make("caption"));
    const layers = [...new Set(places.map((place) => edits.layer[place]))].sort((a, b) => a - b);
    const head = table.appendChild(make("thead")).appendChild(make("tr"));
    head.append(make("th", "layer", { scope: "col" }), ...layers.map((layer) => make("th", layer, { scope: "col", class: "n" })));
    const body = table.appendChild(make("tbody")), lines = new Map(), effects = new Map();
    for (const place of places) {
      const number = edits.group[place], group = data.groups[number], found = traceOf(group);
      if (found) effects.set(found, `tracing effect${fact.traces.length > 1 ? `, ${found.name}` : ""}`);
      if (!lines.has(number)) lines.set(number, new Map());
      lines.get(number).set(edits.layer[place], edits.rewrite[place]);
    }
    const what = effects.size ? "Tracing effect (largest over tokens) and rewrite score" : "Rewrite score";
    table.caption.append(make("span", `${what} at each edited layer.`));
    const add = (name, value) => body.appendChild(make("tr")).append(make("th", name, { scope: "row" }), ...layers.map((layer) => make("td", three(value(layer)), { class: "n" })));
    for (const [found, name] of effects) add(name, (layer) => found.by_layer[layer]);
    for (const [number, scores] of lines) add(`rewrite: ${data.groups[number].name}`, (layer) => scores.get(layer));
  }

  for (const list of Object.values(choices)) list.addEventListener("change", drawEdits);

  // -- the fact -------------------------------------------------------------------------------------------

  // Quoted for a POSIX shell and for SQL, so that no id or path can end the quotes.
  const shell = (text) => `'${text.replace(/'/g, `'\\''`)}'`;
  const literal = (text) => `'${text.replace(/'/g, "''")}'`;

  function reproduce() {
    const code = at("fact-code"), store = code.dataset.store, id = literal(fact.id);
    const lines = [`fasttrace sql ${shell(`SELECT * FROM edits WHERE fact_id = ${id} ORDER BY problem, method, layer`)} ${store} --json`];
    if (trace && trace.p.length) {
      const one = `run_id = '${trace.trace_run_id}' AND fact_id = ${id} AND window_size = ${trace.window_size}`;
      lines.push(`fasttrace sql ${shell(`SELECT layer, effect, effect_last_subject FROM trace_effects WHERE ${one} ORDER BY layer`)} ${store} --json`);
      lines.push(`fasttrace sql ${shell(`SELECT * FROM trace_cells WHERE ${one} ORDER BY token_index, layer`)} ${store} --json`);
    }
    code.textContent = lines.join("\n");
  }

  function showTrace(index) {
    trace = fact.traces[index] || null;
    const words = [];
    if (trace) {
      words.push(`${trace.model}, ${trace.protocol} protocol`, `${trace.module} by ${trace.localization}`);
      if (trace.window_size !== null) words.push(`window ${trace.window_size}`);
      const corrupted = trace.counterfactuals ? "with the counterfactuals" : "noised";
      const noised = trace.p_noised === null ? "" : `, ${corrupted} ${shown(trace.p_noised)}`;
      words.push(`p(${fact.target_true}) clean ${shown(trace.p_clean)}${noised}`);
      if (trace.counterfactuals) words.push(`counterfactuals: ${trace.counterfactuals.map((text) => `“${text}”`).join(", ")}`);
      if (trace.sigma !== null) words.push(`σ ${shown(trace.sigma)}`);
      if (trace.kept === false) words.push(`left out: ${trace.reason || "no reason recorded"}`);
    } else words.push("not traced");
    if (fact.target_false) words.push(`false target: ${fact.target_false}`);
    words.push(`fact ${fact.id}`);
    at("fact-numbers").textContent = words.join(" · ");
    drawGrid();
    drawEdits();
    reproduce();
  }

  // run, window: of the trace to show. Without them, the one that the edits are compared with.
  function showFact(index, run, window) {
    fact = data.facts[index];
    if (!select.querySelector(`option[value="${index}"]`)) { search.value = ""; filter(); }
    select.value = String(index);
    at("fact-name").textContent = `${fact.subject || fact.id} → ${fact.target_true || "?"}`;
    const prompt = at("fact-prompt"), place = fact.subject ? fact.prompt.indexOf(fact.subject) : -1;
    prompt.replaceChildren();
    if (place < 0) prompt.textContent = fact.prompt;
    else prompt.append(fact.prompt.slice(0, place), make("mark", fact.subject), fact.prompt.slice(place + fact.subject.length));
    prompt.append(" … ", make("em", fact.target_true));
    traceSelect.replaceChildren(...fact.traces.map((one, number) => make("option", one.name, { value: number })));
    at("trace-label").hidden = fact.traces.length < 2;
    offerEdits();
    // Show the window that the edits are compared with, else the paper's window of 5, else the first.
    const windows = fact.edits.group.map((number) => data.groups[number].window_size);
    const asked = fact.traces.findIndex((one) => one.trace_run_id === run && String(one.window_size) === window);
    const usual = [...windows, 5].map((size) => fact.traces.findIndex((one) => one.window_size === size)).find((number) => number >= 0) ?? 0;
    const first = asked >= 0 ? asked : usual;
    traceSelect.value = String(first);
    showTrace(first);
  }

  function fromHash() {
    const asked = {};
    for (const part of location.hash.slice(1).split("&")) {
      const [name, value] = [part.split("=", 1)[0], part.slice(part.indexOf("=") + 1)];
      try { asked[name] = decodeURIComponent(value); } catch { asked[name] = value; }
    }
    const index = data.facts.findIndex((one) => one.id === asked.fact);
    if (index < 0) return false;
    showFact(index, asked.run, asked.window);
    at("pick").scrollIntoView();
    if (asked.run) select.focus({ preventScroll: true }); // so that the keyboard goes on here, too
    return true;
  }

  traceSelect.addEventListener("change", () => showTrace(Number(traceSelect.value)));
  addEventListener("hashchange", fromHash);
  filter();
  if (!fromHash()) {
    // Start with the first fact that has both traces and edits.
    const rich = data.facts.findIndex((one) => !leftOut(one) && one.traces.length && one.edits.layer.length);
    showFact(rich >= 0 ? rich : 0);
  }
})();
