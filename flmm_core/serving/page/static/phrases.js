// Phrases that people type, each with its mask.

import { postJson } from "./api.js";
import { element, listen, phraseButton, showVerdicts, verdict } from "./words.js";

export class Phrases {
  constructor(page) {
    this.page = page;
    this.named = [];
    this.suggested = [];
    this.result = null;
    this.stop = null;
    const { at } = page;
    at("finder").addEventListener("submit", (event) => {
      event.preventDefault();
      this.add(at("phrase").value.split(/[\n;]/));
    });
    listen(at("found"), {
      pointed: (what) => page.light.point(what, what ? this.result : undefined),
      kept: (what) => page.light.keep(what, this.result),
      cleared: page.clear,
    });
  }

  reset() {
    this.stop?.abort();
    this.named = [];
    this.result = null;
    this.page.at("found").replaceChildren();
    this.page.settle("phrase-error");
  }

  offer(possible, suggested) {
    const { at } = this.page;
    for (const id of ["phrase", "find"]) at(id).disabled = !possible;
    this.suggested = possible ? suggested : [];
    this.#suggest();
  }

  // Those that have not been looked for.
  #suggest() {
    const buttons = this.suggested.filter((text) => !this.named.includes(text)).map((text) => {
      const button = element("button", { type: "button", dir: "auto" }, text);
      button.addEventListener("click", () => this.add([text]));
      return button;
    });
    this.page.at("phrase-suggestions").replaceChildren(...buttons);
  }

  add(texts) {
    const fresh = texts.map((text) => text.trim()).filter((text) => text && !this.named.includes(text));
    this.page.at("phrase").value = "";
    if (fresh.length) this.#find([...this.named, ...fresh]);
  }

  async #find(named) {
    const { page } = this;
    page.settle("phrase-error");
    this.stop?.abort();
    this.stop = new AbortController();
    if (!named.length) {
      this.reset();
      this.#suggest();
      page.light.show(null);
      return;
    }
    page.say(`Looking for ${named.join(", ")}.`);
    try {
      const body = { model: page.model.id, image: page.image.id, phrases: named };
      const data = await page.busy(() => postJson("ground", body, this.stop.signal));
      this.named = named;
      this.result = page.receive(data);
      this.#list();
      this.#suggest();
      const told = this.result.parts.map((part) => `${part.name}: ${verdict(part)}`);
      page.say(told.join(". "));
    } catch (error) {
      page.fail("phrase-error", error);
      if (error.name !== "AbortError") page.at("phrase").value ||= named.at(-1);
    }
  }

  #list() {
    const list = this.page.at("found");
    list.dataset.result = this.result.id;
    list.replaceChildren(...this.result.parts.map((part, number) => {
      const remove = element("button", { type: "button", className: "plain", title: "Remove" }, "×");
      remove.setAttribute("aria-label", `Remove ${part.name}`);
      remove.addEventListener("click", () => {
        this.#find(this.named.filter((name) => name !== part.name));
        this.page.at("phrase").focus();
      });
      const said = element("span", { className: "verdict", ariaHidden: "true", data: { said: number } });
      return element("li", {}, phraseButton(part, number, part.name), said, remove);
    }));
    this.judge(this.result);
  }

  // What is said of each, after a change of the threshold too.
  judge(result) {
    if (result !== this.result) return;
    const list = this.page.at("found");
    showVerdicts(list, result.parts);
    for (const said of list.querySelectorAll("[data-said]")) said.textContent = verdict(result.parts[said.dataset.said]);
  }
}
