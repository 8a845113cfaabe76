// The drop-down of the nodes' `peer` fields: the names of the peers known here, fresh at each
// opening. The field stays a text, so nothing changes in workflows, and any other text can be
// written. Where the page is built otherwise than this expects, it is the plain text field.

import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";

// Whether the field takes several names, with commas, and words such as "all".
const TAKES_SEVERAL = { ZBusSend: false, ZBusReceive: false, ZBusRun: true };
const FIELD = "peer";
const KINDS = {
  en: { here: "this computer", paired: "paired", seen: "paired, seen in the network" },
  ja: { here: "このコンピューター", paired: "ペアリング済み", seen: "ペアリング済み、LAN で検出" },
};

const dialogs = new WeakMap(); // the input of a canvas's dialog -> its node
let closeMenu = () => {};

// The pack's DisplayName, small and without signs: so that no two packs use one name.
app.registerExtension({
  name: "zbustensorbus.peers",
  setup() {
    for (const event of ["focusin", "click"]) {
      graphArea()?.addEventListener(event, ({ target }) => offer(target), true);
    }
  },
  nodeCreated(node) {
    const widget = node.comfyClass in TAKES_SEVERAL && node.widgets?.find((w) => w.name === FIELD);
    if (widget) drawnOnCanvas(node, widget);
  },
});

// What holds the canvas, and the nodes that are made of HTML: no other part of the page is listened
// to.
function graphArea() {
  const canvas = app.canvas?.canvas;
  return canvas?.closest("#graph-canvas-container") ?? canvas?.parentElement;
}

// --- where such a field is ---------------------------------------------------------------------

// A node on the canvas has no input of its own: a click opens a dialog with one.
function drawnOnCanvas(node, widget) {
  const { onClick, drawWidget } = widget;
  if (typeof onClick !== "function") return;
  widget.onClick = function (options) {
    const result = onClick.apply(this, arguments);
    const input = options?.canvas?.prompt_box?.querySelector("input");
    if (input) {
      dialogs.set(input, node);
      offer(input); // it has the focus already
    }
    return result;
  };
  if (typeof drawWidget !== "function") return;
  widget.drawWidget = function (ctx, { width, showText = true }) {
    drawWidget.apply(this, arguments);
    if (showText && !this.computedDisabled) drawMark(ctx, width - 22, this.y + this.height / 2);
  };
}

function drawMark(ctx, x, y) {
  ctx.save();
  ctx.fillStyle = "#999";
  ctx.beginPath();
  ctx.moveTo(x - 4, y - 2);
  ctx.lineTo(x + 4, y - 2);
  ctx.lineTo(x, y + 3);
  ctx.fill();
  ctx.restore();
}

function nodeOf(input) {
  if (input?.localName !== "input" || input.readOnly || input.disabled) return null;
  if (dialogs.has(input)) return dialogs.get(input);
  if (input.getAttribute("aria-label") !== FIELD) return null; // of a node that is made of HTML
  const id = input.closest("[data-node-id]")?.dataset.nodeId;
  const node = id ? app.canvas?.graph?.getNodeById?.(id) : null;
  return node?.comfyClass in TAKES_SEVERAL ? node : null;
}

// --- the drop-down -----------------------------------------------------------------------------

let offered = null; // the input whose menu is open or about to be

async function offer(input) {
  const node = nodeOf(input);
  if (!node || input === offered || !input.showPopover) return;
  closeMenu();
  offered = input;
  const several = TAKES_SEVERAL[node.comfyClass];
  const names = await known(several);
  if (offered !== input) return;
  if (names.length && document.activeElement === input) openMenu(input, names, several);
  else offered = null;
}

async function known(several) {
  try {
    const reply = await api.fetchApi("/zbus/peers", { cache: "no-store" });
    if (!reply.ok) return [];
    const { peers, words } = await reply.json();
    const language = app.extensionManager?.setting?.get?.("Comfy.Locale");
    const told = KINDS[language] ?? KINDS.en;
    const named = peers.map(({ name, kind }) => ({ name, note: told[kind] ?? "" }));
    return several ? [...words.map((name) => ({ name, note: "" })), ...named] : named;
  } catch {
    return [];
  }
}

function openMenu(input, names, several) {
  const menu = document.createElement("div");
  const ending = new AbortController();
  let rows = [];
  let chosen = -1;

  // Of several names the last one is being written.
  const start = () => (several ? input.value.lastIndexOf(",") + 1 : 0);

  function take(name) {
    const before = input.value.slice(0, start());
    closeMenu();
    input.value = before + name;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    if (dialogs.has(input)) input.parentElement.querySelector("button")?.click();
  }

  function show(written) {
    const wanted = written.trim().toLowerCase();
    const fitting = names.filter(({ name }) => name.toLowerCase().includes(wanted));
    rows = fitting.map(({ name, note }) => row(name, note, () => take(name)));
    menu.replaceChildren(...rows);
    menu.style.display = rows.length ? "block" : "none";
    choose(-1);
    place(menu, input);
  }

  function choose(index) {
    chosen = index;
    rows.forEach((one, i) => {
      one.setAttribute("aria-selected", String(i === chosen));
      one.style.background = i === chosen ? "var(--border-color, #555)" : "";
    });
    rows[chosen]?.scrollIntoView({ block: "nearest" });
  }

  function onKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") closeMenu();
    if (event.isComposing || !rows.length || (!step && !(event.key === "Enter" && rows[chosen]))) {
      return;
    }
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!step) rows[chosen].click();
    else choose((Math.max(chosen, step < 0 ? 0 : -1) + step + rows.length) % rows.length);
  }

  closeMenu = () => {
    closeMenu = () => {};
    offered = null;
    ending.abort();
    menu.remove();
  };
  const close = () => closeMenu();
  const outside = ({ target }) => target === input || menu.contains(target) || closeMenu();
  const { signal } = ending;
  // At the input before its own listeners: Enter takes a name before it ends the dialog.
  input.addEventListener("keydown", onKey, { signal, capture: true });
  input.addEventListener("input", () => show(input.value.slice(start())), { signal });
  input.addEventListener("blur", close, { signal });
  // Elsewhere on the page a click takes the focus away, and that is a blur.
  graphArea()?.addEventListener("pointerdown", outside, { signal, capture: true });
  graphArea()?.addEventListener("wheel", outside, { signal, capture: true, passive: true });
  window.addEventListener("resize", close, { signal });
  menu.addEventListener("mousedown", (event) => event.preventDefault()); // the focus stays
  for (const event of ["pointerdown", "pointerup", "click", "wheel"]) {
    menu.addEventListener(event, (happened) => happened.stopPropagation());
  }

  menu.setAttribute("role", "listbox");
  menu.popover = "manual"; // above everything, whatever the canvas's scale
  menu.style.cssText =
    "position:fixed;inset:auto;margin:0;padding:4px;max-height:40vh;max-width:90vw;overflow:auto;" +
    "font:13px sans-serif;border:1px solid var(--border-color,#555);border-radius:6px;" +
    "background:var(--comfy-menu-bg,#353535);color:var(--input-text,#ddd);pointer-events:auto";
  input.after(menu); // beside it, and so gone with it
  menu.showPopover();
  show("");
}

function row(name, note, take) {
  const one = document.createElement("div");
  const remark = document.createElement("span");
  one.textContent = name; // never as markup: it is somebody else's word
  remark.textContent = note;
  remark.style.cssText = "float:right;margin-left:2em;opacity:0.6";
  one.append(remark);
  one.setAttribute("role", "option");
  one.style.cssText = "padding:4px 8px;border-radius:4px;cursor:pointer;white-space:pre";
  one.addEventListener("click", take);
  one.addEventListener("pointerenter", () => (one.style.background = "var(--border-color, #555)"));
  one.addEventListener("pointerleave", () => (one.style.background = ""));
  return one;
}

function place(menu, input) {
  const field = input.getBoundingClientRect();
  menu.style.minWidth = `${field.width}px`;
  const below = window.innerHeight - field.bottom;
  const above = menu.offsetHeight + 4 > below && field.top > below;
  menu.style.top = `${above ? Math.max(0, field.top - menu.offsetHeight - 2) : field.bottom + 2}px`;
  menu.style.left = `${Math.max(0, Math.min(field.left, window.innerWidth - menu.offsetWidth))}px`;
}
