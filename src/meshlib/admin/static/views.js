// The parts of the page. Each is a module with draw({model, extra, chosen, choose, source, matches}), which makes its elements, and,
// if it shows what is not in mesh.json, load(source, chosen). parts: of mesh.json; alarm: which of its alarms the tab shows, in words.

export const VIEWS = [
  { id: "services", title: "Services", parts: ["services", "ejections"], alarm: ["ejections", "ejected"], open: () => import("./services.js") },
  { id: "graph", title: "Graph", parts: ["graph"], open: () => import("./graph.js") },
  { id: "endpoints", title: "Endpoints", parts: ["clusters"], open: () => import("./endpoints.js") },
  { id: "routes", title: "Routes", parts: ["routes"], open: () => import("./routes.js") },
  { id: "calls", title: "Calls", parts: ["calls", "requests"], open: () => import("./calls.js") },
  { id: "traces", title: "Traces", parts: [], open: () => import("./traces.js") },
  {
    id: "configuration",
    title: "Configuration",
    parts: ["problems", "unsupported"],
    alarm: ["problems", "refused"],
    open: () => import("./configuration.js"),
  },
  { id: "certificates", title: "Certificates", parts: ["certificates"], alarm: ["expired", "over"], open: () => import("./certificates.js") },
];

/** What the address names: #/calls/7 is {view: calls, rest: "7"}; the first view where it names none. */
export function named(hash) {
  const [, id, rest] = /^#\/([^/]*)\/?(.*)$/.exec(hash) ?? [];
  return { view: VIEWS.find((view) => view.id === id) ?? VIEWS[0], rest: decoded(rest ?? "") };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
