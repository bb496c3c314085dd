const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const bar = document.querySelector(".bar");

// A line, an equation or a node of a graph marks all elements that share an equation with it.
function mark(target) {
  all(".marked").forEach((node) => node.classList.remove("marked"));
  bar.replaceChildren();
  const lesson = target?.closest("main > section");
  if (!lesson) return;
  const equations = all(".equations li", lesson);
  const of = (node) => node.dataset.eq?.split(" ") ?? equations.filter((li) => li.dataset.name === node.dataset.name).map((li) => li.dataset.eq);
  const wanted = of(target);
  const inCommon = (node) => of(node).some((number) => wanted.includes(number));
  const isLine = target.matches(".line");
  all("[data-eq], [data-name]", lesson)
    .filter((node) => node === target || (inCommon(node) && !(isLine && node.matches(".line"))))
    .forEach((node) => node.classList.add("marked"));
  if (isLine) {
    const list = document.createElement("ol");
    Object.assign(list, { className: "equations", inert: true });
    list.append(...equations.filter(inCommon).map((item) => item.cloneNode(true)));
    all("[id]", list).forEach((item) => item.removeAttribute("id"));
    bar.append(list);
  }
  document.dispatchEvent(new CustomEvent("marked", { detail: { target, lesson, wanted } }));
}
for (const event of ["pointerover", "focusin", "click"]) {
  document.addEventListener(event, ({ target }) => {
    if (bar.contains(target)) return;
    mark(target.closest("[data-eq], [data-name]:not([data-name=''])"));
    const [place, over] = [target, bar].map((item) => item.getBoundingClientRect());
    const covered = over.height && over.right > place.left && place.bottom > over.top;
    if (event !== "pointerover" && covered && place.height < over.top) scrollBy(0, place.bottom - over.top);
  });
}
// MLflow shows the page in a frame, in which links to a part of the page do not work.
document.addEventListener("click", (event) => {
  const link = location.protocol === "blob:" && event.target.closest("a[href^='#']");
  if (!link) return;
  event.preventDefault();
  document.querySelector(link.hash).scrollIntoView();
});

// A link to a line also marks its equations.
const linked = () => mark(document.getElementById(location.hash.slice(1))?.closest("[data-eq]"));
addEventListener("hashchange", linked);
linked();

// The current section. While the page scrolls to a section by itself, that section is the current one, so that a key
// pressed meanwhile continues from there.
const links = all("nav a[href^='#']");
const stops = links.map((link) => document.querySelector(link.hash));
let current = 0;
let scrolling = 0; // the timer that ends the scrolling to a section
function show(index) {
  current = index;
  links.forEach((link, other) => (other === index ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  links[index].closest("nav").scrollLeft = links[index].offsetLeft - 40;
}
function follow() {
  if (!scrolling) show(Math.max(0, stops.findLastIndex((stop) => stop.getBoundingClientRect().top < innerHeight / 3)));
}
function scrollsFor(milliseconds) {
  clearTimeout(scrolling);
  scrolling = setTimeout(() => {
    scrolling = 0;
    follow();
  }, milliseconds);
}
addEventListener("scroll", () => (scrolling ? scrollsFor(150) : follow()), { passive: true });
follow();

document.addEventListener("keydown", (event) => {
  const way = { j: 1, n: 1, ArrowRight: 1, k: -1, p: -1, ArrowLeft: -1 }[event.key];
  const typing = event.target.closest("input, textarea, select, [contenteditable]");
  const sideways = event.key.startsWith("Arrow") && event.target.closest(".scroll");
  if (!way || event.defaultPrevented || typing || sideways || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  event.preventDefault();
  show(Math.min(links.length - 1, Math.max(0, current + way)));
  scrollsFor(1000); // or less, after the first scroll event
  links[current].click();
});
