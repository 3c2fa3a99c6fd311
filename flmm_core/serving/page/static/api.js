// Talks to the server that this page came from; every failure becomes a `Failure` in words.

export class Failure extends Error {}

const GONE = "The server does not answer. Check that “flmm demo” is still running, and try again.";

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(`page/${path}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(GONE);
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new Failure(told?.error?.message ?? `The server answered ${response.status}. Try again.`);
}

const json = (body, signal) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
  signal,
});

export const getJson = async (path) => (await request(path)).json();
export const getBlob = async (path) => (await request(path)).blob();
export const postJson = async (path, body, signal) => (await request(path, json(body, signal))).json();

export async function sendImage(blob, name) {
  const body = new FormData();
  body.append("image", blob, name);
  return (await request("images", { method: "POST", body })).json();
}

// Calls `heard(event, data)` for each server-sent event of an answer.
export async function stream(path, body, heard, signal) {
  const response = await request(path, json(body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure(GONE);
    }
    if (part.done) return;
    const blocks = (rest + part.value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (!field("data")) continue;
      const data = JSON.parse(field("data"));
      if (field("event") === "error") throw new Failure(data.error.message);
      heard(field("event"), data);
    }
  }
}
