// What zbus has to say of a prompt that no node can show: a note in the corner of the page.

import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";

const SHOWN = 12000; // milliseconds

app.registerExtension({
  name: "zbustensorbus.notices",
  setup() {
    api.addEventListener("zbus.notice", ({ detail }) => {
      const severity = detail?.level === "error" ? "error" : "warn";
      const toast = app.extensionManager?.toast;
      toast?.add({ severity, summary: "zbus", detail: String(detail?.text ?? ""), life: SHOWN });
    });
  },
});
