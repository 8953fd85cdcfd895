// Every page in a frame of every width and colour scheme; what is seen of each is left in #found.
const rgba = (text) => {
  const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
  return {r, g, b, a};
};
const over = (top, below) => ({
  r: top.r * top.a + below.r * (1 - top.a),
  g: top.g * top.a + below.g * (1 - top.a),
  b: top.b * top.a + below.b * (1 - top.a),
  a: 1,
});
const luminance = ({r, g, b}) => {
  const [x, y, z] = [r, g, b].map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const ratio = (one, other) => {
  const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
};

function behind(element, view) {
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(rgba(view.getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), {r: 255, g: 255, b: 255, a: 1});
}

// Texts whose contrast is below WCAG 2's AA: 4.5, of large ones 3.
function faint(view) {
  const found = [];
  const walker = view.document.createTreeWalker(view.document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.getClientRects().length) continue;
    const style = view.getComputedStyle(element);
    const back = behind(element, view);
    const ink = over(rgba(element.closest("svg") ? style.fill : style.color), back);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const seen = ratio(ink, back);
    if (seen < (large ? 3 : 4.5)) found.push(`${seen.toFixed(2)}: ${node.data.trim().slice(0, 40)}`);
  }
  return found;
}

function see(view) {
  const {documentElement: root, images} = view.document;
  return {
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    overflow: root.scrollWidth - root.clientWidth,
    requests: view.performance.getEntriesByType("resource").map((x) => x.name).filter((x) => !x.startsWith("data:")),
    broken: [...images].filter((image) => !image.naturalWidth).length,
    headings: [...view.document.querySelectorAll("h1, h2")].map((x) => x.textContent.trim()),
    page: view.getComputedStyle(view.document.body).backgroundColor,
    faint: faint(view),
  };
}

async function all([pages, widths]) {
  const found = [];
  for (const [name, html] of Object.entries(pages))
    for (const width of widths)
      for (const scheme of ["light", "dark"]) {
        const frame = document.createElement("iframe");
        frame.style = `width: ${width}px; height: 800px; border: 0; color-scheme: ${scheme}`;
        frame.srcdoc = html;
        const loaded = new Promise((done) => (frame.onload = done));
        document.body.append(frame);
        await loaded;
        found.push({name, width, scheme, ...see(frame.contentWindow)});
        frame.remove();
      }
  return found;
}

all(given).then((found) => {
  const told = document.createElement("pre");
  told.id = "found";
  told.textContent = JSON.stringify(found);
  document.body.append(told);
});
