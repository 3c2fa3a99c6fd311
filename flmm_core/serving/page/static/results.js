// Results as the server sends them, made ready for the stage; and what of them is in the light.

import { getJson } from "./api.js";

// What was found, or an answer: parts with masks, and where in a text they are named.
export class Result {
  constructor(data, colors) {
    Object.assign(this, { id: data.id, text: data.text ?? "", spans: data.spans ?? [], words: data.words ?? [] });
    this.parts = (data.found ?? []).map((found, number) => ({
      name: found.phrase,
      color: colors[number % colors.length],
      refined: found.segmentation,
      coarse: found.coarse,
      found,
      shown: true,
    }));
    this.heats = new Map();
  }

  // Phrases below a probability are "not there".
  limit(threshold) {
    for (const part of this.parts) {
      const likely = part.found.probability;
      part.shown = likely === null || likely >= threshold;
    }
  }

  // The attention of a part or of a word, in one way of looking: {height, width, values}.
  heat({ part, word }, by) {
    const path = `${word === undefined ? `parts/${part}` : `words/${word}`}/attention?by=${by}`;
    if (!this.heats.has(path)) {
      const made = getJson(`results/${this.id}/${path}`).then(({ height, width, values }) => ({
        height, width, values: Float32Array.from(atob(values), (letter) => letter.charCodeAt(0) / 255),
      }));
      made.catch(() => this.heats.delete(path));
      this.heats.set(path, made);
    }
    return this.heats.get(path);
  }
}

// One phrase or word at a time is in the light: the one pointed at, else the one that was kept.
export class Light {
  constructor(stage, { changed, failed }) {
    Object.assign(this, { stage, changed, failed, result: null, pointed: null, kept: null });
    this.turn = 0;
    this.by = "heads";
  }

  show(result) {
    Object.assign(this, { result, pointed: null, kept: null });
    this.stage.setParts(result?.parts ?? []);
    this.update();
  }

  point(what, result = this.result) {
    if (what && result !== this.result) this.show(result);
    if (JSON.stringify(what) === JSON.stringify(this.pointed)) return;
    this.pointed = what;
    this.update();
  }

  // A second time lets go.
  keep(what, result = this.result) {
    if (result !== this.result) this.show(result);
    this.kept = JSON.stringify(what) === JSON.stringify(this.kept) ? null : what;
    this.update();
  }

  clear() {
    Object.assign(this, { pointed: null, kept: null });
    this.update();
  }

  async update() {
    const turn = ++this.turn;
    const what = this.pointed ?? this.kept;
    this.changed(what);
    const first = this.result?.parts.findIndex((part) => part.shown) ?? -1;
    const heated = what?.word !== undefined ? what
      : this.stage.mode !== "attention" ? null
        : what ?? (first >= 0 ? { part: first } : null);
    if (!heated) {
      this.stage.set({ active: what?.part ?? null, heat: null });
      return;
    }
    try {
      const name = heated.word === undefined ? this.result.parts[heated.part].name : heated.text;
      const heat = { ...(await this.result.heat(heated, this.by)), name };
      if (turn === this.turn) this.stage.set({ active: null, heat });
    } catch (error) {
      if (turn === this.turn) this.failed(error);
    }
  }
}
