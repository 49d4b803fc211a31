"""One self-contained page: verdicts first, then figures, tables and text.

Everything is inlined (plotly.js once, styles, data), and a content policy
forbids the browser to load anything else, so the page shows the same on a
plane, in ten years, or opened from a mail.
"""

import base64
import dataclasses
import functools
import html
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from vitscale.report import draw_html, draw_png, pictures, plain
from vitscale.report.figures import Figure
from vitscale.report.pictures import Picture

_HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows (dicts, or sequences with `columns`) under a title."""

  title: str
  rows: Sequence[Any]
  columns: Sequence[str] | None = None
  caption: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading with text, figures, tables and pictures of its own.

  `text` is plain: blank lines part paragraphs, lines starting with "- " make a
  list, `code` and **bold** are understood, and nothing else is.
  """

  title: str
  text: str = ""
  figures: Sequence[Figure] = ()
  tables: Sequence[Table] = ()
  pictures: Sequence[Picture] = ()


def write(
  path: str | os.PathLike,
  *,
  title: str,
  intro: str = "",
  verdicts: Sequence[Any] = (),
  tables: Sequence[Table] = (),
  figures: Sequence[Figure] = (),
  sections: Sequence[Section] = (),
  meta: Mapping[str, Any] | None = None,
  data: Mapping[str, Any] | None = None,
) -> pathlib.Path:
  """Writes the page, `report.json` beside it and `figures/*.png, *.pdf`.

  Args:
    path: the .html file, or a folder (then report.html inside it).
    verdicts: `laws.Verdict`s, or dicts with the same keys.
    sections: follow the page's own figures and tables.
    meta: small facts for the foot of the page (commit, devices, seconds).
    data: further top-level entries of report.json (laws, runs).

  Returns:
    Absolute path of the page.
  """
  path = pathlib.Path(path).absolute()
  if path.suffix.lower() not in (".html", ".htm"):
    path = path / "report.html"
  every = [*figures, *(f for s in sections for f in s.figures)]
  names = [f.name for f in [*every, *(p for s in sections for p in s.pictures)]]
  twice = sorted({n for n in names if names.count(n) > 1})
  if twice:
    raise ValueError(f"two figures named {twice[0]!r} would share a file")
  path.parent.mkdir(parents=True, exist_ok=True)
  files = {f.name: draw_png.draw(f, path.parent / "figures") for f in every}

  verdicts = [
    v if isinstance(v, Mapping) else plain.to_json(v) for v in verdicts
  ]
  body = [
    f"<header><h1>{_text(title)}</h1>{_prose(intro)}</header>",
    _verdicts(verdicts),
    *(_figure(f, files[f.name]["png"]) for f in figures),
    *(_table(t) for t in tables),
  ]
  for s in sections:
    body += [
      f"<section><h2>{_text(s.title)}</h2>{_prose(s.text)}",
      *(_figure(f, files[f.name]["png"]) for f in s.figures),
      *(_table(t) for t in s.tables),
      *(_picture(p, path.parent / "figures") for p in s.pictures),
      "</section>",
    ]
  body.append(_meta(meta or {}))
  page = _PAGE.format(
    title=_text(title),
    style=(_HERE / "page.css").read_text("utf-8"),
    plotly=_script(_plotly_js()) if every else "",
    body="\n".join(b for b in body if b),
    script=(_HERE / "page.js").read_text("utf-8") if every else "",
  )
  _replace(path, page)
  report = {
    **(data or {}),
    "title": title,
    "intro": intro,
    "verdicts": verdicts,
    "tables": [dataclasses.asdict(t) for t in _all(tables, sections, "tables")],
    "figures": [
      {**dataclasses.asdict(f), "png": f"figures/{f.name}.png"} for f in every
    ],
    "sections": [{"title": s.title, "text": s.text} for s in sections],
    "meta": meta or {},
  }
  _replace(path.parent / "report.json", plain.dumps(report, indent=1) + "\n")
  return path


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>
{style}</style>
{plotly}
</head>
<body>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _verdicts(verdicts: Sequence[Mapping[str, Any]]) -> str:
  if not verdicts:
    return ""
  items = []
  for v in verdicts:
    answer = str(v["verdict"])
    kind = re.sub(r"[^a-z]+", "-", answer.lower())
    control = v.get("control") or ""
    extra = f"<dt>control</dt><dd>{_inline(control)}</dd>" if control else ""
    items.append(
      f'<li class="verdict {kind}"><span class="badge">{_text(answer)}</span>'
      f'<div><p class="claim">{_inline(v["claim"])}</p>'
      f"<dl><dt>measured</dt><dd>{_inline(v.get('measured', ''))}</dd>"
      f"<dt>threshold</dt><dd>{_inline(v.get('threshold', ''))}</dd>"
      f"{extra}</dl></div></li>"
    )
  return f'<ul class="verdicts">{"".join(items)}</ul>'


def _figure(figure: Figure, png: pathlib.Path) -> str:
  image = base64.b64encode(png.read_bytes()).decode()
  payload = {"figure": draw_html.draw(figure), "dark": draw_html.dark(figure)}
  # "</script>" or "<!--" inside a string would end the script element.
  data = plain.dumps(payload).replace("<", "\\u003c")
  height = payload["figure"]["layout"]["height"]
  name = _text(figure.name)
  links = " ".join(
    f'<a href="figures/{name}.{end}" download>{end.upper()}</a>'
    for end in ("png", "pdf")
  )
  return (
    f'<figure id="{name}"><h3>{_text(figure.title)}</h3>'
    f'<div class="plot" style="min-height:{height}px"></div>'
    f'<script type="application/json">{data}</script>'
    f'<noscript><img alt="{_text(figure.title)}" '
    f'src="data:image/png;base64,{image}"></noscript>'
    f"<figcaption>{_inline(figure.caption)} "
    f'<span class="files">{links}</span></figcaption></figure>'
  )


def _picture(picture: Picture, folder: pathlib.Path) -> str:
  folder.mkdir(parents=True, exist_ok=True)
  file = folder / f"{picture.name}.png"
  pictures.save(file, picture.image)
  image = base64.b64encode(file.read_bytes()).decode()
  title = _text(picture.title)
  return (
    f'<figure id="{_text(picture.name)}" class="picture"><h3>{title}</h3>'
    f'<img alt="{title}" src="data:image/png;base64,{image}">'
    f"<figcaption>{_inline(picture.caption)}</figcaption></figure>"
  )


def _table(table: Table) -> str:
  heads, body, numeric = plain.cells(table.rows, table.columns)
  kinds = [' class="n"' if n else "" for n in numeric]
  head = "".join(f"<th{k}>{_text(h)}</th>" for k, h in zip(kinds, heads))
  rows = "".join(
    "<tr>"
    + "".join(f"<td{k}>{_text(v)}</td>" for k, v in zip(kinds, row))
    + "</tr>"
    for row in body
  )
  note = (
    f'<p class="note">{_inline(table.caption)}</p>' if table.caption else ""
  )
  return (
    f'<div class="table"><h3>{_text(table.title)}</h3><div class="scroll">'
    f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    f"{note}</div>"
  )


def _meta(meta: Mapping[str, Any]) -> str:
  pairs = "".join(
    f"<div><dt>{_text(k)}</dt><dd>{_text(plain.number(v))}</dd></div>"
    for k, v in meta.items()
  )
  return f"<footer><dl>{pairs}</dl></footer>" if pairs else ""


def _prose(text: str) -> str:
  out = []
  for block in re.split(r"\n\s*\n", text.strip()):
    lines = [line.strip() for line in block.splitlines() if line.strip()]
    if not lines:
      continue
    if lines[0].startswith("- "):
      items: list[str] = []
      for line in lines:
        if line.startswith("- "):
          items.append(line[2:])
        else:
          items[-1] += " " + line
      listed = "".join(f"<li>{_inline(i)}</li>" for i in items)
      out.append(f"<ul>{listed}</ul>")
    else:
      out.append(f"<p>{_inline(' '.join(lines))}</p>")
  return "".join(out)


def _inline(text: Any) -> str:
  text = _text(text)
  text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
  return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def _text(text: Any) -> str:
  return html.escape(str(text), quote=True)


def _script(text: str) -> str:
  return f"<script>{text}</script>"


@functools.cache
def _plotly_js() -> str:
  """The library as shipped inside the plotly package; no plotly import."""
  file = resources.files("plotly") / "package_data" / "plotly.min.js"
  return file.read_text("utf-8")


def _all(own: Sequence[Any], sections: Sequence[Section], name: str) -> list:
  return [*own, *(v for s in sections for v in getattr(s, name))]


def _replace(path: pathlib.Path, text: str) -> None:
  """Never a half-written report: a new file takes the old one's place."""
  part = path.with_name(path.name + ".part")
  part.write_text(text, "utf-8")
  part.replace(path)
