"""The style of a page: one column, figures in a grid, light or dark as the reader's screen is."""

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1d1d1b; --quiet: #5d5d58; --rule: #d9d9d2; --shade: #f2f2ed; --link: #0b5cad;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #191a1b; --ink: #e4e4e0; --quiet: #a5a5a0; --rule: #3c3d3e; --shade: #242627; --link: #7db7f0; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1rem clamp(0.9rem, 4vw, 2.5rem) 4rem; max-width: 80rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: clamp(1.5rem, 5vw, 2.1rem); line-height: 1.2; margin: 0.6rem 0; }
h2 { font-size: 1.35rem; margin: 0 0 0.6rem; padding-top: 0.6rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.08rem; margin: 1.4rem 0 0.4rem; }
section { margin-top: 2.2rem; }
p, dd { max-width: 48rem; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; padding: 0; margin: 0.8rem 0; list-style: none; }
figure { margin: 0; min-width: 0; }
figure.table { margin: 0.8rem 0 1.2rem; }
figcaption { color: var(--quiet); font-size: 0.87rem; line-height: 1.45; margin-top: 0.35rem; max-width: 48rem; }
.figures {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr));
  gap: 1.4rem 1.8rem; margin: 0.8rem 0;
}
.figures img { display: block; width: 100%; max-width: 32rem; height: auto; }
figure.wide { grid-column: 1 / -1; }
figure.wide img { width: auto; max-width: none; min-width: 34rem; }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll:focus-visible, pre:focus-visible, summary:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.32rem 0.7rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: bottom; }
thead th { font-weight: 600; border-bottom: 2px solid var(--rule); }
tbody th { font-weight: 500; }
th:first-child { position: sticky; left: 0; background: var(--paper); max-width: 46vw; }
.numbers td, .numbers thead th:not(:first-child) {
  text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;
}
tbody tr:hover td, tbody tr:hover th { background: var(--shade); }
dt { font-weight: 600; margin-top: 0.8rem; }
dd { margin: 0.15rem 0 0; }
summary { cursor: pointer; padding: 0.3rem 0; }
pre {
  background: var(--shade); padding: 0.8rem; overflow: auto; max-height: 30rem; font-size: 0.82rem; line-height: 1.4;
  border-radius: 0.3rem;
}
.missing { background: var(--shade); border-left: 3px solid #c8862a; padding: 0.5rem 0.8rem; font-size: 0.95rem; }
@media print { .scroll, pre { overflow: visible; max-height: none; } nav { display: none; } }
"""
