// Text with phrases that are tied to masks, and words that are tied to attention.

export const percent = (share) => (share > 0.995 && share < 1 ? ">99%" : `${Math.round(100 * share)}%`);

export function element(name, properties = {}, ...children) {
  const { data, role, ...rest } = properties;
  const made = Object.assign(document.createElement(name), rest);
  if (role) made.setAttribute("role", role);
  Object.assign(made.dataset, data);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function paint(made, [red, green, blue]) {
  made.style.setProperty("--mask", `rgb(${red} ${green} ${blue})`);
  return made;
}

// What is said of a mask beside its name.
export function verdict({ found, shown }) {
  if (!shown) return "not there";
  if (!found.area) return "nothing found";
  return found.probability === null ? "found" : `${percent(found.probability)} likely`;
}

// A phrase as a button whose color is its mask's.
export function phraseButton(part, number, text) {
  const button = element(
    "button",
    { type: "button", className: "phrase", dir: "auto", data: { part: number } },
    text,
    element("span", { className: "unseen", data: { verdict: number } }),
  );
  return paint(button, part.color);
}

export function showVerdicts(root, parts) {
  for (const note of root.querySelectorAll("[data-verdict]")) {
    const part = parts[note.dataset.verdict];
    note.textContent = ` (${verdict(part)})`;
    note.closest(".phrase").classList.toggle("absent", !part.shown || !part.found.area);
    note.closest(".phrase").title = verdict(part);
  }
}

// The answer's text: spans become buttons, the words between them focusable by arrow keys.
// Offsets count characters as Python does, not UTF-16 units as JavaScript does.
export function answerWords({ text, spans, words }, parts) {
  const letters = Array.from(text);
  const cut = (start, end) => letters.slice(start, end).join("");
  const pieces = [];
  let at = 0;
  const plain = (end) => {
    while (at < end) {
      const word = words.find((each) => each.start <= at && at < each.end);
      const next = word?.end ?? words.find((each) => each.start > at)?.start ?? end;
      const piece = cut(at, Math.min(end, next));
      at += Array.from(piece).length;
      pieces.push(!word ? piece
        : element("span", { className: "word", tabIndex: -1, data: { word: word.word } }, piece));
    }
  };
  for (const span of [...spans].sort((one, other) => one.start - other.start)) {
    if (span.start < at) continue;
    plain(span.start);
    pieces.push(phraseButton(parts[span.part], span.part, cut(span.start, span.end)));
    at = span.end;
  }
  plain(letters.length);
  return pieces;
}

// Hover and focus point at a phrase or word; a click or Enter keeps it; arrows go from word to word.
export function listen(root, { pointed, kept, cleared }) {
  const target = (event) => event.target.closest?.("[data-part], [data-word]");
  const what = (node) =>
    node?.dataset.part !== undefined ? { part: Number(node.dataset.part) }
      : node ? { word: Number(node.dataset.word), text: node.textContent } : null;
  root.addEventListener("pointerover", (event) => event.pointerType === "mouse" && pointed(what(target(event)), root));
  root.addEventListener("pointerleave", () => pointed(null, root));
  root.addEventListener("focusin", (event) => target(event) && pointed(what(target(event)), root));
  root.addEventListener("focusout", () => pointed(null, root));
  root.addEventListener("click", (event) => target(event) && kept(what(target(event)), root));
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cleared();
    if (event.key === "Enter" && target(event)?.classList.contains("word")) kept(what(target(event)), root);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !target(event)) return;
    const stops = [...root.querySelectorAll("[data-part], [data-word]")];
    stops[stops.indexOf(target(event)) + step]?.focus();
    event.preventDefault();
  });
}
