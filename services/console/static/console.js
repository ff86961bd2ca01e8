// All that the pages cannot do by themselves: a list that stays fresh, an image that answers at once, an end.
"use strict";

const idle = Number(document.body.dataset.idle);
if (idle) {  // the session ends with it: what is shown does not outlast it on the screen
  let end = 0;
  const rest = () => {
    clearTimeout(end);
    end = setTimeout(() => location.replace("/"), 1000 * idle);
  };
  for (const event of ["keydown", "pointerdown", "input"]) addEventListener(event, rest);
  rest();
}

const live = document.querySelector("[data-live]");
if (live) {
  const news = document.getElementById("news");
  const tidy = (rows) => rows.textContent.replace(/\s+/g, " ").trim();
  const timeless = (rows) => {  // an age grows by itself, which is no news
    const copy = rows.cloneNode(true);
    for (const time of copy.querySelectorAll("time")) time.remove();
    return tidy(copy);
  };
  const refresh = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(live.dataset.live, { credentials: "same-origin", redirect: "manual" });
      if (answer.type === "opaqueredirect") location.reload();  // the session has ended
      if (!answer.ok || live.contains(document.activeElement)) return;
      const rows = document.createElement("tbody");
      rows.innerHTML = await answer.text();
      if (tidy(rows) === tidy(live)) return;
      const news_came = timeless(rows) !== timeless(live);
      live.replaceChildren(...rows.children);
      if (news_came) news.textContent = news.dataset.words;
    } catch (error) { /* the next one may succeed */ }
  };
  setInterval(refresh, 3000);
}

const viewer = document.querySelector("[data-viewer]");
if (viewer) {
  const stage = viewer.querySelector(".stage");
  const image = viewer.querySelector("[data-image]");
  const form = document.querySelector("[data-window]");
  let size = 100;
  const zoom = (factor) => {
    size = Math.min(800, Math.max(50, size * factor));
    stage.style.width = `${size}%`;
  };
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => zoom(Number(button.dataset.zoom)));
  }
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "+") zoom(1.25);
    if (event.key === "-") zoom(0.8);
  });
  let waiting = 0;
  const show = () => {
    const query = new URLSearchParams({ center: form.elements.center.value, width: form.elements.width.value });
    image.src = `${form.dataset.window}?${query}`;
  };
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, 150);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    show();
  });
  for (const box of document.querySelectorAll("[data-shows]")) {
    box.addEventListener("change", () => {
      viewer.querySelector(`[data-layer="${box.dataset.shows}"]`).toggleAttribute("hidden", !box.checked);
    });
  }
}
