// A document in memory, enough for the page of --report, which prints what it drew as JSON: node dom.js PAGE.html
const fs = require("fs");
const html = fs.readFileSync(process.argv[2], "utf8");
const part = (open) => html.split(open)[1].split("</script>")[0];

class Node {
  constructor(tag) { this.tag = tag; this.attributes = {}; this.children = []; this.style = {}; this.dataset = {}; this.value = "0"; this.checked = false; }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  addEventListener() {}
  get classList() { return { contains: () => false, toggle: () => {} }; }
  all(tag) { return this.children.flatMap((child) => child instanceof Node ? [...(child.tag === tag ? [child] : []), ...child.all(tag)] : []); }
  get text() { return this.textContent ?? this.children.map((child) => child instanceof Node ? child.text : String(child)).join(""); }
}
globalThis.Node = Node;
globalThis.window = { innerWidth: 1280 };
const ids = {};
globalThis.document = {
  createElement: (tag) => new Node(tag),
  createElementNS: (_, tag) => new Node(tag),
  getElementById: (id) => ids[id] ??= new Node(id),
  querySelectorAll: () => [],
};
document.getElementById("data").textContent = part('<script type="application/json" id="data">');
new Function(part("<script>"))();
const figures = ids["curves"].all("figure").map((figure) => ({
  metric: figure.attributes["data-metric"],
  caption: figure.all("figcaption")[0].text,
  labels: figure.all("text").map((text) => ({ text: text.text, ...text.attributes })),
  paths: figure.all("path").map((path) => path.attributes),
}));
console.log(JSON.stringify({ figures, runs: ids["runs"].children.map((run) => run.text) }));
