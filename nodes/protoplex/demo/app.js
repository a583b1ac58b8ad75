"use strict";

// Each dropped file is one upload with an id of its own. The bar follows what the server says it has received and
// stored, over server-sent events from the live node that owns the key `upload/ID`: another tab that opens the same
// topic sees the same bar.

const $ = (selector, root = document) => root.querySelector(selector);
const token = $("#token");
const drop = $("#drop");
const notice = $("#notice");

// `protoplex up` prints a link that carries the token in its fragment, which never leaves the browser.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  token.value = given;
  history.replaceState(null, "", location.pathname + location.search);
}

$("#access").addEventListener("submit", (event) => event.preventDefault());
$("#file").addEventListener("change", (event) => {
  uploadAll(event.target.files);
  event.target.value = "";
});
for (const type of ["dragenter", "dragover"]) {
  drop.addEventListener(type, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const type of ["dragleave", "drop"]) {
  drop.addEventListener(type, (event) => { event.preventDefault(); drop.classList.remove("over"); });
}
drop.addEventListener("drop", (event) => uploadAll(event.dataTransfer.files));

function uploadAll(files) {
  notice.hidden = token.value !== "";
  if (!token.value) {
    notice.textContent = "An upload needs a token. Paste the one that protoplex up printed.";
    token.focus();
    return;
  }
  for (const file of files) {
    const id = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2);
    waiting.push({ file, id, token: token.value, view: row(file, id) });
  }
  startWaiting();
}

// One after the other: an upload takes two connections, over HTTP/1.1 a browser opens six to one host for all its tabs, and
// more at once would wait for each other for ever.
const waiting = [];
let running = false;

async function startWaiting() {
  if (running) return;
  running = true;
  while (waiting.length) await upload(waiting.shift());
  running = false;
}

async function upload({ file, id, token, view }) {
  const events = await watch(id, view);
  try {
    const answer = await fetch("/files/" + encodeURIComponent(file.name), {
      method: "PUT",
      headers: { "Authorization": "Bearer " + token, "Upload-Id": id },
      body: file,
    });
    // A balancer in between may answer with a page of its own.
    const body = await answer.json().catch(() => ({}));
    if (answer.status === 201) view.finished(body);
    else view.failed(body.detail || body.title || "The server answered " + answer.status + ".");
  } catch {
    view.failed("The connection was lost. Drop the file again.");
  } finally {
    events.close();
  }
}

// Resolves once the subscription stands, so that no event is missed, or after two seconds without one.
function watch(id, view) {
  const events = new EventSource("/.well-known/mercure?topic=" + encodeURIComponent("upload/" + id));
  events.onmessage = (message) => {
    const event = JSON.parse(message.data);
    if (event.type === "upload.progress") view.progress(event.data.received);
  };
  return new Promise((resolve) => {
    const ready = () => resolve(events);
    events.addEventListener("open", ready, { once: true });
    setTimeout(ready, 2000);
  });
}

function row(file, id) {
  const item = $("#upload").content.firstElementChild.cloneNode(true);
  const bar = $("progress", item);
  const state = $(".state", item);
  $(".name", item).textContent = file.name;
  $(".topic code", item).textContent =
    `curl -N '${location.origin}/.well-known/mercure?topic=upload/${id}'`;
  $("#uploads").prepend(item);
  state.textContent = "waiting";
  return {
    progress(received) {
      bar.value = file.size ? received / file.size : 1;
      state.textContent = received >= file.size ? "storing" : `${bytes(received)} of ${bytes(file.size)}`;
    },
    finished(stored) {
      bar.value = 1;
      item.classList.add("done");
      state.textContent = stored.encoding === "gzip"
        ? `stored, ${bytes(stored.size)} in ${bytes(stored.stored_size)}` : `stored, ${bytes(stored.size)}`;
      facts($(".facts", item), stored);
    },
    failed(reason) {
      item.classList.add("failed");
      state.textContent = reason;
    },
  };
}

function facts(list, stored) {
  const add = (name, value) => {
    const term = document.createElement("dt");
    const detail = document.createElement("dd");
    term.textContent = name;
    detail.append(value);
    list.append(term, detail);
  };
  const link = document.createElement("a");
  link.href = new URL(stored.url).pathname;
  link.textContent = stored.url;
  add("URL", link);
  add("SHA-256", stored.sha256);
  add("Whirlpool", stored.whirlpool);
  add("Reference", stored.reference);
  list.hidden = false;
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${unit ? count.toFixed(1) : count} ${units[unit]}`;
}
