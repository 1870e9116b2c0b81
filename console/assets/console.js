"use strict";

// Copying a command. The buttons do nothing without a script, so they are hidden until one runs.
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select and copy it";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

// The overview refreshes itself, and says when it cannot.
const unreachable = document.getElementById("unreachable");
if (unreachable) {
  const show = (isAway) => () => { unreachable.hidden = !isAway; };
  for (const event of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
    document.body.addEventListener(event, show(true));
  }
  document.body.addEventListener("htmx:afterSwap", show(false));
}

// The list follows what is stored. `#live` in the address begins at once, so that a live view can be sent
// to a colleague.
const follow = document.getElementById("follow");
if (follow) {
  const MOST_ROWS = 200;
  const state = document.getElementById("follow-state");
  const list = document.querySelector("table.list tbody");
  // An event by the link to it.
  const key = (row) => row.querySelector("a").getAttribute("href");
  const shown = new Set([...(list?.rows ?? [])].map(key));
  let source;
  let added = 0;

  const add = (html) => {
    // A page without a list gets one by loading again.
    if (!list) { location.reload(); return; }
    const template = document.createElement("template");
    template.innerHTML = html;
    const row = template.content.querySelector("tr");
    if (shown.has(key(row))) { return; }
    shown.add(key(row));
    list.closest("table").classList.add("live");
    list.prepend(row);
    added += 1;
    while (list.rows.length > MOST_ROWS) {
      shown.delete(key(list.rows[list.rows.length - 1]));
      list.deleteRow(-1);
    }
    state.textContent = `Following: ${added} new`;
  };
  const start = () => {
    follow.textContent = "Pause";
    state.textContent = "Connecting";
    history.replaceState(null, "", "#live");
    source = new EventSource(follow.dataset.source);
    const following = () => { state.textContent = `Following: ${added} new`; };
    source.addEventListener("open", following);
    source.addEventListener("back", following);
    source.addEventListener("row", (message) => add(message.data));
    source.addEventListener("gap", () => { state.textContent = "More came than fit here: load the page again to see all"; });
    source.addEventListener("away", (message) => { state.textContent = message.data; });
    source.addEventListener("error", () => {
      const isOver = source.readyState === EventSource.CLOSED;
      if (isOver) { pause(); }
      state.textContent = isOver ? "It cannot follow: load the page again" : "The console is out of reach; trying again";
    });
  };
  const pause = () => {
    source.close();
    source = undefined;
    follow.textContent = "Follow";
    state.textContent = `Paused: ${added} new`;
    history.replaceState(null, "", location.pathname + location.search);
  };
  follow.hidden = false;
  follow.addEventListener("click", () => (source ? pause() : start()));
  if (location.hash === "#live") { start(); }
}
