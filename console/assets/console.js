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
