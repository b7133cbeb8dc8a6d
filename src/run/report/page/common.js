"use strict";
// What the other scripts share. Text from data goes into the page through `textContent` alone.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; children that are no elements become text. */
function make(tag, attributes, ...children) {
  const element = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Four significant digits, as in the tables. */
function shown(x) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  if (x === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return x.toExponential(2);
  if (size >= 1000) return x.toFixed(0);
  return x.toPrecision(4);
}

// The switch wins over what the system prefers, and is remembered where the browser allows that.
{
  const KEY = "dgpo-theme";
  const apply = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  let stored = "";
  try { stored = localStorage.getItem(KEY) || ""; } catch { /* no storage for files here */ }
  for (const input of document.querySelectorAll("#theme input")) {
    input.checked = input.value === stored;
    input.addEventListener("change", () => {
      apply(input.value);
      try { localStorage.setItem(KEY, input.value); } catch { /* as above */ }
    });
  }
  apply(stored);
}

// A table that is wider than its place says so: its edge fades, and a line stands above it.
for (const place of document.querySelectorAll(".scroll")) {
  const hint = make("p", { class: "muted scrolls", hidden: true }, "Wider than this window: scrolls sideways ⇄");
  place.before(hint);
  const update = () => {
    const hidden = place.scrollWidth - place.clientWidth;
    hint.hidden = hidden < 2;
    place.classList.toggle("more-left", place.scrollLeft > 1);
    place.classList.toggle("more-right", hidden - place.scrollLeft > 1);
  };
  place.addEventListener("scroll", update, { passive: true });
  new ResizeObserver(() => requestAnimationFrame(update)).observe(place);
}
