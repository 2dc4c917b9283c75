// Helpers for the elements of the page.

export const $ = (id) => document.getElementById(id);

export function show(element, shown = true) {
  element.hidden = !shown;
}

export function element(name, attributes = {}, text = "") {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}
