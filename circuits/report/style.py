"""The looks of a report."""

STYLE = """<style>
html { scroll-behavior: smooth; }
body { font: 14px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0; }
main { max-width: 950px; margin: 0 auto 60px; }
/* Figures take the whole width; all else keeps off the edges. */
main > :not(.figure):not(iframe) { margin-left: 8px; margin-right: 8px; }
h1 { font-size: 24px; line-height: 1.25; margin: 24px 8px 4px; }
h2 { font-size: 20px; margin-top: 44px; margin-bottom: 8px; border-bottom: 2px solid #222; }
h3 { font-size: 16px; margin-top: 28px; margin-bottom: 4px; }
h4 { font-size: 14px; margin-top: 20px; margin-bottom: 4px; color: #444; }
p { margin-top: 4px; margin-bottom: 8px; }
ul { margin-top: 4px; margin-bottom: 8px; padding-left: 22px; }
li { margin: 3px 0; }
a { color: #08519c; }
.loud { color: #cb181d; font-weight: bold; }
.note { color: #555; font-size: 13px; }
nav { font-size: 13px; border: 1px solid #ddd; border-radius: 4px; padding: 4px 10px;
  margin-top: 12px; }
nav > ul { columns: 2; column-gap: 30px; }
nav ul { margin: 2px 0; }
nav li { break-inside: avoid; }

table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums;
  margin: 6px 0; }
th { text-align: left; font-weight: 600; }
th, td { padding: 2px 10px 2px 0; vertical-align: top; border-bottom: 1px solid #eee; }
.number { text-align: right; white-space: nowrap; }
.facts th { color: #555; font-weight: normal; white-space: nowrap; }
.wide { overflow-x: auto; }
@media (max-width: 949px) { .figure { overflow-x: auto; } }
code, pre { font: 12px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { background: #f5f5f5; padding: 6px 10px; margin-top: 2px; white-space: pre-wrap;
  overflow-wrap: anywhere; }

.pair { margin: 6px 0 10px; }
.pair th { color: #555; font-weight: normal; width: 75px; }
.pair th, .pair td { border: 0; padding-top: 0; padding-bottom: 0; }
.pair td { line-height: 1.9; }
.token { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; background: #f2f2f2;
  border-radius: 3px; padding: 1px 2px; margin-right: 2px; white-space: pre; }
.differs { background: #fdd49e; font-weight: bold; }
.after { background: #d9e8f5; }
dt { font-weight: 600; }
dd { margin: 0 0 6px 22px; }
iframe { display: block; border: 1px solid #ccc !important; box-sizing: border-box; }
</style>"""
