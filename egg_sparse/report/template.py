"""The template of the page, for jinja2 with autoescape."""

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }}</title>
<style>
:root {
  --paper: #ffffff; --panel: #f5f6f7; --line: #d8dadd; --ink: #222222; --grey: #6b6b6b; --warn: #a33b00;
  --color-0: #0072b2; --color-1: #d55e00; --color-2: #009e73;
  --color-3: #cc79a7; --color-4: #e69f00; --color-5: #56b4e9;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --panel: #1e2226; --line: #3a4046; --ink: #e6e7e8; --grey: #a2a6ab; --warn: #ff9a62;
    --color-0: #4aa8e0; --color-1: #ff8a3d; --color-2: #2fc99b;
    --color-3: #e09dc3; --color-4: #f0b93a; --color-5: #8acdf5;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 75rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .5rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p { max-width: 52rem; margin: .5rem 0; }
.quiet { color: var(--grey); font-size: .9rem; }
nav a { display: inline-block; margin-right: 1rem; color: var(--color-0); }
.box { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .4rem .45rem; text-align: right; white-space: nowrap; vertical-align: top; }
thead th { background: var(--panel); font-weight: 600; white-space: normal; vertical-align: bottom; min-width: 5rem; }
thead th:nth-child(2) { min-width: 0; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
th:first-child, td.text { text-align: left; }
tbody th { font-weight: 500; white-space: normal; min-width: 10rem; padding-left: 2.7rem; text-indent: -2rem; }
.list td, .list th { text-align: left; }
.list th:first-child { width: 40%; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 5rem; }
.std { color: var(--grey); }
.key { display: inline-block; width: 1.5rem; height: .7rem; margin-right: .5rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { color: var(--grey); font-size: .85rem; line-height: 1.4; margin-top: .3rem; }
details { margin: .5rem 0; border: 1px solid var(--line); border-radius: 6px; padding: .5rem .8rem; }
details .box { margin: .5rem 0 .2rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre {
  background: var(--panel); border-radius: 6px; padding: .6rem .8rem; margin: .5rem 0; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
ul { padding-left: 1.2rem; max-width: 60rem; }
li { overflow-wrap: anywhere; margin: .2rem 0; }
.left-out { margin-top: 1.25rem; border-left: 4px solid var(--warn); padding: .1rem .9rem; background: var(--panel); }
@media print {
  html { font-size: 9.5pt; }
  body { max-width: none; padding: 0; }
  table { font-size: .85rem; }
  th, td, thead th, tbody th { min-width: 0; padding-right: .3rem; }
  td { white-space: normal; }
  .box { overflow: visible; }
  .figures { grid-template-columns: 1fr 1fr; }
  nav, details:not([open]), .settings:not(:has(details[open])) { display: none; }
  h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; }
}
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="quiet">{{ summary }}</p>
{% if sections | length > 1 %}
<nav>
{% for section in sections %}<a href="#{{ section.anchor }}">{{ section.title }}</a>
{% endfor %}
</nav>
{% endif %}
</header>
<main>
{% if left_out %}
<section class="left-out">
<p>{{ left_out | length }} of {{ n_runs }} runs {{ "is" if left_out | length == 1 else "are" }} not in any mean:</p>
<ul>{% for run in left_out %}<li><code>{{ run.folder }}</code>: {{ run.fault }}.</li>{% endfor %}</ul>
</section>
{% endif %}
{% for section in sections %}
<section id="{{ section.anchor }}">
<h2>{{ section.title }}</h2>
<p>{{ section.table.caption }}</p>
<div class="box" tabindex="0" role="region" aria-label="Table of {{ section.title }}">
<table>
<thead><tr>{% for text in section.table.header %}<th scope="col">{{ text }}</th>{% endfor %}</tr></thead>
<tbody>
{% for group, cells in section.rows %}
<tr>
<th scope="row">
<svg class="key" viewBox="0 0 24 10" aria-hidden="true"><path d="M0 5H24" stroke="{{ group.variable }}" stroke-width="3"
{% if group.dashes %} stroke-dasharray="{{ group.dashes }}"{% endif %}/></svg>
{{ group.title }}
</th>
<td>{{ group.n_seeds }}</td>
{% for cell in cells %}
<td>{% if cell.best %}<b>{{ cell.mean_text }}</b>{% else %}{{ cell.mean_text }}{% endif %}
<span class="std">{{ cell.spread_text }}</span></td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if section.notes %}<ul class="quiet">{% for note in section.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
{% if section.figures %}
<div class="figures">
{% for figure in section.figures %}
<figure role="group" aria-label="{{ figure.caption }}">
{{ figure.svg }}
<figcaption>{{ figure.caption }}</figcaption>
</figure>
{% endfor %}
</div>
{% endif %}
<div class="settings">
<h3>Settings and commands</h3>
{% for group in section.groups %}
<details>
<summary>{{ group.title }}, {{ "1 run" if group.runs | length == 1 else "%d runs" % (group.runs | length) }}</summary>
{% if group.command %}<pre>{{ group.command }}</pre>{% endif %}
<div class="box" tabindex="0" role="region" aria-label="Runs of {{ group.title }}"><table class="list">
<thead><tr><th scope="col">run</th><th scope="col">seed</th></tr></thead>
<tbody>
{% for run in group.runs %}
<tr><td class="text long"><code>{{ run.folder }}</code></td><td>{{ run.seed }}</td></tr>
{% endfor %}
</tbody>
</table></div>
<div class="box" tabindex="0" role="region" aria-label="Options of {{ group.title }}"><table class="list">
<thead><tr><th scope="col">option</th><th scope="col">value</th></tr></thead>
<tbody>
{% for name, value in group.options %}
<tr><td class="text long">{{ name }}</td><td class="long">{{ value }}</td></tr>
{% endfor %}
</tbody>
</table></div>
</details>
{% endfor %}
</div>
</section>
{% endfor %}
</main>
</body>
</html>
"""
