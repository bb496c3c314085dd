// The step player of a lesson. It shows the quantities one at a time, each with its operands, and computes all of them
// again from the equations when a reader changes a number. An array is a list of rows; a scalar is a number.

const rowsOf = (array) => (typeof array === "number" ? [[array]] : array);
const filled = (rows, columns, number) => Array.from({ length: rows }, () => Array(columns).fill(number));
// `f` of the numbers of one or two arrays, element by element. As in NumPy, dimensions of size 1 are repeated.
function elementwise(f, one, other = 0) {
  if (typeof one === "number" && typeof other === "number") return f(one, other);
  const [a, b] = [rowsOf(one), rowsOf(other)];
  const at = (array, row, column) => array[array.length > 1 ? row : 0][array[0].length > 1 ? column : 0];
  return filled(Math.max(a.length, b.length), Math.max(a[0].length, b[0].length)).map((numbers, row) =>
    numbers.map((_, column) => f(at(a, row, column), at(b, row, column))));
}
const softmax = (row) => {
  const powers = row.map((number) => Math.exp(number - Math.max(...row)));
  return powers.map((power) => power / powers.reduce((a, b) => a + b));
};
const mean = (numbers) => numbers.reduce((a, b) => a + b) / numbers.length;
const ELEMENTWISE = {
  "+": (a, b) => a + b, "-": (a, b) => a - b, "*": (a, b) => a * b, "/": (a, b) => a / b, "**": (a, b) => a ** b,
  ">": (a, b) => (Number.isNaN(a) ? NaN : Number(a > b)),
  relu: (a) => Math.max(a, 0), exp: Math.exp, log: Math.log,
};
const WHOLE = {
  "@": (a, b) => a.map((row) => b[0].map((_, column) => row.reduce((sum, number, index) => sum + number * b[index][column], 0))),
  T: (array) => array[0].map((_, column) => array.map((row) => row[column])),
  mean: (array) => mean(rowsOf(array).flat()),
  softmax: (array) => array.map(softmax),
  zeros: (rows, columns) => filled(rows, columns, 0),
};
const PRECEDENCE = { ">": 0, "+": 1, "-": 1, "*": 2, "/": 2, "@": 2, "**": 3 };

// The value of a tree that player.py made. `look(name, index)` returns the value of a name.
function evaluate([operator, ...operands], look) {
  if (operator === "number") return operands[0];
  if (operator === "name") return look(operands[0], indexIn(operands, look));
  if (operator === "sum") return termsOf(operands, look).map((term) => evaluate(...term)).reduce((a, b) => elementwise(ELEMENTWISE["+"], a, b));
  const values = operands.map((operand) => evaluate(operand, look));
  return operator in WHOLE ? WHOLE[operator](...values) : elementwise(ELEMENTWISE[operator], ...values);
}
// The index of h[length] stays a word, because each example has its own length.
const indexIn = ([, index], look) => (index?.[1] === "length" ? "length" : index && evaluate(index, look));
// The terms of a sum, each with a look for its time step.
function termsOf([term, [, variable], first, beyond], look) {
  const start = evaluate(first, look);
  return Array.from({ length: evaluate(beyond, look) - start }, (_, place) =>
    [term, (name, index) => (name === variable ? start + place : look(name, index))]);
}
const keyOf = (name, index) => (index === undefined || index === null ? name : `${name}[${index}]`);
const withNaN = (value) => (Array.isArray(value) ? value.map(withNaN) : value ?? NaN);

// A step on the small batch. `given` has data and weights before the step, `values` the quantities by their keys.
class Step {
  constructor({ equations, learning_rate, batch, weights, states, values }) {
    const { lengths, x, ...others } = batch;
    const byTime = Object.fromEntries(x[0].map((_, t) => [`x[${t + 1}]`, withNaN(x.map((rows) => rows[t]))]));
    this.original = { ...(lengths ? byTime : { x }), ...others, ...weights };
    this.lengths = lengths;
    this.longest = lengths && Math.max(...lengths);
    this.weights = weights;
    this.states = states;
    this.quantities = values.map((value) => ({ ...equations[value.equation - 1], ...value }));
    this.quantities.forEach((quantity) => (quantity.key = keyOf(quantity.name, quantity.index)));
    this.recorded = Object.fromEntries(this.quantities.map(({ key, value }) => [key, withNaN(value)]));
    this.numbers = { learning_rate, N: others.y.length };
    for (const { name, part, shape } of this.quantities.filter((quantity) => quantity.part === "update")) {
      const [rows, columns] = shape.split(", ");
      Object.assign(this.numbers, { [rows]: weights[name].length, [columns]: weights[name][0].length });
    }
    this.reset();
  }
  reset() {
    this.given = structuredClone(this.original);
    this.values = this.recorded;
  }
  // Where examples have lengths, the equations are those of one example: its rows are stacked, losses averaged,
  // gradients of weights added.
  compute() {
    const lengths = this.lengths ?? [0];
    const ofExample = ([key, value], i) => [key, this.lengths && !(key in this.weights) ? [value[i]] : value];
    const examples = lengths.map((length, i) =>
      ({ ...this.numbers, length, ...Object.fromEntries(Object.entries(this.given).map((entry) => ofExample(entry, i))) }));
    this.values = {};
    for (const { key, name, index, time, right, shape, part } of this.quantities) {
      if (part === "update") {
        this.values[key] = evaluate(right, (operand) => this.given[operand] ?? this.values[operand] ?? this.numbers[operand]);
        continue;
      }
      const results = examples.map((example, i) => {
        const ownKey = (operand, at) => keyOf(operand, at === "length" ? lengths[i] : at);
        if (time > lengths[i]) return example[ownKey(name, index)]; // the example has ended, and may have its last value there
        return (example[ownKey(name, index)] = evaluate(right, (operand, at) => (operand === "t" ? time : example[ownKey(operand, at)])));
      });
      const computed = results.filter((result) => result !== undefined);
      if (!this.lengths) [this.values[key]] = results;
      else if (!shape) this.values[key] = mean(computed);
      else if (shape.startsWith("1,")) this.values[key] = results.map((result) => result?.[0] ?? Array(computed[0][0].length).fill(NaN));
      else this.values[key] = computed.reduce((a, b) => elementwise(ELEMENTWISE["+"], a, b));
    }
  }
  // A number of a weight which, changed, makes a column of a relu 0. Undefined if no number does.
  switchingOff() {
    const relus = this.quantities.filter(({ right }) => right[0] === "relu");
    const zeros = () => relus.flatMap(({ key }) =>
      [...this.values[key][0].keys()].filter((column) => !this.values[key].some((row) => row[column] > 0)).map((column) => `${column + 1} of ${key}`));
    const before = zeros();
    const places = Object.entries(this.weights).flatMap(([weight, rows]) =>
      rows.flatMap((numbers, row) => [...numbers.keys()].map((column) => ({ weight, row, column }))));
    const changes = [-3, 3, -9, 9].flatMap((number) => places.map((place) => ({ ...place, number })));
    for (const change of changes) {
      this.given = structuredClone(this.original);
      this.given[change.weight][change.row][change.column] = change.number;
      this.compute();
      change.zeros = zeros().find((column) => !before.includes(column));
    }
    this.reset();
    return changes.find((change) => change.zeros);
  }
  // The values of names for the batch. With an index there is a row for each example, NaN where the example is not that long.
  look(time, given = this.given, values = this.values) {
    return (name, index) => {
      if (name === "t" || name === "length") return name === "t" ? time : this.longest;
      const key = keyOf(name, index);
      if (!key.includes("[")) return this.numbers[name] ?? given[name] ?? values[name];
      if (key in given) return given[key];
      const rows = this.lengths.map((length, i) => {
        const row = values[keyOf(name, index === "length" ? length : index)]?.[i];
        const last = [length, "length"].includes(index) ? values[`${name}[length]`]?.[i] : undefined;
        return row && !row.some(Number.isNaN) ? row : last;
      });
      return rows.map((row) => row ?? Array(rows.find(Boolean).length).fill(NaN));
    };
  }
  // The quantities from which rows of h[length] or of grad_h[3] come. At the last time step of an example a quantity has
  // two names and one equation.
  sources(key) {
    const [name, index] = key.split(/[[\]]/);
    return (this.lengths ?? []).flatMap((length, i) => {
      const source = index === "length" ? `${name}[${length}]` : Number(index) === length ? `${name}[length]` : undefined;
      return source in this.recorded && !(index === "length" && key in this.recorded) ? [{ example: i + 1, length, source }] : [];
    });
  }
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  made.append(...children);
  return made;
}
const inWords = (number) => (Number.isNaN(number) ? "–" : String(Number(number.toPrecision(4)) || 0).replace("-", "−"));
const sizeOf = (array) => (typeof array === "number" ? "a number" : `${array.length} × ${array[0].length}`);
const differ = (a, b) => Math.abs(a - b) > 1e-12 * Math.max(1, Math.abs(b));
const sign = (text) => element("span", { class: "sign" }, text);

// A small matrix with its name and shape, shaded by sign and size. Numbers that differ from `recorded` are marked. With
// `edit(row, column, number)` a reader can change them.
function matrix(label, array, recorded = array, edit = null) {
  const cell = (number, row, column) => {
    if (!edit || Number.isNaN(number)) return element("td", {}, inWords(number) + (differ(number, rowsOf(recorded)[row][column]) ? "*" : ""));
    const input = element("input", { type: "number", step: "0.1", value: number, "aria-label": `${label}, row ${row + 1}, column ${column + 1}` });
    let latest = number;
    input.addEventListener("input", () => {
      const typed = input.valueAsNumber;
      input.setAttribute("aria-invalid", !Number.isFinite(typed));
      if (Number.isFinite(typed)) edit(row, column, (latest = typed));
    });
    input.addEventListener("blur", () => {
      if (input.getAttribute("aria-invalid") === "true") input.value = latest;
      input.removeAttribute("aria-invalid");
    });
    return element("td", {}, input);
  };
  const rows = rowsOf(array).map((numbers, row) => element("tr", {}, ...numbers.map((number, column) => cell(number, row, column))));
  const made = element("figure", { class: "matrix", "data-key": label },
    element("figcaption", {}, element("code", {}, label), " ", element("small", {}, typeof array === "number" ? "" : sizeOf(array))),
    element("table", { role: "presentation" }, element("tbody", {}, ...rows)));
  shade(made, array, recorded);
  return made;
}
function shade(figure, array, recorded) {
  const [now, before] = [rowsOf(array), rowsOf(recorded)];
  const largest = Math.max(...now.flat().map((number) => Math.abs(number) || 0)) || 1;
  all("tr", figure).forEach(({ cells }, row) => now[row].forEach((number, column) => {
    const changed = differ(number, before[row][column]) ? "changed" : "";
    cells[column].className = `${number < 0 ? "minus" : number > 0 ? "plus" : ""} ${changed}`;
    cells[column].dataset.value = number;
    cells[column].style.setProperty("--size", (Math.abs(number) || 0) / largest);
  }));
}
function named(figure, names) {
  all("tr", figure).forEach((row, index) => names[index] && row.append(element("th", {}, names[index])));
  return figure;
}

// The right side of an equation: pairs of a text and its value. Signs between matrices have no value.
function written(tree, look) {
  const [operator, ...operands] = tree;
  const bracketed = (operand) => [["("], ...written(operand, look), [")"]];
  if (["name", "T", ">"].includes(operator)) return [[textOf(tree, look), evaluate(tree, look)]];
  if (operator === "number" || operator === "zeros") return [[textOf(tree, look)]];
  if (operator === "sum") return termsOf(operands, look).flatMap((term, place) => [...(place ? [["+"]] : []), ...written(...term)]);
  if (!(operator in PRECEDENCE)) return [[operator], ...operands.flatMap(bracketed)];
  const [left, right] = operands.map((operand, place) => {
    const weaker = PRECEDENCE[operator] - PRECEDENCE[operand[0]];
    return weaker > 0 || (place && weaker === 0) ? bracketed(operand) : written(operand, look);
  });
  return [...left, [operator], ...right];
}
// Matrices, each in one element with the signs before it, so that no line ends with a sign.
function pieces(parts, recorded) {
  const made = [element("span", { class: "piece" })];
  parts.forEach(([text, value], index) => {
    const last = made.at(-1);
    const full = last.querySelector(".matrix") && text !== ")";
    const piece = full ? element("span", { class: "piece" }) : last;
    piece.append(value === undefined ? sign(text) : matrix(text, value, recorded[index][1]));
    if (full) made.push(piece);
  });
  return made;
}
function textOf([operator, ...operands], look) {
  if (operator === "number") return String(operands[0]);
  if (operator === "name") return keyOf(operands[0], indexIn(operands, look));
  const texts = operands.map((operand) => textOf(operand, look));
  return operator === "T" ? `${texts[0]}.T` : operator in PRECEDENCE ? texts.join(` ${operator} `) : `${operator}(${texts.join(", ")})`;
}
function keysIn([operator, ...operands], look) {
  if (operator === "name") return [textOf([operator, ...operands], look)];
  if (operator === "sum") return termsOf(operands, look).flatMap((term) => keysIn(...term));
  return operands.filter(Array.isArray).flatMap((operand) => keysIn(operand, look));
}

const PART = { width: 440, height: 320, faded: 25 }; // pixels of a large graph that are shown, and of its faded edges

class Player {
  constructor(panel) {
    this.panel = Object.assign(panel, { player: this });
    this.lesson = panel.closest("main > section");
    this.find = (selector) => panel.querySelector(selector);
    const data = JSON.parse(this.find("script").textContent);
    this.step = new Step(data);
    this.last = this.step.quantities.length - 1;
    this.current = 0;
    if (data.batch.lengths) this.showReceived(data);
    const graph = all(".drawn svg", this.lesson).at(-1);
    if (graph) this.find(".picture").append(graph.cloneNode(true), element("small", {}, graph.querySelector("title").textContent));
    this.picture = this.find(".picture svg");
    this.whole = this.picture && DOMRect.fromRect(this.picture.viewBox.baseVal);
    this.slider = this.find("input[type=range]");
    this.slider.max = this.last + 1;
    this.slider.addEventListener("input", () => this.go(this.slider.valueAsNumber - 1));
    panel.addEventListener("click", ({ target }) => {
      const way = target.closest("[data-go]")?.dataset.go;
      const place = target.closest(".tiles [data-step]")?.dataset.step;
      if (way) this.move(way);
      if (place) this.go(Number(place));
    });
    panel.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: "previous", ArrowRight: "next", Home: "first", End: "last" }[event.key];
      if (!way || event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
      event.preventDefault();
      event.stopPropagation();
      this.move(way);
    });
    this.find(".reset").addEventListener("click", () => this.reset());
    this.center(this.find(".picture .node"));
    this.invite();
    this.reset();
  }
  // A change that shows what relu does to gradients.
  invite() {
    const change = this.step.switchingOff();
    if (!change) return;
    const { weight, row, column, number, zeros } = change;
    this.find(".invitation").textContent = `Try ${inWords(number)} in row ${row + 1}, column ${column + 1} of ${weight}: relu then `
      + `leaves only zeros in column ${zeros}. Which gradients become 0 too?`;
  }
  // A row is recognised by its numbers.
  showReceived({ batch: { lengths, x, y }, placed }) {
    const isRow = (row) => (other) => String(row) === String(other);
    const exampleOf = (row) => y.findIndex(isRow(row)) + 1;
    const rowNames = (name, rows) => rows.map((row) => {
      const example = name === "y" ? exampleOf(row) : x.findIndex((times) => times.some(isRow(row))) + 1;
      const time = name === "x" && example && rows.length > y.length ? `, t = ${x[example - 1].findIndex(isRow(row)) + 1}` : "";
      return example ? `example ${example}${time}` : "";
    });
    const received = (name, rows, label = name) => named(matrix(label, rows), rowNames(name, rows));
    this.find(".placed").append(...Object.entries(placed).flatMap(([name, array]) => {
      if (!Array.isArray(array[0][0])) return [received(name, array[0].length ? array : [array])];
      const place = array[0].length === y.length ? "at t =" : "of example"; // time comes first, or the example
      return array.map((rows, index) => received(name, rows, `${name} ${place} ${index + 1}`));
    }));
    const order = (placed.y ?? []).map(exampleOf);
    this.order = order.every(Boolean) ? order : [];
    const byLength = this.order.every((example, index) => !index || lengths[this.order[index - 1] - 1] >= lengths[example - 1]);
    if (byLength && this.order.length) this.find(".order").textContent = `The longest example comes first: example ${this.order.join(", then ")}.`;
  }
  reset() {
    this.step.reset();
    this.changed = false;
    const { given } = this.step;
    this.find(".given").replaceChildren(...Object.keys(given).map((key) => matrix(key, given[key], given[key], (row, column, number) => {
      this.step.given[key][row][column] = number;
      this.step.compute();
      this.changed = true;
      this.show();
    })));
    this.show();
  }
  move(way) {
    this.go({ first: 0, previous: Math.max(0, this.current - 1), next: Math.min(this.last, this.current + 1), last: this.last }[way]);
  }
  go(place) {
    this.current = place;
    this.show();
    mark(this.panel);
  }
  // The nodes of the graph for the quantity.
  nodes() {
    const { name, part, time } = this.step.quantities[this.current];
    const named = (of) => all(`.picture .node[data-name="${of}"]`, this.panel);
    if (part === "update") return named(name).filter((node) => node.matches(".update")); // not the weight before the step
    // Autograd's graph has no nodes for gradients. `backward` computes that of h where it passes the node h.
    const nodes = named(named(name).length ? name : name.replace("grad_", ""));
    // If a graph has a node for each time step, only the node of this time step counts.
    return time && nodes.length >= this.step.longest ? [nodes[time - 1]] : nodes;
  }
  markNodes() {
    all(".picture .marked", this.panel).forEach((node) => node.classList.remove("marked"));
    this.nodes().forEach((node) => node.classList.add("marked"));
  }
  // If the whole graph would be too small to read, show the part around a node.
  center(node) {
    const { width, height } = this.whole ?? {};
    if (!(height > 2 * PART.height)) return;
    const [ofNode, ofPicture] = [node?.getScreenCTM(), this.picture.getScreenCTM()];
    if (!ofNode || !ofPicture) return; // the graph has no such node, or the window is too small for a picture
    const box = node.getBBox();
    const middle = new DOMPoint(box.x + box.width / 2, box.y + box.height / 2).matrixTransform(ofPicture.inverse().multiply(ofNode));
    const start = (at, part, size) => Math.max(-PART.faded, Math.min(at - part / 2, size - part + PART.faded));
    const corner = [start(middle.x, PART.width, width), start(middle.y, PART.height, height)];
    this.picture.setAttribute("viewBox", [...corner, PART.width, PART.height].join(" "));
    this.picture.setAttribute("width", PART.width);
    this.picture.setAttribute("height", PART.height);
    this.picture.classList.add("part");
  }
  show() {
    const { quantities, values, recorded, given, original } = this.step;
    const { key, equation: number, part, time, right, line } = quantities[this.current];
    const [look, before] = [this.step.look(time), this.step.look(time, original, recorded)];
    this.panel.dataset.eq = number;
    this.slider.value = this.current + 1;
    this.slider.setAttribute("aria-valuetext", key);
    this.find(".status").textContent = `${this.current + 1} of ${this.last + 1}, ${part}${time ? `, t = ${time}` : ""}: ${key}, ${sizeOf(values[key])}`;
    const recordedLine = document.getElementById(`${this.lesson.id}-L${line}`);
    const lines = recordedLine ? [recordedLine] : all(`.step .line[data-eq~="${number}"]`, this.lesson);
    this.find(".lines").replaceChildren(...lines.map((line) => {
      const code = line.querySelector("code").cloneNode(true);
      code.firstChild.textContent = code.firstChild.textContent.trimStart();
      return element("div", {}, element("small", {}, `line ${line.querySelector(".no").textContent} `), code);
    }));
    this.find(".equation").replaceChildren(this.lesson.querySelector(`.equations [data-eq="${number}"] math`).cloneNode(true));
    this.find(".computation").replaceChildren(
      ...pieces([[key, values[key]], [part === "update" ? "←" : "="], ...written(right, look)], [[key, recorded[key]], [], ...written(right, before)]));
    this.find(".remark").replaceChildren(...this.remark(quantities[this.current]));
    this.center(this.nodes()[0]);
    const used = keysIn(right, look);
    used.push(...[key, ...used].flatMap((key) => this.step.sources(key).map(({ source }) => source)));
    for (const part of ["forward", "backward", "update"]) this.find(`.tiles.${part}`).replaceChildren();
    quantities.forEach((quantity, place) => {
      const tile = matrix(quantity.key, values[quantity.key], recorded[quantity.key]);
      Object.assign(tile.dataset, { step: place, eq: quantity.equation });
      if (place >= this.current) tile.classList.add(place > this.current ? "later" : "current");
      else tile.classList.toggle("used", used.includes(quantity.key));
      this.find(`.tiles.${quantity.part}`).append(tile);
    });
    for (const tile of this.find(".given").children) {
      const of = tile.dataset.key;
      tile.classList.toggle("used", used.includes(of));
      shade(tile, given[of], original[of]);
    }
    this.find(".edited").hidden = !this.changed;
  }
  // Remarks on the computation: where rows of its matrices come from, and what the lesson does with the result.
  remark({ key, name, index, part, right, recorded, time }) {
    const shown = new Set([key, ...keysIn(right, this.step.look(time))]);
    const lines = [...shown].flatMap((shownKey) => this.step.sources(shownKey).map(({ example, length, source }) =>
      `Row ${example} of ${shownKey} is that of ${source}, because example ${example} ends at t = ${length}.`));
    if (!recorded) lines.push("No line of this lesson shows this value. The numbers are those of the equation.");
    const handed = part === "forward" && !this.changed && this.step.states[name]?.[index];
    if (handed) lines.push(`Passed to the time step t = ${index + 1}, in this lesson's arrangement:`);
    const state = handed ? [named(matrix(name, handed), this.order.map((example) => `example ${example}`))] : [];
    return [...lines.map((line) => element("p", {}, line)), ...state];
  }
}
all(".player").forEach((panel) => new Player(panel));

// `mark` of lessons.js sends this event. The bar shows the values of a marked line, equation or node of a graph.
document.addEventListener("marked", ({ detail: { target, lesson, wanted } }) => {
  // In a narrow window the bar is at the edge that is farther from the marked element, so that it does not cover it.
  bar.classList.toggle("above", target.getBoundingClientRect().top > innerHeight / 2);
  const panel = lesson?.querySelector(".player");
  if (panel === target) panel.player.markNodes();
  if (!panel || panel.contains(target)) return;
  const { name } = target.dataset;
  const given = all(".given .matrix", panel).filter(({ dataset: { key } }) => key === name || key.startsWith(`${name}[`));
  const tiles = [...given, ...all(".tiles .matrix", panel).filter((tile) => wanted.includes(tile.dataset.eq))].map((tile) => {
    const copy = tile.cloneNode(true);
    copy.className = "matrix";
    delete copy.dataset.eq;
    if (given.includes(tile) && name in panel.player.step.weights) copy.querySelector("small").append(", before the step");
    all("td", copy).forEach((cell) => cell.replaceChildren(inWords(Number(cell.dataset.value))));
    return copy;
  });
  if (tiles.length) bar.append(element("div", { class: "values" }, ...tiles));
});

// The nodes of a graph are one stop for the Tab key; the arrow keys go from node to node.
for (const svg of all(".drawn svg")) {
  const nodes = all(".node", svg).filter((node) => node.dataset.name);
  svg.setAttribute("role", "group");
  svg.setAttribute("aria-label", svg.querySelector("title").textContent);
  nodes.forEach((node, index) => {
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", `${node.dataset.name}, ${node.querySelector("title").textContent}`);
    node.setAttribute("tabindex", index ? -1 : 0);
    node.addEventListener("keydown", (event) => {
      const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!way) return;
      event.preventDefault();
      event.stopPropagation();
      const next = nodes[index + way] ?? node;
      node.setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    });
  });
}
