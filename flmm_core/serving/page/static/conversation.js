// Questions and answers; an answer's phrases are tied to masks, its words to attention.

import { stream } from "./api.js";
import { answerWords, element, listen, showVerdicts } from "./words.js";

const WITH_MASKS = "Ask about the image. What the answer names is colored: point at it to see its mask, or click the image to see which words look there.";
const WITHOUT = "Ask about the image. Point at a word of the answer to see where it looks, or click the image to see which words look there.";

export class Conversation {
  constructor(page) {
    this.page = page;
    this.messages = [];
    this.offered = [];
    this.stop = null;
    const { at } = page;
    at("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.stop) this.stop.abort();
      else this.ask(at("question").value);
    });
    at("question").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      at("composer").requestSubmit();
    });
    at("anew").addEventListener("click", () => {
      this.reset();
      at("question").focus();
    });
    this.reset();
  }

  // Forget the conversation.
  reset() {
    this.stop?.abort();
    this.messages = [];
    this.#suggest();
    this.page.at("log").replaceChildren(element("p", { className: "empty" }, this.page.model?.head ? WITH_MASKS : WITHOUT));
    this.page.at("anew").hidden = true;
    this.page.settle("ask-error");
  }

  offer(possible, ...questions) {
    const { at, model } = this.page;
    for (const id of ["question", "send"]) at(id).disabled = !possible;
    this.offered = possible ? [...new Set(questions.filter(Boolean))] : [];
    this.#suggest();
    at("ask-error").hidden = !model || model.chat;
    if (model && !model.chat) at("ask-error").textContent = "This model does not talk. Name phrases instead.";
  }

  // Questions that were not asked yet.
  #suggest() {
    const asked = this.messages.map((message) => message.text);
    const left = this.offered.filter((text) => !asked.includes(text));
    this.page.at("suggestions").replaceChildren(...left.map((text) => {
      const button = element("button", { type: "button", dir: "auto" }, text);
      button.addEventListener("click", () => this.ask(text));
      return button;
    }));
  }

  async ask(text) {
    const { page } = this;
    const question = text.trim();
    if (!question || this.stop) return;
    page.settle("ask-error");
    page.clear();
    page.at("log").querySelector(".empty")?.remove();
    page.at("question").value = "";
    page.at("anew").hidden = false;
    const asked = element("p", { className: "turn user", dir: "auto" }, question);
    const answer = element("div", { className: "turn model waiting", dir: "auto" });
    answer.setAttribute("aria-busy", "true");
    page.at("log").append(asked, answer);
    answer.scrollIntoView({ block: "nearest" });
    this.#working(new AbortController());
    const messages = [...this.messages, { role: "user", text: question }];
    try {
      const body = { model: page.model.id, image: page.image.id, messages };
      const heard = (event, data) => {
        if (event === "text") answer.append(data.text);
        if (event === "answer") this.#answered(answer, data, messages);
      };
      await page.busy(() => stream("chat", body, heard, this.stop.signal));
      if (!answer.dataset.result) throw new DOMException("cut off", "AbortError");
    } catch (error) {
      if (!answer.textContent) {
        asked.remove();
        answer.remove();
        page.at("question").value = question;
      } else if (error.name === "AbortError") answer.append(element("span", { className: "note" }, "Stopped."));
      page.fail("ask-error", error);
    } finally {
      answer.classList.remove("waiting");
      answer.removeAttribute("aria-busy");
      this.#working(null);
    }
  }

  #working(stop) {
    this.stop = stop;
    const { at } = this.page;
    at("send").textContent = stop ? "Stop" : "Ask";
    at("suggestions").hidden = stop !== null;
  }

  #answered(answer, data, messages) {
    const { page } = this;
    const result = page.receive(data);
    this.messages = [...messages, { role: "assistant", text: data.text }];
    this.#suggest();
    answer.dataset.result = result.id;
    answer.replaceChildren(...answerWords(result, result.parts));
    if (!data.text.trim()) answer.append(element("span", { className: "note" }, "The model said nothing."));
    showVerdicts(answer, result.parts);
    listen(answer, {
      pointed: (what) => page.light.point(what, what ? result : undefined),
      kept: (what) => page.light.keep(what, result),
      cleared: page.clear,
    });
    answer.scrollIntoView({ block: "nearest" });
  }
}
